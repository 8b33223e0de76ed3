"""The place-recognition node in the process of the test: what several files of live tests need."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from live_ros import Graph, image_message
from nav_msgs.msg import Odometry
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from tiny_artefacts import make_picture, revisit

from asymvpr_core.types import Pose
from asymvpr_ros.conversions import pose_message, stamp_message, stamp_ns
from asymvpr_ros.place_recognition_node import PlaceRecognitionNode

POSE, CANDIDATES = "place_match/pose", "place_match/candidates"


@contextmanager
def own_node(graph: Graph, artefacts: tuple[Path, Path], *, active: bool = True, **values) -> Iterator[PlaceRecognitionNode]:
    """A node of this process, spun by the graph; in the end it must leave no thread."""
    before = set(threading.enumerate())
    values = {"gallery_path": str(artefacts[0]), "model_path": str(artefacts[1]), "sequence": "off", "autostart": False, **values}
    node = PlaceRecognitionNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
    graph.spin(node)
    try:
        if active:
            assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
            assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        yield node
    finally:
        graph.leave(node)
        node.close()
        assert set(threading.enumerate()) == before


def listen(graph: Graph) -> Graph:
    """The graph, which hears the node's matches and candidates."""
    graph.listen(PoseWithCovarianceStamped, POSE)
    graph.listen(PoseArray, CANDIDATES)
    return graph


def of_stamp(messages: list, stamp: int) -> list:
    return [message for message in messages if stamp_ns(message.header.stamp) == stamp]


def show(graph: Graph, seed: int, *, topic: str = "image") -> int:
    """Publish place `seed` until the node has answered that frame; the frame's stamp."""
    camera, stamps = graph.publisher(Image, topic), []

    def publish() -> None:
        stamps.append(time.time_ns())
        camera.publish(image_message(revisit(make_picture(seed), seed), stamps[-1]))

    def answered() -> int | None:
        return next((stamp for m in graph.heard[CANDIDATES] if (stamp := stamp_ns(m.header.stamp)) in stamps), None)

    return graph.wait_until(answered, f"candidates for place {seed}", meanwhile=publish)


def send_odometry(graph: Graph, stamp: int, pose: Pose, *, child: str = "base_link", frame: str = "odom") -> None:
    message = Odometry(child_frame_id=child)
    message.header.frame_id, message.header.stamp = frame, stamp_message(stamp)
    message.pose.pose = pose_message(pose)
    graph.publisher(Odometry, "odom").publish(message)


def show_with_odometry(
    graph: Graph, node: PlaceRecognitionNode, seed: int, before_x: float, after_x: float | None = None, *, stamp: int | None = None
) -> int:
    """Show place `seed` once, after odometry 50 ms before and 50 ms after its stamp has arrived; the frame's stamp."""
    stamp = time.time_ns() if stamp is None else stamp
    processed = processed_frames(node)
    for shift_ms, x in ((-50, before_x), (50, before_x if after_x is None else after_x)):
        send_odometry(graph, stamp + shift_ms * 1_000_000, Pose((x, 0.0, 0.0)))
    graph.wait_until(lambda: (node._inputs.odometry.latest or (0,))[0] == stamp + 50_000_000, "odometry")
    graph.publisher(Image, "image").publish(image_message(make_picture(seed), stamp))
    graph.wait_until(lambda: processed_frames(node) > processed, f"an answer for place {seed}")
    if node._pipeline.recogniser.gallery is not None:
        graph.wait_until(lambda: of_stamp(graph.heard[CANDIDATES], stamp), f"candidates for place {seed}")
    return stamp


def processed_frames(node: PlaceRecognitionNode) -> int:
    """How many frames the node has matched."""
    return sum(camera.processed for camera in list(node._status._cameras.values()))


def wait_for(graph: Graph, text: str, **options) -> dict[str, str]:
    level, message, values = graph.wait_for_status(lambda level, message, values: text in message, text, **options)
    return values
