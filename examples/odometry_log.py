"""The odometry of one drive, as it came: checked, kept, and asked for the pose at any time in it."""

from __future__ import annotations

from bisect import bisect_right

import gtsam
from gtsam_conversions import to_gtsam
from pose_graph_inputs import GraphError, GraphSettings

from asymvpr_core.datasets.trajectory import checked_pose, format_stamp, interpolate
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import Pose


class OdometryLog:
    """`poses[i]` is the robot's pose in the frame of odometry at `stamps_ns[i]`; stamps increase."""

    def __init__(self, settings: GraphSettings):
        self.stamps_ns: list[int] = []
        self.poses: list[Pose] = []
        self._settings = settings

    def __len__(self) -> int:
        return len(self.poses)

    def add(self, stamp_ns: int, pose: Pose) -> bool:
        """Keep a pose; whether it is cut off from the one before, by a pause or by a jump that no robot drives.

        Raises:
            GraphError: a pose with NaN or without rotation, or a stamp that does not increase.
        """
        try:
            pose = checked_pose(pose, f"odometry of {format_stamp(stamp_ns)} s")
        except DatasetError as error:
            raise GraphError(error.found, expected=error.expected) from error
        if self.stamps_ns and stamp_ns <= self.stamps_ns[-1]:
            last = format_stamp(self.stamps_ns[-1])
            raise GraphError(f"odometry of {format_stamp(stamp_ns)} s follows that of {last} s", expected="stamps that increase")
        cut_off = bool(self.poses) and self._is_cut_off(stamp_ns, pose)
        self.stamps_ns.append(stamp_ns)
        self.poses.append(pose)
        return cut_off

    def covers(self, stamp_ns: int) -> bool:
        """Whether a stamp lies between the first and the last one."""
        return bool(self.stamps_ns) and self.stamps_ns[0] <= stamp_ns <= self.stamps_ns[-1]

    def at(self, stamp_ns: int, what: str) -> tuple[int, Pose]:
        """Index of the last pose not after `stamp_ns`, and the pose at that time itself, interpolated.

        Raises:
            GraphError: the stamp, which belongs to `what`, lies outside of the drive or in a gap.
        """
        if not self.covers(stamp_ns):
            span = f"{format_stamp(self.stamps_ns[0])} to {format_stamp(self.stamps_ns[-1])} s" if self.stamps_ns else "none yet"
            raise GraphError(f"{what} is stamped {format_stamp(stamp_ns)} s", expected=f"a time of odometry, {span}")
        before = bisect_right(self.stamps_ns, stamp_ns) - 1
        begin_ns = self.stamps_ns[before]
        if stamp_ns == begin_ns:
            return before, self.poses[before]
        gap_ns = self.stamps_ns[before + 1] - begin_ns
        if gap_ns > self._settings.max_odometry_gap_s * 1e9:
            raise GraphError(
                f"{what} is stamped {format_stamp(stamp_ns)} s, in a gap of odometry of {gap_ns * 1e-9:.1f} s",
                expected="odometry around it",
            )
        return before, interpolate(self.poses[before], self.poses[before + 1], (stamp_ns - begin_ns) / gap_ns)

    def motion(self, begin: int, end: int) -> gtsam.Pose3:
        """How the robot moved between two poses, seen from the first."""
        return to_gtsam(self.poses[begin]).between(to_gtsam(self.poses[end]))

    def _is_cut_off(self, stamp_ns: int, pose: Pose) -> bool:
        seconds = (stamp_ns - self.stamps_ns[-1]) * 1e-9
        # Half a metre besides, so that two messages with nearly the same stamp are no jump.
        farthest_m = self._settings.max_speed_m_s * seconds + 0.5
        return seconds > self._settings.max_odometry_gap_s or pose.distance_m(self.poses[-1]) > farthest_m
