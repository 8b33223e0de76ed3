"""Interpolation against hand-computed cases, the TUM format, and malformed trajectories."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asymvpr_core.config import KeyframeSettings
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.keyframes import select_keyframes
from asymvpr_core.datasets.trajectory import Trajectory, interpolate, read_tum, write_tum
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord, Pose

SECOND_NS = 1_000_000_000
EPOCH_NS = 1_700_000_000_123_456_789


def turning() -> Trajectory:
    """0 s at the origin facing east, 1 s at (2, 0) facing north, 5 s at (2, 4) facing north."""
    poses = [Pose.from_xy_yaw(0, 0, 0), Pose.from_xy_yaw(2, 0, math.pi / 2), Pose.from_xy_yaw(2, 4, math.pi / 2)]
    return Trajectory([0, SECOND_NS, 5 * SECOND_NS], poses)


def test_interpolates_position_linearly_and_rotation_along_the_arc():
    pose = turning().at(SECOND_NS // 4, max_gap_s=1.0)
    assert pose is not None
    assert pose.position == pytest.approx((0.5, 0.0, 0.0))
    assert math.degrees(pose.yaw_rad) == pytest.approx(22.5)
    assert np.linalg.norm(pose.quaternion) == pytest.approx(1.0)


def test_gives_the_stored_pose_at_its_own_stamp_even_beside_a_gap():
    trajectory = turning()
    for stamp_ns, pose in zip(trajectory.stamps_ns, trajectory.poses, strict=True):
        assert trajectory.at(int(stamp_ns), max_gap_s=0.1) == pose


def test_refuses_gaps_and_extrapolation():
    trajectory = turning()
    assert trajectory.at(3 * SECOND_NS, max_gap_s=3.9) is None
    assert trajectory.at(3 * SECOND_NS, max_gap_s=4.0).position == pytest.approx((2.0, 2.0, 0.0))
    assert trajectory.at(-1, max_gap_s=10.0) is None
    assert trajectory.at(5 * SECOND_NS + 1, max_gap_s=10.0) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_turns_along_the_shorter_arc_across_180_degrees_whatever_the_sign_of_the_quaternion(sign: float):
    begin, end = Pose.from_xy_yaw(0, 0, math.radians(170)), Pose.from_xy_yaw(0, 0, math.radians(-170))
    end = Pose(end.position, tuple(sign * v for v in end.quaternion))
    yaw_deg = math.degrees(interpolate(begin, end, 0.75).yaw_rad)
    assert yaw_deg % 360 == pytest.approx(185.0)


def test_interpolates_between_equal_and_nearly_equal_rotations():
    begin = Pose.from_xy_yaw(1, 2, 0.3)
    for end in (begin, Pose.from_xy_yaw(1, 2, 0.3 + 1e-9)):
        assert interpolate(begin, end, 0.5).yaw_rad == pytest.approx(0.3, abs=1e-8)


def test_normalises_quaternions():
    trajectory = Trajectory([0], [Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.05))])
    assert trajectory.poses[0].quaternion == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("stamps_ns", "poses", "message"),
    [
        ([], [], "holds no poses"),
        ([0, 1], [Pose((0, 0, 0))], "expected one stamp a pose"),
        ([1, 1], [Pose((0, 0, 0))] * 2, "expected stamps that increase"),
        ([2 * SECOND_NS, SECOND_NS], [Pose((0, 0, 0))] * 2, r"pose 2 is stamped 1\.000000000 s, after one of 2\.000000000 s"),
        ([0], [Pose((0, math.nan, 0))], "pose 1 has coordinates.*expected finite numbers"),
        ([0], [Pose((0, math.inf, 0))], "expected finite numbers"),
        ([0], [Pose((0, 0, 0), (0, 0, math.nan, 1))], "expected finite numbers"),
        ([0], [Pose((0, 0, 0), (0, 0, 0, 0))], "norm 0; expected a unit quaternion"),
    ],
)
def test_refuses_what_is_no_trajectory(stamps_ns, poses, message):
    with pytest.raises(DatasetError, match=message):
        Trajectory(stamps_ns, poses)


def test_tum_round_trip_keeps_nanoseconds(tmp_path):
    stamps_ns = [EPOCH_NS, EPOCH_NS + 1, EPOCH_NS + SECOND_NS]
    poses = [Pose.from_xy_yaw(500_000.25 + i, 5_000_000.5, 0.1 * i, z=-1.5) for i in range(3)]
    write_tum(tmp_path / "t.tum", Trajectory(stamps_ns, poses))
    again = read_tum(tmp_path / "t.tum")
    assert again.stamps_ns.tolist() == stamps_ns
    for pose, expected in zip(again.poses, poses, strict=True):
        assert pose.position == pytest.approx(expected.position, abs=1e-7)
        assert pose.quaternion == pytest.approx(expected.quaternion, abs=1e-8)


def test_reads_comments_blank_lines_and_exponents(tmp_path):
    (tmp_path / "t.tum").write_text("# stamp x y z qx qy qz qw\n\n1.5e0 1 2 3 0 0 0 1 # first\n2.25 4 5 6 0 0 0 1\n")
    trajectory = read_tum(tmp_path / "t.tum")
    assert trajectory.stamps_ns.tolist() == [1_500_000_000, 2_250_000_000]
    assert trajectory.poses[1].position == (4.0, 5.0, 6.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no poses"),
        ("# only a comment\n", "holds no poses"),
        ("1 0 0 0 0 0 1\n", "line 1 has 7 fields; expected 8"),
        ("1 0 0 0 0 0 0 1\n2 0 zero 0 0 0 0 1\n", "line 2 holds a field that is no such number"),
        ("nan 0 0 0 0 0 0 1\n", "line 1 holds a field that is no such number"),
        ("inf 0 0 0 0 0 0 1\n", "line 1 holds a field that is no such number"),
        ("1700000000123456789 0 0 0 0 0 0 1\n", r"line 1 .*expected timestamp\[s\]"),
        ("1 nan 0 0 0 0 0 1\n", "line 1 has coordinates.*expected finite numbers"),
        ("2 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n", "expected stamps that increase"),
    ],
)
def test_malformed_tum_file_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "bad.tum"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_tum(path)
    assert "bad.tum" in str(caught.value)


def test_unreadable_tum_files(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_tum(tmp_path / "absent.tum")
    (tmp_path / "binary.tum").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DatasetError, match="is no text file"):
        read_tum(tmp_path / "binary.tum")
    with pytest.raises(DatasetError, match="cannot be written"):
        write_tum(tmp_path / "absent" / "t.tum", turning())


def test_keyframes_by_distance_from_the_last_keyframe():
    poses = [Pose.from_xy_yaw(0.4 * i, 0, 0) for i in range(11)]
    assert select_keyframes(poses, KeyframeSettings(min_distance_m=1.0)) == [0, 3, 6, 9]
    assert select_keyframes(poses, KeyframeSettings(min_distance_m=0.8)) == [0, 2, 4, 6, 8, 10]
    assert select_keyframes(poses, KeyframeSettings(min_distance_m=0.0)) == list(range(11))


def test_keyframes_by_time_while_the_robot_stands():
    poses, stamps_ns = [Pose((0.0, 0.0, 0.0))] * 8, [i * SECOND_NS // 2 for i in range(8)]
    assert select_keyframes(poses, KeyframeSettings(min_interval_s=1.5), stamps_ns) == [0, 3, 6]
    assert select_keyframes(poses, KeyframeSettings(), stamps_ns) == [0]


def test_keyframes_by_turn_on_the_spot():
    poses = [Pose.from_xy_yaw(0, 0, math.radians(10 * i)) for i in range(37)]
    assert select_keyframes(poses, KeyframeSettings(min_yaw_deg=90)) == [0, 9, 18, 27, 36]


def test_keyframes_of_a_standing_robot_and_of_nothing():
    assert select_keyframes([Pose((1.0, 2.0, 0.0))] * 50, KeyframeSettings()) == [0]
    assert select_keyframes([], KeyframeSettings()) == []


def records(rows: np.ndarray) -> list[ImageRecord]:
    return [ImageRecord(f"{i}.jpg", Pose.from_xy_yaw(x, y, math.radians(90 - h)), heading_deg=h) for i, (x, y, h) in enumerate(rows)]


@pytest.mark.parametrize("max_yaw_deg", [None, 40.0])
def test_positives_equal_a_naive_loop(max_yaw_deg):
    generator = np.random.default_rng(3)
    scale = np.array([100.0, 100.0, 360.0])
    query, gallery = records(generator.random((40, 3)) * scale), records(generator.random((200, 3)) * scale)
    found = find_positives(query, gallery, 12.0, max_yaw_deg)
    assert len(found) == len(query)
    for q, positives in zip(query, found, strict=True):
        expected = [
            i
            for i, g in enumerate(gallery)
            if math.dist(q.pose.position[:2], g.pose.position[:2]) <= 12.0
            and (max_yaw_deg is None or q.pose.yaw_distance_deg(g.pose) <= max_yaw_deg)
        ]
        assert positives.tolist() == expected
        assert positives.dtype == np.int64


def test_positives_include_the_radius_ignore_height_and_may_be_none():
    gallery = [ImageRecord("a", Pose((0.0, 0.0, 0.0))), ImageRecord("b", Pose((25.0, 0.0, 90.0)))]
    query = [ImageRecord("q", Pose((0.0, 0.0, 50.0))), ImageRecord("far", Pose((500.0, 0.0, 0.0)))]
    assert [p.tolist() for p in find_positives(query, gallery, 25.0)] == [[0, 1], []]
    assert [p.tolist() for p in find_positives(query, [], 25.0)] == [[], []]
    assert list(find_positives([], gallery, 25.0)) == []


def test_positives_need_positions_and_for_a_yaw_limit_headings():
    placed = [ImageRecord("a", Pose((0.0, 0.0, 0.0)))]
    with pytest.raises(DatasetError, match="query image lost has no position"):
        find_positives([ImageRecord("lost")], placed, 25.0)
    with pytest.raises(DatasetError, match="query image a has no heading"):
        find_positives(placed, placed, 25.0, max_yaw_deg=45.0)
