"""`place_match/pose` and `place_match/candidates`: what the prior gallery says of the frame."""

from __future__ import annotations

from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped

from asymvpr_ros.conversions import pose_message
from asymvpr_ros.outputs.answer import Answer
from asymvpr_ros.outputs.output import Output, pose_with_covariance


class PoseOutput(Output):
    """`place_match/pose`: where the robot was when the image was taken, with covariance."""

    topic, message_type = "place_match/pose", PoseWithCovarianceStamped

    def messages(self, answer: Answer) -> list[PoseWithCovarianceStamped]:
        """The matched pose, where it is announced."""
        prior = answer.prior
        if not answer.announce_prior or prior is None or prior.match is None or prior.covariance is None:
            return []
        return [PoseWithCovarianceStamped(header=answer.header, pose=pose_with_covariance(prior.match.pose, prior.covariance))]


class CandidatesOutput(Output):
    """`place_match/candidates`: the poses of the top k keyframes of every frame, best first, before any threshold."""

    topic, message_type, depth = "place_match/candidates", PoseArray, 5

    def messages(self, answer: Answer) -> list[PoseArray]:
        """The candidates' poses."""
        if answer.prior is None:
            return []
        return [PoseArray(header=answer.header, poses=[pose_message(candidate.pose) for candidate in answer.prior.candidates])]
