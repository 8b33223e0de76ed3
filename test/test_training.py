"""Alignment, training and export: from a gallery to a model that the robot runs."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
import yaml
from damaging import damages
from tiny_artefacts import make_street
from town_folder import make_folder

from asymvpr_core.config import ExportSettings, GallerySettings, RuntimeSettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.export import export_model
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, DeployError, ImageError, NetworkError, TrainingError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair, read_manifest, verify_files
from asymvpr_core.memory.bank import MemoryBank
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.training.alignment import align
from asymvpr_core.training.data import GalleryImages, ImageLoader
from asymvpr_core.training.fit import _whole_checkpoint
from asymvpr_core.training.run import train
from asymvpr_core.training.samplers import EpochSampler

pytestmark = pytest.mark.slow

# One thread: two threads sum in an order that changes from run to run, which Adam's first steps amplify.
SETTINGS = TrainSettings(
    epochs=2, batch_size=4, alignment_copies=1, frozen_share=0.8, validation_share=0.3, workers=0, learning_rate=1e-3, gamma=1.0, threads=1
)


@pytest.fixture(scope="module")
def gallery_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    source = open_source(make_folder(root / "images", places=8, looks=2))
    return build_gallery(source, GallerySettings(projection_dim=8, threads=1), root / "gallery")


@pytest.fixture(scope="module")
def run_path(gallery_path):
    return train(gallery_path, SETTINGS, gallery_path.parent / "run")


def test_alignment_recovers_a_linear_map_and_chooses_ridge_on_whole_places():
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(40), 5)
    z = rng.normal(size=(200, 12)).astype(np.float32)
    weight, bias = rng.normal(size=(12, 6)), rng.normal(size=6)
    g = z @ weight + bias
    alignment = align(z, g, places)
    np.testing.assert_allclose(z @ alignment.weight + alignment.bias, g, atol=1e-2)
    assert alignment.held_out_cosine > 0.999
    # Features and targets of one place are copies, and from place to place there is no law: folds that
    # split a place would find a cosine near 1, folds of whole places see that nothing carries over.
    z_place, g_place = rng.normal(size=(40, 12))[places], rng.normal(size=(40, 6))[places]
    assert align(z_place, g_place, places).held_out_cosine < 0.2


@pytest.mark.parametrize("features", [9, 80], ids=["normal matrix", "Gram matrix"])
def test_alignment_equals_ridge_regression_of_scikit_learn(features):
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(1)
    z, g = rng.normal(size=(50, features)).astype(np.float32), rng.normal(size=(50, 4))
    ours = align(z, g, np.arange(50), ridges=(0.7,))
    theirs = Ridge(alpha=0.7).fit(z, g)
    np.testing.assert_allclose(ours.weight, theirs.coef_.T, atol=1e-5)
    np.testing.assert_allclose(ours.bias, theirs.intercept_, atol=1e-5)


def test_streamed_normal_equations_are_those_in_memory(monkeypatch, tmp_path):
    from asymvpr_core.training import alignment as module

    rng = np.random.default_rng(2)
    places = np.repeat(np.arange(30), 10)
    centre = 5 + rng.normal(size=7)  # far from zero, as pooled features are
    z = (centre + 0.1 * rng.normal(size=(300, 7))).astype(np.float32)
    gallery = rng.normal(size=(120, 4)).astype(np.float32)
    rows = rng.integers(0, 120, 300)
    np.save(tmp_path / "z.npy", z)
    found = []
    for block in (1024, 17):
        monkeypatch.setattr(module, "_BLOCK_ROWS", block)
        found.append(align(np.load(tmp_path / "z.npy", mmap_mode="r"), gallery, places, rows=rows))
    # The naive way: every fold in memory, every ridge by a linear solve, as before the sums were streamed.
    fold = (np.random.default_rng(0).permutation(30) % 5)[places]
    g, cosines = gallery[rows].astype(np.float64), []
    for ridge in module.RIDGES:
        total = 0.0
        for k in range(5):
            left, out = fold != k, fold == k
            z_mean, g_mean = z[left].astype(np.float64).mean(0), g[left].mean(0)
            zc = z[left] - z_mean
            predicted = (z[out] - z_mean) @ np.linalg.solve(zc.T @ zc + ridge * np.eye(7), zc.T @ (g[left] - g_mean)) + g_mean
            total += ((predicted * g[out]).sum(1) / np.linalg.norm(predicted, axis=1) / np.linalg.norm(g[out], axis=1)).sum()
        cosines.append(total / 300)
    for alignment in found:
        assert alignment.ridge == module.RIDGES[int(np.argmax(cosines))]
        assert alignment.held_out_cosine == pytest.approx(max(cosines), abs=1e-9)
        np.testing.assert_allclose(alignment.weight, found[0].weight, rtol=1e-5, atol=1e-7)


def test_alignment_scores_a_sample_of_many_and_refuses_what_is_not_finite():
    rng = np.random.default_rng(3)
    places = np.repeat(np.arange(50), 10)
    z, weight = rng.normal(size=(500, 6)).astype(np.float32), rng.normal(size=(6, 5))
    sampled, whole = align(z, z @ weight, places, scored_rows=100), align(z, z @ weight, places)
    np.testing.assert_allclose(sampled.weight, whole.weight, atol=1e-3)
    assert sampled.held_out_cosine == pytest.approx(whole.held_out_cosine, abs=1e-3)
    z[7, 2] = np.nan
    with pytest.raises(TrainingError, match="features of the light network hold numbers that are not finite"):
        align(z, rng.normal(size=(500, 5)), places)


def test_alignment_needs_two_places():
    with pytest.raises(TrainingError, match="one place"):
        align(np.ones((3, 2), np.float32), np.ones((3, 2)), np.zeros(3, np.int64))


def test_a_run_is_complete_and_its_bank_is_the_gallerys(run_path, gallery_path):
    manifest = read_manifest(run_path, "run")
    verify_files(run_path, manifest)
    names = set(manifest.files)
    assert {"weights.safetensors", "bank.npz", "settings.yaml", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= names
    assert any(name.startswith("tensorboard/") for name in names)
    assert TrainSettings.model_validate(yaml.safe_load((run_path / "settings.yaml").read_text())) == SETTINGS
    assert manifest.details["training_images"] + manifest.details["validation_images"] == 16
    assert manifest.details["validation_images"] > 0
    bank = MemoryBank.load(run_path / "bank.npz")
    gallery = Gallery.open(gallery_path)
    np.testing.assert_allclose(
        bank.centroids[bank.places[5]], np.mean(gallery.descriptors[bank.places == bank.places[5]], axis=0), atol=1e-6
    )
    assert not run_path.with_name("run.partial").exists()


def test_fine_tuning_lowers_the_loss(run_path):
    rows = [line.split(",") for line in (run_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("loss")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_aligned_start_is_nearer_to_the_gallery_than_a_random_head(gallery_path, tmp_path):
    cosines = {}
    gallery = Gallery.open(gallery_path)
    for init in ("random", "aligned"):
        settings = SETTINGS.model_copy(update={"init": init, "epochs": 0})
        run = train(gallery_path, settings, tmp_path / init)
        network = QueryNetwork(network_spec(settings.query_network), 8)
        network.load(run / "weights.safetensors")
        network.eval()
        inputs = torch.from_numpy(np.stack([network.spec.preprocess(gallery.read_image(i)) for i in range(16)]))
        with torch.inference_mode():
            cosines[init] = float((network(inputs).numpy() * gallery.descriptors).sum(1).mean())
    assert cosines["aligned"] > cosines["random"] + 0.3


def test_exported_model_says_what_torch_says(run_path, gallery_path, tmp_path):
    model_path = export_model(run_path, tmp_path / "model", ExportSettings(parity_images=4))
    model = QueryModel.open(model_path, RuntimeSettings(threads=1))
    assert model.manifest.details["parity_source"] == "gallery"
    assert all(row.min_cosine > 0.9999 for row in model.folder.parity if row.precision == "fp32") and len(model.folder.parity) >= 1
    check_pair(Gallery.open(gallery_path).manifest, model.manifest, gallery_path, model_path)
    network = QueryNetwork(network_spec("efficientnet_lite0_gem"), 8)
    network.load(run_path / "weights.safetensors")
    network.eval()
    image = Gallery.open(gallery_path).read_image(2)
    with torch.inference_mode():
        expected = network(torch.from_numpy(network.spec.preprocess(image))[None]).numpy()[0]
    np.testing.assert_allclose(model.encode(image), expected, atol=1e-4)
    batch = np.stack([model.prepare(Gallery.open(gallery_path).read_image(i)) for i in range(3)])
    np.testing.assert_allclose(model.encode_batch(batch)[2], expected, atol=1e-4)


def test_export_refuses_what_misses_the_tolerance_and_leaves_nothing(run_path, tmp_path, monkeypatch):
    monkeypatch.setattr("asymvpr_core.deploy.parity.cosines", lambda described, expected: np.full(len(described), 0.5))
    with pytest.raises(DeployError, match=r"model\.onnx has cosine 0\.5.*expected at least 0\.9999.*--force"):
        export_model(run_path, tmp_path / "model", ExportSettings())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_export_refuses_a_damaged_run(run_path, tmp_path, name):
    import shutil

    damaged = tmp_path / "run"
    shutil.copytree(run_path, damaged)
    whole = (damaged / name).read_bytes()
    for damage, content in damages(damaged / name, None):
        if content is not None and content + b"\n" == whole:
            continue  # the newline at the end of a text
        (damaged / name).unlink() if content is None else (damaged / name).write_bytes(content)
        with pytest.raises(ArtefactError, match=name):
            export_model(damaged, tmp_path / "model", ExportSettings())
            pytest.fail(damage)
        (damaged / name).write_bytes(whole)
    assert not (tmp_path / "model").exists()


def test_a_stopped_training_goes_on_to_the_same_weights(run_path, gallery_path, tmp_path, monkeypatch):
    """The process dies after the first epoch's checkpoint; the second start must end where the undisturbed run did."""
    from asymvpr_core.training import module

    out = tmp_path / "run"
    original = module.AsymmetricModule.training_step

    def dying(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module.AsymmetricModule, "training_step", dying)
    on_interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # and not Lightning's silent SystemExit
        train(gallery_path, SETTINGS, out)
    assert signal.getsignal(signal.SIGINT) is on_interrupt
    assert not out.exists() and (tmp_path / "run.partial" / "checkpoints" / "last.ckpt").exists()
    epochs = []

    def counting(self, batch, batch_idx):
        epochs.append(self.current_epoch)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module.AsymmetricModule, "training_step", counting)
    train(gallery_path, SETTINGS, out)
    assert set(epochs) == {1}
    straight = torch.load(run_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    resumed = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.allclose(straight[name].float(), resumed[name].float(), atol=1e-6) for name in straight)


