"""The index of a gallery on disk: `index.json`, and the file that it names, written atomically beside the descriptors."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from asymvpr_core import __version__
from asymvpr_core.config import IndexKind, IndexSettings
from asymvpr_core.errors import ArtefactError, RetrievalError
from asymvpr_core.gallery.store import DESCRIPTORS, Gallery
from asymvpr_core.json_files import read_json
from asymvpr_core.manifest import FileEntry, digest_of, read_manifest, refuse_outside, sha256_of, write_text_atomically
from asymvpr_core.retrieval.index import in_order, read_index, search_with_ties, view_index, write_index
from asymvpr_core.retrieval.recipes import RECIPES, Parameters, compose, set_parameters
from asymvpr_core.work_folder import unwritable

INDEX = "index.json"
FORMAT_VERSION = 2  # 2: trials have a bound of their recall
_REMEDY = "build it anew with 'asymvpr index build'"
_WRITABLE = "free space, or check the permissions of the folder; the index before stays valid"


class Trial(BaseModel):
    """What one kind of index with one set of search parameters costs and finds, measured on made-up queries."""

    model_config = ConfigDict(extra="forbid")
    kind: IndexKind
    parameters: Parameters
    memory_bytes: int = Field(ge=0)  # that a search needs at hand: the index, or all descriptors for kind exact
    bytes_per_vector: float
    milliseconds: float  # median of one query
    recall_at_1: float
    recall_at_k: float
    recall_at_k_bound: float | None = None  # one-sided 95 % bound over the queries; None: measured by an earlier version
    build_seconds: float


class IndexManifest(BaseModel):
    """Contents of `index.json`: what the index is, which descriptors it is of, and how it was chosen."""

    model_config = ConfigDict(extra="forbid")
    format_version: int = FORMAT_VERSION
    created: str
    asymvpr_version: str = __version__
    faiss_version: str = faiss.__version__
    kind: IndexKind
    refine: str
    parameters: Parameters
    keyframes: int = Field(ge=0)
    dimension: int = Field(ge=1)
    pair_id: str
    descriptors_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    file_name: str | None = Field(pattern=r"^index-[0-9a-f]{12}\.faiss$")  # None: nothing beside the descriptors
    file: FileEntry | None
    settings: dict[str, Any] = {}
    trials: list[Trial] = []
    note: str = ""
    index_sha256: str | None = None

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        IndexSettings.model_validate({name: settings[name] for name in ("k", "recall") if name in settings})  # those that are read
        return settings


class GalleryIndex:
    """A gallery's index, open for searching: what `retrieval.index.search` and the matcher take. Not thread-safe.

    Where a search of an approximate kind finds fewer than k rows, that query is answered by the exact
    one; `answered_exactly` counts such queries.
    """

    def __init__(
        self, kind: IndexKind, index: Any, descriptors: np.ndarray, parameters: Parameters, refine: str,
        check: Callable[[], None] | None = None, tuned_k: int = 10,
    ):  # fmt: skip
        """Compose the FAISS index of `kind` with the stored descriptors.

        Args:
            index: what `recipes.build` gave or the file holds; None for kind exact.
            descriptors: (N, D), memory-mapped perhaps.
            tuned_k: the neighbours for which `parameters` were found.
            check: called before every search; raises when the gallery has turned out to be damaged.
        """
        self.kind, self.parameters, self.refine = kind, parameters, refine
        self.ntotal, self.d = len(descriptors), int(descriptors.shape[1])
        self.answered_exactly = 0
        self._exact_order = not RECIPES[kind].refines
        self._check, self._descriptors = check, descriptors
        self._index: Any
        self._index, self._keep = compose(kind, index, descriptors, refine)
        set_parameters(self._index, parameters)
        self._k_factor, self._tuned_k = parameters.get("k_factor_rf", 0), tuned_k

    @property
    def faiss_index(self) -> Any:
        """The FAISS index underneath, for measurements."""
        return self._index

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of every query: scores (Q, k) descending, indices (Q, k); of equal scores the smaller index first.

        Call it through `retrieval.index.search`, which checks the queries, clips k and caps the threads.

        Raises:
            ArtefactError: the check of the gallery's files, which goes on behind the search, found damage.
        """
        if self._check is not None:
            self._check()
        if self._exact_order:
            return search_with_ties(self._index, queries, k)
        if self._k_factor:
            # The recall was tuned for few neighbours. Where a filter asks for thousands, as many candidates as that
            # are ranked again and no multiple of them: that would read most of the stored descriptors.
            self._index.k_factor = max(1.0, min(self._k_factor, self._k_factor * self._tuned_k / k))
        scores, indices = self._index.search(queries, k)
        missing = indices[:, -1] < 0
        if missing.any():
            self.answered_exactly += int(missing.sum())
            scores[missing], indices[missing] = search_with_ties(view_index(self._descriptors), queries[missing], k)
        return in_order(scores, indices, k)


