"""A pose graph of one drive: odometry between nodes, loop closures with robust kernels, optimised by GTSAM's iSAM2.

No ROS here: examples/pose_graph_slam.py feeds this class from topics, benchmarks/town_trajectory.py from a file.

A *node* is a pose of the robot, taken from odometry every metre or so. Between neighbouring nodes stands the
motion that odometry measured. A closure whose keyframe was seen in this drive is an edge between two nodes; one
whose keyframe is of an earlier drive says where in that drive's map a node lies. Before the first of those, poses
are in the frame of odometry; from then on, in the map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gtsam
import numpy as np
from gtsam_conversions import covariance_from_gtsam, covariance_to_gtsam, from_gtsam, is_covariance, to_gtsam
from odometry_log import OdometryLog
from pose_graph_inputs import Closure, GraphCounts, GraphError, GraphSettings

from asymvpr_core.datasets.trajectory import Trajectory, checked_pose, format_stamp
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import Pose

__all__ = ["Closure", "GraphCounts", "GraphError", "GraphSettings", "PoseGraph"]

KERNELS = {
    "cauchy": gtsam.noiseModel.mEstimator.Cauchy,
    "huber": gtsam.noiseModel.mEstimator.Huber,
    "dcs": gtsam.noiseModel.mEstimator.DCS,
    "geman_mcclure": gtsam.noiseModel.mEstimator.GemanMcClure,
}


@dataclass(frozen=True)
class _Edge:
    """A closure in the graph: node `j` is None where it ties `i` to the map."""

    i: int
    j: int | None
    measured: gtsam.Pose3
    gaussian: gtsam.noiseModel.Base


class PoseGraph:
    """Poses of one drive, corrected by loop closures. Not thread-safe.

    Call `add_odometry` for each message, `add_closure` for each closure whose query stamp it `covers`, and
    `optimise` whenever the poses are wanted.
    """

    def __init__(self, settings: GraphSettings | None = None):
        self.settings = settings or GraphSettings()
        self.counts = GraphCounts()
        self.in_map = False  # whether poses are in the map, not in the frame of odometry
        self._log = OdometryLog(self.settings)
        self._node_of: list[int] = []  # the node before each pose of odometry
        self._nodes: list[int] = []  # each node's place in the odometry
        self._motions: list[gtsam.NonlinearFactor] = []
        self._edges: list[_Edge] = []
        self._pairs: set[tuple[int, int | None]] = set()
        self._new_factors, self._new_values = gtsam.NonlinearFactorGraph(), gtsam.Values()
        self._new_closures = False
        self._isam = _isam()

    @property
    def last_stamp_ns(self) -> int | None:
        """Stamp of the newest odometry; None before the first."""
        return self._log.stamps_ns[-1] if len(self._log) else None

    def covers(self, stamp_ns: int) -> bool:
        """Whether odometry has come as far as `stamp_ns`."""
        return self.last_stamp_ns is not None and stamp_ns <= self.last_stamp_ns

    def knows(self, stamp_ns: int) -> bool:
        """Whether `stamp_ns` lies between the first and the newest odometry."""
        return self._log.covers(stamp_ns)

    # Measurements

    def add_odometry(self, stamp_ns: int, pose: Pose) -> None:
        """Add the robot's pose in the frame of odometry.

        After a gap or a jump the motion is unknown: the graph then holds together by its closures only.

        Raises:
            GraphError: a pose with NaN or without rotation, or a stamp that does not increase.
        """
        try:
            cut_off = self._log.add(stamp_ns, pose)
        except GraphError:
            self.counts.odometry_refused += 1
            raise
        last = len(self._log) - 1
        self.counts.odometry += 1
        self.counts.odometry_gaps += cut_off
        if cut_off and self._nodes[-1] != last - 1:
            self._add_node(last - 1)  # what was measured up to the gap stays measured
        if not self._nodes or cut_off or self._is_far(self._log.poses[self._nodes[-1]], pose):
            self._add_node(last, cut_off=cut_off)
        self._node_of.append(len(self._nodes) - 1)

    def add_closure(self, closure: Closure) -> bool:
        """Add a closure; False where its nodes are tied together already, which adds no knowledge.

        Frames of one place make the same error again and again: counted once each, they would outvote odometry.

        Raises:
            GraphError: a pose with NaN, or a query stamp that odometry does not know.
        """
        where = f"of the closure at {format_stamp(closure.query_stamp_ns)} s"
        try:
            for name in ("keyframe", "query"):
                checked_pose(getattr(closure, f"{name}_pose"), f"the {name} pose {where}")
            i, offset = self._nearest_node(closure.query_stamp_ns, f"the query {where}")
            j, keyframe_offset = None, gtsam.Pose3()
            if self._log.covers(closure.keyframe_stamp_ns):
                j, keyframe_offset = self._nearest_node(closure.keyframe_stamp_ns, f"the keyframe {where}")
        except (DatasetError, GraphError) as error:
            self.counts.closures_refused += 1
            raise GraphError(error.found, expected=error.expected) from error
        if i == j or (i, j) in self._pairs:
            self.counts.closures_redundant += 1
            return False
        self._pairs.add((i, j))
        # The measurement is about the two images; odometry carries it over to their nodes, less than a metre away.
        query, keyframe = to_gtsam(closure.query_pose), to_gtsam(closure.keyframe_pose)
        if j is None:
            measured = query.compose(offset.inverse())
            self.counts.closures_to_map += 1
        else:
            measured = keyframe_offset.compose(keyframe.inverse()).compose(query).compose(offset.inverse())
            self.counts.closures_in_run += 1
        edge = _Edge(i, j, measured, self._closure_noise(closure, query))
        self._edges.append(edge)
        self._new_closures = True
        if j is None and not self._agrees_on_map(edge):
            self._realign(edge)
        else:
            self._new_factors.add(self._factor(edge))
        return True

    def optimise(self) -> None:
        """Let iSAM2 take in what is new."""
        if self._new_factors.size() == 0 and self._new_values.size() == 0:
            return
        self._isam.update(self._new_factors, self._new_values)
        if self._new_closures:
            for _ in range(3):  # a robust kernel needs its weights again where the poses have moved
                self._isam.update()
        self._new_factors, self._new_values, self._new_closures = gtsam.NonlinearFactorGraph(), gtsam.Values(), False

    # Results; in the map once a closure has tied the drive to it, before in the frame of odometry

    def pose(self) -> tuple[Pose, np.ndarray]:
        """The newest pose and its (6, 6) covariance, in ROS order and along the axes of the frame.

        Raises:
            GraphError: no odometry yet.
        """
        if not self._nodes:
            raise GraphError("the graph has no pose", expected="odometry")
        self.optimise()
        key = gtsam.symbol("x", len(self._nodes) - 1)
        node = self._isam.calculateEstimatePose3(key)
        motion = self._log.motion(self._nodes[-1], len(self._log) - 1)
        since = self._motion_noise(motion).covariance()
        # What has been driven since the node adds its own noise, each in the axes of its own pose.
        adjoint = motion.inverse().AdjointMap()
        covariance = adjoint @ self._isam.marginalCovariance(key) @ adjoint.T + since
        pose = node.compose(motion)
        return from_gtsam(pose), covariance_from_gtsam(pose, covariance)

    def nodes(self) -> Trajectory:
        """All nodes as they are now.

        Raises:
            DatasetError: no odometry yet.
        """
        self.optimise()
        values = self._isam.calculateEstimate()
        poses = [from_gtsam(values.atPose3(gtsam.symbol("x", i))) for i in range(len(self._nodes))]
        return Trajectory([self._log.stamps_ns[at] for at in self._nodes], poses, name="corrected nodes")

    def corrected(self) -> Trajectory:
        """The whole drive as it is now, at every stamp of odometry.

        Raises:
            DatasetError: no odometry yet.
        """
        self.optimise()
        values = self._isam.calculateEstimate()
        nodes = [values.atPose3(gtsam.symbol("x", i)) for i in range(len(self._nodes))]
        poses = [from_gtsam(nodes[i].compose(self._log.motion(self._nodes[i], at))) for at, i in enumerate(self._node_of)]
        return Trajectory(self._log.stamps_ns, poses, name="corrected trajectory")

    def odometry(self) -> Trajectory:
        """The drive as odometry told it.

        Raises:
            DatasetError: no odometry yet.
        """
        return Trajectory(self._log.stamps_ns, self._log.poses, name="odometry")

    def closure_residuals(self) -> np.ndarray:
        """(C,) float64: how far each closure is from the optimised poses, in its own standard deviations."""
        self.optimise()
        values = self._isam.calculateEstimate()
        return np.array([np.linalg.norm(edge.gaussian.whiten(self._residual(edge, values))) for edge in self._edges])

    # Inside

    def _is_far(self, last: Pose, pose: Pose) -> bool:
        return last.distance_m(pose) >= self.settings.node_distance_m or last.yaw_distance_deg(pose) >= self.settings.node_yaw_deg

    def _add_node(self, at: int, *, cut_off: bool = False) -> None:
        key = len(self._nodes)
        self._nodes.append(at)
        self.counts.nodes += 1
        if key == 0:
            motion: gtsam.NonlinearFactor = gtsam.PriorFactorPose3(gtsam.symbol("x", 0), to_gtsam(self._log.poses[at]), _FIRM)
            guess = to_gtsam(self._log.poses[at])
        else:
            moved = gtsam.Pose3() if cut_off else self._log.motion(self._nodes[-2], at)
            noise = _UNKNOWN if cut_off else self._motion_noise(moved)
            motion = gtsam.BetweenFactorPose3(gtsam.symbol("x", key - 1), gtsam.symbol("x", key), moved, noise)
            guess = self._guess(key - 1).compose(moved)
        self._motions.append(motion)
        self._new_factors.add(motion)
        self._new_values.insert(gtsam.symbol("x", key), guess)

    def _guess(self, node: int) -> gtsam.Pose3:
        """A node's pose as far as it is known, without optimising for it."""
        key = gtsam.symbol("x", node)
        return self._new_values.atPose3(key) if self._new_values.exists(key) else self._isam.calculateEstimatePose3(key)

    def _motion_noise(self, motion: gtsam.Pose3) -> gtsam.noiseModel.Diagonal:
        settings = self.settings
        way_m, turn_deg = float(np.linalg.norm(motion.translation())), abs(math.degrees(motion.rotation().yaw()))
        yaw = math.radians(
            math.hypot(settings.odometry_yaw_noise_deg * math.sqrt(way_m), settings.odometry_turn_noise_deg * math.sqrt(turn_deg))
        )
        along = settings.odometry_distance_noise_m * math.sqrt(way_m)
        # Never zero, also where the robot stands. A robot on wheels hardly leaves its plane.
        return gtsam.noiseModel.Diagonal.Sigmas(np.array([0.3 * yaw + 1e-4] * 2 + [yaw + 1e-4] + [along + 1e-3] * 2 + [0.2 * along + 1e-3]))

    def _closure_noise(self, closure: Closure, query: gtsam.Pose3) -> gtsam.noiseModel.Gaussian:
        covariance = closure.covariance
        if covariance is not None and not is_covariance(covariance):
            self.counts.covariances_refused += 1
            covariance = None
        if covariance is None:
            std = [self.settings.closure_position_std_m] * 3 + [math.radians(self.settings.closure_yaw_std_deg)] * 3
            covariance = np.diag(np.square(std))
        return gtsam.noiseModel.Gaussian.Covariance(covariance_to_gtsam(query, np.asarray(covariance, dtype=np.float64)))

    def _nearest_node(self, stamp_ns: int, what: str) -> tuple[int, gtsam.Pose3]:
        """The node before a stamp, and the motion from it to the stamp."""
        before, pose = self._log.at(stamp_ns, what)
        node = self._node_of[before]
        return node, self._odometry_pose(node).between(to_gtsam(pose))

    def _factor(self, edge: _Edge) -> gtsam.NonlinearFactor:
        kernel = KERNELS[self.settings.kernel].Create(self.settings.kernel_width)
        noise = gtsam.noiseModel.Robust.Create(kernel, edge.gaussian)
        if edge.j is None:
            return gtsam.PriorFactorPose3(gtsam.symbol("x", edge.i), edge.measured, noise)
        return gtsam.BetweenFactorPose3(gtsam.symbol("x", edge.j), gtsam.symbol("x", edge.i), edge.measured, noise)

    @staticmethod
    def _residual(edge: _Edge, values: gtsam.Values) -> np.ndarray:
        estimate = values.atPose3(gtsam.symbol("x", edge.i))
        if edge.j is not None:
            estimate = values.atPose3(gtsam.symbol("x", edge.j)).between(estimate)
        return edge.measured.localCoordinates(estimate)

    # Where the map lies: a robust kernel cannot tell before some closures agree, so the first one is believed,
    # until more closures speak for another alignment than for the present one.

    def _agrees_on_map(self, edge: _Edge) -> bool:
        """Whether the present alignment explains the closure, or more closures than the one that it would give."""
        if not self.in_map:
            return False
        if self._misses(self._guess(edge.i), edge) <= self.settings.realign_distance_m:
            return True
        to_map = [other for other in self._edges if other.j is None]
        alignment = self._alignment(edge)
        now = sum(self._misses(self._guess(other.i), other) <= self.settings.realign_distance_m for other in to_map)
        then = sum(
            self._misses(alignment.compose(self._odometry_pose(other.i)), other) <= self.settings.realign_distance_m for other in to_map
        )
        return now >= then

    def _alignment(self, edge: _Edge) -> gtsam.Pose3:
        """The map pose of odometry's origin by one closure."""
        return edge.measured.compose(self._odometry_pose(edge.i).inverse())

    def _odometry_pose(self, node: int) -> gtsam.Pose3:
        return to_gtsam(self._log.poses[self._nodes[node]])

    @staticmethod
    def _misses(estimate: gtsam.Pose3, edge: _Edge) -> float:
        return float(np.linalg.norm(estimate.translation() - edge.measured.translation()))

    def _realign(self, edge: _Edge) -> None:
        """Start iSAM2 again with the whole drive placed in the map as `edge` says; all closures are weighed anew."""
        self.counts.realignments += self.in_map
        self.in_map = True
        alignment = self._alignment(edge)
        values = gtsam.Values()
        for node in range(len(self._nodes)):
            values.insert(gtsam.symbol("x", node), alignment.compose(self._odometry_pose(node)))
        start = gtsam.symbol("x", 0)
        # From here on the closures say where the drive lies; the first node keeps just enough of a say to be determined.
        self._motions[0] = gtsam.PriorFactorPose3(start, values.atPose3(start), _FAINT)
        factors = gtsam.NonlinearFactorGraph()
        for factor in [*self._motions, *(self._factor(other) for other in self._edges)]:
            factors.add(factor)
        values = gtsam.LevenbergMarquardtOptimizer(factors, values).optimize()
        self._isam = _isam()
        self._new_factors, self._new_values = factors, values
        self._new_closures = True
        self.optimise()


_FIRM = gtsam.noiseModel.Diagonal.Sigmas(np.full(6, 1e-3))
_FAINT = gtsam.noiseModel.Diagonal.Sigmas(np.array([math.pi] * 3 + [1e3] * 3))
# After a gap: somewhere within tens of metres, looking anywhere, on the same floor.
_UNKNOWN = gtsam.noiseModel.Diagonal.Sigmas(np.array([0.1, 0.1, 2.0, 20.0, 20.0, 1.0]))


def _isam() -> gtsam.ISAM2:
    parameters = gtsam.ISAM2Params()
    parameters.setRelinearizeThreshold(0.01)  # at the default 0.1 the kernels' weights lag behind the poses
    parameters.relinearizeSkip = 1
    return gtsam.ISAM2(parameters)
