"""Which frames of a recording become keyframes."""

from __future__ import annotations

from collections.abc import Sequence

from asymvpr_core.config import KeyframeSettings
from asymvpr_core.types import Pose

# Rounding of the stored poses must not drop a frame that lies exactly at a limit.
_SLACK = 1e-6


def select_keyframes(poses: Sequence[Pose], settings: KeyframeSettings, stamps_ns: Sequence[int] | None = None) -> list[int]:
    """Indices, ascending, of the first frame and of each that moved, turned or waited enough since the last keyframe.

    A frame is kept when it is at least `min_distance_m` from the last keyframe, turned by at
    least `min_yaw_deg` against it, or, where `min_interval_s` is set, was taken at least that much later.

    Args:
        stamps_ns: when each frame was taken; needed only for `min_interval_s`.
    """
    kept: list[int] = []
    for index, pose in enumerate(poses):
        if not kept or _is_new(poses[kept[-1]], pose, settings) or _is_later(kept[-1], index, settings, stamps_ns):
            kept.append(index)
    return kept


def _is_new(last: Pose, pose: Pose, settings: KeyframeSettings) -> bool:
    moved = last.distance_m(pose) >= settings.min_distance_m - _SLACK
    return moved or last.yaw_distance_deg(pose) >= settings.min_yaw_deg - _SLACK


def _is_later(last: int, index: int, settings: KeyframeSettings, stamps_ns: Sequence[int] | None) -> bool:
    if settings.min_interval_s is None or stamps_ns is None:
        return False
    return stamps_ns[index] - stamps_ns[last] >= round(settings.min_interval_s * 1e9)
