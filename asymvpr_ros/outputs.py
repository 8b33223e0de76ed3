"""What the node publishes of a match: one small class for each convention.

Each class makes its own publishers from the node, and `publish` decides whether an answer is
for it. A further convention is a further class in `OUTPUTS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from geometry_msgs.msg import PoseArray, PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header

from asymvpr_core.types import LoopClosure, MatchResult
from asymvpr_ros.conversions import pose_message, stamp_message


@dataclass(frozen=True)
class Answer:
    """What the recogniser says of one frame, ready to publish.

    `announce` is set where the match is accepted and the cooldown is over. `loop_closure` is
    None without a match, and where the matched keyframe has no stamp.
    """

    result: MatchResult
    loop_closure: LoopClosure | None
    map_frame: str
    announce: bool

    @property
    def header(self) -> Header:
        """Map frame, and the stamp of the image: consumers look up where the robot was then."""
        return Header(frame_id=self.map_frame, stamp=stamp_message(self.result.stamp_ns))


class Output:
    """One outgoing convention; `name` is what the user calls it."""

    name: ClassVar[str]
    topic: ClassVar[str]
    message_type: ClassVar[Any]
    depth: ClassVar[int] = 10

    def __init__(self, node: LifecycleNode):
        self.publisher = node.create_lifecycle_publisher(self.message_type, self.topic, self.depth)

    def message(self, answer: Answer) -> Any | None:
        """The message for this answer, or None where there is nothing to say."""
        raise NotImplementedError

    def publish(self, answer: Answer) -> None:
        """Publish the message for this answer, if there is one."""
        message = self.message(answer)
        if message is not None:
            self.publisher.publish(message)


class PoseOutput(Output):
    """`place_match/pose`: where the robot was when the image was taken, with covariance."""

    name, topic, message_type = "pose", "place_match/pose", PoseWithCovarianceStamped

    def message(self, answer: Answer) -> PoseWithCovarianceStamped | None:
        """The matched pose; None unless the match is announced."""
        match, covariance = answer.result.match, answer.result.covariance
        if not answer.announce or match is None or covariance is None:
            return None
        message = PoseWithCovarianceStamped(header=answer.header)
        message.pose.pose = pose_message(match.pose)
        message.pose.covariance = [float(value) for value in covariance.ravel()]
        return message


class CandidatesOutput(Output):
    """`place_match/candidates`: the poses of the top k keyframes of every frame, best first, before any threshold."""

    name, topic, message_type, depth = "candidates", "place_match/candidates", PoseArray, 5

    def message(self, answer: Answer) -> PoseArray:
        """The candidates' poses."""
        return PoseArray(header=answer.header, poses=[pose_message(candidate.pose) for candidate in answer.result.candidates])


class LoopClosureOutput(Output):
    """`loop_closure`: an edge as a path of two poses, the matched keyframe and the query, each with its own stamp."""

    name, topic, message_type = "loop_closure", "loop_closure", Path

    def message(self, answer: Answer) -> Path | None:
        """The edge; None unless the match is announced and the keyframe has a stamp."""
        edge = answer.loop_closure
        if not answer.announce or edge is None:
            return None
        keyframe = Header(frame_id=answer.map_frame, stamp=stamp_message(edge.keyframe_stamp_ns))
        query = Header(frame_id=answer.map_frame, stamp=stamp_message(edge.query_stamp_ns))
        poses = [
            PoseStamped(header=keyframe, pose=pose_message(edge.keyframe_pose)),
            PoseStamped(header=query, pose=pose_message(edge.query_pose)),
        ]
        return Path(header=answer.header, poses=poses)


OUTPUTS: dict[str, type[Output]] = {output.name: output for output in (PoseOutput, CandidatesOutput, LoopClosureOutput)}
DEFAULT_OUTPUTS = ("pose", "candidates", "loop_closure")


def make_outputs(node: LifecycleNode, names: Iterable[str] = DEFAULT_OUTPUTS) -> list[Output]:
    """The named outputs, with their publishers made."""
    return [OUTPUTS[name](node) for name in names]


def destroy_outputs(node: LifecycleNode, outputs: list[Output]) -> None:
    """Take the publishers of `outputs` off the node, so that it can configure again."""
    for output in outputs:
        node.destroy_lifecycle_publisher(output.publisher)
