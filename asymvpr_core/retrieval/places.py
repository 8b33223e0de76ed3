"""Where and when the keyframes of a gallery were taken, as arrays: what agrees, what lies near, how dense they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from asymvpr_core.retrieval.odometry import wrap_angle
from asymvpr_core.types import Keyframe, Pose

# Keyframes closer together than this are one position (a turn on the spot), so they say nothing about spacing.
_SAME_POSITION_M = 0.1
_NO_STAMP = np.iinfo(np.int64).min
_SPACING_SAMPLE = 64
# Cells of the grid are numbered row by row; no map is wider than this many cells.
_ROW = 1 << 31


class KeyframePlaces:
    """Poses and stamps of keyframes, index by index; keyframes can be added at the end.

    Keyframes without a pose (a session without odometry) lie on a line, one metre apart for each
    second, so that "near" means "taken soon after": a distance in metres reads as seconds there.
    """

    def __init__(self, keyframes: Sequence[Keyframe] = (), cell_m: float = 8.0):
        """`cell_m` is the side of the grid's cells: any number is right, one near the usual radius is fast."""
        self._cell_m = cell_m
        self._poses: list[Pose | None] = []
        self._size = 0
        self._positions = np.zeros((16, 3))
        self._yaws = np.zeros(16)
        self._stamps = np.zeros(16, dtype=np.int64)
        self._headings = np.zeros(16, dtype=bool)
        self._grid: tuple[np.ndarray, np.ndarray] | None = None
        self._spacing: tuple[int, float | None] = (0, None)  # typical, and the size that it was computed at
        for keyframe in keyframes:
            self.add(keyframe.pose, keyframe.stamp_ns, has_heading=keyframe.heading_deg is not None)

    def __len__(self) -> int:
        return self._size

    def add(self, pose: Pose | None, stamp_ns: int | None, *, has_heading: bool = True) -> int:
        """Add a keyframe; returns its index. One of pose and stamp must be known."""
        if self._size == len(self._yaws):  # grown to twice the size, so that adding one costs the same on average
            for name in ("_positions", "_yaws", "_stamps", "_headings"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        index = self._size
        line = (0.0 if stamp_ns is None else stamp_ns / 1e9 % 1e7, 0.0, 0.0)
        self._positions[index] = line if pose is None else pose.position
        self._yaws[index] = 0.0 if pose is None else pose.yaw_rad
        self._stamps[index] = _NO_STAMP if stamp_ns is None else stamp_ns
        self._headings[index] = has_heading and pose is not None
        self._poses.append(pose)
        self._size, self._grid = index + 1, None
        return index

    @property
    def positions(self) -> np.ndarray:
        """(N, 3) float64 [m]."""
        return self._positions[: self._size]

    @property
    def yaws_rad(self) -> np.ndarray:
        """(N,) float64, counter-clockwise from +x; 0 where unknown."""
        return self._yaws[: self._size]

    @property
    def planar(self) -> np.ndarray:
        """(N, 3) float64: x, y [m], yaw [rad]."""
        return np.column_stack([self.positions[:, :2], self.yaws_rad])

    @property
    def headings_known(self) -> np.ndarray:
        """(N,) bool: whether the yaw means anything."""
        return self._headings[: self._size]

    def pose(self, index: int) -> Pose | None:
        """Pose of a keyframe; None in a session without odometry."""
        return self._poses[index]

    def stamp_ns(self, index: int) -> int | None:
        """Stamp of a keyframe, None where it has none."""
        stamp = int(self._stamps[index])
        return None if stamp == _NO_STAMP else stamp

    def taken_within(self, stamp_ns: int, seconds: float) -> np.ndarray:
        """Indices, ascending, of the keyframes less than `seconds` from the stamp; those without a stamp never are."""
        stamps = self._stamps[: self._size]
        known = stamps != _NO_STAMP
        near = np.abs(np.where(known, stamps, stamp_ns) - stamp_ns) < round(seconds * 1e9)
        return np.flatnonzero(known & near)

    def agreeing(self, index: int, others: np.ndarray, radius_m: float, yaw_deg: float) -> np.ndarray:
        """(len(others),) bool: which of `others` lie within radius and yaw of keyframe `index`."""
        distance = np.linalg.norm(self.positions[others] - self.positions[index], axis=1)
        turn = np.abs(wrap_angle(self.yaws_rad[others] - self.yaws_rad[index]))
        return (distance <= radius_m) & (turn <= math.radians(yaw_deg))

    def spacing_m(self, index: int) -> float | None:
        """Distance from keyframe `index` to the nearest keyframe elsewhere; None where there is none."""
        distances = np.linalg.norm(self.positions - self.positions[index], axis=1)
        elsewhere = distances[distances > _SAME_POSITION_M]
        return float(elsewhere.min()) if len(elsewhere) else None

    def typical_spacing_m(self, otherwise_m: float) -> float:
        """Median of `spacing_m` over keyframes spread over the gallery; `otherwise_m` where all are at one position."""
        if self._size > 1.1 * self._spacing[0]:  # at first, and when the gallery has grown
            sample = np.unique(np.linspace(0, self._size - 1, _SPACING_SAMPLE).astype(int)).tolist()
            known = [spacing for spacing in (self.spacing_m(index) for index in sample) if spacing is not None]
            self._spacing = (self._size, float(np.median(known)) if known else None)
        return otherwise_m if self._spacing[1] is None else self._spacing[1]

    def near(self, points: np.ndarray, radius_m: float) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (row of `points` (A, 2), keyframe) at most `radius_m` apart in the plane, as two int64 arrays."""
        order, keys = self._sorted_cells()
        cells = np.floor(points / self._cell_m).astype(np.int64)
        reach = math.ceil(radius_m / self._cell_m)
        columns = cells[:, 0, np.newaxis] + np.arange(-reach, reach + 1)
        middle = columns * _ROW + cells[:, 1, np.newaxis]
        first = np.searchsorted(keys, middle - reach, side="left").ravel()
        counts = np.searchsorted(keys, middle + reach, side="right").ravel() - first
        rows = np.repeat(np.repeat(np.arange(len(points)), 2 * reach + 1), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        keyframes = order[np.repeat(first, counts) + within]
        apart = np.linalg.norm(points[rows] - self.positions[keyframes, :2], axis=1)
        kept = apart <= radius_m
        return rows[kept], keyframes[kept]

    def _sorted_cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Keyframes in the order of their cells' numbers, and these numbers."""
        if self._grid is None:
            cells = np.floor(self.positions[:, :2] / self._cell_m).astype(np.int64)
            keys = cells[:, 0] * _ROW + cells[:, 1]
            order = np.argsort(keys, kind="stable")
            self._grid = order, keys[order]
        return self._grid
