"""When an initial pose is said: first, when asked, after a kidnapping; and how it is carried to now."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asymvpr_core.rigid_transforms import carried_on, compose, inverse
from asymvpr_core.types import Pose
from asymvpr_ros.localisation_events import FIRST, Cooldown, LocalisationEvents

SECOND_NS = 1_000_000_000


def matrix(pose: Pose) -> np.ndarray:
    """(4, 4) homogeneous matrix, from the quaternion by the textbook formula."""
    x, y, z, w = pose.quaternion
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, pose.position
    return result


def random_pose(seed: int) -> Pose:
    random = np.random.default_rng(seed)
    quaternion = random.normal(size=4)
    return Pose(tuple(random.normal(size=3) * 10), tuple(quaternion / np.linalg.norm(quaternion)))


@pytest.mark.parametrize("seed", range(5))
def test_transforms_are_those_of_the_matrices(seed):
    a, b, c = (random_pose(10 * seed + i) for i in range(3))
    assert np.allclose(matrix(compose(a, b)), matrix(a) @ matrix(b))
    assert np.allclose(matrix(inverse(a)), np.linalg.inv(matrix(a)))
    assert np.allclose(matrix(carried_on(a, b, c)), matrix(a) @ np.linalg.inv(matrix(b)) @ matrix(c))


def test_a_match_is_carried_on_by_hand_counted_odometry():
    # Matched at (10, 5) looking along +y; odometry, which began elsewhere, says: 2 m forward and a quarter turn left since.
    then, now = Pose.from_xy_yaw(1.0, 1.0, 0.0), Pose.from_xy_yaw(3.0, 1.0, math.pi / 2)
    pose = carried_on(Pose.from_xy_yaw(10.0, 5.0, math.pi / 2), then, now)
    assert pose.position == pytest.approx((10.0, 7.0, 0.0))
    assert abs(pose.yaw_rad) == pytest.approx(math.pi)


def drive(events: LocalisationEvents, matches_x: list[float], odometry_x: list[float]) -> list[str]:
    return [events.reason(Pose((m, 0.0, 0.0)), Pose((o, 0.0, 0.0))) for m, o in zip(matches_x, odometry_x, strict=True)]


def test_the_first_match_is_an_event_and_the_next_ones_are_none():
    events = LocalisationEvents(5.0, 45.0)
    assert drive(events, [100.0, 101.0, 103.0, 104.0], [0.0, 1.0, 2.0, 3.0]) == [FIRST, "", "", ""]


def test_a_slow_drift_is_followed_without_an_event():
    events = LocalisationEvents(5.0, 45.0)
    metres = [float(m) for m in range(100)]
    assert drive(events, [1.2 * m for m in metres], metres) == [FIRST] + [""] * 99  # 20 m of drift in the end


def test_a_kidnapping_is_an_event_once_three_matches_agree():
    events = LocalisationEvents(5.0, 45.0)
    reasons = drive(events, [0.0, 1.0, 52.0, 53.0, 54.0, 55.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert reasons[:4] == [FIRST, "", "", ""] and reasons[5] == ""
    assert "3 matches agree that the robot is 50.0 m from where odometry put it" in reasons[4]


def test_false_matches_that_do_not_agree_are_no_kidnapping():
    events = LocalisationEvents(5.0, 45.0)
    reasons = drive(events, [0.0, 70.0, 20.0, 90.0, 40.0, 5.0, 60.0, 61.0, 8.0], [float(i) for i in range(9)])
    assert reasons == [FIRST] + [""] * 8


def test_a_turned_robot_is_noticed_by_its_yaw():
    events = LocalisationEvents(5.0, 45.0)
    forward, back = Pose.from_xy_yaw(0.0, 0.0, 0.0), Pose.from_xy_yaw(0.0, 0.0, math.pi)
    assert [events.reason(pose, forward) != "" for pose in (forward, back, back, back)] == [True, False, False, True]


def test_a_trigger_makes_the_next_match_an_event_and_is_answered_once():
    events = LocalisationEvents(5.0, 45.0)
    drive(events, [0.0], [0.0])
    events.trigger("the service")
    assert events.asked == events.due == "the service"
    assert drive(events, [1.0, 2.0], [1.0, 2.0]) == ["the service", ""]
    events.answered()
    assert events.asked == events.due == ""


def test_new_odometry_is_no_kidnapping():
    events = LocalisationEvents(5.0, 45.0)
    drive(events, [0.0, 1.0], [0.0, 1.0])
    events.odometry_restarted()
    assert drive(events, [2.0, 3.0, 4.0, 5.0], [100.0, 101.0, 102.0, 103.0]) == [""] * 4


def test_the_cooldown_goes_by_image_stamps():
    cooldown = Cooldown()
    assert cooldown.left_s(5 * SECOND_NS, 2.0) <= 0
    cooldown.begin(5 * SECOND_NS)
    assert cooldown.left_s(6 * SECOND_NS, 2.0) == pytest.approx(1.0)
    assert cooldown.left_s(7 * SECOND_NS, 2.0) == 0
    assert cooldown.left_s(4 * SECOND_NS, 2.0) == 0  # a bag that starts again
