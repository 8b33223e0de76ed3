"""The live part: the real node as a process of its own, a bag replayed into it over ROS 2, its answers recorded.

With odometry in the bag, a pose graph uses the node's loop closures beside it. The core imports no ROS: the
executables of asymvpr_ros and examples/pose_graph_slam.py are started as processes.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from asymvpr_core.config import MatcherSettings, RuntimeSettings
from asymvpr_core.datasets.bags import Bag
from asymvpr_core.errors import EvaluationError
from asymvpr_core.progress import Progress, silent

_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_READY_S, _STOP_S, _POLL_S = 60.0, 15.0, 0.1
SLAM_FOLDER = "slam"
_SLAM = "pose_graph_slam.py"


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
    odometry_topic: str | None = None,
    slam: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Replay `bag` with /clock into the live node and record what it publishes; returns the recording (JSON lines).

    The logs of the processes lie beside the recording. All processes are stopped, also after an error.

    Args:
        odometry_topic: nav_msgs/Odometry to replay too; None: none.
        slam: the pose-graph script to run beside the node, which leaves its trajectories in `out/slam`; None: none.
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
    player = ["bag_player", str(bag), "--rate", str(rate), "--wait-for", image_topic, "/clock"]
    if odometry_topic is not None:
        node += ["-r", f"odom:={odometry_topic}"]
        # Node and graph: what is sent before a subscriber is found is lost to it.
        player += [odometry_topic, odometry_topic] if slam is not None else []
    player += ["--topics", image_topic, *([] if odometry_topic is None else [odometry_topic])]
    with ExitStack() as stack:
        recorder, running = (stack.enter_context(_process(command, out)) for command in (["match_recorder", "--out", str(recording)], node))
        others = [recorder, running]
        if slam is not None and odometry_topic is not None:
            others.append(stack.enter_context(_process([str(slam), *_slam_arguments(out / SLAM_FOLDER, odometry_topic)], out)))
        _wait(lambda: recording.exists() and "/diagnostics" in recording.read_text(encoding="utf-8"), others, out)
        with _process(player, out) as playing:
            deadline = time.monotonic() + _READY_S + 2 * duration_s / rate
            for _second in progress(_until_end(playing, others, out, deadline), "live node", round(duration_s / rate)):
                pass
            if playing.returncode != 0:
                raise _failed(playing, out)
        _settle(recording)
    return recording


def find_slam() -> Path:
    """The pose-graph example: in the repository, or where an installation puts it.

    Raises:
        EvaluationError: it is not there, or GTSAM is not installed.
    """
    prefixes = [sys.prefix, *filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))]
    folders = [
        Path(__file__).resolve().parents[2] / "examples",
        *(Path(prefix) / "share" / "asymvpr_ros" / "examples" for prefix in prefixes),
    ]
    script = next((folder / _SLAM for folder in folders if (folder / _SLAM).is_file()), None)
    if script is None:
        raise EvaluationError(f"{_SLAM} is in none of {', '.join(map(str, folders))}", remedy="run the demo from the repository")
    if importlib.util.find_spec("gtsam") is None:
        raise EvaluationError("GTSAM is not installed in this Python", remedy="run 'make setup', or pip install gtsam")
    return script


def _slam_arguments(out: Path, odometry_topic: str) -> list[str]:
    # The player is reliable. A best-effort subscription misses what comes between the publisher's finding it and its finding the publisher.
    reliable = f"qos_overrides.{odometry_topic}.subscription.reliability:=reliable"
    return ["--out", str(out), "--ros-args", "-r", f"odom:={odometry_topic}", "-p", "use_sim_time:=true", "-p", reliable]


@contextmanager
def _process(command: list[str], logs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an executable of asymvpr_ros, or a script by its path; on leaving, ask it to stop, and kill it if it does not."""
    environment = os.environ | {
        # A domain of our own: nothing else on the machine or network may answer or be answered.
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(logs.resolve()),
    }
    program = [command[0]] if command[0].endswith(".py") else ["-m", f"asymvpr_ros.{command[0]}"]
    with open(logs / f"{Path(command[0]).stem}.log", "wb") as file:
        process = subprocess.Popen([sys.executable, *program, *command[1:]], env=environment, stdout=file, stderr=subprocess.STDOUT)
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
    words = [str(word) for word in process.args]  # type: ignore[union-attr]
    name = words[2].rpartition(".")[2] if words[1] == "-m" else Path(words[1]).stem
    lines = (logs / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return EvaluationError(f"{name} ended with code {process.returncode}: {' | '.join(lines[-3:])}", remedy=f"read {logs / name}.log")
