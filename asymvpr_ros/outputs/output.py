"""What all outputs have in common: a publisher made from the node, and a message made from an answer."""

from __future__ import annotations

from typing import Any, ClassVar

from geometry_msgs.msg import PoseWithCovariance
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy

from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.types import Pose
from asymvpr_ros.conversions import pose_message
from asymvpr_ros.outputs.answer import Answer, FrameNames
from asymvpr_ros.qos import QosFaults, overridable


class Output:
    """One outgoing convention, named by its topic.

    `needs_prior`, `needs_session` and `needs_odometry` say what it cannot do without.
    """

    topic: ClassVar[str]
    message_type: ClassVar[Any]
    depth: ClassVar[int] = 10
    needs_prior: ClassVar[bool] = False
    needs_session: ClassVar[bool] = False
    needs_odometry: ClassVar[bool] = False

    def __init__(self, node: LifecycleNode, faults: QosFaults):
        self.publishers = [self._publisher(node, faults)]

    def _publisher(self, node: LifecycleNode, faults: QosFaults) -> Any:
        qos = self.qos()
        return node.create_lifecycle_publisher(
            self.message_type,
            self.topic,
            qos,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=faults.of_publisher(node.resolve_topic_name(self.topic), qos)),
            qos_overriding_options=overridable(),
        )

    def qos(self) -> QoSProfile:
        """Reliable, with the depth of the class."""
        return QoSProfile(depth=self.depth, reliability=ReliabilityPolicy.RELIABLE)

    def begin(self, gallery: PriorGallery | None, names: FrameNames) -> None:
        """The node is active, or another gallery is in use: forget what was, and publish what does not come from frames."""

    def messages(self, answer: Answer) -> list[Any]:
        """The messages for this answer; none where there is nothing to say."""
        raise NotImplementedError

    def publish(self, answer: Answer) -> None:
        """Publish the messages for this answer."""
        for message in self.messages(answer):
            self.publishers[0].publish(message)

    def destroy(self, node: LifecycleNode) -> None:
        """Take the publishers off the node, so that it can configure again."""
        for publisher in self.publishers:
            node.destroy_lifecycle_publisher(publisher)


def pose_with_covariance(pose: Pose, covariance: Any) -> PoseWithCovariance:
    """geometry_msgs/PoseWithCovariance of a pose and a (6, 6) covariance in ROS order."""
    return PoseWithCovariance(pose=pose_message(pose), covariance=[float(value) for value in covariance.ravel()])
