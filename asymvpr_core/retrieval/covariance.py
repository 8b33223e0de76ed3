"""How uncertain an accepted match is: the keyframes' spacing, and the spread of what agrees with it."""

from __future__ import annotations

import math

import numpy as np

from asymvpr_core.retrieval.calibration import Errors
from asymvpr_core.retrieval.odometry import wrap_angle
from asymvpr_core.retrieval.places import KeyframePlaces
from asymvpr_core.retrieval.sequence import Verdict

# A revisit is never pixel-aligned: people and robots drive a place again within about these angles.
_TILT_STD_RAD = math.radians(5.0)
_YAW_STD_RAD = math.radians(10.0)
# Of a gallery without headings nothing is known of the orientation; rtabmap reads 9999 as "ignore this axis".
UNKNOWN_VARIANCE = 9999.0


def match_covariance(places: KeyframePlaces, verdict: Verdict, radius_m: float, errors: Errors | None = None) -> np.ndarray:
    """(6, 6) float64, ROS order: a floor, plus the spread of the agreeing places about the match.

    The floor is half the local keyframe spacing, or the errors that were measured where the gallery is calibrated.

    The orientation of a keyframe without heading is unknown, and its variances say so.

    Args:
        verdict: one that has a match.
        radius_m: takes the place of the spacing where the whole gallery is one position.
        errors: of a calibration; None: not measured.
    """
    assert verdict.match is not None
    index = verdict.match.keyframe_index
    spacing_m = places.spacing_m(index)
    shares = verdict.weights / verdict.weights.sum()
    offsets = verdict.agreeing[:, :3] - places.positions[index]
    covariance = np.zeros((6, 6))
    floor_m = (radius_m if spacing_m is None else spacing_m) / 2 if errors is None else errors.position_std_m
    covariance[:3, :3] = np.eye(3) * floor_m**2
    covariance[:3, :3] += (offsets * shares[:, np.newaxis]).T @ offsets
    if not places.headings_known[index]:
        covariance[[3, 4, 5], [3, 4, 5]] = UNKNOWN_VARIANCE
        return covariance
    turns = wrap_angle(verdict.agreeing[:, 3] - places.yaws_rad[index])
    covariance[3, 3] = covariance[4, 4] = _TILT_STD_RAD**2
    yaw_rad = _YAW_STD_RAD if errors is None or errors.yaw_std_deg is None else math.radians(errors.yaw_std_deg)
    covariance[5, 5] = yaw_rad**2 + float((shares * turns**2).sum())
    return covariance
