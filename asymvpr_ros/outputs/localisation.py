"""`initialpose` and `global_pose`: the two conventions that tell a localiser where the robot is."""

from __future__ import annotations

from geometry_msgs.msg import PoseWithCovarianceStamped
from std_msgs.msg import Header

from asymvpr_ros.conversions import stamp_message
from asymvpr_ros.outputs.answer import Answer
from asymvpr_ros.outputs.output import Output, pose_with_covariance


class InitialPoseOutput(Output):
    """`initialpose`: an event, never a stream, because consumers start anew on each; carried to the newest odometry."""

    topic, message_type, depth = "initialpose", PoseWithCovarianceStamped, 1
    needs_prior = needs_odometry = True

    def messages(self, answer: Answer) -> list[PoseWithCovarianceStamped]:
        """The pose now, where this answer is a localisation event."""
        event = answer.localisation
        if event is None:
            return []
        header = Header(frame_id=answer.names.map, stamp=stamp_message(event.stamp_ns))
        return [PoseWithCovarianceStamped(header=header, pose=pose_with_covariance(event.T_map_base, event.covariance))]


class GlobalPoseOutput(Output):
    """`global_pose`, rtabmap's convention: `frame_id` is the frame that moves, and the pose is where it is in the world."""

    topic, message_type, depth = "global_pose", PoseWithCovarianceStamped, 1
    needs_prior = True

    def messages(self, answer: Answer) -> list[PoseWithCovarianceStamped]:
        """The matched pose with the stamp of the image, where it is announced."""
        prior = answer.prior
        if not answer.announce_prior or prior is None or prior.match is None or prior.covariance is None:
            return []
        header = Header(frame_id=answer.names.base, stamp=stamp_message(answer.stamp_ns))
        return [PoseWithCovarianceStamped(header=header, pose=pose_with_covariance(prior.match.pose, prior.covariance))]
