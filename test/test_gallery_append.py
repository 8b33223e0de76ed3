"""More images for a finished gallery: what it then holds, that a kill leaves the old one, what has to be made anew, what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
from descriptor_gallery import make_gallery, unit_rows
from test_cli import refused, run
from test_gallery_index import clustered
from tiny_artefacts import change_manifest
from town_folder import make_folder

from asymvpr_core import folder_exchange, resumable
from asymvpr_core.config import BankSettings, GallerySettings, IndexSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import ArtefactError, GalleryError
from asymvpr_core.folder_exchange import exchange_folders
from asymvpr_core.gallery.append import append_to_gallery
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.encoder import GalleryEncoder
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import digest_of, read_manifest, verify_files
from asymvpr_core.memory.origin import check_origin
from asymvpr_core.memory.store import build_bank
from asymvpr_core.retrieval import building, tuning
from asymvpr_core.retrieval.building import extend_index, index_gallery
from asymvpr_core.retrieval.gallery_index import locked_gallery, open_index, read_index_file, read_index_manifest
from asymvpr_core.retrieval.index import search
from asymvpr_core.retrieval.recipes import RECIPES
from asymvpr_core.retrieval.tuning import made_up_queries, recall

SETTINGS = GallerySettings(projection_dim=8, chunk_size=4, batch_size=3, threads=1)
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    """Ten pictures; the gallery is built from the first six, the others are new."""
    return make_folder(tmp_path_factory.mktemp("street") / "images", places=5, looks=2)


@pytest.fixture(scope="module")
def built(street, tmp_path_factory) -> Path:
    return build_gallery(first_six(street), SETTINGS, tmp_path_factory.mktemp("built") / "map")


@pytest.fixture
def gallery(built, tmp_path) -> Path:
    """The gallery of six, of the folder `street`, to be changed by one test."""
    copied = tmp_path / "map"
    copied.mkdir()
    for path in built.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def first_six(street: Path):
    source = open_source(street)
    source.records = source.records[:6]
    return source


@pytest.mark.slow
def test_new_images_stand_behind_the_old_ones_and_the_pair_stays(gallery, street, tmp_path):
    before = Gallery.open(gallery)
    code, text, _ = run("gallery", "append", gallery, street)
    assert code == 0 and "keyframes    10" in text and "appended     4 keyframes" in text
    after = Gallery.open(gallery)
    verify_files(after.path, after.manifest)
    assert [k.name for k in after.keyframes] == sorted(path.name for path in street.iterdir())
    assert after.keyframes[:6] == before.keyframes and after.gallery_network == before.gallery_network
    np.testing.assert_array_equal(after.descriptors[:6], before.descriptors)
    encoder = GalleryEncoder.open(after, threads=1)
    for i in range(6, 10):
        np.testing.assert_allclose(encoder.encode(after.read_image(i)), after.descriptors[i], atol=2e-5)
    assert search(open_index(after), np.asarray(after.descriptors[9:10]), 1)[1].tolist() == [[9]]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("map")) == ["map"]
    assert "holds all 10 images" in refused("gallery", "append", gallery, street)

    # A second source: its pictures are found where they are.
    other = make_folder(tmp_path / "other", places=2, looks=1, first_seed=40)
    append_to_gallery(gallery, open_source(other), out=tmp_path / "larger")
    larger = Gallery.open(tmp_path / "larger")
    assert (len(larger), len(Gallery.open(gallery))) == (12, 10)
    assert [larger.image_path(i).parent for i in (0, 9, 10, 11)] == [street, street, other, other]
    assert [part["first_keyframe"] for part in larger.manifest.inputs["appended"]] == [6, 10]
    assert f"source       {street}, {other}" in run("gallery", "info", tmp_path / "larger")[1]


@pytest.mark.slow
def test_what_was_made_of_the_smaller_gallery_is_refused_with_the_remedy(gallery, street, tmp_path):
    bank = build_bank([gallery], BankSettings(), tmp_path / "bank")
    append_to_gallery(gallery, open_source(street))
    with pytest.raises(
        ArtefactError, match=r"bank was computed from gallery .*map as it was before; its .*make it anew with 'asymvpr bank"
    ):
        check_origin(read_manifest(bank, "bank"), bank, Gallery.open(gallery), "asymvpr bank build")


SLOW_APPEND = """
import sys, time
sys.path[:0] = [sys.argv[4], sys.argv[3]]
from pathlib import Path
from asymvpr_core.datasets.source import open_source
from asymvpr_core.gallery import append
def slow(items, description, total=None, completed=0):
    for item in items:
        time.sleep(0.2)
        yield item
