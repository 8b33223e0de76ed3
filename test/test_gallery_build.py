"""Gallery build: what it writes, that it continues after a kill, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from town_folder import make_folder

from asymvpr_core.config import GallerySettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import ArtefactError, GalleryError, ImageError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.encoder import GalleryEncoder
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.networks.checkpoints import package_file, read_state
from asymvpr_core.networks.projection import fit_projection
from asymvpr_core.networks.registry import load_network, network_spec

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


SLOW_BUILD = """
import sys, time
sys.path[:0] = [sys.argv[4], sys.argv[3]]
from pathlib import Path
from asymvpr_core.datasets.source import open_source
from asymvpr_core.gallery import build
from test_gallery_build import SETTINGS
def slow(items, description, total=None, completed=0):
    for item in items:
        print(completed, flush=True)
        time.sleep(0.05)
        yield item
build.build_gallery(open_source(Path(sys.argv[1])), SETTINGS, Path(sys.argv[2]), progress=slow)
"""


def test_a_killed_build_continues_and_gives_the_same_descriptors(gallery, folder, tmp_path):
    out = tmp_path / "gallery"
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", SLOW_BUILD, str(folder), str(out), str(here), str(here.parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(7):  # the sixth image is in the second chunk of four
            assert process.stdout is not None and process.stdout.readline()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert not out.exists() and len(list((tmp_path / "gallery.partial" / "chunks").glob("*.npy"))) == 1

    described = []

    def counting(items, description, total=None, completed=0):
        described.append(completed)
        for item in items:
            described.append(item[0])
            yield item

    with pytest.raises(ArtefactError, match="differed in settings"):
        build_gallery(open_source(folder), SETTINGS.model_copy(update={"whitening": 1.0}), out)
    build_gallery(open_source(folder), SETTINGS, out, progress=counting)
    assert described == [4, 4, 5, 6, 7, 8, 9]  # the first chunk was not described again
    assert np.array_equal(np.load(out / "descriptors.npy"), np.asarray(gallery.descriptors))


def test_what_cannot_be_built_is_refused_and_leaves_no_gallery(folder, gallery, tmp_path):
    with pytest.raises(ArtefactError, match="exists already"):
        build_gallery(open_source(folder), SETTINGS, gallery.path)
    broken = make_folder(tmp_path / "images", places=2)
    first = sorted(broken.iterdir())[0]
    first.write_bytes(first.read_bytes()[:500])
    with pytest.raises(ImageError, match="truncated JPEG"):
        build_gallery(open_source(broken), SETTINGS, tmp_path / "g")
    assert not (tmp_path / "g").exists()
    empty = open_source(folder)
    empty.records = []
    with pytest.raises(GalleryError, match="holds no images"):
        build_gallery(empty, SETTINGS, tmp_path / "e")


def test_weights_that_are_not_the_gallerys_are_refused(gallery, tmp_path):
    state = read_state(package_file(*network_spec("efficientnet_lite2_gem").weights))
    torch.save({name: tensor + 0.01 for name, tensor in state.items() if tensor.is_floating_point()} | {
        name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}, tmp_path / "other.pth")  # fmt: skip
    with pytest.raises(ArtefactError, match="with which .* was built"):
        GalleryEncoder.open(gallery, threads=1, weights=tmp_path / "other.pth")
