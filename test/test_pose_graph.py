"""The pose graph of the examples, on a square that is driven one and a quarter times with odometry of known drift."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

pytest.importorskip("gtsam")
sys.path.insert(0, str(REPOSITORY / "examples"))

import gtsam
from gtsam_conversions import covariance_from_gtsam, covariance_to_gtsam, from_gtsam, to_gtsam
from pose_graph import PoseGraph
from pose_graph_inputs import Closure, GraphError, GraphSettings

from asymvpr_core.errors import SettingsError
from asymvpr_core.types import Pose

SIDE_M, STEP_M, LEGS = 20.0, 0.5, 5
LAP = round(4 * SIDE_M / STEP_M)  # steps of a whole round
SCALE, BIAS_RAD = 1.03, math.radians(0.15)  # of odometry: every step 3 % too long, and turned a little to the left
START_NS, STEP_NS = 1_000_000_000_000, 100_000_000
MAP = Pose.from_xy_yaw(100.0, 50.0, 2.0)  # where an earlier drive's map has the start of the square


def square(scale: float = SCALE, bias_rad: float = BIAS_RAD) -> list[Pose]:
    """The drive as odometry tells it; with (1, 0) the true one."""
    x = y = yaw = 0.0
    poses = []
    for _ in range(LEGS):
        for _ in range(round(SIDE_M / STEP_M)):
            poses.append(Pose.from_xy_yaw(x, y, yaw))
            x, y, yaw = x + scale * STEP_M * math.cos(yaw), y + scale * STEP_M * math.sin(yaw), yaw + bias_rad
        yaw += math.pi / 2
    return poses


TRUE, ODOMETRY = square(1.0, 0.0), square()


def stamp(step: int) -> int:
    return START_NS + step * STEP_NS


def in_map(pose: Pose) -> Pose:
    return from_gtsam(to_gtsam(MAP).compose(to_gtsam(pose)))


def driven(settings: GraphSettings | None = None) -> PoseGraph:
    graph = PoseGraph(settings)
    for step, pose in enumerate(ODOMETRY):
        graph.add_odometry(stamp(step), pose)
    return graph


def revisit(step: int, of: int | None = None, covariance: np.ndarray | None = None) -> Closure:
    """A closure within the drive: both poses are the keyframe's, as the node publishes them."""
    of = step - LAP if of is None else of
    return Closure(stamp(of), TRUE[of], stamp(step), TRUE[of], covariance)


def match(step: int, place: Pose | None = None) -> Closure:
    """A closure with a keyframe of an earlier drive, in its map."""
    place = in_map(TRUE[step]) if place is None else place
    return Closure(stamp(step) - 10**14, place, stamp(step), place)


def errors(graph: PoseGraph, truth: list[Pose]) -> np.ndarray:
    return np.array([ours.distance_m(true) for ours, true in zip(graph.corrected().poses, truth, strict=True)])


def test_without_closures_the_graph_says_what_odometry_says():
    graph = driven()
    assert np.allclose(errors(graph, ODOMETRY), 0, atol=1e-6)
    assert not graph.in_map
    assert graph.counts.odometry == len(ODOMETRY) == 200
    assert graph.counts.nodes == 100  # every metre, which odometry reaches with its second step of 0.515 m
    assert errors(graph, TRUE)[-1] > 6


def test_a_closure_pulls_the_end_back():
    graph = driven()
    before = errors(graph, TRUE)[-1]
    for step in range(LAP + 2, len(TRUE), 8):
        assert graph.add_closure(revisit(step))
    after = errors(graph, TRUE)
    assert after[-1] < 0.4 * before
    assert np.sqrt(np.mean(after**2)) < np.sqrt(np.mean(errors(driven(), TRUE) ** 2)) / 2
    # What the closures say is what the graph gives: the second time at a corner lies where the first one lay.
    corrected = graph.corrected().poses
    assert corrected[LAP + 20].distance_m(corrected[20]) < 0.5
    assert graph.closure_residuals().max() < 2
    assert graph.counts.closures_in_run == 5 and not graph.in_map


