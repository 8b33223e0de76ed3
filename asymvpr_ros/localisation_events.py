"""When to say `initialpose`: the first time, when asked, and when the robot is not where odometry put it.

Consumers start anew on each such pose, so it must be an event and never a stream.
"""

from __future__ import annotations

import threading

from asymvpr_core.rigid_transforms import compose, inverse
from asymvpr_core.types import Pose

FIRST = "first localisation"
# One false match must not throw a localiser off: as many in a row must say the same new place.
_CONFIRMATIONS = 3


class LocalisationEvents:
    """Decides which accepted matches are localisation events.

    A kidnapped robot is noticed where matches in a row agree with each other along odometry, but lie
    more than `distance_m` or `yaw_deg` from where the last agreed match and odometry put the robot.
    Without odometry nothing can be carried to now, and there is no event. `trigger` may be called from
    any thread.
    """

    def __init__(self, distance_m: float, yaw_deg: float):
        self.distance_m, self.yaw_deg = distance_m, yaw_deg
        self._lock = threading.Lock()
        self._due, self._asked = FIRST, ""
        self._forget()

    def begin(self) -> None:
        """Begin a run: the next match is the first localisation, unless somebody has asked for it."""
        with self._lock:
            self._due = self._asked or FIRST
        self._forget()

    def trigger(self, reason: str) -> None:
        """The next accepted match is to be said, whatever the cooldown."""
        with self._lock:
            self._due = self._asked = reason

    @property
    def asked(self) -> str:
        """Who waits for the next match; empty where nobody does."""
        return self._asked

    @property
    def due(self) -> str:
        """Why the next match that odometry can carry to now is an event; empty where it is none."""
        return self._due

    def answered(self) -> None:
        """A match has been said: nobody waits any more."""
        with self._lock:
            self._asked = ""

    def odometry_restarted(self) -> None:
        """Odometry is in another frame now: nothing said before can be compared."""
        self._forget()

    def _forget(self) -> None:
        self._T_map_odom: Pose | None = None
        self._suspect: Pose | None = None
        self._confirmations = 0

    def reason(self, T_map_base: Pose, T_odom_base: Pose) -> str:
        """Why the accepted match at `T_map_base`, where odometry was at `T_odom_base`, is an event; empty where it is none."""
        T_map_odom = compose(T_map_base, inverse(T_odom_base))
        with self._lock:
            due, self._due = self._due, ""
        if due or self._T_map_odom is None:
            self._agreed(T_map_odom)
            return due
        predicted = compose(self._T_map_odom, T_odom_base)
        if self._agree(predicted, T_map_base):
            self._agreed(T_map_odom)
            return ""
        if self._suspect is not None and self._agree(compose(self._suspect, T_odom_base), T_map_base):
            self._confirmations += 1
        else:
            self._suspect, self._confirmations = T_map_odom, 1
        if self._confirmations < _CONFIRMATIONS:
            return ""
        count, distance_m = self._confirmations, predicted.distance_m(T_map_base)
        self._agreed(T_map_odom)
        return f"recovery: {count} matches agree that the robot is {distance_m:.1f} m from where odometry put it"

    def _agreed(self, T_map_odom: Pose) -> None:
        self._T_map_odom, self._suspect, self._confirmations = T_map_odom, None, 0

    def _agree(self, a: Pose, b: Pose) -> bool:
        return a.distance_m(b) <= self.distance_m and a.yaw_distance_deg(b) <= self.yaw_deg


class Cooldown:
    """The shortest time between two published matches, by image stamps."""

    def __init__(self) -> None:
        self._last_ns: int | None = None

    def left_s(self, stamp_ns: int, cooldown_s: float) -> float:
        """Seconds that are left; 0 or less when it is over."""
        if self._last_ns is None or stamp_ns < self._last_ns:
            return 0.0
        return cooldown_s - (stamp_ns - self._last_ns) / 1e9

    def begin(self, stamp_ns: int) -> None:
        """A match of this stamp was published."""
        self._last_ns = stamp_ns

    def reset(self) -> None:
        """Forget what was published."""
        self._last_ns = None
