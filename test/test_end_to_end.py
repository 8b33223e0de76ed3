"""Every stage on a tiny rendered world, the live node included, and the same on the user's own folders."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("rclpy")

from test_demo_town import tiny
from town_folder import make_folder

from asymvpr_core.config import GallerySettings, RuntimeSettings, TrainSettings
from asymvpr_core.demo.story import DemoSettings, run_demo
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, DatasetError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import read_manifest, verify_files

pytestmark = pytest.mark.slow


def settings() -> DemoSettings:
    return DemoSettings(
        town=tiny(),
        gallery=GallerySettings(projection_dim=16, threads=1),
        training=TrainSettings(epochs=1, batch_size=4, frozen_share=0.9, alignment_copies=0, gamma=1.0, workers=0, threads=1),
        runtime=RuntimeSettings(threads=1),
        rate=1.0,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    run_demo(folder, settings=settings())
    return folder


def test_every_artefact_is_whole(out):
    for name, kind in [("gallery", "gallery"), ("run_trained", "run"), ("model_trained", "model"), ("model_untrained", "model")]:
        verify_files(out / name, read_manifest(out / name, kind))
    assert QueryModel.open(out / "model_trained").manifest.gallery_network == Gallery.open(out / "gallery").manifest.gallery_network
    assert not list(out.glob("*.partial"))


def test_the_live_node_answered_as_the_offline_evaluation_did(out):
    metrics = json.loads((out / "metrics.json").read_text())
    same = metrics["live_and_offline_candidates"]
    assert same["compared"] > 0.5 * metrics["offline"]["trained"]["n_frames"]
    assert same["identical"] == same["compared"]
    live = metrics["live"]
    assert live["n_frames_sent"] == metrics["offline"]["trained"]["n_frames"]
    assert live["n_frames_processed"] == same["compared"]
    assert set(metrics["offline"]) == {"trained", "aligned", "untrained"}


def test_the_pose_graph_heard_the_odometry_beside_the_node(out):
    slam = json.loads((out / "metrics.json").read_text())["slam"]
    assert slam["graph"]["odometry"] == slam["odometry"]["n_poses"] == slam["corrected"]["n_poses"] == 79  # every message
    assert slam["graph"]["closures_refused"] == slam["graph"]["odometry_gaps"] == 0
    assert slam["odometry"]["rmse_m"] > 0
    assert "What the loop closures are worth" in (out / "report.html").read_text()


def test_the_report_is_one_file_with_pictures(out):
    html = (out / "report.html").read_text()
    assert html.count("data:image/jpeg") >= 2 and html.count("data:image/svg+xml") >= 3
    assert "http://" not in html.replace("http://www.w3.org", "") and "<script src" not in html


def test_a_second_run_uses_the_artefacts_again_and_another_seed_is_refused(out):
    before = (out / "gallery" / "manifest.json").stat().st_mtime_ns
    result = run_demo(out, settings=settings())
    assert (out / "gallery" / "manifest.json").stat().st_mtime_ns == before
    assert "gallery" not in result.seconds and "live" in result.seconds
    other = settings()
    other.training = other.training.model_copy(update={"seed": 1})
    with pytest.raises(ArtefactError, match="demo of other settings"):
        run_demo(out, settings=other)


def test_own_folders_go_the_same_way(tmp_path):
    make_folder(tmp_path / "data" / "database", places=6)
    make_folder(tmp_path / "data" / "queries", places=4)
    result = run_demo(tmp_path / "out", tmp_path / "data", settings=settings())
    assert result.live["n_frames_sent"] == 8
    assert result.live["protocol"]["radius_m"] == 25.0
    identical, compared = result.identical_candidates
    assert identical == compared > 0
    assert result.slam is None and "no odometry topic" in result.no_slam


def test_own_data_without_a_live_part_is_refused(tmp_path):
    make_folder(tmp_path / "data" / "database", places=2)
    with pytest.raises(DatasetError, match="holds database; expected one of live, queries, query"):
        run_demo(tmp_path / "out", tmp_path / "data", settings=settings())
