"""Odometry of the last seconds: what is refused, when it starts anew, and the pose at an image's stamp."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from typing import NamedTuple

from asymvpr_core.datasets.trajectory import checked_pose, interpolate
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import Pose

# Images come late by the time that their driver and the queue take, hardly ever by more.
_KEEP_NS = 30_000_000_000
# The image is often newer than the newest odometry, by up to one period. A longer way is not guessed.
_EXTRAPOLATION_NS = 200_000_000
# Stamps out of order by less come from two publishers or a bad driver; by more from a clock or a bag that starts again.
_RESTART_NS = 1_000_000_000
# No robot that carries a camera is faster; a visual odometry that starts again jumps like this.
_FASTEST_M_S, _SMALLEST_JUMP_M = 100.0, 2.0


class Addition(NamedTuple):
    """What became of an odometry message: why it was refused, or why everything before it was forgotten; else empty."""

    refusal: str = ""
    restart: str = ""


class Sample(NamedTuple):
    """T_odom_base at a stamp, or None and the reason.

    Samples of different `generation` are poses in different frames: odometry began anew in between.
    """

    pose: Pose | None
    reason: str
    generation: int


class OdometryBuffer:
    """T_odom_base over the last 30 s. Every method may be called from any thread."""

    def __init__(self, max_gap_s: float):
        self.max_gap_s = max_gap_s
        self._lock = threading.Lock()
        self._stamps_ns: deque[int] = deque()
        self._poses: deque[Pose] = deque()
        self._generation = 0

    def add(self, stamp_ns: int, pose: Pose) -> Addition:
        """Append a pose; refuse one that is no rigid transform, has no stamp, or is out of order."""
        if stamp_ns <= 0:
            return Addition(refusal="odometry has no stamp; its publisher must fill header.stamp")
        try:
            pose = checked_pose(pose, "odometry")
        except DatasetError as error:
            return Addition(refusal=f"{error.found}; expected {error.expected}; the message is left out")
        with self._lock:
            restart = ""
            if self._stamps_ns:
                back_ns = self._stamps_ns[-1] - stamp_ns
                if 0 <= back_ns <= _RESTART_NS:
                    return Addition(
                        refusal=f"odometry stamps do not increase ({back_ns / 1e9:.3f} s back); is there more than one publisher?"
                    )
                restart = self._restart(stamp_ns, pose)
            if restart:
                self._clear()
            self._stamps_ns.append(stamp_ns)
            self._poses.append(pose)
            while stamp_ns - self._stamps_ns[0] > _KEEP_NS:
                self._stamps_ns.popleft()
                self._poses.popleft()
        return Addition(restart=restart)

    def _restart(self, stamp_ns: int, pose: Pose) -> str:
        elapsed_s = (stamp_ns - self._stamps_ns[-1]) / 1e9
        if elapsed_s < 0:
            return f"odometry stamps went back by {-elapsed_s:.3f} s"
        distance_m = self._poses[-1].distance_m(pose)
        if distance_m > max(_SMALLEST_JUMP_M, _FASTEST_M_S * elapsed_s):
            return f"odometry jumped by {distance_m:.1f} m within {elapsed_s:.3f} s"
        return ""

    def at(self, stamp_ns: int) -> Sample:
        """Pose at `stamp_ns`.

        Interpolated between two messages at most `max_gap_s` apart (position linearly, rotation by
        slerp); up to 0.2 s beyond the newest one, carried on at the last speed.
        """
        with self._lock:
            pose, reason = self._at(stamp_ns)
            return Sample(pose, reason, self._generation)

    def _at(self, stamp_ns: int) -> tuple[Pose | None, str]:
        stamps, poses, longest_ns = self._stamps_ns, self._poses, self.max_gap_s * 1e9
        if not stamps:
            return None, "no odometry has come yet"
        after = bisect_left(stamps, stamp_ns)
        if after == 0 and stamps[0] != stamp_ns:
            return None, f"odometry begins {(stamps[0] - stamp_ns) / 1e9:.3f} s after the image"
        if after == len(stamps):
            beyond_ns = stamp_ns - stamps[-1]
            if beyond_ns > _EXTRAPOLATION_NS:
                return None, f"odometry ends {beyond_ns / 1e9:.3f} s before the image"
            if len(stamps) == 1 or stamps[-1] - stamps[-2] > longest_ns:
                return poses[-1], ""
            after -= 1  # carried on from the last two
        elif stamps[after] == stamp_ns:
            return poses[after], ""
        gap_ns = stamps[after] - stamps[after - 1]
        if gap_ns > longest_ns:
            found = f"odometry has a gap of {gap_ns / 1e9:.3f} s around the image"
            return None, f"{found}; at most {self.max_gap_s:g} s are bridged (max_odom_gap_s)"
        return interpolate(poses[after - 1], poses[after], (stamp_ns - stamps[after - 1]) / gap_ns), ""

    @property
    def latest(self) -> tuple[int, Sample] | None:
        """Stamp and pose of the newest message; None where there is none."""
        with self._lock:
            return (self._stamps_ns[-1], Sample(self._poses[-1], "", self._generation)) if self._stamps_ns else None

    def clear(self) -> None:
        """Forget everything; what comes next is in another frame."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._stamps_ns.clear()
        self._poses.clear()
        self._generation += 1
