"""Odometry at image stamps: interpolation, what is refused, and when everything starts anew."""

from __future__ import annotations

import math

import pytest

from asymvpr_core.types import Pose
from asymvpr_ros.odometry_buffer import OdometryBuffer

MS = 1_000_000
START_NS = 1_000_000 * MS


def filled(positions_m: list[float], period_ms: int = 100, max_gap_s: float = 0.5) -> OdometryBuffer:
    """A buffer with a pose every `period_ms` along x, the yaw growing by 0.1 rad each time."""
    buffer = OdometryBuffer(max_gap_s)
    for i, x in enumerate(positions_m):
        assert buffer.add(START_NS + i * period_ms * MS, Pose.from_xy_yaw(x, 0.0, 0.1 * i)) == ("", "")
    return buffer


def test_a_pose_between_two_messages_is_interpolated():
    sample = filled([0.0, 1.0, 3.0]).at(START_NS + 125 * MS)
    assert sample.reason == ""
    assert sample.pose.position == pytest.approx((1.5, 0.0, 0.0))
    assert sample.pose.yaw_rad == pytest.approx(0.125)


def test_the_stamp_of_a_message_gives_its_pose():
    buffer = filled([0.0, 1.0, 3.0])
    for i, x in enumerate([0.0, 1.0, 3.0]):
        assert buffer.at(START_NS + i * 100 * MS).pose.position[0] == x


def test_a_little_beyond_the_newest_message_is_carried_on_and_no_more():
    buffer = filled([0.0, 1.0, 3.0])
    assert buffer.at(START_NS + 250 * MS).pose.position == pytest.approx((4.0, 0.0, 0.0))
    assert buffer.at(START_NS + 250 * MS).pose.yaw_rad == pytest.approx(0.25)
    sample = buffer.at(START_NS + 500 * MS)
    assert sample.pose is None and sample.reason == "odometry ends 0.300 s before the image"


def test_what_cannot_be_known_has_a_reason():
    assert OdometryBuffer(0.5).at(START_NS)[:2] == (None, "no odometry has come yet")
    buffer = filled([0.0, 1.0, 2.0], period_ms=600)
    assert "begins 0.100 s after the image" in buffer.at(START_NS - 100 * MS).reason
    sample = buffer.at(START_NS + 300 * MS)
    assert sample.pose is None and "a gap of 0.600 s around the image; at most 0.5 s" in sample.reason


@pytest.mark.parametrize(
    ("pose", "reason"),
    [
        (Pose((math.nan, 0.0, 0.0)), "finite numbers"),
        (Pose((0.0, math.inf, 0.0)), "finite numbers"),
        (Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)), "a unit quaternion"),
        (Pose((0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 1.0)), "finite numbers"),
    ],
)
def test_odometry_that_is_no_transform_is_refused_and_leaves_the_rest(pose, reason):
    buffer = filled([0.0, 1.0])
    added = buffer.add(START_NS + 200 * MS, pose)
    assert reason in added.refusal and not added.restart
    assert buffer.latest[0] == START_NS + 100 * MS


def test_stamps_that_do_not_increase_or_are_missing_are_refused():
    buffer = filled([0.0, 1.0])
    assert "more than one publisher" in buffer.add(START_NS + 100 * MS, Pose((1.0, 0.0, 0.0))).refusal
    assert "more than one publisher" in buffer.add(START_NS + 50 * MS, Pose((1.0, 0.0, 0.0))).refusal
    assert "no stamp" in buffer.add(0, Pose((1.0, 0.0, 0.0))).refusal
    assert buffer.at(START_NS).generation == 0


@pytest.mark.parametrize(
    ("stamp_ns", "x", "reason"),
    [(START_NS - 5000 * MS, 1.0, "went back by 5.100 s"), (START_NS + 120 * MS, 40.0, "jumped by 39.0 m within 0.020 s")],
)
def test_a_clock_or_a_position_that_jumps_starts_a_new_generation(stamp_ns, x, reason):
    buffer = filled([0.0, 1.0])
    added = buffer.add(stamp_ns, Pose((x, 0.0, 0.0)))
    assert reason in added.restart and not added.refusal
    assert buffer.at(stamp_ns) == (Pose((x, 0.0, 0.0)), "", 1)
    assert buffer.at(START_NS + 50 * MS).pose is None


def test_clear_starts_a_new_generation_and_old_poses_go_after_30_s():
    buffer = filled([0.0, 1.0])
    buffer.clear()
    assert buffer.latest is None and buffer.at(START_NS).generation == 1
    for second in range(40):
        buffer.add(START_NS + second * 1000 * MS, Pose((float(second), 0.0, 0.0)))
    assert len(buffer._poses) == 31
