"""Corrects drifting odometry with the loop closures of place recognition: a small SLAM back end to start yours from.

    python examples/pose_graph_slam.py --out slam --ros-args -r odom:=/odom -p use_sim_time:=true

Subscribes to `odom` (nav_msgs/Odometry), `loop_closure` (nav_msgs/Path of two stamped poses) and, for the covariance
of a closure, to `place_match/pose` of the same stamp. Publishes `corrected_pose` with each odometry message and
`path` once a second. With --out it writes odometry.tum, corrected.tum and summary.json when it ends.

The graph is examples/pose_graph.py. Poses are in the frame of odometry until a closure with a keyframe of an
earlier drive has tied this one to the map; from then on in the frame of the closures. Nothing is published on TF.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from pose_graph import PoseGraph
from pose_graph_inputs import Closure, GraphError, GraphSettings
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header

from asymvpr_core.datasets.trajectory import format_stamp, write_tum
from asymvpr_core.errors import AsymvprError
from asymvpr_core.settings_files import make_settings
from asymvpr_ros.conversions import pose_from_message, pose_message, stamp_message, stamp_ns
from asymvpr_ros.parameters import descriptor_of
from asymvpr_ros.shutdown import own_arguments, spin_until, start_ros

ODOMETRY, CORRECTED, SUMMARY = "odometry.tum", "corrected.tum", "summary.json"
_WARNING_PERIOD_S = 5.0
_RESTART_NS = 1_000_000_000  # odometry that goes back farther is another run: a bag that starts again
_PERIOD_S = 1.0
_PATIENCE_S = 5.0  # how long a closure waits for odometry of its time
_KEPT_COVARIANCES = 200
# Odometry is small and each message counts: the queue holds what arrives while the graph is being optimised.
_ODOMETRY_QOS = QoSProfile(depth=500, reliability=ReliabilityPolicy.BEST_EFFORT)
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@dataclass(frozen=True)
class _Waiting:
    """A closure that odometry has not reached yet, or whose covariance may still come."""

    closure: Closure
    frame: str
    since_s: float


class PoseGraphSlam(Node):
    """Feeds a `PoseGraph` from topics and publishes what it says.

    Raises:
        AsymvprError: a parameter is out of range.
        ParameterException: a parameter is of another type.
    """

    def __init__(self, **node_options: Any):
        super().__init__("pose_graph_slam", **node_options)
        fields = GraphSettings.model_fields
        values = {name: self.declare_parameter(name, field.default, descriptor_of(name, field)).value for name, field in fields.items()}
        self.settings = make_settings(GraphSettings, **values)
        self.graph = PoseGraph(self.settings)
        self.restarts = 0
        self._odometry_frame, self._map_frame = "", ""
        self._waiting: deque[_Waiting] = deque()
        self._covariances: dict[int, np.ndarray] = {}
        self._published_nodes = 0
        overridable = QoSOverridingOptions.with_default_policies()
        self.create_subscription(Odometry, "odom", self._on_odometry, _ODOMETRY_QOS, qos_overriding_options=overridable)
        self.create_subscription(PathMessage, "loop_closure", self._on_closure, 100)
        self.create_subscription(PoseWithCovarianceStamped, "place_match/pose", self._on_match, 100)
        self._pose_publisher = self.create_publisher(PoseWithCovarianceStamped, "corrected_pose", 10)
        self._path_publisher = self.create_publisher(PathMessage, "path", _LATCHED)
        self.create_timer(_PERIOD_S, self._each_second, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def frame(self) -> str:
        """Frame of the published poses."""
        return self._map_frame if self.graph.in_map else self._odometry_frame

    def finish(self) -> None:
        """Take in the closures that still wait."""
        self._use_closures(hurry=True)
        for waiting in self._waiting:
            self._refuse(waiting)
        self._waiting.clear()
        self.graph.optimise()

    def write(self, folder: Path) -> None:
        """Write both trajectories and the counts.

        Raises:
            DatasetError: a file cannot be written.
            OSError: likewise.
        """
        folder.mkdir(parents=True, exist_ok=True)
        residuals = self.graph.closure_residuals()
        summary = {
            "frame": self.frame,
            "restarts": self.restarts,
            "counts": asdict(self.graph.counts),
            "closures_out_of_line": int((residuals > 3 * self.settings.kernel_width).sum()),
            "settings": self.settings.model_dump(mode="json"),
        }
        if self.graph.counts.odometry:  # without odometry there is no trajectory, and an old one must not pass for it
            write_tum(folder / ODOMETRY, self.graph.odometry())
            write_tum(folder / CORRECTED, self.graph.corrected())
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    # Messages

    def _on_odometry(self, message: Odometry) -> None:
        stamp, last = stamp_ns(message.header.stamp), self.graph.last_stamp_ns
        if last is not None and stamp < last - _RESTART_NS:
            self.get_logger().warning(f"odometry went back by {(last - stamp) * 1e-9:.1f} s: a new run, the graph begins anew")
            self.graph, self.restarts, self._published_nodes = PoseGraph(self.settings), self.restarts + 1, 0
            self._waiting.clear()
            self._covariances.clear()
        gaps = self.graph.counts.odometry_gaps
        try:
            self.graph.add_odometry(stamp, pose_from_message(message.pose.pose))
        except GraphError as error:
            self.get_logger().warning(f"odometry refused: {error}", throttle_duration_sec=_WARNING_PERIOD_S)
            return
        if self.graph.counts.odometry_gaps > gaps:
            self.get_logger().warning(f"a gap or jump of odometry before {format_stamp(stamp)} s: how the robot moved there is unknown")
        self._odometry_frame = message.header.frame_id
        self._use_closures()
        pose, covariance = self.graph.pose()
        corrected = PoseWithCovarianceStamped(header=Header(frame_id=self.frame, stamp=message.header.stamp))
        corrected.pose.pose = pose_message(pose)
        corrected.pose.covariance = [float(value) for value in covariance.ravel()]
        self._pose_publisher.publish(corrected)

    def _on_match(self, message: PoseWithCovarianceStamped) -> None:
        self._covariances[stamp_ns(message.header.stamp)] = np.reshape(np.array(message.pose.covariance), (6, 6))
        while len(self._covariances) > _KEPT_COVARIANCES:
            del self._covariances[next(iter(self._covariances))]

    def _on_closure(self, message: PathMessage) -> None:
        if len(message.poses) != 2:
            self.graph.counts.closures_refused += 1
            self.get_logger().warning(
                f"closure refused: it has {len(message.poses)} poses; expected two, keyframe and query",
                throttle_duration_sec=_WARNING_PERIOD_S,
            )
            return
        keyframe, query = message.poses
        closure = Closure(
            stamp_ns(keyframe.header.stamp), pose_from_message(keyframe.pose), stamp_ns(query.header.stamp), pose_from_message(query.pose)
        )
        self._waiting.append(_Waiting(closure, message.header.frame_id, time.monotonic()))

    def _use_closures(self, *, hurry: bool = False) -> None:
        """Give the graph what odometry has reached; with its covariance, or without where that has not come by now."""
        for waiting in [self._waiting.popleft() for _ in range(len(self._waiting))]:
            stamp = waiting.closure.query_stamp_ns
            within_run = waiting.frame == self._odometry_frame
            # The pose of the same stamp, if there is one, is that of a match with the prior gallery.
            covariance = None if within_run else self._covariances.get(stamp)
            late = within_run or hurry or time.monotonic() - waiting.since_s > _PERIOD_S
            if not self.graph.covers(stamp) or covariance is None and not late:
                self._waiting.append(waiting)
                continue
            closure = waiting.closure
            closure = Closure(closure.keyframe_stamp_ns, closure.keyframe_pose, stamp, closure.query_pose, covariance)
            if within_run and not self.graph.knows(closure.keyframe_stamp_ns):
                # A place of this session from before the graph began: it says nothing of where the map is.
                self._refuse(waiting, f"no odometry came for its keyframe of {format_stamp(closure.keyframe_stamp_ns)} s")
                continue
            try:
                was_in_map = self.graph.in_map
                self.graph.add_closure(closure)
                if self.graph.in_map and not was_in_map:
                    self._map_frame = waiting.frame
                    self.get_logger().info(
                        f"the drive is tied to frame '{self.frame}' by the keyframe of {format_stamp(closure.keyframe_stamp_ns)} s"
                    )
            except GraphError as error:
                self.get_logger().warning(f"closure refused: {error}", throttle_duration_sec=_WARNING_PERIOD_S)

    def _each_second(self) -> None:
        self._use_closures()
        for waiting in [item for item in self._waiting if time.monotonic() - item.since_s > _PATIENCE_S]:
            self._waiting.remove(waiting)
            self._refuse(waiting)
        if self.graph.counts.nodes > self._published_nodes:
            self._published_nodes = self.graph.counts.nodes
            self._publish_path()

    def _publish_path(self) -> None:
        path = PathMessage()
        nodes = self.graph.nodes()
        for stamp, pose in zip(nodes.stamps_ns.tolist(), nodes.poses, strict=True):
            header = Header(frame_id=self.frame, stamp=stamp_message(stamp))
            path.poses.append(PoseStamped(header=header, pose=pose_message(pose)))
        path.header = path.poses[-1].header
        self._path_publisher.publish(path)

    def _refuse(self, waiting: _Waiting, reason: str = "no odometry came for the time of its query") -> None:
        self.graph.counts.closures_refused += 1
        stamp = format_stamp(waiting.closure.query_stamp_ns)
        self.get_logger().warning(f"closure of {stamp} s refused: {reason}", throttle_duration_sec=_WARNING_PERIOD_S)


def main(args: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM: 0, 1 where a parameter is refused or a file cannot be written, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="pose_graph_slam", description="Correct odometry with loop closures, by a pose graph.",
        epilog="Settings are ROS parameters: --ros-args -p kernel:=huber -p odometry_yaw_noise_deg:=1.0",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the trajectories and the counts, written at the end")
    options = parser.parse_args(own_arguments("pose_graph_slam", args))
    stop = start_ros(args)
    try:
        node = PoseGraphSlam()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        spin_until(executor, stop)
        executor.shutdown()
        node.finish()
        node.get_logger().info(", ".join(f"{name} {value}" for name, value in asdict(node.graph.counts).items()))
        if options.out is not None:
            node.write(options.out)
        node.destroy_node()
        return 0
    except (AsymvprError, ParameterException, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
