"""Random JSON in every manifest, and random bytes in every file of every artefact: opened, or refused by name; never another error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from descriptor_gallery import make_gallery as make_described_gallery
from descriptor_gallery import unit_rows
from hypothesis import given
from hypothesis import strategies as st
from tiny_artefacts import make_identity, make_model, make_picture, make_street

from asymvpr_core.config import BankSettings, IndexSettings, MatcherSettings, NeighbourSettings
from asymvpr_core.errors import AsymvprError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import MANIFEST_NAME, check_pair, digest_of, read_manifest, sha256_of, write_manifest
from asymvpr_core.memory.neighbours import NeighbourLists, build_neighbours
from asymvpr_core.memory.store import StoredBank, build_bank
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.calibration import CALIBRATION, read_calibration
from asymvpr_core.retrieval.gallery_index import INDEX, open_index
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import QueryFrame

CHECKSUMS = {MANIFEST_NAME: "manifest_sha256", INDEX: "index_sha256", CALIBRATION: "sha256"}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([-1, 0, 2**31, 2**63, 10**15, 10**40]), st.floats(), st.text(max_size=8),
    st.sampled_from(["", "..", "/", "a/../../b", "\0", "\ud800", "nan", "0" * 64, "a" * 5000]),
)  # fmt: skip
anything = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=6
)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one artefact of each kind, whole."""
    folder = tmp_path_factory.mktemp("artefacts")
    make_street(folder / "gallery", 6)
    make_model(folder / "model", self_test=True)
    make_described_gallery(folder / "described", unit_rows(100, 16), np.arange(100) // 4)
    index_gallery(folder / "described", IndexSettings(kind="hnsw"))
    build_bank(folder / "described", BankSettings(rank=2), folder / "bank")
    build_neighbours(folder / "described", NeighbourSettings(k=3), folder / "neighbours")
    (folder / "run").mkdir()
    (folder / "run" / "weights.safetensors").write_bytes(b"none")
    write_manifest(folder / "run", "run", make_identity(), details={"query_network": "x", "preprocess": {}}, inputs={"gallery": "x"})
    return folder


def use_gallery(path: Path) -> None:
    """Open all that a gallery holds, and match one frame in it."""
    gallery = Gallery.open(path / "gallery")
    read_calibration(gallery.path)
    assert gallery.map_frame and len(gallery.digest) == 33
    gallery.image_path(0)
    recogniser = PlaceRecogniser.open(path / "gallery", path / "model", MatcherSettings(sequence="off"))
    result = recogniser.process(make_picture(2), QueryFrame(1)).prior
    assert all(0 <= candidate.keyframe_index < len(gallery) for candidate in result.candidates)


def use_model(path: Path) -> None:
    recogniser = PlaceRecogniser.open(path / "gallery", path / "model", MatcherSettings(sequence="off"))
    recogniser.process(make_picture(2), QueryFrame(1))


def use_described(path: Path) -> None:
    index = open_index(Gallery.open(path / "described"))
    scores, indices = index.search(unit_rows(2, 16, seed=5), 3)
    assert np.isfinite(scores).all() and (indices >= 0).all() and (indices < 100).all()


def use_bank(path: Path) -> None:
    stored = StoredBank.open(path / "bank")
    assert stored.mean_spread is None or stored.mean_spread == stored.mean_spread
    stored.check_gallery(Gallery.open(path / "described"))


def use_neighbours(path: Path) -> None:
    lists = NeighbourLists.open(path / "neighbours")
    lists.check_gallery(Gallery.open(path / "described"))


def use_run(path: Path) -> None:
    from asymvpr_core.config import ExportSettings
    from asymvpr_core.deploy.export import export_model

    export_model(path / "run", path / "exported", ExportSettings())


USES: dict[str, Callable[[Path], None]] = {
    "gallery": use_gallery, "model": use_model, "described": use_described, "bank": use_bank, "neighbours": use_neighbours, "run": use_run,
}  # fmt: skip


@contextmanager
def copy_of(artefacts: Path, name: str) -> Iterator[Path]:
    """Artefact `name` under its own path, to be spoilt, and the others untouched; all is put back in the end."""
    kept = artefacts.parent / f"{artefacts.name}_{name}_kept"
    shutil.copytree(artefacts / name, kept)
    try:
        yield artefacts / name
    finally:
        shutil.rmtree(artefacts / name)
        kept.rename(artefacts / name)
        shutil.rmtree(artefacts / "exported", ignore_errors=True)


def opened_or_refused(artefacts: Path, name: str) -> None:
    try:
        USES[name](artefacts)
    except AsymvprError as error:
        assert str(artefacts) in str(error) or len(str(error)) < 2000
        assert len(str(error)) < 20_000


def places_of(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value of a JSON document."""
    yield path
    for key, value in content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ():
        yield from places_of(value, (*path, key))


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value in one place."""
    if not path:
        return value
    content[path[0]] = put(content[path[0]], path[1:], value)
    return content


def seal(file: Path, content: Any) -> None:
    """Write JSON with the checksum of itself that a stranger would put there."""
    if isinstance(content, dict) and CHECKSUMS[file.name] in content:
        content[CHECKSUMS[file.name]] = None
        rest = {name: value for name, value in content.items() if name != CHECKSUMS[file.name]}
        content[CHECKSUMS[file.name]] = digest_of(rest)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", USES)
@given(data=st.data())
def test_any_json_anywhere_in_a_manifest_is_used_or_refused(artefacts: Path, name: str, data: st.DataObject):
    with copy_of(artefacts, name) as folder:
        file = folder / data.draw(st.sampled_from([file for file in CHECKSUMS if (folder / file).exists()]), "file")
        content = json.loads(file.read_text(encoding="utf-8"))
        places = list(places_of(content))
        for _ in range(data.draw(st.integers(1, 2), "changes")):
            place = data.draw(st.sampled_from(places), "place")
            try:
                content = put(content, place, data.draw(anything, "value"))
            except (KeyError, IndexError, TypeError):  # the first change took that place away
                continue
        seal(file, content)
        opened_or_refused(artefacts, name)


@pytest.mark.parametrize("name", USES)
@given(data=st.data())
def test_any_bytes_in_a_file_that_its_manifest_vouches_for_are_used_or_refused(artefacts: Path, name: str, data: st.DataObject):
    with copy_of(artefacts, name) as folder:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in CHECKSUMS)
        path = data.draw(st.sampled_from(files), "path")
        content = bytearray(path.read_bytes())
        for place, value in data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), "near the beginning"):
            content[min(place, len(content) - 1)] = value
        for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=2), "anywhere"):
            content[place] = value
        if data.draw(st.booleans(), "truncated"):
            del content[data.draw(st.integers(0, len(content)), "length") :]
        path.write_bytes(bytes(content))
        vouch_for(folder, path)
        opened_or_refused(artefacts, name)


def vouch_for(folder: Path, path: Path) -> None:
    """Write size and checksum of a changed file where its artefact lists them."""
    entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    if path.suffix == ".faiss":
        renamed = path.with_name(f"index-{entry['sha256'][:12]}.faiss")
        path.rename(renamed)
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        seal(folder / INDEX, content | {"file": entry, "file_name": renamed.name})
        return
    content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    content["files"][path.relative_to(folder).as_posix()] = entry
    seal(folder / MANIFEST_NAME, content)
    if path.name == "descriptors.npy" and (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        seal(folder / INDEX, index | {"descriptors_sha256": entry["sha256"]})


def test_the_artefacts_are_whole_before_anything_is_changed(artefacts: Path):
    for name, use in USES.items():
        if name == "run":  # of a network that does not exist: refused, and by name
            with pytest.raises(AsymvprError):
                use(artefacts)
        else:
            use(artefacts)
    check_pair(read_manifest(artefacts / "gallery", "gallery"), read_manifest(artefacts / "model", "model"), artefacts, artefacts)
