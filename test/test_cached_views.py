"""Training from views that were run through the frozen stages once: the same numbers, resumable, shared by losses and seeds."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from town_folder import make_folder

from asymvpr_core.config import GallerySettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import ImageError, NetworkError, SettingsError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import read_manifest
from asymvpr_core.networks.frozen_prefix import FrozenPrefix
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.progress import silent
from asymvpr_core.settings_files import make_settings
from asymvpr_core.training import cached_views
from asymvpr_core.training.cached_views import cache_views
from asymvpr_core.training.data import GalleryImages
from asymvpr_core.training.fit import TrainingImages
from asymvpr_core.training.run import train

SETTINGS = TrainSettings(
    query_network="efficientnet_lite0_gem_64px", loss="regression", epochs=2, batch_size=4, alignment_copies=1, frozen_share=0.75,
    cached_views=2, view_seed=7, validation_share=0.3, validation_views=3, workers=0, learning_rate=1e-3, threads=1, accelerator="cpu",
)  # fmt: skip


def changed(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate(SETTINGS.model_dump() | changes)


def small_network(name: str, dimension: int = 8, *, gated: bool = False) -> QueryNetwork:
    torch.manual_seed(0)
    return QueryNetwork(network_spec(name), dimension, gated=gated).eval()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    root = tmp_path_factory.mktemp("views")
    source = open_source(make_folder(root / "images", places=5, looks=2))
    return Gallery.open(build_gallery(source, GallerySettings(projection_dim=8, threads=1), root / "gallery"))


@pytest.mark.parametrize(
    ("name", "dimension", "share"),
    [
        ("efficientnet_lite0_gem_64px", 8, 0.125), ("efficientnet_lite0_gem_64px", 8, 0.75), ("efficientnet_lite0_gem_64px", 8, 1.0),
        ("mobilenetv3_small_050_gem_64px", 8, 0.5), ("resnet18@16_salad_544_96px", 544, 0.5), ("resnet18@16_salad_544_96px", 544, 1.0),
    ],
)  # fmt: skip
def test_the_two_parts_give_the_descriptors_and_gradients_of_the_whole(name, dimension, share):
    network = small_network(name, dimension, gated=True)
    reference = copy.deepcopy(network)
    for each in (network, reference):
        each.freeze(share)
        each.train()
    size = network.spec.preprocess.height
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    prefix = FrozenPrefix(network, share)
    prefix.check(images)
    with torch.inference_mode():
        features = prefix.features(images)
    torch.manual_seed(2)  # SALAD drops weights at random
    described = prefix.describe(features.clone())
    torch.manual_seed(2)
    whole = reference(images)
    torch.testing.assert_close(described, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prefix.pooled(features.clone()), reference.pooled(images), rtol=1e-4, atol=1e-5)
    weights = torch.linspace(-1, 1, described.numel()).reshape(described.shape)
    (described * weights).sum().backward()
    (whole * weights).sum().backward()
    compared = 0
    for (own_name, own), (_, theirs) in zip(network.named_parameters(), reference.named_parameters(), strict=True):
        assert (own.grad is None) == (theirs.grad is None), own_name
        if own.grad is not None:
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=own_name)
            compared += 1
    assert compared > 0


def test_without_a_frozen_stage_or_with_stages_that_do_not_follow_there_is_no_cut(monkeypatch):
    network = small_network("efficientnet_lite0_gem_64px")
    with pytest.raises(NetworkError, match="no stage of efficientnet_lite0_gem_64px is frozen"):
        FrozenPrefix(network, 0.0)
    backbone = type(network.encoder.backbone)
    forward = backbone.forward

    def with_shortcut(self, images):
        features, token = forward(self, images)
        return features + images.mean(), token  # uses what the frozen part took

    monkeypatch.setattr(backbone, "forward", with_shortcut)
    with pytest.raises(NetworkError, match="do not simply follow one another; expected .*; set cached_views to 0"):
        FrozenPrefix(network, 0.75).check(torch.ones(1, 3, 64, 64))


def test_cached_items_are_the_frozen_stages_output_of_the_same_views(gallery, tmp_path):
    network = small_network(SETTINGS.query_network)
    places = np.arange(len(gallery)) // 2
    images = TrainingImages(gallery, places, np.arange(len(gallery)), np.arange(0))
    views = cache_views(network, images, SETTINGS, tmp_path, silent)
    network.eval()
    pictures = GalleryImages(gallery, places, network.spec.preprocess, SETTINGS.augmentation, seed=7)
    for index in (0, 3):
        shown = [views.view_of(epoch, index) for epoch in range(4)]
        assert sorted(shown[:2]) == [1, 2] and shown[2:] == shown[:2]  # every view once, then again
        for key in [(0, index), (1, index), *views.view_keys(np.array([index]), 1, 5)]:
            view = views.view_of(*key)
            image, descriptor, place, own = pictures[(cached_views.PLAIN_EPOCH + view, index)]
            with torch.inference_mode():
                expected = views.prefix.features(image[None])[0].half().float()
            features, *rest = views[key]
            torch.testing.assert_close(features, expected, rtol=2e-3, atol=1e-3)
            assert torch.equal(rest[0], descriptor) and rest[1:] == [place, own]
        plain = GalleryImages(gallery, places, network.spec.preprocess)
        with torch.inference_mode():
            expected = views.prefix.features(plain[(0, index)][0][None])[0]
        torch.testing.assert_close(views[views.view_keys(np.array([index]), 0)[0]][0], expected, rtol=2e-3, atol=1e-3)
    assert len(views.view_keys(np.arange(3), 1, 5)) == 6  # of 2 views, where 5 are asked for


@pytest.mark.slow
def test_a_step_from_cached_views_is_the_step_on_the_same_pictures(gallery, tmp_path, monkeypatch):
    """One epoch each: with the cached views, and with the uncached training made to show the same pictures."""
    monkeypatch.setattr(cached_views, "_DTYPE", np.float32)
    settings = changed(epochs=1, alignment_copies=0, validation_share=0.0)
    cached = train(gallery.path, settings, tmp_path / "cached")
    views = []
    original = GalleryImages.picture

    def same_views(self, key):
        if self.augment is None:
            return original(self, key)
        first = np.random.default_rng(settings.seed).integers(2, size=len(self))
        epoch = cached_views.PLAIN_EPOCH + 1 + int((first[key[1]] + key[0]) % 2)
        views.append(epoch)
        self.seed = 7
        return original(self, (epoch, key[1]))

    monkeypatch.setattr(GalleryImages, "picture", same_views)
    uncached = train(gallery.path, settings.model_copy(update={"cached_views": 0}), tmp_path / "uncached")
    assert len(set(views)) == 2
    one, other = (load_file(run / "weights.safetensors") for run in (cached, uncached))
    unmoved = train(gallery.path, changed(epochs=0, alignment_copies=0, cached_views=0), tmp_path / "start")
    start = load_file(unmoved / "weights.safetensors")
    moved = max((one[name] - start[name]).abs().max() for name in one)
    apart = max((one[name] - other[name]).abs().max() for name in one)
    assert apart < 0.05 * moved, (float(apart), float(moved))  # Adam turns rounding of tiny gradients into steps


@pytest.mark.slow
def test_views_are_shared_by_losses_and_seeds_and_a_killed_training_goes_on(gallery, tmp_path, monkeypatch):
    features = tmp_path / "features"
    features.mkdir()
    written = []
    original = cached_views._write_view

    def recording(path, *arguments):
        if len(written) == 1 and not (tmp_path / "first").exists():
            (tmp_path / "first").touch()
            path.write_bytes(b"half a file")
            raise ImageError("the disk is gone")
        written.append(path.name)
        return original(path, *arguments)

    monkeypatch.setattr(cached_views, "_write_view", recording)
    with pytest.raises(ImageError):
        train(gallery.path, SETTINGS, tmp_path / "run", features=features)
    run = train(gallery.path, SETTINGS, tmp_path / "run", features=features)
    assert len(written) == 3 == len(set(written))  # plain, then two views; the finished one was not made again
    details = read_manifest(run, "run").details
    assert details["seconds"]["views"] > 0 and details["alignment"]["copies"] == 2
    train(gallery.path, changed(loss="symmetric", seed=3, epochs=1), tmp_path / "other", features=features)
    assert len(written) == 3
    train(gallery.path, changed(view_seed=None, epochs=1), tmp_path / "third", features=features)
    assert len(written) == 6
    train(gallery.path, changed(view_seed=9, epochs=0, alignment_copies=0), tmp_path / "start", features=features)
    assert len(written) == 7  # without epochs no view is needed, only the image as it is
    assert not any(name.startswith(".") for name in os.listdir(features))


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(SettingsError, match="1 cached_views serve the alignment too, which wants alignment_copies 2"):
        make_settings(TrainSettings, cached_views=1)
    with pytest.raises(SettingsError, match="for one process"):
        make_settings(TrainSettings, cached_views=4, devices=2)
