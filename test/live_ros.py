"""Help for tests with a live graph: a process that must end well, and a node that waits with deadlines."""

from __future__ import annotations

import array
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from conftest import REPOSITORY
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from asymvpr_ros.conversions import stamp_message
from asymvpr_ros.diagnostics import CAMERA_SUFFIX, STATUS_SUFFIX

DEADLINE_S = 20.0


class RosProcess:
    """`python -m asymvpr_ros.<module> <arguments>`; leaving the block stops it and expects exit code 0."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path, *, stop_with: signal.Signals = signal.SIGINT):
        self._stop_with, self._log = stop_with, log
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
        with open(log, "w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"asymvpr_ros.{module}", *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def log(self) -> str:
        """What the process has printed."""
        return self._log.read_text(encoding="utf-8")

    def wait(self) -> int:
        """The exit code, once the process has ended."""
        return self.process.wait(timeout=DEADLINE_S)

    def stop(self) -> int:
        """Send the signal and give the exit code."""
        self.process.send_signal(self._stop_with)
        return self.wait()

    def __enter__(self) -> RosProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.process.poll() is None:
                code = self.stop()
                if kind is None:
                    assert code == 0, self.log
                    assert "Traceback" not in self.log, self.log
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


class Graph:
    """The test's own node: keeps what it hears, publishes images, and waits until something holds."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("test_graph")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.heard: dict[str, list[Any]] = defaultdict(list)
        self._heard_types: set[str] = set()
        self._publishers: dict[tuple[str, type], Any] = {}
        self.listen(DiagnosticArray, "/diagnostics")

    def close(self) -> None:
        """Destroy the node."""
        self._executor.shutdown()
        self.node.destroy_node()

    def spin(self, node: Node) -> None:
        """Run the callbacks of a node of this process too."""
        self._executor.add_node(node)

    def leave(self, node: Node) -> None:
        """Run the callbacks of a node no more."""
        self._executor.remove_node(node)

    def listen(self, message_type: type, topic: str, qos: QoSProfile | None = None) -> list[Any]:
        """Keep the messages of `topic`; the list that they are appended to."""
        if topic not in self._heard_types:
            self._heard_types.add(topic)
            self.node.create_subscription(message_type, topic, self.heard[topic].append, qos or QoSProfile(depth=200))
        return self.heard[topic]

    def wait_until(self, holds: Callable[[], Any], what: str, *, meanwhile: Callable[[], None] | None = None) -> Any:
        """Spin until `holds()` is true and give its value; `meanwhile` is called about ten times a second."""
        deadline_s, next_s = time.monotonic() + DEADLINE_S, 0.0
        while not (value := holds()):
            assert time.monotonic() < deadline_s, f"deadline passed: {what}\nlast diagnostics: {self.last_status()}"
            if meanwhile is not None and time.monotonic() >= next_s:
                meanwhile()
                next_s = time.monotonic() + 0.1
            self._executor.spin_once(timeout_sec=0.02)
        return value

    def statuses(self) -> list[tuple[bytes, str, dict[str, str]]]:
        """(level, message, values) of the node's diagnostics so far."""
        found = [status for array_ in self.heard["/diagnostics"] for status in array_.status if status.name.endswith(STATUS_SUFFIX)]
        return [(status.level, status.message, {pair.key: pair.value for pair in status.values}) for status in found]

    def last_status(self) -> tuple[bytes, str, dict[str, str]] | None:
        """The node's newest diagnostics."""
        statuses = self.statuses()
        return statuses[-1] if statuses else None

    def wait_for_status(
        self, holds: Callable[[bytes, str, dict[str, str]], Any], what: str, *, meanwhile: Callable[[], None] | None = None
    ) -> tuple[bytes, str, dict[str, str]]:
        """The first status that is heard from now on and for which `holds(level, message, values)`."""
        begin = len(self.statuses())
        return self.wait_until(lambda: next((s for s in self.statuses()[begin:] if holds(*s)), None), what, meanwhile=meanwhile)

    def camera_statuses(self, camera: str) -> list[tuple[bytes, str, dict[str, str]]]:
        """(level, message, values) of one camera's diagnostics so far."""
        found = [s for array_ in self.heard["/diagnostics"] for s in array_.status if s.name.endswith(CAMERA_SUFFIX + camera)]
        return [(status.level, status.message, {pair.key: pair.value for pair in status.values}) for status in found]

    def forget_publisher(self, message_type: type, topic: str) -> None:
        """Destroy the publisher that `publisher` gave, as a driver that dies."""
        self.node.destroy_publisher(self._publishers.pop((topic, message_type)))

    def publisher(self, message_type: type, topic: str) -> Any:
        """A publisher of `topic` that has a subscriber; its first best-effort messages may still be lost."""
        if (topic, message_type) not in self._publishers:
            self._publishers[topic, message_type] = self.node.create_publisher(message_type, topic, 10)
        publisher = self._publishers[topic, message_type]
        self.wait_until(lambda: publisher.get_subscription_count() > 0, f"a subscriber of {topic}")
        return publisher

    def call(self, service_type: type, name: str, request: Any) -> Any:
        """The answer of a service."""
        client = self.node.create_client(service_type, name)
        self.wait_until(client.service_is_ready, f"service {name}")
        future = client.call_async(request)
        answer = self.wait_until(lambda: future.done() and future.result(), f"an answer of {name}")
        self.node.destroy_client(client)
        return answer


@contextmanager
def open_graph() -> Iterator[Graph]:
    """A graph while rclpy runs."""
    rclpy.init()
    graph = Graph()
    try:
        yield graph
    finally:
        graph.close()
        rclpy.shutdown()


def image_message(picture: np.ndarray, stamp_ns: int, encoding: str = "rgb8") -> Image:
    """sensor_msgs/Image of an RGB picture; `encoding` is only written, not applied."""
    data = array.array("B")
    data.frombytes(picture.tobytes())
    height, width = picture.shape[:2]
    header = Header(stamp=stamp_message(stamp_ns), frame_id="camera")
    return Image(header=header, height=height, width=width, encoding=encoding, step=3 * width, data=data)


def jpeg_message(data: bytes, stamp_ns: int) -> CompressedImage:
    """sensor_msgs/CompressedImage of JPEG bytes."""
    return CompressedImage(header=Header(stamp=stamp_message(stamp_ns), frame_id="camera"), format="jpeg", data=data)


def parameters(**values: Any) -> list[str]:
    """Command-line arguments that set node parameters."""
    text = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    return ["--ros-args", *(part for name, value in text.items() for part in ("-p", f"{name}:={value}"))]