append.append_to_gallery(Path(sys.argv[1]), open_source(Path(sys.argv[2])), progress=slow)
"""


@pytest.mark.slow
def test_a_killed_append_leaves_the_old_gallery_and_continues(gallery, street, tmp_path):
    more = make_folder(tmp_path / "more", places=5, looks=1, first_seed=40)
    undisturbed = append_to_gallery(gallery, open_source(more), out=tmp_path / "undisturbed")
    old = {path.name: path.read_bytes() for path in gallery.iterdir()}
    process = subprocess.Popen([sys.executable, "-c", SLOW_APPEND, str(gallery), str(more), str(HERE), str(HERE.parent)])
    chunks = gallery.with_name("map.partial") / "chunks"
    try:
        deadline = time.monotonic() + 120
        while not list(chunks.glob("*.npy")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    assert {path.name: path.read_bytes() for path in gallery.iterdir()} == old
    assert len(list(chunks.glob("*.npy"))) == 1  # four of the five images
    with pytest.raises(ArtefactError, match="differed in images, source"):
        append_to_gallery(gallery, open_source(street))
    described = []

    def counting(items, description, total=None, completed=0):
        described.append((description.split()[0], completed))
        yield from items

    append_to_gallery(gallery, open_source(more), progress=counting)
    assert described == [("describe", 4)]
    for name in ("descriptors.npy", "keyframes.csv"):
        assert (gallery / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not gallery.with_name("map.partial").exists()


@pytest.mark.slow
def test_an_end_just_before_or_after_the_exchange_is_cleared_up(gallery, street, monkeypatch):
    def dying(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(resumable, "exchange_folders", dying)
    with pytest.raises(KeyboardInterrupt):
        append_to_gallery(gallery, open_source(street))
    monkeypatch.undo()
    assert len(Gallery.open(gallery)) == 6

    def exchanging_and_dying(a, b):
        exchange_folders(a, b)
        raise KeyboardInterrupt

    monkeypatch.setattr(resumable, "exchange_folders", exchanging_and_dying)
    with pytest.raises(KeyboardInterrupt):
        append_to_gallery(gallery, open_source(street))
    monkeypatch.undo()
    assert len(Gallery.open(gallery)) == 10 and gallery.with_name("map.partial").exists()
    with pytest.raises(GalleryError, match="holds all 10 images"):
        append_to_gallery(gallery, open_source(street))
    assert not gallery.with_name("map.partial").exists()


@pytest.mark.slow
def test_where_folders_cannot_be_exchanged_a_new_folder_is_the_remedy(gallery, street, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_exchange.sys, "platform", "another")
    with pytest.raises(ArtefactError, match=r"map cannot be replaced in one step.*--out"):
        append_to_gallery(gallery, open_source(street))
    assert len(Gallery.open(gallery)) == 6 and not gallery.with_name("map.partial").exists()
    assert len(Gallery.open(append_to_gallery(gallery, open_source(street), out=tmp_path / "larger"))) == 10


@pytest.mark.slow
def test_what_does_not_belong_to_the_gallery_is_refused(gallery, street, tmp_path):
    other_frame = open_source(street)
    other_frame.map_frame = "utm32U"
    with pytest.raises(ArtefactError, match="in frame 'utm32U', those of gallery .* in 'utm31U'"):
        append_to_gallery(gallery, other_frame)
    numbered = open_source(street)
    numbered.records = [type(r)(**{**r.__dict__, "place_id": 3}) for r in numbered.records]
    with pytest.raises(GalleryError, match="one id may mean two places"):
        append_to_gallery(gallery, numbered)
    with locked_gallery(gallery), pytest.raises(ArtefactError, match="another process is writing to gallery"):
        append_to_gallery(gallery, open_source(street))
    assert "there is no" in refused("gallery", "append", gallery, tmp_path / "nowhere")
    raw = json.loads((gallery / "manifest.json").read_text())
    cases = {
        "was saved by a session": {"inputs": raw["inputs"] | {"layout": "session"}},
        "was made by 'asymvpr gallery project' from large": {"details": raw["details"] | {"projected_from": {"gallery": "large"}}},
        "the weights of efficientnet_lite2_gem have checksum": {"gallery_network": raw["gallery_network"] | {"weights_sha256": "1" * 64}},
        "pre-processes with another std than": {
            "gallery_network": raw["gallery_network"] | {"preprocess": raw["gallery_network"]["preprocess"] | {"std": [1.0, 1.0, 1.0]}}
        },
    }
    for expected, fields in cases.items():
        change_manifest(gallery, **fields)
        with pytest.raises(ArtefactError, match=expected):
            append_to_gallery(gallery, open_source(street))
        (gallery / "manifest.json").write_text(json.dumps(raw))
    change_manifest(gallery, inputs=raw["inputs"] | {"appended": [{"source": "x"}]})
    with pytest.raises(ArtefactError, match="does not say what was appended"):
        Gallery.open(gallery)
    assert digest_of(raw) == raw["manifest_sha256"]


# The index


def two_galleries(tmp_path: Path, rows: np.ndarray, count: int) -> tuple[Gallery, Path]:
    """A gallery of the first `count` rows, and one of all of them."""
    before = make_gallery(tmp_path / "before", rows[:count], np.zeros(count, int))
    return Gallery.open(before), make_gallery(tmp_path / "after", rows, np.zeros(len(rows), int))


@pytest.mark.parametrize(
    ("kind", "refine"), [*((kind, "descriptors") for kind in RECIPES if kind != "exact"), ("rabitq", "sq8"), ("hnsw", "sq8")]
)
def test_every_kind_is_extended_without_training(tmp_path, kind, refine):
    rows = clustered(1000, 32, dtype=np.float16)
    before, after = two_galleries(tmp_path, rows, 800)
    index_gallery(before.path, IndexSettings(kind=kind, refine=refine, recall=0.9, queries=40))
    old = read_index_manifest(before)
    manifest = extend_index(before, after)
    assert (manifest.kind, manifest.refine, manifest.keyframes) == (kind, old.refine, 1000)
    assert "extended by 200 keyframes, without training" in manifest.note
    opened = open_index(Gallery.open(after))
    queries = made_up_queries(rows, 40, 1)
    order = np.argsort(-(queries @ rows.astype(np.float32).T), axis=1)[:, :10]
    assert recall(search(opened, queries, 10)[1], order, 10) >= 0.88
    assert (order >= 800).any()  # new keyframes are among what was to be found
    # What was written for the old rows is there, bit by bit.
    small, large = (read_index_file(g, read_index_manifest(g), mapped=False) for g in (before, Gallery.open(after)))
    if kind in ("float16", "sq8", "rabitq") and refine == "descriptors":
        codes = [faiss.vector_to_array(index.codes) for index in (small, large)]
        np.testing.assert_array_equal(codes[0], codes[1][: len(codes[0])])


def test_what_extension_cannot_reach_is_trained_anew_and_the_note_says_so(tmp_path):
    """Codes trained on one cluster know nothing of the thousand directions that come."""
    rows = np.concatenate([clustered(700, 64), unit_rows(900, 64, seed=5)])
    before, after = two_galleries(tmp_path, rows, 700)
    index_gallery(before.path, IndexSettings(kind="rabitq", recall=0.9, queries=40))
    trials = building.measure_ladder
    building.measure_ladder = lambda *a, **k: [t.model_copy(update={"recall_at_k_bound": 0.1}) for t in trials(*a, **k)]
    try:
        manifest = extend_index(before, after)
    finally:
        building.measure_ladder = trials
    assert manifest.kind == "rabitq" and "trained anew, since extended by 900 keyframes it found" in manifest.note
    assert open_index(Gallery.open(after)).ntotal == 1600


def test_exact_search_stays_until_the_gallery_is_too_large_for_it(tmp_path, monkeypatch):
    rows = clustered(1000, 32)
    before, after = two_galleries(tmp_path, rows, 700)
    assert "had none" in extend_index(before, after).note  # a gallery without an index
    index_gallery(before.path, IndexSettings())
    assert extend_index(before, after).kind == "exact"
    monkeypatch.setattr(tuning, "EXACT_BYTES", 800 * 128)
    manifest = extend_index(before, after)
    assert manifest.kind == "pq" and "300 keyframes made the gallery too large for exact search" in manifest.note


def test_an_index_of_descriptors_that_changed_meanwhile_is_not_written(tmp_path, monkeypatch):
    before, after = two_galleries(tmp_path, clustered(1000, 32), 700)
    index_gallery(before.path, IndexSettings())
    choose = building.choose_index

    def changing(*arguments, **options):
        chosen = choose(*arguments, **options)
        exchange_folders(after, before.path)
        return chosen

    monkeypatch.setattr(building, "choose_index", changing)
    with pytest.raises(ArtefactError, match="have changed while its index was built"):
        index_gallery(before.path, IndexSettings(kind="rabitq", queries=10))


INDEXING = """
import sys
from pathlib import Path
from asymvpr_core.config import IndexSettings
from asymvpr_core.retrieval.building import index_gallery
print("ready", flush=True)
while True:
    for kind in ("rabitq", "sq8", "exact"):
        index_gallery(Path(sys.argv[1]), IndexSettings(kind=kind, queries=10, recall=0.5))
"""


def test_a_killed_index_build_leaves_an_index(tmp_path):
    rows = clustered(400, 64, dtype=np.float16)
    gallery = make_gallery(tmp_path / "map", rows, np.zeros(len(rows), int))
    index_gallery(gallery, IndexSettings())
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    moments = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", INDEXING, str(gallery)], env=environment, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0.0, 0.5))  # the moment of the kill, not a wait for anything
        finally:
            process.kill()
            process.wait(30)
        opened = open_index(Gallery.open(gallery))
        assert search(opened, rows[5:6].astype(np.float32), 1)[1].tolist() == [[5]]
    index_gallery(gallery, IndexSettings())
    assert sorted(path.name for path in gallery.iterdir()) == ["descriptors.npy", "index.json", "keyframes.csv", "manifest.json"]
