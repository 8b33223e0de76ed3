"""What the node listens to: cameras, odometry, the hint that a match is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from asymvpr_core.config import NodeSettings
from asymvpr_ros.conversions import pose_from_message, stamp_ns
from asymvpr_ros.diagnostics import NodeStatus
from asymvpr_ros.frame_worker import Frame
from asymvpr_ros.odometry_buffer import OdometryBuffer
from asymvpr_ros.qos import QosFaults, newest_only, overridable, sensor_data

ODOMETRY, TRIGGER_HINT = "odom", "trigger_hint"
_TRANSPORTS: dict[str, tuple[str, Any]] = {"raw": ("image", Image), "compressed": ("image/compressed", CompressedImage)}
# At 200 Hz half a second: the executor is never kept longer.
_ODOMETRY_DEPTH = 100


class Listener(Protocol):
    """Whom the inputs are for."""

    def on_frame(self, frame: Frame) -> None:
        """A camera has sent an image."""

    def on_trigger(self, reason: str) -> None:
        """Somebody wants the next match."""


def image_topic(camera: str, transport: str) -> str:
    """Relative topic of a camera: `image` for the empty name, `<camera>/image` otherwise, with the transport's suffix."""
    suffix = _TRANSPORTS[transport][0]
    return f"{camera}/{suffix}" if camera else suffix


class Inputs:
    """The subscriptions of an active node, and what odometry has said."""

    def __init__(self, node: Node, settings: NodeSettings, status: NodeStatus, faults: QosFaults, listener: Listener):
        self._node, self._settings, self._status, self._faults, self._listener = node, settings, status, faults, listener
        self.odometry = OdometryBuffer(settings.max_odom_gap_s)
        self.odometry_frame = ""
        self._child_frame = ""
        self.topics = {camera: node.resolve_topic_name(image_topic(camera, settings.transport)) for camera in settings.camera_names}
        self.odometry_topic = node.resolve_topic_name(ODOMETRY)
        self._subscriptions: list[Any] = []

    @property
    def base_frame(self) -> str:
        """The frame that moves: as in the parameter, else odometry's child; empty where neither names it."""
        return self._settings.base_frame or self._child_frame

    def start(self) -> None:
        """Subscribe."""
        for camera in self.topics:
            kind = _TRANSPORTS[self._settings.transport][1]
            self._subscribe(kind, image_topic(camera, self._settings.transport), self._frame_callback(camera), newest_only())
        self._subscribe(Odometry, ODOMETRY, self._on_odometry, sensor_data(_ODOMETRY_DEPTH))
        reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self._subscribe(PoseWithCovarianceStamped, TRIGGER_HINT, self._on_trigger_hint, reliable)

    def stop(self) -> None:
        """Unsubscribe, and forget odometry: the robot may be carried while nobody listens."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self.odometry.clear()

    def _subscribe(self, message_type: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        faults = self._faults.of_subscription(self._node.resolve_topic_name(topic), qos)
        self._subscriptions.append(
            self._node.create_subscription(
                message_type,
                topic,
                callback,
                qos,
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=faults),
                qos_overriding_options=overridable(),
            )
        )

    def _frame_callback(self, camera: str) -> Callable[[Any], None]:
        return lambda message: self._listener.on_frame(Frame(message, time.monotonic(), camera))

    def _on_trigger_hint(self, message: PoseWithCovarianceStamped) -> None:
        """The pose of the hint is not used: who asks is lost, and cuVSLAM's hint is empty."""
        self._listener.on_trigger(f"a message on {self._node.resolve_topic_name(TRIGGER_HINT)}")

    def _on_odometry(self, message: Odometry) -> None:
        frame, child = message.header.frame_id or "odom", message.child_frame_id
        expected = self._settings.base_frame
        fault = ""
        if expected and child and child != expected:
            fault = f"moves frame '{child}', and base_frame is '{expected}'; set base_frame, or remap 'odom'"
        elif frame == child:
            fault = f"gives the motion of frame '{frame}' in itself; its publisher must name two frames"
        if fault:
            self._status.odometry_refused(f"{self.odometry_topic} {fault}")
            return
        if self.odometry_frame and (frame, child) != (self.odometry_frame, self._child_frame):
            reason = f"odometry changed from '{self.odometry_frame}' and '{self._child_frame}' to '{frame}' and '{child}'"
            self.odometry.clear()
            self._restarted(reason)
        self.odometry_frame, self._child_frame = frame, child
        added = self.odometry.add(stamp_ns(message.header.stamp), pose_from_message(message.pose.pose))
        if added.refusal:
            self._status.odometry_refused(added.refusal)
            return
        self._status.odometry_received()
        if added.restart:
            self._restarted(added.restart)

    def _restarted(self, reason: str) -> None:
        self._status.odometry_restarted(reason)
        self._node.get_logger().warning(f"{reason}; the session and all that was concluded from odometry start anew")