def test_what_a_full_disk_left_of_a_checkpoint_is_not_continued_from(tmp_path, caplog):
    whole, part = tmp_path / "whole.ckpt", tmp_path / "part.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, whole)
    part.write_bytes(whole.read_bytes()[:2000])
    assert _whole_checkpoint(whole) == whole
    assert _whole_checkpoint(tmp_path / "absent.ckpt") is None
    assert caplog.text == ""
    assert _whole_checkpoint(part) is None
    assert "part.ckpt is damaged, fine-tuning begins anew" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_also_by_a_loading_process(tmp_path, workers):
    gallery = make_street(tmp_path / "gallery", n_keyframes=3)
    picture = sorted((gallery / "images").rglob("*.png"))[1]
    picture.write_bytes(picture.read_bytes()[:200])
    images = GalleryImages(Gallery.open(gallery), np.arange(3), network_spec("efficientnet_lite0_gem").preprocess)
    loader = ImageLoader(images, batch_size=3, sampler=EpochSampler(np.arange(3), seed=0), num_workers=workers)
    with pytest.raises(ImageError, match=f"^image {picture} is damaged: its checksum is not that in the manifest"):
        list(loader)


def test_a_killed_loading_process_is_a_known_error(tmp_path, monkeypatch):
    monkeypatch.setattr(GalleryImages, "__getitem__", lambda self, key: os.kill(os.getpid(), signal.SIGKILL))
    gallery = Gallery.open(make_street(tmp_path / "gallery", n_keyframes=3))
    images = GalleryImages(gallery, np.arange(3), network_spec("efficientnet_lite0_gem").preprocess)
    with pytest.raises(TrainingError, match="a process that loads images was killed; free memory"):
        list(ImageLoader(images, batch_size=3, sampler=EpochSampler(np.arange(3), seed=0), num_workers=1))


