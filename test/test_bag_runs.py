"""Runs side by side: several bags and ways of matching, the matcher's own curve, the ignored ring, live drops, odometry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_artefacts import SECOND_NS, encode_jpeg, make_model, make_picture, make_street, revisit

from asymvpr_core.config import EvaluationSettings, MatcherSettings, SourceSettings
from asymvpr_core.datasets.bag_odometry import read_odometry
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.errors import BagError, EvaluationError
from asymvpr_core.evaluation.bag import evaluate_bag
from asymvpr_core.evaluation.bag_runs import RunSource, evaluate_bags
from asymvpr_core.evaluation.encoded_run import would_drop
from asymvpr_core.evaluation.outcomes import Outcome
from asymvpr_core.evaluation.similarity_plot import similarity_cells
from asymvpr_core.types import Pose

NEAR = EvaluationSettings(radius_m=1.0)
OFF = MatcherSettings(sequence="off", score_threshold=0.8)
VOTE = MatcherSettings(sequence="vote", sequence_length=3, min_votes=2, score_threshold=0.8, agreement_radius_m=8.0)
TRUTH = SourceSettings(pose_topic="/truth")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A street of 12 places 2 m apart; monday's run mistakes one place, tuesday's none. Both carry odometry."""
    folder = tmp_path_factory.mktemp("runs")
    make_street(folder / "gallery")
    make_model(folder / "model")
    for name, shown in (("monday", [0, 1, 2, 3, 9, 5, 6, 7]), ("tuesday", [0, 1, 2, 3, 4, 5])):
        with BagWriter(folder / name) as bag:
            for i, seed in enumerate(shown):
                stamp_ns = (5000 + i) * SECOND_NS
                bag.write_compressed_image("/camera/image/compressed", stamp_ns, "camera", encode_jpeg(revisit(make_picture(seed), i)))
                bag.write_pose("/truth", stamp_ns, pose_at(2.0 * i))
                bag.write_odometry("/odom", stamp_ns, pose_at(2.1 * i))
    return folder


def pose_at(x: float) -> Pose:
    return Pose.from_xy_yaw(x, 0.3, 0.0)


def test_every_bag_and_way_gives_what_it_gives_alone(world, tmp_path):
    bags = [RunSource(world / name, TRUTH) for name in ("monday", "tuesday")]
    ways = {"off": OFF, "vote": VOTE}
    runs = evaluate_bags(bags, world / "gallery", [world / "model"], ways, out=tmp_path / "all", evaluation=NEAR)
    assert [(run.bag, run.way) for run in runs] == [("monday", "off"), ("monday", "vote"), ("tuesday", "off"), ("tuesday", "vote")]
    metrics = json.loads((tmp_path / "all" / "metrics.json").read_text())["runs"]
    assert list(metrics) == [run.folder for run in runs]
    for run in runs:
        alone = evaluate_bag(
            world / run.bag, world / "gallery", world / "model", source=TRUTH, evaluation=NEAR, matcher=ways[run.way],
            out=tmp_path / run.folder,
        )  # fmt: skip
        assert [frame.result for frame in alone.frames] == [frame.result for frame in run.result.frames]
        assert metrics[run.folder]["n_true"] == alone.metrics["n_true"]
        assert (tmp_path / "all" / run.folder / "matches.csv").read_text().count("\n") == len(alone.frames) + 1
    counts = {run.folder: (run.result.metrics["n_true"], run.result.metrics["n_false"]) for run in runs}
    assert counts["monday_model_off"] == (7, 1) and counts["tuesday_model_off"] == (6, 0)
    assert counts["monday_model_vote"][1] == 0  # the mistaken place has no second vote
    text = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert "monday" in text and "http://" not in text.replace("http://www.w3.org", "")


def test_the_curve_with_agreement_is_that_of_the_matcher_at_each_threshold(world, tmp_path):
    paths = (world / "monday", world / "gallery", world / "model")
    result = evaluate_bag(*paths, source=TRUTH, evaluation=NEAR, matcher=VOTE, out=tmp_path / "out")
    assert len(result.agreed.thresholds) > 1
    for i in (0, len(result.agreed.thresholds) - 1):
        settings = VOTE.model_copy(update={"score_threshold": float(result.agreed.thresholds[i])})
        metrics = evaluate_bag(*paths, source=TRUTH, evaluation=NEAR, matcher=settings, out=tmp_path / f"at_{i}").metrics
        assert metrics["precision_of_accepted"] == result.agreed.precision[i]
        assert metrics["recall_of_accepted"] == result.agreed.recall[i]
    assert result.metrics["with_agreement"]["recall_at_full_precision"] == max(result.agreed.recall[result.agreed.precision == 1.0])


def test_a_match_in_the_ring_is_neither_true_nor_false(world, tmp_path):
    paths = (world / "monday", world / "gallery", world / "model")
    ring = EvaluationSettings(radius_m=1.0, ignore_ring_m=10.0)  # frame 4 was matched to a keyframe 10 m away
    result = evaluate_bag(*paths, source=TRUTH, evaluation=ring, matcher=OFF, out=tmp_path / "out")
    assert result.frames[4].outcome is Outcome.IGNORED
    metrics = result.metrics
    assert (metrics["n_true"], metrics["n_false"], metrics["n_ignored"], metrics["n_accepted"]) == (7, 0, 1, 7)
    assert metrics["recall_at_full_precision"] == pytest.approx(7 / 8)


def test_what_is_given_twice_or_missing_is_refused(world, tmp_path):
    bags = [RunSource(world / "monday", TRUTH)] * 2
    with pytest.raises(EvaluationError, match="bag .*monday is given twice"):
        evaluate_bags(bags, world / "gallery", [world / "model"], {"off": OFF}, out=tmp_path / "out")
    with pytest.raises(BagError, match="topic /wrong is not in bag"):
        evaluate_bag(world / "monday", world / "gallery", world / "model", source=TRUTH, odometry_topic="/wrong", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odometry_is_the_poses_of_its_topic(world):
    trajectory = read_odometry(world / "monday", "/odom")
    assert len(trajectory) == 8
    assert trajectory.poses[3].position[0] == pytest.approx(6.3)
    with pytest.raises(BagError, match="holds sensor_msgs"):
        read_odometry(world / "monday", "/camera/image/compressed")


def test_live_drops_counted_by_hand():
    ms = 1_000_000
    # 100 ms apart, 250 ms each: frame 0 is in work until 250, frame 1 is replaced by 2 (starts at 250, ends at 500), 3 by 4.
    assert would_drop([i * 100 * ms for i in range(5)], np.full(5, 250.0)) == 2
    assert would_drop([i * 100 * ms for i in range(5)], np.full(5, 90.0)) == 0
    assert would_drop([i * 100 * ms for i in range(5)], np.full(5, 110.0)) == 0  # late, but each still finds the slot
    assert would_drop([], np.zeros(0)) == 0


def test_a_cell_of_the_similarity_matrix_is_the_largest_of_its_block():
    generator = np.random.default_rng(0)
    frames, keyframes = generator.normal(size=(7, 4)).astype(np.float32), generator.normal(size=(5, 4)).astype(np.float32)
    cells, extent = similarity_cells(frames, keyframes, most=3)
    assert cells.shape == (3, 3) and extent == (-0.5, 5.5, 8.5, -0.5)
    for row in range(3):
        for column in range(3):
            block = (frames @ keyframes.T)[3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
            assert cells[row, column] == pytest.approx(block.max())
