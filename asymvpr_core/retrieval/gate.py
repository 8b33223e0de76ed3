"""The odometry gate: a match has to lie where the last accepted one and odometry since then say that the robot is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.retrieval.odometry import Moment, between, compose, drift_covariance, wrap_angle

# Refused matches that have to agree with one another before they are believed, beside the way that they must span.
_FEWEST_REFUSED = 5


@dataclass(frozen=True)
class Fix:
    """Where the robot was: `pose` (3,) in the gallery's frame, its covariance (3, 3) (x, y, yaw), odometry (3,) and way at that time."""

    pose: np.ndarray
    covariance: np.ndarray
    odometry: np.ndarray
    travelled_m: float


class OdometryGate:
    """Compares matches with the last accepted one, moved along by odometry.

    The first match is accepted: there is nothing to compare it with. It opens again where refused matches,
    at least five of them along `odom_gate_reopen_m`, agree with one another by odometry: the robot
    was carried, or the last accepted match was wrong. As the drift grows with the way, a gate without
    matches widens by itself. Without odometry, or without a heading of the keyframe, it stays open.
    """

    def __init__(self, settings: MatcherSettings, begin: Fix | None = None):
        """`begin`: where the robot is at first, for a gallery in the frame of odometry itself."""
        self._settings, self._begin = settings, begin
        self.reset()

    def reset(self) -> None:
        """Forget the last match."""
        self._last = self._begin
        self._refused: list[Fix] = []

    def check(self, pose: np.ndarray, covariance: np.ndarray, moment: Moment) -> tuple[bool, str]:
        """(whether the match may be accepted, a clause that says why), with `pose` (3,) and `covariance` (3, 3) of the match."""
        if self._settings.odom_gate_sigma <= 0 or moment.odometry is None:
            return True, ""
        fix = Fix(pose, covariance, moment.odometry, moment.travelled_m)
        if self._last is None:
            return True, ""
        sigmas = self._sigmas(self._last, fix)
        limit = self._settings.odom_gate_sigma
        if sigmas <= limit:
            return True, f"{sigmas:.1f} sigma from odometry"
        if self._refused and self._sigmas(self._refused[-1], fix) > limit:
            self._refused = []
        self._refused.append(fix)
        way_m = fix.travelled_m - self._refused[0].travelled_m
        if len(self._refused) >= _FEWEST_REFUSED and way_m >= self._settings.odom_gate_reopen_m:
            return True, f"{sigmas:.1f} sigma from odometry, but {len(self._refused)} matches along {way_m:.0f} m agree with one another"
        return False, f"{sigmas:.1f} sigma from where odometry expects it, {limit:g} allowed"

    def accept(self, pose: np.ndarray, covariance: np.ndarray, moment: Moment) -> None:
        """Take an accepted match as the one that the next are compared with."""
        if moment.odometry is not None:
            self._last = Fix(pose, covariance, moment.odometry, moment.travelled_m)
            self._refused = []

    def _sigmas(self, before: Fix, now: Fix) -> float:
        """Mahalanobis distance between `now` and `before` moved along by odometry, over x, y and yaw."""
        step = between(before.odometry, now.odometry)
        way_m = max(now.travelled_m - before.travelled_m, math.hypot(step[0], step[1]))
        expected = compose(before.pose, step)
        cos, sin = math.cos(before.pose[2]), math.sin(before.pose[2])
        # An error of the first yaw turns the whole way: d(expected) / d(yaw).
        turned = np.eye(3)
        turned[0, 2], turned[1, 2] = -sin * step[0] - cos * step[1], cos * step[0] - sin * step[1]
        rotation = np.eye(3)
        rotation[:2, :2] = [[cos, -sin], [sin, cos]]
        drift = rotation @ drift_covariance(step, way_m, self._settings) @ rotation.T
        difference = now.pose - expected
        difference[2] = float(wrap_angle(difference[2]))
        covariance = turned @ before.covariance @ turned.T + drift + now.covariance
        return math.sqrt(float(difference @ np.linalg.solve(covariance, difference)))
