"""Smaller descriptors: a gallery projected from its stored descriptors, and the same projection folded into the query model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from town_folder import make_folder
from typer.testing import CliRunner

from asymvpr_core.cli.main import app
from asymvpr_core.config import ExportSettings, GallerySettings, ProjectionSettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.export import export_model
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, GalleryError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.encoder import GalleryEncoder
from asymvpr_core.gallery.project import project_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair, read_manifest, verify_files
from asymvpr_core.networks.projection import Projection, fit_projection, random_projection
from asymvpr_core.training.run import train

pytestmark = pytest.mark.slow

FULL = GallerySettings(projection_dim=None, descriptor_dtype="float16", threads=1)
PCA = ProjectionSettings(whitening=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def full(root) -> Path:
    return build_gallery(open_source(make_folder(root / "images", places=8, looks=2)), FULL, root / "full")


@pytest.fixture(scope="module")
def small(full, root) -> Path:
    return project_gallery(full, 6, PCA, root / "small")


@pytest.fixture(scope="module")
def run(full, root) -> Path:
    return train(full, TrainSettings(epochs=0, alignment_copies=0, threads=1, workers=0, batch_size=8), root / "run")


def test_fewer_dimensions_than_asked_for_are_said(full, tmp_path):
    """PCA of 16 images has at most 15 directions."""
    result = CliRunner().invoke(app, ["gallery", "project", str(full), "--dim", "512", "--out", str(tmp_path / "g")])
    assert result.exit_code == 0, result.stderr
    assert "note: 15-D, where 512 were asked for: PCA of 16 images gives no more" in result.stdout
    result = CliRunner().invoke(app, ["gallery", "project", str(full), "--dim", "15", "--out", str(tmp_path / "h")])
    assert result.exit_code == 0 and "asked for" not in result.stdout


def test_it_holds_the_stored_descriptors_projected(full, small):
    stored, projected = Gallery.open(full), Gallery.open(small)
    features = np.asarray(stored.descriptors, np.float32)
    np.testing.assert_allclose(projected.descriptors, fit_projection(features, 6, 0.0)(features), atol=2e-3)  # float16
    assert projected.descriptors.dtype == stored.descriptors.dtype and projected.keyframes == stored.keyframes
    verify_files(small, projected.manifest)


def test_the_gallery_network_describes_new_images_for_it(small):
    encoder, gallery = GalleryEncoder.open(Gallery.open(small), threads=1), Gallery.open(small)
    np.testing.assert_allclose(encoder.encode(gallery.read_image(3)), gallery.descriptors[3], atol=2e-3)


def test_the_share_of_variance_is_that_of_the_leading_directions(full, small):
    features = np.asarray(Gallery.open(full).descriptors, np.float64)
    variances = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    kept = read_manifest(small, "gallery").details["projected_from"]["kept_variance"]
    assert kept == pytest.approx(variances[:6].sum() / variances.sum(), abs=1e-4)


def test_the_folded_model_gives_the_large_models_descriptors_projected(full, small, run, root):
    large = QueryModel.open(export_model(run, root / "model", ExportSettings(parity_images=2)))
    folded = QueryModel.open(export_model(run, root / "model_small", ExportSettings(parity_images=2), projection_from=small))
    image = Gallery.open(full).read_image(5)
    projection = Projection.load(small / "projection.npz")
    assert folded.dimension == 6
    np.testing.assert_allclose(folded.encode(image), projection(large.encode(image)[np.newaxis])[0], atol=1e-5)
    check_pair(read_manifest(small, "gallery"), folded.manifest, small, root / "model_small")
    with pytest.raises(ArtefactError, match="expected a gallery and a model of one pair"):
        check_pair(read_manifest(small, "gallery"), large.manifest, small, root / "model")


def test_a_second_site_shares_the_projection_and_so_the_model(full, small, root):
    other = build_gallery(open_source(make_folder(root / "site2", places=4, looks=1, first_seed=60)), FULL, root / "full2")
    shared = project_gallery(other, 6, PCA, root / "small2", projection_from=small)
    own = project_gallery(other, 3, PCA, root / "own2")
    pair = read_manifest(small, "gallery").gallery_network.pair_id
    assert read_manifest(shared, "gallery").gallery_network.pair_id == pair
    assert read_manifest(own, "gallery").gallery_network.pair_id != pair


def test_a_random_projection_keeps_cosines_and_is_the_same_for_the_same_seed(full, root):
    settings = ProjectionSettings(projection="random", projection_seed=3)
    projected = Gallery.open(project_gallery(full, 640, settings, root / "random"))
    stored = np.asarray(Gallery.open(full).descriptors, np.float32)
    cosines, kept = stored @ stored.T, np.asarray(projected.descriptors, np.float32) @ np.asarray(projected.descriptors, np.float32).T
    assert np.abs(cosines - kept).max() < 0.15  # 1/sqrt(640) is 0.04
    again = random_projection(1280, 640, seed=3)
    assert np.array_equal(Projection.load(root / "random" / "projection.npz").matrix, again.matrix)
    np.testing.assert_allclose(again.matrix.T @ again.matrix, np.eye(640), atol=1e-5)
    assert not np.allclose(random_projection(1280, 640, seed=4).matrix, again.matrix)


def test_what_cannot_be_projected_is_refused(full, small, run, root):
    with pytest.raises(ArtefactError, match="is projected already, to 6-D"):
        project_gallery(small, 3, PCA, root / "twice")
    with pytest.raises(GalleryError, match="expected 1 to 1279"):
        project_gallery(full, 1280, PCA, root / "larger")
    with pytest.raises(GalleryError, match="at most the network's 8"):
        random_projection(8, 9, 0)
    with pytest.raises(ArtefactError, match="was not projected from the gallery"):
        export_model(run, root / "m", ExportSettings(), projection_from=full)
    with pytest.raises(ArtefactError, match="was not projected from descriptors like those"):
        project_gallery(full, 6, PCA, root / "s", projection_from=full)
    assert not any((root / name).exists() for name in ("twice", "larger", "m", "s"))
