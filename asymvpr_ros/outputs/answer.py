"""What the recogniser says of one frame, ready for every output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from std_msgs.msg import Header

from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.types import LoopClosure, MatchResult, Pose, Recognition
from asymvpr_ros.conversions import stamp_message


@dataclass(frozen=True)
class FrameNames:
    """Names of the frames that poses are published in."""

    map: str
    odom: str
    base: str


@dataclass(frozen=True)
class Localisation:
    """An event: where the robot is now in the map, and why it is said now.

    `stamp_ns` is that of the newest odometry, which carried the match there.
    """

    T_map_base: Pose
    stamp_ns: int
    covariance: np.ndarray
    reason: str


@dataclass(frozen=True)
class Answer:
    """What is to be said of one frame.

    `announce_prior` and `announce_session` are set where the match with that gallery is accepted
    and its cooldown is over. `gallery` is the prior one, which the candidates' indices mean.
    `image` is the frame, `(H, W, 3)` uint8 RGB.
    """

    recognition: Recognition
    names: FrameNames
    image: np.ndarray
    gallery: PriorGallery | None = None
    announce_prior: bool = False
    announce_session: bool = False
    localisation: Localisation | None = None
    session_keyframes: int = 0  # how many the session has now

    @property
    def stamp_ns(self) -> int:
        """Stamp of the image."""
        return self.recognition.frame.stamp_ns

    @property
    def prior(self) -> MatchResult | None:
        """What the prior gallery says; None where there is none."""
        return self.recognition.prior

    @property
    def closures(self) -> list[tuple[LoopClosure, str]]:
        """The edges to announce, each with the frame of its poses: the map, or odometry within the session."""
        found = []
        if self.announce_prior and self.recognition.prior_closure is not None:
            found.append((self.recognition.prior_closure, self.names.map))
        if self.announce_session and self.recognition.session_closure is not None:
            found.append((self.recognition.session_closure, self.names.odom))
        return found

    @property
    def header(self) -> Header:
        """Map frame, and the stamp of the image: consumers look up where the robot was then."""
        return Header(frame_id=self.names.map, stamp=stamp_message(self.stamp_ns))
