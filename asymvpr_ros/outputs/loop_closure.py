"""Loop closures: the edge as a path of two poses, and LIO-SAM's pair of times."""

from __future__ import annotations

from typing import Any

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from std_msgs.msg import Float64MultiArray, Header

from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.types import LoopClosure
from asymvpr_ros.conversions import pose_message, stamp_message
from asymvpr_ros.outputs.answer import Answer, FrameNames
from asymvpr_ros.outputs.output import Output

# LIO-SAM itself refuses pairs that lie closer in time (historyKeyframeSearchTimeDiff), and keeps a queue of five:
# more than one a second would push good ones out before it looks.
_LIO_GAP_NS, _LIO_PERIOD_NS = 30_000_000_000, 1_000_000_000


class LoopClosureOutput(Output):
    """`loop_closure`: an edge as a path of two poses, the matched keyframe and the query, each with its own stamp."""

    topic, message_type = "loop_closure", Path

    def messages(self, answer: Answer) -> list[Path]:
        """The edges that are announced: in the map frame with the prior gallery, in the odometry frame within the session."""
        return [path for edge, frame in answer.closures if (path := _path(edge, frame)) is not None]


class LioLoopOutput(Output):
    """`lio_loop/loop_closure_detection`: `[t_current, t_previous]` [s] of an edge within the session, as LIO-SAM reads it."""

    topic, message_type, depth = "lio_loop/loop_closure_detection", Float64MultiArray, 1
    needs_session = True

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._last_ns: int | None = None

    def begin(self, gallery: PriorGallery | None, names: FrameNames) -> None:
        """Begin a new second."""
        self._last_ns = None

    def messages(self, answer: Answer) -> list[Float64MultiArray]:
        """The pair, where the two are at least 30 s apart and the last pair at least 1 s ago, by image stamps."""
        edge = answer.recognition.session_closure
        if not answer.announce_session or edge is None or edge.query_stamp_ns - edge.keyframe_stamp_ns < _LIO_GAP_NS:
            return []
        if self._last_ns is not None and 0 <= edge.query_stamp_ns - self._last_ns < _LIO_PERIOD_NS:
            return []
        self._last_ns = edge.query_stamp_ns
        return [Float64MultiArray(data=[edge.query_stamp_ns / 1e9, edge.keyframe_stamp_ns / 1e9])]


def _path(edge: LoopClosure, frame: str) -> Path | None:
    """The path; None within a session without odometry, where the edge has stamps but no poses."""
    if edge.keyframe_pose is None or edge.query_pose is None:
        return None
    ends = ((edge.keyframe_stamp_ns, edge.keyframe_pose), (edge.query_stamp_ns, edge.query_pose))
    poses = [PoseStamped(header=Header(frame_id=frame, stamp=stamp_message(stamp)), pose=pose_message(pose)) for stamp, pose in ends]
    return Path(header=Header(frame_id=frame, stamp=stamp_message(edge.query_stamp_ns)), poses=poses)
