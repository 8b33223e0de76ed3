"""TF from map to odom, off by default: a localiser that fuses our poses usually publishes it itself."""

from __future__ import annotations

from typing import Any

from geometry_msgs.msg import Transform, TransformStamped, Vector3
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header

from asymvpr_core.errors import SettingsError
from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.rigid_transforms import compose, inverse
from asymvpr_core.types import Pose
from asymvpr_ros.conversions import pose_message, stamp_message
from asymvpr_ros.outputs.answer import Answer, FrameNames
from asymvpr_ros.outputs.output import Output
from asymvpr_ros.qos import QosFaults


class TransformOutput(Output):
    """`/tf`, T_map_odom = T_map_base · T_odom_base⁻¹ of the last announced match; repeated by `repeat`.

    Raises:
        SettingsError: the package tf2_msgs is not installed.
    """

    topic = "/tf"  # tf2 listens there whatever the namespace; remap it where the robot remaps it
    depth = 100
    needs_prior = needs_odometry = True

    def __init__(self, node: LifecycleNode, faults: QosFaults):
        self.message_type = transform_message_type()  # type: ignore[misc]
        self._T_map_odom: Pose | None = None
        super().__init__(node, faults)

    def begin(self, gallery: PriorGallery | None, names: FrameNames) -> None:
        """Forget the transform."""
        self._T_map_odom, self._names = None, names

    def messages(self, answer: Answer) -> list[Any]:
        """Nothing at once; an announced match changes what is repeated."""
        prior, odometry = answer.prior, answer.recognition.frame.odometry
        if answer.announce_prior and prior is not None and prior.match is not None and odometry is not None:
            self._T_map_odom = compose(prior.match.pose, inverse(odometry))
        return []

    def repeat(self, now_ns: int) -> None:
        """Publish the transform, if there is one yet, as valid now: listeners forget old ones."""
        T_map_odom = self._T_map_odom
        if T_map_odom is not None:
            self.publishers[0].publish(self.message_type(transforms=[transform_message(T_map_odom, self._names, now_ns)]))


def transform_message(T_map_odom: Pose, names: FrameNames, stamp_ns: int) -> TransformStamped:
    """geometry_msgs/TransformStamped of T_map_odom."""
    pose = pose_message(T_map_odom)
    translation = Vector3(x=pose.position.x, y=pose.position.y, z=pose.position.z)
    header = Header(frame_id=names.map, stamp=stamp_message(stamp_ns))
    return TransformStamped(
        header=header, child_frame_id=names.odom, transform=Transform(translation=translation, rotation=pose.orientation)
    )


def transform_message_type() -> Any:
    """tf2_msgs/TFMessage. Raises SettingsError where its package is not installed."""
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError as error:
        raise SettingsError(
            "publish_tf is set, but the ROS package tf2_msgs is not installed", remedy="install it, or set publish_tf to false"
        ) from error
    return TFMessage