@pytest.mark.parametrize("kernel", ["cauchy", "dcs", "geman_mcclure"])
def test_a_false_closure_is_rejected_by_the_robust_kernel(kernel):
    right, misled = driven(GraphSettings(kernel=kernel)), driven(GraphSettings(kernel=kernel))
    for graph in (right, misled):
        for step in range(LAP + 2, len(TRUE), 4):
            graph.add_closure(revisit(step))
    misled.add_closure(revisit(120, of=20))  # the opposite side of the square
    assert misled.closure_residuals()[-1] > 10
    assert np.abs(errors(misled, TRUE) - errors(right, TRUE)).max() < 0.5
    # Without a kernel to speak of, the same closure bends the whole square.
    believing = driven(GraphSettings(kernel="huber", kernel_width=1000.0))
    for step in range(LAP + 2, len(TRUE), 4):
        believing.add_closure(revisit(step))
    believing.add_closure(revisit(120, of=20))
    assert np.abs(errors(believing, TRUE) - errors(right, TRUE)).max() > 3


def test_matches_with_an_earlier_drive_place_this_one_in_its_map():
    graph = driven()
    for step in (*range(8, 40, 4), *range(160, 200, 4)):
        graph.add_closure(match(step))
    assert graph.in_map
    assert errors(graph, [in_map(pose) for pose in TRUE]).max() < 1.2
    pose, covariance = graph.pose()
    assert pose.distance_m(in_map(TRUE[-1])) < 0.8
    assert pose.yaw_distance_deg(in_map(TRUE[-1])) < 8
    assert np.allclose(covariance, covariance.T) and np.linalg.eigvalsh(covariance).min() > 0
    assert math.sqrt(covariance[0, 0]) < 1.0  # tighter than any single match


@pytest.mark.parametrize("first_is_false", [True, False])
def test_one_false_match_does_not_misplace_the_drive(first_is_false):
    graph = driven()
    for step in (*range(8, 40, 4), *range(160, 200, 4)):
        false = step == (8 if first_is_false else 20)
        graph.add_closure(match(step, Pose.from_xy_yaw(0.0, 0.0, 0.0) if false else None))
    assert graph.counts.realignments >= first_is_false
    assert errors(graph, [in_map(pose) for pose in TRUE]).max() < 1.5


def test_uncertainty_grows_without_closures_and_shrinks_with_one():
    graph = PoseGraph()
    spreads = []
    for step, pose in enumerate(ODOMETRY):
        graph.add_odometry(stamp(step), pose)
        spreads.append(float(np.trace(graph.pose()[1][:2, :2])))
    assert spreads[-1] > spreads[100] > spreads[10] > 0
    graph.add_closure(revisit(len(ODOMETRY) - 2))
    assert np.trace(graph.pose()[1][:2, :2]) < 0.7 * spreads[-1]


def test_a_tight_covariance_weighs_more_than_the_default():
    loose, tight = driven(), driven()
    loose.add_closure(revisit(180, covariance=np.diag([25.0] * 3 + [1.0] * 3)))
    tight.add_closure(revisit(180, covariance=np.diag([0.01] * 3 + [0.01] * 3)))
    assert errors(tight, TRUE)[180] < errors(loose, TRUE)[180] < errors(driven(), TRUE)[180]


@pytest.mark.parametrize("covariance", [np.zeros((6, 6)), np.full((6, 6), np.nan), -np.eye(6), np.triu(np.ones((6, 6)))])
def test_an_absurd_covariance_is_counted_and_the_default_taken(covariance):
    graph, plain = driven(), driven()
    graph.add_closure(revisit(180, covariance=covariance))
    plain.add_closure(revisit(180))
    assert graph.counts.covariances_refused == 1
    assert np.allclose(errors(graph, TRUE), errors(plain, TRUE))


def test_frames_of_one_place_count_once():
    graph = driven()
    assert graph.add_closure(match(20))
    assert not graph.add_closure(match(20)) and not graph.add_closure(match(21))  # half a metre on, the same node
    assert (graph.counts.closures_to_map, graph.counts.closures_redundant) == (1, 2)


