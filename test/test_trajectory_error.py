"""Absolute trajectory error against cases counted by hand, and against its definition written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asymvpr_core.datasets.trajectory import Trajectory
from asymvpr_core.demo.slam import compare_trajectories, recorded_closures
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.trajectory_error import absolute_trajectory_error
from asymvpr_core.types import Pose

SECOND_NS = 1_000_000_000
START_NS = 1_750_000_000 * SECOND_NS + 123


def trajectory(*states: tuple[float, float, float], step_s: float = 1.0, start_ns: int = START_NS) -> Trajectory:
    """Poses x, y [m], yaw [rad], one every `step_s`."""
    stamps = [start_ns + round(i * step_s * SECOND_NS) for i in range(len(states))]
    return Trajectory(stamps, [Pose.from_xy_yaw(*state) for state in states])


CORNER = trajectory((0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, math.pi / 2), (2, 2, math.pi / 2))


def test_a_case_by_hand():
    """Off by 0, 0, 3, 4 and 0 m: mean 1.4, RMSE the root of 25 / 5."""
    estimate = trajectory((0, 0, 0), (1, 0, 0), (2, 3, 0), (6, 1, 0), (2, 2, 0))
    error = absolute_trajectory_error(CORNER, estimate, "none")
    assert error.errors_m == pytest.approx([0, 0, 3, 4, 0])
    assert (error.rmse_m, error.mean_m, error.median_m, error.max_m) == pytest.approx((math.sqrt(5), 1.4, 0.0, 4.0))
    assert error.length_m == pytest.approx(4.0)
    assert error.metrics()["n_poses"] == 5 and error.metrics()["alignment"] == "none"


def test_alignment_at_the_start_takes_the_first_pose_for_the_true_one():
    """Odometry from zero of a robot that stood at (10, 5) looking along +y: moved there, it is exact but for the last pose."""
    truth = trajectory((10, 5, math.pi / 2), (10, 6, math.pi / 2), (10, 7, math.pi / 2))
    odometry = trajectory((0, 0, 0), (1, 0, 0), (2.5, 0, 0))
    error = absolute_trajectory_error(truth, odometry, "start")
    assert error.errors_m == pytest.approx([0, 0, 0.5])
    assert error.xy == pytest.approx(np.array([(10, 5), (10, 6), (10, 7.5)]))
    assert absolute_trajectory_error(truth, odometry, "none").errors_m[0] == pytest.approx(math.hypot(10, 5))


def test_rigid_alignment_is_the_best_there_is():
    rng = np.random.default_rng(4)
    points = np.array([pose.position[:2] for pose in CORNER.poses]) + rng.normal(0, 0.2, (5, 2))
    cos, sin = math.cos(0.7), math.sin(0.7)
    turned = points @ np.array([[cos, sin], [-sin, cos]]) + (4, -3)
    estimate = trajectory(*[(x, y, 0.0) for x, y in turned.tolist()])
    error = absolute_trajectory_error(CORNER, estimate, "rigid")
    true = np.array([pose.position[:2] for pose in CORNER.poses])

    def rmse(angle: float) -> float:
        """With the best shift for this angle, which makes the means equal."""
        c, s = math.cos(angle), math.sin(angle)
        moved = turned @ np.array([[c, s], [-s, c]])
        moved += true.mean(axis=0) - moved.mean(axis=0)
        return float(np.sqrt(np.mean(np.sum((moved - true) ** 2, axis=1))))

    assert error.rmse_m == pytest.approx(min(rmse(angle) for angle in np.linspace(-math.pi, math.pi, 20001)), abs=1e-4)


def test_the_truth_is_interpolated_and_what_lies_outside_of_it_is_left_out():
    estimate = trajectory((0.25, 0, 0), (1.75, 0, 0), step_s=1.5, start_ns=START_NS + SECOND_NS // 4)
    late = Trajectory([*estimate.stamps_ns.tolist(), START_NS + 100 * SECOND_NS], [*estimate.poses, Pose((0.0, 0.0, 0.0))])
    error = absolute_trajectory_error(CORNER, late, "none")
    assert error.errors_m == pytest.approx([0, 0])


def test_what_cannot_be_compared_is_refused():
    elsewhere = trajectory((0, 0, 0), (1, 0, 0), start_ns=START_NS + 1000 * SECOND_NS)
    with pytest.raises(EvaluationError, match="0 poses of trajectory .* expected at least 1"):
        absolute_trajectory_error(CORNER, elsewhere, "none")
    line = trajectory(*[(x, 0, 0) for x in range(5)])
    with pytest.raises(EvaluationError, match="all positions lie on one line"):
        absolute_trajectory_error(line, line, "rigid")


def test_before_and_after():
    odometry = trajectory((0, 0, 0), (1, 0, 0), (2, 2, 0), (3, 1, 0), (4, 2, 0))
    corrected = trajectory((0, 1, 0), (1, 1, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0))
    closures = [(START_NS + 2 * SECOND_NS, (7.0, 8.0)), (START_NS - SECOND_NS, (0.0, 0.0))]
    result = compare_trajectories(odometry, corrected, CORNER, in_map=True, counts={"nodes": 5}, closures=closures)
    assert result.corrected.rmse_m == pytest.approx(1.0)  # in the map as it is: a metre off throughout
    assert result.odometry.rmse_m == pytest.approx(math.sqrt((4 + 1 + 4) / 5))
    assert result.ratio == pytest.approx(1 / math.sqrt(1.8))
    assert result.shape_ratio == pytest.approx(0.0, abs=1e-9)  # its shape is right
    assert np.array(result.closures) == pytest.approx(np.array([[(7, 8), (2, 0)]]))  # the other has no true place
    assert [row[0] for row in result.rows()] == [
        "odometry", "after loop closures", "odometry, shape only", "after loop closures, shape only",
    ]  # fmt: skip
    # Never tied to the map, the drive lies in the frame of odometry and is placed as odometry is.
    untied = compare_trajectories(odometry, corrected, CORNER, in_map=False, counts={})
    assert untied.corrected.alignment == "start" and untied.corrected.rmse_m == pytest.approx(0.0, abs=1e-9)


def test_a_straight_drive_has_no_shape_to_align():
    line = trajectory(*[(x, 0, 0) for x in range(5)])
    result = compare_trajectories(line, line, line, in_map=True, counts={})
    assert result.shape_ratio is None and len(result.rows()) == 2
    assert result.metrics()["odometry_shape"] is None


def test_closures_are_read_from_a_recording():
    edge = {"topic": "loop_closure", "poses": [[5, 1.0, 2.0, 0, 0, 0, 0, 1], [9, 1.0, 2.0, 0, 0, 0, 0, 1]]}
    assert recorded_closures([{"topic": "place_match/pose"}, edge]) == [(9, (1.0, 2.0))]
