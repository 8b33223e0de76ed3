"""What odometry says between frames: planar motion, the way travelled, its drift, and whether it can be believed.

Poses become planar, (x, y [m], yaw [rad]): robots and cars turn about z, and galleries of several
storeys would need more than yaw anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.types import Pose, QueryFrame

# Noise of odometry at rest must not add up to a way.
_REST_M = 0.05
# A step may be this much longer than the speed allows: stamps and poses of different clocks jitter.
_SLACK_M = 1.0
_MAX_TURN_RAD_S, _SLACK_RAD = 2 * math.pi, math.radians(45.0)


def planar(pose: Pose) -> np.ndarray:
    """(3,) float64: x, y [m], yaw [rad] of a pose."""
    return np.array([pose.position[0], pose.position[1], pose.yaw_rad])


def wrap_angle(angle_rad: np.ndarray) -> np.ndarray:
    """The angles in [-pi, pi)."""
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi


def compose(poses: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(..., 3): where `poses` (..., 3) are after the motion `step` (3,), which is in their own frame."""
    cos, sin = np.cos(poses[..., 2]), np.sin(poses[..., 2])
    x = poses[..., 0] + cos * step[0] - sin * step[1]
    y = poses[..., 1] + sin * step[0] + cos * step[1]
    return np.stack([x, y, wrap_angle(poses[..., 2] + step[2])], axis=-1)


def between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(3,): the motion from `start` to `end` in the frame of `start`; compose(start, between(start, end)) is end."""
    cos, sin = math.cos(start[2]), math.sin(start[2])
    dx, dy = end[0] - start[0], end[1] - start[1]
    return np.array([cos * dx + sin * dy, -sin * dx + cos * dy, float(wrap_angle(end[2] - start[2]))])


def drift_covariance(step: np.ndarray, way_m: float, settings: MatcherSettings) -> np.ndarray:
    """(3, 3) covariance of a motion `step` that odometry measured along `way_m`, in the frame of its start [m^2, m rad, rad^2].

    Position: (odometry_drift * way)^2 in each direction. Yaw: (odometry_yaw_drift * way)^2; while it
    grows evenly along the way it turns the displacement by half of itself at the end, hence the lever.
    """
    sigma_m = settings.odometry_drift * way_m
    sigma_rad = math.radians(settings.odometry_yaw_drift_deg_m) * way_m
    lever = np.array([-step[1], step[0]]) / 2
    covariance = np.zeros((3, 3))
    covariance[:2, :2] = np.eye(2) * sigma_m**2 + np.outer(lever, lever) * sigma_rad**2
    covariance[:2, 2] = covariance[2, :2] = lever * sigma_rad**2
    covariance[2, 2] = sigma_rad**2
    return covariance


@dataclass(frozen=True)
class Moment:
    """A frame as the matcher sees it: `odometry` is planar (3,) and finite, or None; `travelled_m` is the way since the beginning.

    `fault` says what is wrong with the frame's odometry, "" where nothing is. `jumped` is set where
    poses before this frame and after it are no longer of one frame of reference.
    """

    stamp_ns: int
    camera: str
    odometry: np.ndarray | None
    travelled_m: float
    fault: str = ""
    jumped: bool = False


class OdometryMonitor:
    """Adds up the way of a stream of frames, and finds odometry that is no number or jumps."""

    def __init__(self, settings: MatcherSettings):
        self.settings = settings
        self._travelled_m = 0.0
        self.forget()

    def forget(self) -> None:
        """Forget the last pose, so that the next one is no jump; the way so far stays."""
        self._last: np.ndarray | None = None
        self._last_ns = 0
        self._counted: np.ndarray | None = None

    def observe(self, frame: QueryFrame) -> Moment:
        """The frame with its way; odometry that is not finite counts as missing, and a jump begins anew from the new pose."""
        if frame.odometry is None:
            return Moment(frame.stamp_ns, frame.camera, None, self._travelled_m)
        numbers = (*frame.odometry.position, *frame.odometry.quaternion)
        if not all(math.isfinite(v) for v in numbers) or math.hypot(*frame.odometry.quaternion) < 0.5:
            return Moment(frame.stamp_ns, frame.camera, None, self._travelled_m, "odometry is not finite")
        pose = planar(frame.odometry)
        fault = self._jump(pose, frame.stamp_ns)
        if fault or self._counted is None:
            self._counted = pose
        step_m = math.hypot(*(pose[:2] - self._counted[:2]))
        if step_m >= _REST_M:
            self._travelled_m += step_m
            self._counted = pose
        self._last, self._last_ns = pose, frame.stamp_ns
        return Moment(frame.stamp_ns, frame.camera, pose, self._travelled_m, fault, bool(fault))

    def _jump(self, pose: np.ndarray, stamp_ns: int) -> str:
        if self._last is None:
            return ""
        seconds = abs(stamp_ns - self._last_ns) / 1e9
        step_m = math.hypot(*(pose[:2] - self._last[:2]))
        turn_rad = abs(float(wrap_angle(pose[2] - self._last[2])))
        if step_m > self.settings.max_speed_m_s * seconds + _SLACK_M:
            return f"odometry jumped {step_m:.1f} m in {seconds:.2f} s"
        if turn_rad > _MAX_TURN_RAD_S * seconds + _SLACK_RAD:
            return f"odometry jumped {math.degrees(turn_rad):.0f} deg in {seconds:.2f} s"
        return ""
