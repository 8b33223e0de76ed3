"""Write what the node publishes to a file: one JSON object a line, flushed at once.

`topic` is the name without namespace, `stamp_ns` the stamp of the message (that of the image,
except for diagnostics), `received_ns` the wall clock. Poses are [x, y, z, qx, qy, qz, qw].
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

from asymvpr_ros.conversions import stamp_ns
from asymvpr_ros.diagnostics import STATUS_SUFFIX
from asymvpr_ros.shutdown import own_arguments, spin_until, start_ros

# Deep enough that no line is lost while the disk is slow.
_QOS = QoSProfile(depth=200)


class MatchRecorder(Node):
    """Writes a line to `file` for each message of a place-recognition node in this namespace."""

    def __init__(self, file: TextIO, **node_options: Any):
        super().__init__("match_recorder", **node_options)
        self._file = file
        self.lines = 0
        self.create_subscription(PoseWithCovarianceStamped, "place_match/pose", self._on_pose, _QOS)
        self.create_subscription(PoseArray, "place_match/candidates", self._on_candidates, _QOS)
        self.create_subscription(PathMessage, "loop_closure", self._on_loop_closure, _QOS)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, _QOS)

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        pose = dict(zip(("x", "y", "z", "qx", "qy", "qz", "qw"), _numbers(message.pose.pose), strict=True))
        covariance = [float(value) for value in message.pose.covariance]
        self._write("place_match/pose", message.header, frame_id=message.header.frame_id, **pose, covariance=covariance)

    def _on_candidates(self, message: PoseArray) -> None:
        self._write("place_match/candidates", message.header, frame_id=message.header.frame_id, poses=[_numbers(p) for p in message.poses])

    def _on_loop_closure(self, message: PathMessage) -> None:
        poses = [[stamp_ns(p.header.stamp), *_numbers(p.pose)] for p in message.poses]
        self._write("loop_closure", message.header, frame_id=message.header.frame_id, poses=poses)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(STATUS_SUFFIX):  # /diagnostics is shared by the whole robot
                values = {pair.key: pair.value for pair in status.values}
                level = int.from_bytes(status.level, "little") if isinstance(status.level, bytes) else int(status.level)
                self._write("/diagnostics", message.header, name=status.name, level=level, message=status.message, values=values)

    def _write(self, topic: str, header: Any, **fields: Any) -> None:
        line = {"topic": topic, "stamp_ns": stamp_ns(header.stamp), "received_ns": time.time_ns(), **fields}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.lines += 1


def _numbers(pose: PoseMessage) -> list[float]:
    p, q = pose.position, pose.orientation
    return [p.x, p.y, p.z, q.x, q.y, q.z, q.w]


def main(args: list[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM: 0, 1 where the file cannot be written, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="match_recorder", description="Write what the place-recognition node publishes as JSON lines.",
        epilog="In a namespace: match_recorder --out matches.jsonl --ros-args -r __ns:=/robot1",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="file to write; an existing one is replaced")
    options = parser.parse_args(own_arguments("match_recorder", args))
    stop = start_ros(args)
    try:
        with open(options.out, "w", encoding="utf-8") as file:
            recorder = MatchRecorder(file)
            executor = SingleThreadedExecutor()
            executor.add_node(recorder)
            spin_until(executor, stop)
            executor.shutdown()
            recorder.get_logger().info(f"{recorder.lines} lines in {options.out}")
            recorder.destroy_node()
        return 0
    except OSError as error:
        print(f"error: {options.out} cannot be written: {error.strerror}; give another --out or free space", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
