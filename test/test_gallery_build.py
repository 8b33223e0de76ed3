"""Gallery build: what it writes, that it continues after a kill, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from town_folder import make_folder
from typer.testing import CliRunner

from asymvpr_core.cli.main import app
from asymvpr_core.config import GallerySettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import ArtefactError, GalleryError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.describe import describe_chunk
from asymvpr_core.gallery.encoder import GalleryEncoder
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.networks.checkpoints import LoadReport, read_state
from asymvpr_core.networks.loading import LoadedNetwork, load_network, random_network
from asymvpr_core.networks.projection import fit_projection
from asymvpr_core.networks.query import save_tensors
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource
from asymvpr_core.networks.weights_files import require_weights
from asymvpr_core.preprocess import Preprocess

pytestmark = pytest.mark.slow

SETTINGS = GallerySettings(projection_dim=8, chunk_size=4, batch_size=3, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source") / "images", places=5, looks=2)


@pytest.fixture(scope="module")
def gallery(folder, tmp_path_factory) -> Gallery:
    return Gallery.open(build_gallery(open_source(folder), SETTINGS, tmp_path_factory.mktemp("built") / "gallery"))


def test_a_gallery_holds_every_image_in_order(gallery, folder):
    assert [k.name for k in gallery.keyframes] == sorted(p.name for p in folder.iterdir())
    assert gallery.descriptors.shape == (10, 8)
    np.testing.assert_allclose(np.linalg.norm(gallery.descriptors, axis=1), 1, rtol=1e-5)
    assert gallery.map_frame == "utm31U"
    assert gallery.read_image(3).shape == (120, 160, 3)
    network = load_network(SETTINGS.network)
    inputs = np.stack([network.spec.preprocess(gallery.read_image(i)) for i in range(10)])
    with torch.inference_mode():
        features = network.module(torch.from_numpy(inputs)).numpy()
    expected = fit_projection(features, 8, SETTINGS.whitening)(features)
    np.testing.assert_allclose(gallery.descriptors, expected, atol=1e-4)
    assert not Path(f"{gallery.path}.partial").exists()


def test_thumbnails_are_stored_where_they_are_asked_for(gallery, folder, tmp_path):
    assert not gallery.has_thumbnails and not (gallery.path / "thumbnails").exists()
    settings = SETTINGS.model_copy(update={"thumbnail_side_px": 80})
    other = Gallery.open(build_gallery(open_source(folder), settings, tmp_path / "gallery"))
    assert other.has_thumbnails and other.read_thumbnail(9).shape == (60, 80)
    grey = cv2.cvtColor(cv2.resize(other.read_image(3), (80, 60), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    assert np.abs(other.read_thumbnail(3).astype(int) - grey).mean() < 4
    np.testing.assert_array_equal(other.descriptors, gallery.descriptors)
    (other.path / "thumbnails" / "00000003.jpg").write_bytes(b"x")
    with pytest.raises(ArtefactError, match="00000003.jpg has 1 bytes"):
        other.read_thumbnail(3)


def test_the_encoder_describes_as_the_build_did(gallery):
    encoder = GalleryEncoder.open(gallery, threads=1)
    np.testing.assert_allclose(encoder.encode(gallery.read_image(7)), gallery.descriptors[7], atol=2e-5)


def test_a_borrowed_projection_makes_the_same_pair(gallery, tmp_path):
    other_images = make_folder(tmp_path / "images", places=3, looks=1, first_seed=40)
    borrowed = build_gallery(open_source(other_images), SETTINGS, tmp_path / "borrowed", projection_from=gallery.path)
    own = build_gallery(open_source(other_images), SETTINGS, tmp_path / "own")
    assert Gallery.open(borrowed).manifest.gallery_network == gallery.manifest.gallery_network
    assert Gallery.open(own).manifest.gallery_network.pair_id != gallery.manifest.gallery_network.pair_id


def test_without_projection_and_in_half_precision(folder, tmp_path):
    settings = GallerySettings(projection_dim=None, descriptor_dtype="float16", threads=1)
    built = Gallery.open(build_gallery(open_source(folder), settings, tmp_path / "g"))
    assert built.descriptors.dtype == np.float16 and built.descriptors.shape == (10, 1280)
    assert built.manifest.gallery_network.projection_sha256 is None
    with pytest.raises(ArtefactError, match="has no projection"):
        build_gallery(open_source(folder), SETTINGS, tmp_path / "h", projection_from=tmp_path / "g")


def _chunks(out: Path) -> list[Path]:
    return list((out.with_name(out.name + ".partial") / "chunks").glob("*.npy"))


SLOW_BUILD = """
import sys, time
sys.path[:0] = [sys.argv[4], sys.argv[3]]
from pathlib import Path
from asymvpr_core.datasets.source import open_source
from asymvpr_core.gallery import build
from test_gallery_build import SETTINGS
def slow(items, description, total=None, completed=0):
    for item in items:
        time.sleep(0.2)
        yield item
