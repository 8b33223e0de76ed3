"""Manifests: what made an artefact, which files belong to it, and whether they are whole.

An artefact is a folder with a `manifest.json`. It is built beside its final name (`work_folder`)
and renamed when complete, so that a folder with a manifest is a finished artefact.
Every reader verifies the files that it uses and names the one that is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asymvpr_core import __version__
from asymvpr_core.errors import ArtefactError
from asymvpr_core.json_files import read_json
from asymvpr_core.manifest_fields import KnownFields
from asymvpr_core.work_folder import refuse_undecodable, result_folder

MANIFEST_NAME = "manifest.json"

Kind = Literal["gallery", "bank", "neighbours", "model", "run"]
# Version 2 of a model: several variants, and a graph that takes the picture instead of normalised planes.
FORMAT_VERSIONS: dict[Kind, int] = {"gallery": 1, "bank": 1, "neighbours": 1, "model": 2, "run": 1}
_REBUILD = {
    "gallery": "asymvpr gallery build",
    "bank": "asymvpr bank build",
    "neighbours": "asymvpr bank neighbours",
    "model": "asymvpr export",
    "run": "asymvpr train",
}


class FileEntry(BaseModel):
    """Size and SHA-256 of one file of an artefact."""

    model_config = ConfigDict(extra="forbid")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class GalleryNetworkIdentity(BaseModel):
    """What a descriptor is comparable with: network, weights, pre-processing and projection.

    Two galleries with the same identity hold comparable descriptors; a query model is trained
    for exactly one identity. `pair_id` is its short name.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    weights_sha256: str
    preprocess: dict[str, Any]
    projection_sha256: str | None
    dimension: int = Field(ge=1)

    @property
    def pair_id(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the identity's canonical JSON."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.name}, {self.dimension}-D, pair {self.pair_id}"


class Manifest(BaseModel):
    """Contents of `manifest.json`; `details` holds what only this kind of artefact has.

    `manifest_sha256` is the digest of all other fields: a flipped byte in a number of the
    pre-processing would otherwise change every descriptor and be seen by nobody.
    """

    model_config = ConfigDict(extra="forbid")
    kind: Kind
    format_version: int = 1
    created: str
    asymvpr_version: str = __version__
    gallery_network: GalleryNetworkIdentity
    settings: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    versions: dict[str, str] = {}
    details: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}
    manifest_sha256: str | None = None


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content without its `manifest_sha256`, as JSON with sorted keys and without spaces."""
    rest = {name: value for name, value in content.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256_stream(file)


def _sha256_stream(file: Any) -> str:  # hashlib.file_digest came with Python 3.11
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_manifest(
    folder: Path,
    kind: Kind,
    gallery_network: GalleryNetworkIdentity,
    *,
    settings: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    details: dict[str, Any] | None = None,
) -> Manifest:
    """Checksum every file in `folder` and write its manifest; the last step before the rename."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    manifest = Manifest(
        kind=kind,
        format_version=FORMAT_VERSIONS[kind],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gallery_network=gallery_network,
        settings=settings or {},
        inputs=inputs or {},
        versions=versions or {},
        details=details or {},
        files=files,
    )
    manifest.manifest_sha256 = digest_of(json.loads(manifest.model_dump_json()))
    write_text_atomically(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def read_manifest(folder: Path, kind: Kind) -> Manifest:
    """Read and check the manifest of an artefact of `kind`; its files are not read yet.

    Raises:
        ArtefactError: no such folder, unfinished, not JSON, changed since it was written, another
            kind, a newer format, or a file name that leaves the folder.
    """
    folder = Path(folder)
    refuse_undecodable(folder)
    path = folder / MANIFEST_NAME
    remedy = f"build it with '{_REBUILD[kind]}'"
    try:
        is_folder = folder.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null byte
        raise ArtefactError(f"the path {str(folder)[:200]!a} cannot be read: {error}", remedy="correct the path") from error
    if not is_folder:
        raise ArtefactError(f"there is no {kind} folder {folder}", remedy=remedy)
    try:
        refuse_outside(folder, path)
        raw = read_json(path, remedy)
    except FileNotFoundError as error:
        raise ArtefactError(f"{folder} has no {MANIFEST_NAME}, so it is no finished {kind}", remedy=remedy) from error
    newest = FORMAT_VERSIONS[kind]
    if isinstance(raw, dict) and raw.get("kind") == kind and isinstance(raw.get("format_version"), int) and raw["format_version"] > newest:
        raise ArtefactError(
            f"{path} has format version {raw['format_version']}",
            expected=f"at most {newest}",
            remedy="update asymvpr, or build the artefact with this version",
        )
    if isinstance(raw, dict) and "manifest_sha256" in raw and raw["manifest_sha256"] != digest_of(raw):
        raise ArtefactError(f"{path} is damaged: its content differs from its own checksum", remedy=remedy)
    try:
        manifest = Manifest.model_validate(raw)
        KnownFields.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path} is damaged: '{where}': {first['msg'].lower()}", remedy=remedy) from error
    if manifest.kind != kind:
        raise ArtefactError(f"{folder} is a {manifest.kind}", expected=f"a {kind}", remedy=f"give the {kind}'s folder")
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
            raise ArtefactError(f"{path} lists {name!a}, a path outside its folder", remedy="do not use this artefact")
    return manifest