@pytest.mark.parametrize(
    ("closure", "part"),
    [
        (Closure(stamp(0), TRUE[0], stamp(900), TRUE[0]), "expected a time of odometry, 1000"),
        (Closure(stamp(0), TRUE[0], stamp(-1), TRUE[0]), "the query of the closure at 999.9"),
        (Closure(stamp(0), Pose((math.nan, 0.0, 0.0)), stamp(180), TRUE[0]), "the keyframe pose of the closure at 1018"),
        (Closure(stamp(0), TRUE[0], stamp(180), Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0))), "unit quaternion"),
    ],
)
def test_closures_that_make_no_sense_are_refused_and_counted(closure, part):
    graph = driven()
    with pytest.raises(GraphError, match=part):
        graph.add_closure(closure)
    assert graph.counts.closures_refused == 1
    assert np.allclose(errors(graph, ODOMETRY), 0, atol=1e-6)


@pytest.mark.parametrize(
    "pose", [Pose((math.inf, 0.0, 0.0)), Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, math.nan)), Pose((0.0, 0.0, 0.0), (0.0,) * 4)]
)
def test_odometry_that_is_no_pose_is_refused_and_counted(pose):
    graph = driven()
    with pytest.raises(GraphError, match="odometry of 1020"):
        graph.add_odometry(stamp(200), pose)
    for again in (199, 100):
        with pytest.raises(GraphError, match="stamps that increase"):
            graph.add_odometry(stamp(again), ODOMETRY[0])
    assert (graph.counts.odometry, graph.counts.odometry_refused) == (200, 3)


def test_a_reset_of_odometry_is_a_gap_that_closures_bridge():
    """Half-way, the wheels' driver starts anew at zero: no robot moves like that."""
    graph = PoseGraph()
    for step in range(100):
        graph.add_odometry(stamp(step), TRUE[step])
    begin = to_gtsam(TRUE[100]).inverse()
    for step in range(100, len(TRUE)):
        graph.add_odometry(stamp(step), from_gtsam(begin.compose(to_gtsam(TRUE[step]))))
    assert graph.counts.odometry_gaps == 1
    for step in (*range(8, 90, 8), *range(110, 200, 8)):
        graph.add_closure(match(step))
    assert errors(graph, [in_map(pose) for pose in TRUE]).max() < 0.3


def test_no_closure_stands_in_a_pause_of_odometry():
    graph = PoseGraph()
    for step in (*range(100), *range(130, 200)):
        graph.add_odometry(stamp(step), ODOMETRY[step])
    assert graph.counts.odometry_gaps == 1
    with pytest.raises(GraphError, match="in a gap of odometry of 3.1 s"):
        graph.add_closure(match(110))


def test_settings_are_checked():
    for wrong in ({"kernel": "square"}, {"node_distance_m": 0.0}, {"kernel_width": math.nan}, {"kernal": "huber"}):
        with pytest.raises((SettingsError, ValueError)):
            GraphSettings(**wrong)


def test_an_empty_graph_has_no_pose():
    with pytest.raises(GraphError, match="expected odometry"):
        PoseGraph().pose()
    assert not PoseGraph().covers(0)


def test_covariances_survive_the_way_to_gtsam_and_back():
    """A robot that looks along +y and is uncertain along its way: ROS has that variance in y, GTSAM in x."""
    pose = to_gtsam(Pose.from_xy_yaw(3.0, 4.0, math.pi / 2))
    ros = np.diag([0.1, 9.0, 0.2, 0.3, 0.4, 0.5])
    ours = covariance_to_gtsam(pose, ros)
    assert np.allclose(np.diag(ours), [0.4, 0.3, 0.5, 9.0, 0.1, 0.2])
    assert np.allclose(covariance_from_gtsam(pose, ours), ros)
    assert gtsam.noiseModel.Gaussian.Covariance(ours).dim() == 6
