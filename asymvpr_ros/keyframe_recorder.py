"""Record what a gallery is built from while SLAM runs: keyframe images and all poses, as a small rosbag2.

`asymvpr gallery build` reads the bag. Only images that moved or turned enough since the last one
are kept; poses are kept all, so that the build interpolates them at the image stamps. Where SLAM
corrects the trajectory later, give the corrected one to the build (`--trajectory`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from asymvpr_core.config import KeyframeSettings
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.datasets.keyframes import select_keyframes
from asymvpr_core.datasets.trajectory import checked_pose
from asymvpr_core.errors import AsymvprError, BagError, DatasetError, SettingsError
from asymvpr_core.settings_files import make_settings
from asymvpr_core.types import Pose
from asymvpr_ros.conversions import pose_from_message, stamp_ns
from asymvpr_ros.qos import overridable, sensor_data
from asymvpr_ros.shutdown import own_arguments, spin_until, start_ros

_POSE_TYPES: dict[str, type] = {"odometry": Odometry, "pose": PoseStamped, "pose_with_covariance": PoseWithCovarianceStamped}
_TRANSPORTS: dict[str, tuple[str, type]] = {"raw": ("image", Image), "compressed": ("image/compressed", CompressedImage)}


class KeyframeRecorder(Node):
    """Writes keyframes of `image` (or `image/compressed`) and the poses of `pose` to `bag`.

    `fault` is the BagError that ended the recording, for example a full disk.
    """

    def __init__(self, bag: BagWriter, *, pose_type: str, transport: str, keyframes: KeyframeSettings, **node_options: Any):
        super().__init__("keyframe_recorder", **node_options)
        self._bag, self._settings = bag, keyframes
        self.keyframes = self.images = self.poses = 0
        self.why_skipped = "no image has come"
        self.fault: BagError | None = None
        self._latest: tuple[int, Pose] | None = None
        self._last_keyframe: Pose | None = None
        suffix, message_type = _TRANSPORTS[transport]
        self._image_topic, self._pose_topic = self.resolve_topic_name(suffix), self.resolve_topic_name("pose")
        options = {"qos_overriding_options": overridable()}
        # Every image may be the one, unlike in the node: a short queue instead of the newest only.
        self.create_subscription(message_type, suffix, self._on_image, sensor_data(10), **options)
        poses = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(_POSE_TYPES[pose_type], "pose", self._on_pose, poses, **options)

    def _on_pose(self, message: Odometry | PoseStamped | PoseWithCovarianceStamped) -> None:
        pose_of = message.pose if isinstance(message, PoseStamped) else message.pose.pose
        stamp = stamp_ns(message.header.stamp)
        try:
            pose = checked_pose(pose_from_message(pose_of), f"a pose of {self._pose_topic}")
        except DatasetError as error:
            self.get_logger().warning(f"pose left out: {error}", throttle_duration_sec=5.0)
            return
        if stamp <= 0 or (self._latest is not None and stamp <= self._latest[0]):
            self.get_logger().warning("pose left out: its stamp does not increase", throttle_duration_sec=5.0)
            return
        self._latest = (stamp, pose)
        if self._write(lambda: self._bag.write_pose(self._pose_topic, stamp, pose, message.header.frame_id)):
            self.poses += 1

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.images += 1
        stamp, gap_s = stamp_ns(message.header.stamp), self._settings.max_pose_gap_s
        if self._latest is None or abs(stamp - self._latest[0]) > gap_s * 1e9:
            self.why_skipped = f"no pose on {self._pose_topic} within {gap_s:g} s of the images"
            return
        pose = self._latest[1]
        if self._last_keyframe is not None and len(select_keyframes([self._last_keyframe, pose], self._settings)) < 2:
            return
        if self._write(lambda: self._write_image(message, stamp)):
            self._last_keyframe = pose
            self.keyframes += 1

    def _write_image(self, message: Image | CompressedImage, stamp: int) -> None:
        frame = message.header.frame_id
        if isinstance(message, CompressedImage):
            self._bag.write_compressed_image(self._image_topic, stamp, frame, bytes(message.data), message.format)
        else:
            self._bag.write_image(
                self._image_topic, stamp, frame, bytes(message.data), height=message.height, width=message.width,
                encoding=message.encoding, step=message.step, is_bigendian=bool(message.is_bigendian),
            )  # fmt: skip

    def _write(self, write: Any) -> bool:
        if self.fault is not None:
            return False
        try:
            write()
        except BagError as error:
            self.fault = error
        return self.fault is None

    def summary(self) -> str:
        """What was recorded, and the command that makes a gallery of it."""
        counts = f"{self.keyframes} keyframes of {self.images} images and {self.poses} poses in {self._bag.path}"
        topics = f"--image-topic {self._image_topic} --pose-topic {self._pose_topic}"
        return f"{counts}; next: asymvpr gallery build {self._bag.path} {topics} --out DIR"

    def check(self) -> None:
        """Raise where the recording is of no use.

        Raises:
            BagError: the bag could not be written on, or holds no keyframe.
        """
        if self.fault is not None:
            raise self.fault
        if not self.keyframes:
            raise BagError(f"no keyframe was recorded: {self.why_skipped}", remedy="check the topics, their types and their stamps")


def _parse(args: list[str]) -> argparse.Namespace:
    fields = KeyframeSettings.model_fields
    parser = argparse.ArgumentParser(
        prog="keyframe_recorder",
        description="Record keyframe images and poses for 'asymvpr gallery build'; stop with SIGINT or SIGTERM.",
        epilog="Topics: keyframe_recorder --out map_bag --ros-args -r image:=/camera/image -r pose:=/odom",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that becomes the rosbag2; must not exist yet")
    parser.add_argument("--pose-type", choices=_POSE_TYPES, default="odometry", help="message type of the pose topic (default odometry)")
    parser.add_argument("--transport", choices=_TRANSPORTS, default="raw", help="image or image/compressed (default raw)")
    for name in ("min_distance_m", "min_yaw_deg", "max_pose_gap_s"):
        flag, default = "--" + name.replace("_", "-"), fields[name].default
        parser.add_argument(flag, type=float, help=f"{fields[name].description} (default {default:g})")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM: 0, 1 where nothing could be recorded (no bag is left then), 2 for a wrong command line."""
    options = _parse(own_arguments("keyframe_recorder", args))
    try:
        limits = {name: getattr(options, name) for name in ("min_distance_m", "min_yaw_deg", "max_pose_gap_s")}
        settings = make_settings(KeyframeSettings, **limits)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stop = start_ros(args)
    try:
        with BagWriter(options.out) as bag:
            recorder = KeyframeRecorder(bag, pose_type=options.pose_type, transport=options.transport, keyframes=settings)
            executor = SingleThreadedExecutor()
            executor.add_node(recorder)
            spin_until(executor, stop, done=lambda: recorder.fault is not None)
            executor.shutdown()
            recorder.check()
            recorder.get_logger().info(recorder.summary())
            recorder.destroy_node()
        return 0
    except AsymvprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