@contextmanager
def locked_gallery(folder: Path) -> Iterator[None]:
    """Keep other writers out until the block ends. The folder itself is locked, so that no lock file stays in a gallery.

    Raises:
        ArtefactError: another process writes there, there is no such folder, or it cannot be written.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ArtefactError(f"gallery {folder} cannot be opened: {error.strerror}", remedy="check the path and its permissions") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtefactError(f"another process is writing to gallery {folder}", remedy="wait for it") from error
        if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):  # before minutes of measuring
            raise unwritable(folder / INDEX, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), _WRITABLE)
        yield
    finally:
        os.close(descriptor)


def save_index(
    folder: Path, kind: IndexKind, index: Any, parameters: Parameters, refine: str, *, descriptors: np.ndarray, descriptors_sha256: str,
    pair_id: str, settings: dict[str, Any] | None = None, trials: list[Trial] | None = None, note: str = "",
) -> IndexManifest:  # fmt: skip
    """Write an index into the gallery folder: its file first, then `index.json`; the one before stays valid until then.

    To be called inside of `locked_gallery`, unless nobody else knows the folder yet.

    Raises:
        RetrievalError, ArtefactError: the folder cannot be written.
    """
    name, entry, is_new = None, None, False
    try:
        _check_unchanged(folder, descriptors_sha256)
        if index is not None:
            temporary = folder / f".index-{os.getpid()}.partial"
            try:
                write_index(index, temporary)
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                entry = FileEntry(bytes=temporary.stat().st_size, sha256=sha256_of(temporary))
                name = f"index-{entry.sha256[:12]}.faiss"
                is_new = not (folder / name).exists()
                os.replace(temporary, folder / name)
            finally:
                temporary.unlink(missing_ok=True)
        manifest = IndexManifest(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            kind=kind, refine=refine, parameters=parameters, keyframes=len(descriptors), dimension=int(descriptors.shape[1]),
            pair_id=pair_id, descriptors_sha256=descriptors_sha256, file_name=name, file=entry,
            settings=settings or {}, trials=trials or [], note=note,
        )  # fmt: skip
        manifest.index_sha256 = _digest(manifest)
        try:
            write_text_atomically(folder / INDEX, manifest.model_dump_json(indent=2) + "\n")
        except OSError:
            if name is not None and is_new:
                (folder / name).unlink()  # nothing names it
            raise
        for old in [*folder.glob("index-*.faiss"), *folder.glob(".index-*.partial")]:
            if old.name != name:
                old.unlink()  # a process that searches it keeps it open
    except OSError as error:
        raise unwritable(folder / INDEX, error, _WRITABLE) from error
    return manifest


def read_index_manifest(gallery: Gallery) -> IndexManifest | None:
    """What `index.json` says, checked against the gallery; None for a gallery of an earlier version, which has none.

    Raises:
        ArtefactError: missing, damaged, of a newer version, or the index of other descriptors.
    """
    path = gallery.path / INDEX
    try:
        refuse_outside(gallery.path, path)
        raw = read_json(path, _REMEDY)
        if isinstance(raw, dict) and isinstance(raw.get("format_version"), int) and raw["format_version"] > FORMAT_VERSION:
            raise ArtefactError(
                f"{path} has format version {raw['format_version']}", expected=f"at most {FORMAT_VERSION}",
                remedy="update asymvpr, or " + _REMEDY,
            )  # fmt: skip
        manifest = IndexManifest.model_validate(raw)
    except FileNotFoundError as error:
        if not gallery.manifest.details.get("index"):
            return None
        raise ArtefactError(f"{path} is missing", remedy=_REMEDY) from error
    except ValidationError as error:
        raise ArtefactError(f"{path} is damaged: {error.errors()[0]['msg'].lower()}", remedy=_REMEDY) from error
    if manifest.index_sha256 != _digest(manifest) or (manifest.file is None) != (manifest.file_name is None):
        raise ArtefactError(f"{path} is damaged: its content differs from its own checksum", remedy=_REMEDY)
    if (manifest.file is None) != (manifest.kind == "exact"):
        raise ArtefactError(f"{path} names {manifest.file_name} for an index of kind {manifest.kind}", remedy=_REMEDY)
    expected = gallery.manifest.files[DESCRIPTORS].sha256
    if (manifest.descriptors_sha256, manifest.keyframes) != (expected, len(gallery)):
        raise ArtefactError(f"{path} is the index of other descriptors than those of gallery {gallery.path}", remedy=_REMEDY)
    return manifest


def open_index(gallery: Gallery) -> GalleryIndex:
    """Open the index of a gallery; its file is checked against its checksum and then memory-mapped.

    A gallery of an earlier version, without `index.json`, is searched exactly, as it was then.

    Raises:
        ArtefactError: missing, damaged, or the index of other descriptors; never another kind instead.
        RetrievalError: FAISS cannot read it.
    """
    manifest = read_index_manifest(gallery)
    check = None if gallery.verification is None else gallery.verification.raise_if_damaged
    if manifest is None:
        return GalleryIndex("exact", None, gallery.descriptors, {}, "descriptors", check)
    index = read_index_file(gallery, manifest)
    return GalleryIndex(
        manifest.kind, index, gallery.descriptors, manifest.parameters, manifest.refine, check, int(manifest.settings.get("k", 10))
    )


def read_index_file(gallery: Gallery, manifest: IndexManifest, *, mapped: bool = True) -> Any:
    """The FAISS index in the file that `manifest` names, after its checksum was tested; None for kind exact, which has no file.

    Args:
        mapped: through a memory map, for searching; otherwise in memory, where it can be extended.

    Raises:
        ArtefactError: missing or damaged.
        RetrievalError: FAISS cannot read it, or it holds another number of descriptors, or of another dimension.
    """
    if manifest.file is None or manifest.file_name is None:
        return None
    path = gallery.path / manifest.file_name
    refuse_outside(gallery.path, path)
    if not path.is_file():
        raise ArtefactError(f"{path} is missing", remedy=_REMEDY)
    if path.stat().st_size != manifest.file.bytes:
        raise ArtefactError(f"{path} has {path.stat().st_size} bytes", expected=f"{manifest.file.bytes}", remedy=_REMEDY)
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", remedy="check its permissions and the disk") from error
    if found != manifest.file.sha256:
        raise ArtefactError(f"{path} is damaged: its checksum differs from that in {INDEX}", remedy=_REMEDY)
    index = read_index(path, mapped=mapped)
    if (index.ntotal, index.d) != gallery.descriptors.shape:
        raise RetrievalError(
            f"{path} holds {index.ntotal} descriptors of {index.d}-D",
            expected=f"{len(gallery)} of {gallery.descriptors.shape[1]}-D as in gallery {gallery.path}", remedy=_REMEDY,
        )  # fmt: skip
    return index


def _digest(manifest: IndexManifest) -> str:
    content = json.loads(manifest.model_dump_json(exclude={"index_sha256"}))
    return digest_of(content)


def _check_unchanged(folder: Path, descriptors_sha256: str) -> None:
    """Raise ArtefactError where the gallery got other descriptors while its index was made."""
    if read_manifest(folder, "gallery").files[DESCRIPTORS].sha256 != descriptors_sha256:
        raise ArtefactError(f"the descriptors of gallery {folder} have changed while its index was built", remedy=_REMEDY)
