"""The values that travel between stages: poses, image records, keyframes, matches.

Frames and units: positions in metres in a right-handed map frame with z up (REP-103);
quaternions are (x, y, z, w); stamps are integer nanoseconds of the recording's clock.
`heading_deg` is the camera's viewing direction in the map, clockwise from the map's +y axis
(north in UTM), as the place-recognition datasets write it; yaw is counter-clockwise from +x,
so yaw_deg = 90 - heading_deg.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

IDENTITY_QUATERNION = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Pose:
    """A rigid transform T_parent_child: position (x, y, z) [m] and unit quaternion (x, y, z, w)."""

    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float] = IDENTITY_QUATERNION

    @staticmethod
    def from_xy_yaw(x: float, y: float, yaw_rad: float, z: float = 0.0) -> Pose:
        """Planar pose from position [m] and yaw [rad, counter-clockwise from +x]."""
        return Pose((x, y, z), (0.0, 0.0, math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)))

    @property
    def yaw_rad(self) -> float:
        """Rotation about z, counter-clockwise from +x, in (-pi, pi]."""
        x, y, z, w = self.quaternion
        return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))

    @property
    def heading_deg(self) -> float:
        """Direction of the child's +x axis, clockwise from the parent's +y axis, in [0, 360)."""
        heading = (90.0 - math.degrees(self.yaw_rad)) % 360.0
        return heading if heading < 360.0 else 0.0  # the modulo of a tiny negative number rounds to 360

    def distance_m(self, other: Pose) -> float:
        """Euclidean distance between the two positions, in metres."""
        return math.dist(self.position, other.position)

    def yaw_distance_deg(self, other: Pose) -> float:
        """Absolute difference of yaw, in [0, 180] degrees."""
        return abs(angle_difference_deg(math.degrees(self.yaw_rad), math.degrees(other.yaw_rad)))


def angle_difference_deg(a_deg: float, b_deg: float) -> float:
    """Signed smallest rotation from b to a, in [-180, 180) degrees."""
    return (a_deg - b_deg + 180.0) % 360.0 - 180.0


@dataclass(frozen=True)
class ImageRecord:
    """One image of a dataset and what is known about where and when it was taken.

    `name` is unique in its dataset: the path relative to the dataset's root, or
    "<camera>/<stamp_ns>" for an image that lives in a bag.
    """

    name: str
    pose: Pose | None = None  # of the robot's base (or of the camera where there is no base) in the map
    heading_deg: float | None = None  # None: unknown, and then pose.quaternion means nothing
    stamp_ns: int | None = None
    camera: str = ""
    lat_lon_deg: tuple[float, float] | None = None
    place_id: int | None = None
    condition: str = ""  # light, weather or the like, where the dataset says ("night"); empty: unknown


# A keyframe is an image record that entered a gallery; its row number there is its index.
Keyframe = ImageRecord


@dataclass(frozen=True)
class QueryFrame:
    """What is known of a camera frame beside its picture.

    `odometry` is T_odom_base at the stamp, None where it is unknown. `camera` names the camera:
    what is remembered from frame to frame is kept for each camera by itself.
    """

    stamp_ns: int
    odometry: Pose | None = None
    camera: str = ""


@dataclass(frozen=True)
class Match:
    """A gallery keyframe that a query was compared with; score is cosine, higher is better.

    `pose` is the keyframe's; None only in a session gallery whose frames come without odometry.
    """

    keyframe_index: int
    score: float
    pose: Pose | None


@dataclass(frozen=True)
class MatchResult:
    """What the matcher says of one query frame.

    `match` is the accepted match, or None; `reason` says why it was accepted or rejected, in
    words that go to the user's diagnostics. `covariance` is (6, 6) row-major in ROS order
    (x, y, z, roll, pitch, yaw) [m^2, rad^2], never zero on the diagonal; None where nothing was
    accepted. `candidates` are the top k, best first, before any threshold. `posterior` is the
    filter's probability of the best place (sequence "bayes"), `inliers` the number of feature
    pairs that fit one fundamental matrix; None where they were not computed.
    """

    stamp_ns: int
    candidates: tuple[Match, ...]
    match: Match | None
    reason: str
    covariance: np.ndarray | None = field(default=None, compare=False)
    posterior: float | None = None
    inliers: int | None = None

    @property
    def accepted(self) -> bool:
        return self.match is not None


@dataclass(frozen=True)
class LoopClosure:
    """An edge between a gallery keyframe and a query frame, each with its own stamp.

    Against the prior gallery the poses are in the map frame, against the session gallery in the
    odometry frame of this run. Both are the keyframe's pose at its time, since place recognition
    knows no finer one: the edge says "these two are at the same place". None only in a session
    whose frames come without odometry, where the stamps alone make the edge.
    """

    keyframe_index: int
    keyframe_stamp_ns: int
    keyframe_pose: Pose | None
    query_stamp_ns: int
    query_pose: Pose | None
    covariance: np.ndarray = field(compare=False)


@dataclass(frozen=True)
class Recognition:
    """The answer to one frame: what each gallery says of it.

    `prior` is None without a prior gallery, `session` where the session gallery is off. A closure
    is there where that gallery's match was accepted and its keyframe has a stamp.
    """

    frame: QueryFrame
    prior: MatchResult | None
    session: MatchResult | None
    prior_closure: LoopClosure | None
    session_closure: LoopClosure | None
    keyframe_added: bool
