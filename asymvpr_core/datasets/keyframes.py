"""Which frames of a recording become keyframes."""

from __future__ import annotations

from collections.abc import Sequence

from asymvpr_core.config import KeyframeSettings
from asymvpr_core.types import Pose

# Rounding of the stored poses must not drop a frame that lies exactly at a limit.
_SLACK = 1e-6


def select_keyframes(poses: Sequence[Pose], settings: KeyframeSettings) -> list[int]:
    """Indices, ascending, of the first frame and of each that moved or turned enough since the last keyframe.

    A frame is kept when it is at least `min_distance_m` from the last keyframe, or turned by at
    least `min_yaw_deg` against it.
    """
    kept: list[int] = []
    for index, pose in enumerate(poses):
        if not kept or _is_new(poses[kept[-1]], pose, settings):
            kept.append(index)
    return kept


def _is_new(last: Pose, pose: Pose, settings: KeyframeSettings) -> bool:
    moved = last.distance_m(pose) >= settings.min_distance_m - _SLACK
    return moved or last.yaw_distance_deg(pose) >= settings.min_yaw_deg - _SLACK