def test_an_unknown_network_is_refused_before_anything_is_written(gallery_path, tmp_path):
    with pytest.raises(NetworkError, match="unknown network 'efficientnet'"):
        train(gallery_path, SETTINGS.model_copy(update={"query_network": "efficientnet"}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_augmented_pictures_depend_on_seed_epoch_and_index_only(gallery_path):
    gallery = Gallery.open(gallery_path)
    places = np.arange(16)
    preprocess = network_spec("efficientnet_lite0_gem").preprocess
    images = GalleryImages(gallery, places, preprocess, SETTINGS.augmentation, seed=1)
    first = images[(0, 3)][0]
    torch.rand(5)
    assert torch.equal(first, images[(0, 3)][0])
    assert not torch.equal(first, images[(1, 3)][0])
    sampler = EpochSampler(np.arange(6), seed=0)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1] and sorted(i for _, i in orders[1]) == list(range(6))


def test_rand_augment_comes_last_and_is_drawn_from_the_same_numbers(gallery_path):
    """The picture is what torchvision's RandAugment makes of the picture without it, drawn behind the crop and the colours."""
    from torchvision.transforms import v2

    gallery, preprocess = Gallery.open(gallery_path), network_spec("efficientnet_lite0_gem").preprocess
    settings = SETTINGS.augmentation.model_copy(update={"rand_augment_ops": 2, "rand_augment_magnitude": 12})
    images = GalleryImages(gallery, np.arange(16), preprocess, settings, seed=5)
    plain = GalleryImages(gallery, np.arange(16), preprocess, SETTINGS.augmentation, seed=5)
    changed = 0
    for index in range(4):
        torch.manual_seed(int(np.random.SeedSequence((5, 1, index)).generate_state(1)[0]))
        without = plain.augment(torch.from_numpy(gallery.read_image(index)).permute(2, 0, 1))
        expected = v2.RandAugment(2, 12)(without).permute(1, 2, 0).numpy()
        picture = images.picture((1, index))
        np.testing.assert_array_equal(plain.picture((1, index)), without.permute(1, 2, 0))
        np.testing.assert_array_equal(picture, expected)
        assert picture.shape == (224, 224, 3) and picture.dtype == np.uint8
        changed += not np.array_equal(picture, without.permute(1, 2, 0))
    assert changed >= 2


def test_large_pictures_are_augmented_at_the_size_that_the_smallest_crop_needs():
    from types import SimpleNamespace

    from tiny_artefacts import make_picture

    preprocess, settings = network_spec("efficientnet_lite0_gem").preprocess, SETTINGS.augmentation
    # By hand: 224 / sqrt(0.6 · 0.8) = 323.3, and 960 px of height become that.
    for height, width, expected in ((960, 1280, (323, 431)), (300, 900, (300, 900)), (1000, 400, (808, 323))):
        picture = make_picture(3, height=height, width=width)
        images = GalleryImages(SimpleNamespace(read_image=lambda _, p=picture: p), np.zeros(1), preprocess, settings)
        seen, augment = [], images.augment

        def recording(image, seen=seen, augment=augment):
            seen.append(tuple(image.shape[1:]))
            return augment(image)

        images.augment = recording
        assert images.picture((0, 0)).shape == (224, 224, 3)
        assert seen == [expected]


def test_a_gallery_of_one_place_cannot_be_trained_on(gallery_path, tmp_path):
    settings = SETTINGS.model_copy(update={"cells": SETTINGS.cells.model_copy(update={"cell_size_m": 1e7, "heading_sectors": 1})})
    with pytest.raises(TrainingError, match="one place in all"):
        train(gallery_path, settings, tmp_path / "run")


def test_without_anything_to_hold_out_the_start_is_kept(gallery_path, tmp_path, caplog):
    every_image_a_place = SETTINGS.cells.model_copy(update={"cell_size_m": 0.5})
    settings = SETTINGS.model_copy(update={"cells": every_image_a_place})
    run = train(gallery_path, settings, tmp_path / "checked")
    assert "no place has two images" in caplog.text
    assert read_manifest(run, "run").details["fine_tuning"]["epoch"] == 0
    aligned = train(gallery_path, settings.model_copy(update={"epochs": 0}), tmp_path / "aligned")
    assert (run / "weights.safetensors").read_bytes() == (aligned / "weights.safetensors").read_bytes()
    unchecked = train(gallery_path, settings.model_copy(update={"validation_share": 0.0, "epochs": 1}), tmp_path / "unchecked")
    assert read_manifest(unchecked, "run").details["fine_tuning"]["epoch"] == 1
