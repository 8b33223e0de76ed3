"""What goes into the pose graph: its settings, closures, and the counts of what was used and refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field

from asymvpr_core.config import Settings
from asymvpr_core.errors import AsymvprError
from asymvpr_core.types import Pose


class GraphError(AsymvprError):
    """A measurement that the graph cannot use."""


class GraphSettings(Settings):
    """Every number of the graph. Noises are standard deviations; those of odometry grow with the root of way and turn.

    Odometry's are looser than the noise of wheels, because a wrong wheel radius or a biased gyroscope errs to one
    side all the time.
    """

    node_distance_m: float = Field(1.0, gt=0.0, description="way between two nodes [m]")
    node_yaw_deg: float = Field(10.0, gt=0.0, le=180.0, description="turn between two nodes [deg]")
    odometry_distance_noise_m: float = Field(0.15, gt=0.0, description="odometry's error in position [m] after one metre")
    odometry_yaw_noise_deg: float = Field(0.4, gt=0.0, description="odometry's error in yaw [deg] after one metre")
    odometry_turn_noise_deg: float = Field(0.2, gt=0.0, description="odometry's error in yaw [deg] after a turn by one degree")
    max_odometry_gap_s: float = Field(1.0, gt=0.0, description="after a longer pause of odometry [s] the motion counts as unknown")
    max_speed_m_s: float = Field(30.0, gt=0.0, description="a faster step [m/s] is no motion but a reset of odometry")
    closure_position_std_m: float = Field(1.0, gt=0.0, description="position error [m] of a closure that comes without a covariance")
    closure_yaw_std_deg: float = Field(10.0, gt=0.0, description="rotation error [deg] of a closure that comes without a covariance")
    kernel: Literal["cauchy", "huber", "dcs", "geman_mcclure"] = Field("cauchy", description="robust kernel of the closures")
    kernel_width: float = Field(2.0, gt=0.0, description="closures farther off than this many standard deviations lose their say")
    realign_distance_m: float = Field(5.0, gt=0.0, description="closures that fit within this distance [m] agree on where the map is")


@dataclass(frozen=True)
class Closure:
    """Two stamped poses that belong together, as `loop_closure` carries them.

    `covariance` is (6, 6) in ROS order (x, y, z, roll, pitch, yaw) [m^2, rad^2]; None: the settings' default.
    """

    keyframe_stamp_ns: int
    keyframe_pose: Pose
    query_stamp_ns: int
    query_pose: Pose
    covariance: np.ndarray | None = field(default=None, compare=False)


@dataclass
class GraphCounts:
    """What went into the graph, and what did not."""

    odometry: int = 0
    odometry_refused: int = 0
    odometry_gaps: int = 0
    nodes: int = 0
    closures_to_map: int = 0
    closures_in_run: int = 0
    closures_redundant: int = 0
    closures_refused: int = 0
    covariances_refused: int = 0
    realignments: int = 0
