"""The live part: the real node as a process of its own, a bag replayed into it over ROS 2, its answers recorded.

The core imports no ROS: the three executables of asymvpr_ros are started as processes.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asymvpr_core.config import MatcherSettings, RuntimeSettings
from asymvpr_core.datasets.bags import Bag
from asymvpr_core.errors import EvaluationError
from asymvpr_core.progress import Progress, silent

_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_READY_S, _STOP_S, _POLL_S = 60.0, 15.0, 0.1


def ros_is_installed() -> bool:
    """Whether rclpy can be imported in this environment."""
    return importlib.util.find_spec("rclpy") is not None


def require_ros() -> None:
    """Raise EvaluationError where rclpy cannot be imported in this environment."""
    if not ros_is_installed():
        raise EvaluationError("ROS 2 is not installed in this Python", remedy="run 'make setup', or source a ROS 2 installation")


def replay_live(
    bag: Path,
    image_topic: str,
    image_type: str,
    gallery: Path,
    model: Path,
    out: Path,
    *,
    rate: float = 1.0,
    matcher: MatcherSettings | None = None,
    runtime: RuntimeSettings | None = None,
    progress: Progress = silent,
) -> Path:
    """Replay `bag` with /clock into the live node and record what it publishes; returns the recording (JSON lines).

    The logs of the processes lie beside the recording. All processes are stopped, also after an error.

    Args:
        image_type: message type of `image_topic`; a CompressedImage goes to `image/compressed`.
        out: folder for the recording and the logs; made if it is missing.
        rate: speed of the replay against the recording.

    Raises:
        EvaluationError: ROS 2 is not installed, or a process ended early or did not answer in time, with the end of its log.
    """
    require_ros()
    out.mkdir(parents=True, exist_ok=True)
    recording = out / "recording.jsonl"
    recording.unlink(missing_ok=True)
    compressed = image_type == _COMPRESSED
    duration_s = _duration_s(bag, image_topic)
    parameters = {
        "gallery_path": str(gallery.resolve()),
        "model_path": str(model.resolve()),
        "transport": "compressed" if compressed else "raw",
        "use_sim_time": "true",
        **{name: str(value) for name, value in (matcher or MatcherSettings()).model_dump(mode="json").items()},
        **{name: str(value) for name, value in (runtime or RuntimeSettings()).model_dump(mode="json").items()},
    }
    remapping = f"{'image/compressed' if compressed else 'image'}:={image_topic}"
    node = ["place_recognition_node", "--ros-args", "-r", remapping]
    for name, value in parameters.items():
        node += ["-p", f"{name}:={value}"]
    player = ["bag_player", str(bag), "--rate", str(rate), "--topics", image_topic, "--wait-for", image_topic, "/clock"]
    with _process(["match_recorder", "--out", str(recording)], out) as recorder, _process(node, out) as running:
        _wait(lambda: recording.exists() and "/diagnostics" in recording.read_text(encoding="utf-8"), [recorder, running], out)
        with _process(player, out) as playing:
            deadline = time.monotonic() + _READY_S + 2 * duration_s / rate
            for _second in progress(_until_end(playing, [recorder, running], out, deadline), "live node", round(duration_s / rate)):
                pass
            if playing.returncode != 0:
                raise _failed(playing, out)
        _settle(recording)
    return recording


@contextmanager
def _process(command: list[str], logs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an executable of asymvpr_ros; on leaving, ask it to stop, and kill it if it does not."""
    environment = os.environ | {
        # A domain of our own: nothing else on the machine or network may answer or be answered.
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(logs.resolve()),
    }
    log = logs / f"{command[0]}.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", f"asymvpr_ros.{command[0]}", *command[1:]], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _duration_s(bag: Path, topic: str) -> float:
    with Bag.open(bag) as opened:
        received = [message.received_ns for message in opened.messages([topic])]
    return (received[-1] - received[0]) * 1e-9


def _wait(ready: Callable[[], bool], processes: list[subprocess.Popen[bytes]], logs: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not ready():
        _check_alive(processes, logs)
        if time.monotonic() > deadline:
            raise EvaluationError(f"the live node did not report within {_READY_S:.0f} s", remedy=f"read the logs in {logs}")
        time.sleep(_POLL_S)


def _until_end(playing: subprocess.Popen[bytes], others: list[subprocess.Popen[bytes]], logs: Path, deadline: float) -> Iterator[int]:
    """Yield once a second until the player has ended."""
    second = 0
    while True:
        try:
            playing.wait(1.0)
            return
        except subprocess.TimeoutExpired:
            yield second
        second += 1
        _check_alive(others, logs)
        if time.monotonic() > deadline:
            raise EvaluationError("the replay of the bag did not end in time", remedy=f"read the logs in {logs}")


def _settle(recording: Path) -> None:
    """Wait until the node has answered the last frames: nothing but the diagnostics grows any more."""
    size, quiet_since = -1, time.monotonic()
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < min(quiet_since + 1.5, deadline):
        lines = recording.read_text(encoding="utf-8").count("place_match/candidates")
        if lines != size:
            size, quiet_since = lines, time.monotonic()
        time.sleep(_POLL_S)


def _check_alive(processes: list[subprocess.Popen[bytes]], logs: Path) -> None:
    for process in processes:
        if process.poll() is not None:
            raise _failed(process, logs)


def _failed(process: subprocess.Popen[bytes], logs: Path) -> EvaluationError:
    name = str(process.args[2]).rpartition(".")[2]  # type: ignore[index]
    lines = (logs / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return EvaluationError(f"{name} ended with code {process.returncode}: {' | '.join(lines[-3:])}", remedy=f"read {logs / name}.log")
