"""`place_match/markers`: keyframes and matches for RViz."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from geometry_msgs.msg import Point, Vector3
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_ros.outputs.answer import Answer, FrameNames
from asymvpr_ros.outputs.output import Output
from asymvpr_ros.qos import QosFaults

_MATCHES_SHOWN = 200
# Enough for hours of driving; beyond, RViz and the middleware would carry megabytes with every keyframe.
_SESSION_SHOWN = 5000
_GREY, _GREEN, _BLUE, _ORANGE = (0.6, 0.6, 0.6, 0.8), (0.1, 0.8, 0.2, 1.0), (0.2, 0.4, 1.0, 0.8), (1.0, 0.6, 0.0, 1.0)
Position = tuple[float, float, float]


class MarkersOutput(Output):
    """Gallery keyframes grey, matches green, session keyframes blue, edges within the session orange.

    Two publishers of the same topic: a late subscriber gets the last message of each, so that the
    keyframes of a large gallery are sent once and not with every match.
    """

    topic, message_type, depth = "place_match/markers", MarkerArray, 1

    def __init__(self, node: LifecycleNode, faults: QosFaults):
        super().__init__(node, faults)
        self.publishers.append(self._publisher(node, faults))
        self._forget()

    def _forget(self) -> None:
        self._matches: deque[Position] = deque(maxlen=_MATCHES_SHOWN)
        self._keyframes: deque[Position] = deque(maxlen=_SESSION_SHOWN)
        self._edges: deque[Position] = deque(maxlen=2 * _MATCHES_SHOWN)

    def qos(self) -> QoSProfile:
        """Transient local: RViz may start later."""
        qos = super().qos()
        qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
        return qos

    def begin(self, gallery: PriorGallery | None, names: FrameNames) -> None:
        """Show the keyframes of the gallery, or none, and no matches."""
        self._forget()
        positions = [] if gallery is None else [tuple(map(float, position)) for position in gallery.positions]
        self.publishers[1].publish(MarkerArray(markers=[_marker("keyframes", Marker.SPHERE_LIST, names.map, positions, 0.3, _GREY)]))
        self.publishers[0].publish(MarkerArray(markers=self._markers(names)))

    def messages(self, answer: Answer) -> list[MarkerArray]:
        """All matches and session keyframes so far, where this answer adds one."""
        recognition, changed = answer.recognition, False
        prior = answer.prior
        if answer.announce_prior and prior is not None and prior.match is not None:
            self._matches.append(prior.match.pose.position)
            changed = True
        if answer.session_keyframes < len(self._keyframes):  # a session that began anew, or was thinned
            self._keyframes.clear()
            self._edges.clear()
            changed = True
        odometry = recognition.frame.odometry
        if recognition.keyframe_added and odometry is not None:
            self._keyframes.append(odometry.position)
            changed = True
        edge = recognition.session_closure
        if answer.announce_session and edge is not None and edge.keyframe_pose is not None and odometry is not None:
            self._edges.extend((edge.keyframe_pose.position, odometry.position))
            changed = True
        return [MarkerArray(markers=self._markers(answer.names))] if changed else []

    def _markers(self, names: FrameNames) -> list[Marker]:
        return [
            _marker("matches", Marker.SPHERE_LIST, names.map, self._matches, 0.6, _GREEN),
            _marker("session_keyframes", Marker.SPHERE_LIST, names.odom, self._keyframes, 0.3, _BLUE),
            _marker("session_edges", Marker.LINE_LIST, names.odom, self._edges, 0.1, _ORANGE),
        ]


def _marker(namespace: str, kind: int, frame: str, positions: Iterable[Any], size_m: float, colour: tuple[float, ...]) -> Marker:
    points = [Point(x=x, y=y, z=z) for x, y, z in positions]
    action = Marker.ADD if points else Marker.DELETE  # RViz complains of a list without points
    red, green, blue, alpha = colour
    marker = Marker(header=Header(frame_id=frame), ns=namespace, type=kind, action=action, points=points)
    marker.pose.orientation.w = 1.0
    marker.scale = Vector3(x=size_m, y=size_m, z=size_m)
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
    return marker