build.build_gallery(open_source(Path(sys.argv[1])), SETTINGS, Path(sys.argv[2]), progress=slow)
"""


def test_a_killed_build_continues_and_gives_the_same_descriptors(gallery, folder, tmp_path):
    out = tmp_path / "gallery"
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", SLOW_BUILD, str(folder), str(out), str(here), str(here.parent)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not _chunks(out) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    done = 4 * len(_chunks(out))
    assert not out.exists() and 4 <= done < 10

    described = []

    def counting(items, description, total=None, completed=0):
        described.append(completed)
        for item in items:
            described.append(item[0])
            yield item

    with pytest.raises(ArtefactError, match="differed in settings"):
        build_gallery(open_source(folder), SETTINGS.model_copy(update={"whitening": 1.0}), out)
    build_gallery(open_source(folder), SETTINGS, out, progress=counting)
    assert described == [done, *range(done, 10)]  # what was done was not described again
    assert np.array_equal(np.load(out / "descriptors.npy"), np.asarray(gallery.descriptors))


def test_a_chunk_that_was_damaged_meanwhile_is_described_again(folder, gallery, tmp_path, monkeypatch):
    """A disk that loses a bit between a kill and the next run must not get it into the gallery, whose manifest would seal it."""
    out, described = tmp_path / "gallery", []

    def stop(*arguments: object) -> None:
        raise GalleryError("stopped behind the chunks")

    def counting(items, description, total=None, completed=0):
        described.append(completed)
        yield from items

    with monkeypatch.context() as patched, pytest.raises(GalleryError, match="stopped"):
        patched.setattr("asymvpr_core.gallery.build.write_descriptors", stop)
        build_gallery(open_source(folder), SETTINGS, out)
    flipped, unreadable, _ = sorted(_chunks(out))
    whole = flipped.read_bytes()
    flipped.write_bytes(whole[:-5] + bytes([whole[-5] ^ 64]) + whole[-4:])
    unreadable.with_suffix(".json").write_text("{")
    build_gallery(open_source(folder), SETTINGS, out, progress=counting)
    assert described[0] == 2  # of ten images in chunks of four only the last chunk was used
    assert np.array_equal(np.load(out / "descriptors.npy"), np.asarray(gallery.descriptors))


def test_what_cannot_be_built_is_refused_and_leaves_no_gallery(folder, gallery, tmp_path):
    with pytest.raises(ArtefactError, match="exists already"):
        build_gallery(open_source(folder), SETTINGS, gallery.path)
    empty = open_source(folder)
    empty.records = []
    with pytest.raises(GalleryError, match="holds no images"):
        build_gallery(empty, SETTINGS, tmp_path / "e")


def test_an_unreadable_image_is_reported_and_does_not_end_the_work(tmp_path):
    """Truncated, missing and no picture at all: all three are named, the rest is described once, and nothing is skipped unasked."""
    images = make_folder(tmp_path / "images", places=6, looks=1)
    source, out = open_source(images), tmp_path / "g"
    names = [record.name for record in source.records]
    whole = {name: (images / name).read_bytes() for name in names}
    (images / names[0]).write_bytes(whole[names[0]][:500])
    (images / names[2]).unlink()
    (images / names[5]).write_text("no picture")
    with pytest.raises(GalleryError, match="3 of 6 images cannot be read") as refused:
        build_gallery(source, SETTINGS, out)
    assert all(names[i] in str(refused.value) for i in (0, 2, 5)) and "--skip-unreadable" in str(refused.value)
    assert not out.exists()

    skipping = Gallery.open(build_gallery(source, SETTINGS, tmp_path / "skipping", skip_unreadable=True))
    assert [k.name for k in skipping.keyframes] == [names[i] for i in (1, 3, 4)] and len(skipping.descriptors) == 3
    assert sorted(skipping.manifest.details["skipped_images"]) == [names[i] for i in (0, 2, 5)]
    shown = CliRunner().invoke(app, ["gallery", "info", str(tmp_path / "skipping")]).stdout.splitlines()
    assert [names[i] in line for i, line in zip((0, 2, 5), shown[-3:], strict=True)] == [True] * 3

    for name, data in whole.items():
        (images / name).write_bytes(data)
    described = []

    def counting(items, description, total=None, completed=0):
        described.append(completed)
        yield from items

    repaired = Gallery.open(build_gallery(open_source(images), SETTINGS, out, progress=counting))
    assert len(repaired) == 6 and described == [0]  # both chunks of four held an unreadable image


def test_of_many_unreadable_images_all_are_listed_in_a_file(tmp_path):
    images = make_folder(tmp_path / "images", places=8, looks=1)
    source = open_source(images)
    names = [record.name for record in source.records]
    for name in names[:7]:
        (images / name).write_bytes(b"")
    with pytest.raises(GalleryError, match="and 2 more, all of them in .*unreadable.txt"):
        build_gallery(source, SETTINGS, tmp_path / "g")
    lines = (tmp_path / "g.partial" / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 7 and all(name in line for name, line in zip(names, lines, strict=False))


def _described(spec: NetworkSpec, *shapes: tuple[int, int]) -> list[int]:
    """Sizes of the batches in which `describe_chunk` gives pictures of these shapes to the network."""
    batches = []

    def describe(images):
        batches.append(len(images))
        return torch.zeros(len(images), 2)

    network = LoadedNetwork(spec, describe, "0" * 64, LoadReport(0))
    source = SimpleNamespace(records=[SimpleNamespace(name=str(i)) for i in range(len(shapes))])
    describe_chunk(iter([(i, np.zeros((3, *shape), np.float32)) for i, shape in enumerate(shapes)]), source, network, 4)
    return batches


def test_large_pictures_in_their_own_size_share_no_batch(monkeypatch):
    """Sixteen pictures of a telephone at once would take more memory than most machines have, and the build with it."""
    monkeypatch.setattr("asymvpr_core.gallery.describe._BATCH_PIXELS", 200)
    native = Preprocess(height=10, width=10, mean=(0, 0, 0), std=(1, 1, 1), fit="native")
    spec = NetworkSpec("own", "gallery", "", torch.nn.Identity, 2, native, WeightsSource("mine"))
    assert _described(spec, *[(10, 10)] * 5, *[(30, 30)] * 2, *[(2, 2)] * 5) == [2, 2, 1, 1, 1, 4, 1]
    squashed = replace(spec, preprocess=native.model_copy(update={"fit": "squash"}))
    assert _described(squashed, *[(10, 10)] * 5) == [4, 1]
    with pytest.raises(GalleryError, match=r"own gives descriptors of shape \(1, 2\); expected \(1, 3\), as its NetworkSpec says"):
        _described(replace(spec, dimension=3), (4, 4))


def test_repaired_images_cost_their_chunk_only(tmp_path):
    images = make_folder(tmp_path / "images", places=6, looks=1)
    source, out = open_source(images), tmp_path / "g"
    last = images / source.records[5].name
    data = last.read_bytes()
    last.write_bytes(data[:300])
    with pytest.raises(GalleryError, match="1 of 6 images"):
        build_gallery(source, SETTINGS, out)
    last.write_bytes(data)
    described = []

    def counting(items, description, total=None, completed=0):
        described.append((completed, total))
        yield from items

    build_gallery(source, SETTINGS, out, progress=counting)
    assert described == [(4, 6)]
    assert np.array_equal(
        np.load(out / "descriptors.npy"), np.load(build_gallery(source, SETTINGS, tmp_path / "at_once") / "descriptors.npy")
    )


def test_not_one_readable_image_is_an_error_even_when_skipping(tmp_path):
    images = make_folder(tmp_path / "images", places=2, looks=1)
    for path in images.iterdir():
        path.write_bytes(b"")
    with pytest.raises(GalleryError, match="none of 2 images can be read"):
        build_gallery(open_source(images), SETTINGS, tmp_path / "g", skip_unreadable=True)


def test_pictures_of_different_sizes_are_described_at_their_own(tmp_path):
    """CosPlace describes pictures as they are: a batch holds one size, and the result is that of one picture at a time."""
    images = make_folder(tmp_path / "images", places=5, looks=1)
    paths = sorted(images.iterdir())
    for path, size in zip(paths, [(96, 64), (96, 64), (64, 96), (80, 80), (80, 80)], strict=True):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), size))
    weights = tmp_path / "random.safetensors"
    save_tensors(random_network(network_spec("cosplace_resnet18_32"), 0).state_dict(), weights)
    settings = GallerySettings(network="cosplace_resnet18_32", chunk_size=4, batch_size=3, threads=1)
    gallery = Gallery.open(build_gallery(open_source(images), settings, tmp_path / "g", weights=weights))
    encoder = GalleryEncoder.open(gallery, threads=1, weights=weights)
    assert gallery.descriptors.shape == (5, 32) and gallery.manifest.gallery_network.projection_sha256 is None
    for i in range(5):
        np.testing.assert_allclose(encoder.encode(gallery.read_image(i)), gallery.descriptors[i], atol=2e-5)


def test_weights_that_are_not_the_gallerys_are_refused(gallery, tmp_path):
    state, _ = read_state(require_weights(network_spec("efficientnet_lite2_gem")))
    torch.save({name: tensor + 0.01 for name, tensor in state.items() if tensor.is_floating_point()} | {
        name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}, tmp_path / "other.pth")  # fmt: skip
    with pytest.raises(ArtefactError, match="with which .* was built"):
        GalleryEncoder.open(gallery, threads=1, weights=tmp_path / "other.pth")