def verify_files(folder: Path, manifest: Manifest, names: list[str] | None = None) -> None:
    """Check presence, size and SHA-256 of the named files (None: all of them).

    Raises:
        ArtefactError: naming the first file that is missing, truncated, damaged or not listed.
    """
    for name in manifest.files if names is None else names:
        verify_size(folder, manifest, name)
        verify_content(folder, manifest, name)


def verify_size(folder: Path, manifest: Manifest, name: str) -> None:
    """Raise ArtefactError when the file is missing, truncated or not listed; nothing of it is read."""
    path, entry = Path(folder) / name, manifest.files.get(name)
    remedy = f"restore the file or rebuild with '{_REBUILD[manifest.kind]}'"
    if entry is None:
        raise ArtefactError(f"{folder} does not list '{name}' in its {MANIFEST_NAME}", remedy=remedy)
    refuse_outside(folder, path)
    if not path.is_file():
        raise ArtefactError(f"{path} is missing", remedy=remedy)
    if path.stat().st_size != entry.bytes:
        raise ArtefactError(f"{path} has {path.stat().st_size} bytes", expected=f"{entry.bytes}", remedy=remedy)


def refuse_outside(folder: Path, path: Path) -> None:
    """Refuse a file of an artefact that is a link to somewhere else, whatever lies there.

    Raises:
        ArtefactError: naming the file; also where the links lead in a circle, or the name is none that a file can have.
    """
    try:
        inside = path.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle (RuntimeError before Python 3.13), a null byte
        raise ArtefactError(f"{str(path)!a} cannot be read: {error}", remedy="do not use this artefact") from error
    if not inside:
        raise ArtefactError(
            f"{path} is a link to {path.resolve()}, outside its folder", expected="the file itself",
            remedy="copy it there, or do not use this artefact",
        )  # fmt: skip


def verify_content(folder: Path, manifest: Manifest, name: str) -> None:
    """Raise ArtefactError when the checksum of a listed file differs, or it cannot be read; reads all of it."""
    path = Path(folder) / name
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", remedy="check its permissions and the disk") from error
    if found != manifest.files[name].sha256:
        remedy = f"restore the file or rebuild with '{_REBUILD[manifest.kind]}'"
        raise ArtefactError(f"{path} is damaged: its checksum differs from the manifest's", remedy=remedy)


def query_identity(model: Manifest) -> GalleryNetworkIdentity:
    """What descriptors of a query model are comparable with light against light: those of the very same model.

    It is the identity of a gallery that a session saved. Raises ArtefactError where the manifest lacks its parts.
    """
    name, preprocess, file = model.details.get("query_network"), model.details.get("preprocess"), model.files.get("model.onnx")
    if not isinstance(preprocess, dict) or file is None:
        raise ArtefactError("the manifest of the query model does not say its pre-processing and its weights", remedy="export it again")
    return GalleryNetworkIdentity(
        name=str(name or "query_network"), weights_sha256=file.sha256, preprocess=preprocess, projection_sha256=None,
        dimension=model.gallery_network.dimension,
    )  # fmt: skip


def is_own_session(gallery: Manifest, model: Manifest) -> bool:
    """Whether a gallery was saved by a session that ran this very query model: its descriptors are the light network's."""
    return gallery.inputs.get("layout") == "session" and gallery.gallery_network.pair_id == query_identity(model).pair_id


def check_pair(gallery: Manifest, model: Manifest, gallery_path: Path, model_path: Path) -> None:
    """Refuse a query model that was trained for another gallery network than the gallery's.

    A gallery that a session saved belongs to the query model that ran then, and to no other.

    Raises:
        ArtefactError: naming both pairs.
    """
    if gallery.inputs.get("layout") == "session" and not is_own_session(gallery, model):
        raise ArtefactError(
            f"gallery {gallery_path} was saved by a session of the query model ({gallery.gallery_network}), "
            f"query model {model_path} is ({query_identity(model)})",
            expected="the query model of that session",
            remedy="open it with that model, or build a gallery from the session's bag with 'asymvpr gallery build'",
        )
    if gallery.inputs.get("layout") != "session" and gallery.gallery_network.pair_id != model.gallery_network.pair_id:
        raise ArtefactError(
            f"gallery {gallery_path} was made by ({gallery.gallery_network}), "
            f"query model {model_path} was trained for ({model.gallery_network})",
            expected="a gallery and a model of one pair",
            remedy="build the gallery with --projection-from the gallery that the model was trained on, or train a model for this gallery",
        )


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder for an artefact that is made in one go, and name it `final` when the block succeeds.

    It lies in `.NAME.partial` beside `final`. On an error nothing remains; what a killed process left there is
    removed by the next one that makes the same artefact.

    Raises:
        ArtefactError: `final` exists already, its parent cannot be written, or another process is making it.
    """
    final = Path(final)
    with result_folder(final, final.with_name(f".{final.name}.partial"), worth_keeping=lambda work: False) as staging:
        yield staging


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees either the old content or all of the new one."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file so that it exists only when it is whole, also after a power cut; nothing remains of a failure."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
