"""Timed poses: interpolation at image stamps, and the TUM trajectory format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from asymvpr_core.errors import DatasetError
from asymvpr_core.types import Pose

TUM_COLUMNS = "timestamp[s] x y z qx qy qz qw"


class Trajectory:
    """Poses of one body in one frame, at strictly increasing stamps.

    `stamps_ns` is (N,) int64; `poses[i]` is the pose at `stamps_ns[i]`, with a unit quaternion.

    Raises:
        DatasetError: no poses, stamps that do not increase, a coordinate that is not finite, or
            a quaternion that is no rotation.
    """

    def __init__(self, stamps_ns: Sequence[int] | np.ndarray, poses: Sequence[Pose], *, name: str = "trajectory"):
        self.stamps_ns = np.asarray(stamps_ns, dtype=np.int64)
        self.name = name
        if self.stamps_ns.shape != (len(poses),):
            raise DatasetError(f"{name} has {self.stamps_ns.shape} stamps and {len(poses)} poses", expected="one stamp a pose")
        if not poses:
            raise DatasetError(f"{name} holds no poses", expected="at least one")
        backward = np.flatnonzero(np.diff(self.stamps_ns) <= 0)
        if backward.size:
            i = int(backward[0]) + 1
            before, after = self.stamps_ns[i - 1], self.stamps_ns[i]
            raise DatasetError(
                f"{name}: pose {i + 1} is stamped {format_stamp(after)} s, after one of {format_stamp(before)} s",
                expected="stamps that increase",
                remedy="sort the poses, or cut the recording where its clock jumps",
            )
        self.poses = [checked_pose(pose, f"{name}: pose {i + 1}") for i, pose in enumerate(poses)]

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def span_text(self) -> str:
        """First and last stamp, for messages: "1.000 to 2.500 s"."""
        return f"{format_stamp(self.stamps_ns[0])} to {format_stamp(self.stamps_ns[-1])} s"

    def at(self, stamp_ns: int, max_gap_s: float) -> Pose | None:
        """Pose at `stamp_ns`: position interpolated linearly, rotation by slerp between the two poses around it.

        None before the first and after the last pose, and between two poses more than `max_gap_s` apart:
        nothing is extrapolated, and no gap is bridged by a guess.
        """
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if after < len(self.poses) and self.stamps_ns[after] == stamp_ns:
            return self.poses[after]
        if after in (0, len(self.poses)):
            return None
        begin, end = int(self.stamps_ns[after - 1]), int(self.stamps_ns[after])
        if end - begin > max_gap_s * 1e9:
            return None
        return interpolate(self.poses[after - 1], self.poses[after], (stamp_ns - begin) / (end - begin))


def interpolate(begin: Pose, end: Pose, share: float) -> Pose:
    """Pose at `share` (0: begin, 1: end) of the way: linear in position, slerp along the shorter arc in rotation."""
    position = tuple(a + share * (b - a) for a, b in zip(begin.position, end.position, strict=True))
    q0, q1 = np.array(begin.quaternion), np.array(end.quaternion)
    cosine = float(q0 @ q1)
    if cosine < 0.0:  # q and -q are one rotation
        q1, cosine = -q1, -cosine
    angle = math.acos(min(cosine, 1.0))
    if angle < 1e-6:  # sin(angle) would divide by zero; here the chord is the arc
        q = (1.0 - share) * q0 + share * q1
    else:
        q = (math.sin((1.0 - share) * angle) * q0 + math.sin(share * angle) * q1) / math.sin(angle)
    q /= np.linalg.norm(q)
    return Pose(position, tuple(q.tolist()))  # type: ignore[arg-type]


def checked_pose(pose: Pose, name: str) -> Pose:
    """The pose with its quaternion normalised.

    Raises:
        DatasetError: a coordinate is NaN or infinite, or the quaternion's norm is not 1 within 10 %.
    """
    if not all(math.isfinite(v) for v in (*pose.position, *pose.quaternion)):
        raise DatasetError(
            f"{name} has coordinates {_numbers(pose.position)} and quaternion {_numbers(pose.quaternion)}",
            expected="finite numbers",
            remedy="remove it, or record again once localisation has converged",
        )
    norm = math.sqrt(sum(v * v for v in pose.quaternion))
    if not 0.9 <= norm <= 1.1:
        raise DatasetError(f"{name} has quaternion {_numbers(pose.quaternion)} of norm {norm:.3g}", expected="a unit quaternion")
    return Pose(pose.position, tuple(v / norm for v in pose.quaternion))  # type: ignore[arg-type]


def read_tum(path: Path) -> Trajectory:
    """Read a TUM trajectory: lines of "timestamp[s] x y z qx qy qz qw", '#' starts a comment.

    Stamps are read as decimals, so that nanoseconds survive.

    Raises:
        DatasetError: missing, unreadable or empty file, a line that is no pose (with its number), stamps that do not increase.
    """
    path = Path(path)
    stamps_ns, poses = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DatasetError(f"trajectory {path} cannot be read: {error.strerror}", remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"trajectory {path} is no text file", expected=f"lines of '{TUM_COLUMNS}'") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) != 8:
            raise DatasetError(f"{where} has {len(fields)} fields", expected=f"8: {TUM_COLUMNS}")
        try:
            stamps_ns.append(parse_stamp(fields[0]))
            x, y, z, qx, qy, qz, qw = (float(v) for v in fields[1:])
        except ValueError as error:
            raise DatasetError(f"{where} holds a field that is no such number", expected=TUM_COLUMNS) from error
        poses.append(checked_pose(Pose((x, y, z), (qx, qy, qz, qw)), where))
    return Trajectory(stamps_ns, poses, name=str(path))


def write_tum(path: Path, trajectory: Trajectory) -> None:
    """Write a TUM trajectory that `read_tum` (and evo) reads: stamps exact, positions to 0.1 um.

    Raises:
        DatasetError: the file cannot be written.
    """
    lines = [f"# {TUM_COLUMNS}"]
    for stamp_ns, pose in zip(trajectory.stamps_ns.tolist(), trajectory.poses, strict=True):
        position = " ".join(f"{v:.7f}" for v in pose.position)
        rotation = " ".join(f"{v:.9f}" for v in pose.quaternion)
        lines.append(f"{format_stamp(stamp_ns)} {position} {rotation}")
    try:
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise DatasetError(f"trajectory {path} cannot be written: {error.strerror}", remedy="check the folder and free space") from error


def parse_stamp(text: str) -> int:
    """Nanoseconds from decimal seconds, exact (a float64 of today's epoch is good to 0.2 us only).

    Raises:
        ValueError: no finite number, or beyond the year 2262.
    """
    try:
        seconds = Decimal(text)
        # Before it becomes a whole number: 1e999999 would have a million digits.
        stamp_ns = int((seconds * 1_000_000_000).to_integral_value()) if abs(seconds) < 10_000_000_000 else 2**63
    except ArithmeticError as error:  # of decimal: no number, NaN, an exponent without a limit
        raise ValueError(f"stamp '{text}' is no number") from error
    if abs(stamp_ns) >= 2**63:
        raise ValueError(f"stamp '{text}' is out of range; are these nanoseconds?")
    return stamp_ns


def format_stamp(stamp_ns: int) -> str:
    """Seconds with nine decimals, exact."""
    sign, value = ("-", -int(stamp_ns)) if stamp_ns < 0 else ("", int(stamp_ns))
    return f"{sign}{value // 1_000_000_000}.{value % 1_000_000_000:09d}"


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
