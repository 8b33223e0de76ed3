"""The pose-graph example as a process of its own: synthetic odometry and closures in, a corrected path out."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

pytest.importorskip("rclpy")
pytest.importorskip("gtsam")

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from live_ros import DEADLINE_S, Graph, open_graph, parameters
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header

from asymvpr_core.datasets.trajectory import read_tum
from asymvpr_core.types import Pose
from asymvpr_ros.conversions import pose_message, stamp_message, stamp_ns

pytestmark = pytest.mark.slow

START_NS, STEP_NS = 2_000_000_000_000, 100_000_000
EARLIER_NS = 1_000_000_000  # keyframes of an earlier drive
# Best effort, the first messages may be lost; every one of these counts.
_RELIABLE = {"qos_overrides./odom.subscription.reliability": "reliable"}
OFFSET_M = 100.0  # odometry's zero lies there in the map


def stamp(step: int) -> int:
    return START_NS + step * STEP_NS


class Slam:
    """The running example and the test's side of its topics. Steps of half a metre along x, odometry 4 % too long."""

    def __init__(self, graph: Graph, out: Path, log: Path, *, stop_with: signal.Signals = signal.SIGINT, **values: Any):
        self.graph, self.out, self._log, self._stop_with = graph, out, log, stop_with
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
        script = REPOSITORY / "examples" / "pose_graph_slam.py"
        with open(log, "w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(script), "--out", str(out), *parameters(**values, **_RELIABLE)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.poses = graph.listen(PoseWithCovarianceStamped, "corrected_pose")
        self.paths: list[PathMessage] = []
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        graph.node.create_subscription(PathMessage, "path", self.paths.append, latched)
        self.odom, self.closures = (graph.publisher(kind, topic) for kind, topic in ((Odometry, "odom"), (PathMessage, "loop_closure")))
        self.matches = graph.publisher(PoseWithCovarianceStamped, "place_match/pose")

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def drive(self, steps: range) -> None:
        """Publish odometry step by step, each once the answer to the one before is there."""
        for step in steps:
            message = Odometry(header=Header(frame_id="odom", stamp=stamp_message(stamp(step))), child_frame_id="base_link")
            message.pose.pose = pose_message(Pose.from_xy_yaw(1.04 * 0.5 * step, 0.0, 0.0))
            self.odom.publish(message)
            self.graph.wait_until(lambda: self.poses and stamp_ns(self.poses[-1].header.stamp) >= stamp(step), f"the pose of step {step}")  # noqa: B023

    def close_loop(
        self, step: int, *, x: float | None = None, keyframe_ns: int = EARLIER_NS, frame: str = "map", with_covariance: bool = True
    ) -> None:
        """Say that the robot is at `x` in the map, by default where it truly is."""
        place = pose_message(Pose.from_xy_yaw(OFFSET_M + 0.5 * step if x is None else x, 0.0, 0.0))
        header = Header(frame_id=frame, stamp=stamp_message(stamp(step)))
        if with_covariance:
            match = PoseWithCovarianceStamped(header=header)
            match.pose.pose, match.pose.covariance = place, [0.04 * (i % 7 == 0) for i in range(36)]
            self.matches.publish(match)
        keyframe = PoseStamped(header=Header(frame_id=frame, stamp=stamp_message(keyframe_ns)), pose=place)
        self.closures.publish(PathMessage(header=header, poses=[keyframe, PoseStamped(header=header, pose=place)]))

    def wait_for_log(self, text: str) -> None:
        self.graph.wait_until(lambda: text in self.log, f"'{text}' in the log: {self.log}")

    def stop(self) -> dict[str, Any]:
        """End it, expecting exit code 0; what it wrote as summary."""
        self.process.send_signal(self._stop_with)
        code = self.process.wait(timeout=DEADLINE_S)
        assert code == 0 and "Traceback" not in self.log, self.log
        return json.loads((self.out / "summary.json").read_text())

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def graph() -> Iterator[Graph]:
    with open_graph() as graph:
        yield graph


@pytest.mark.parametrize("stop_with", [signal.SIGINT, signal.SIGTERM])
def test_closures_correct_the_drive_and_bad_input_is_counted(graph, tmp_path, stop_with):
    slam = Slam(graph, tmp_path / "out", tmp_path / "log", stop_with=stop_with)
    try:
        slam.drive(range(20))
        slam.close_loop(4, frame="odom")  # within the session, but from before the graph began
        slam.wait_for_log("refused: no odometry came for its keyframe of 1.0")
        assert slam.poses[-1].header.frame_id == "odom"  # nothing has tied the drive to a map yet
        for step in (6, 10, 14):
            slam.close_loop(step)
        slam.drive(range(20, 60))
        for step in (50, 54):
            slam.close_loop(step)
        slam.close_loop(52, with_covariance=False)
        bad = Odometry(header=Header(frame_id="odom", stamp=stamp_message(stamp(60))))
        bad.pose.pose.position.x = math.nan
        slam.odom.publish(bad)
        slam.wait_for_log("odometry refused: odometry of 2006")
        slam.close_loop(5, x=math.nan)
        slam.wait_for_log("closure refused: the keyframe pose of the closure at 2000.5")
        slam.closures.publish(PathMessage())
        slam.close_loop(900)  # a stamp that no odometry will ever have
        slam.drive(range(61, 64))  # behind the closures: what is published just before the end may not arrive
        path = graph.wait_until(lambda: next((p for p in slam.paths if p.header.frame_id == "map"), None), "the path in the map")
        assert all(pose.header.frame_id == "map" for pose in path.poses) and len(path.poses) >= 10
        graph.wait_until(lambda: slam.poses[-1].header.frame_id == "map", "poses in the map")
        newest = slam.poses[-1].pose
        assert newest.pose.position.x == pytest.approx(OFFSET_M + 0.5 * 63, abs=0.4)
        assert min(newest.covariance[7 * axis] for axis in range(6)) > 0
        summary = slam.stop()
    finally:
        slam.kill()
    counts = summary["counts"]
    assert (counts["odometry"], counts["odometry_refused"]) == (63, 1)
    assert counts["closures_to_map"] == 6
    assert counts["closures_refused"] == 4  # of before the graph, NaN, no two poses, an unknown stamp
    assert summary["frame"] == "map" and summary["restarts"] == 0
    odometry, corrected = read_tum(tmp_path / "out" / "odometry.tum"), read_tum(tmp_path / "out" / "corrected.tum")
    assert len(odometry) == len(corrected) == 63
    true = {stamp(step): OFFSET_M + 0.5 * step for step in range(64)}
    drifted = abs(odometry.poses[-1].position[0] + OFFSET_M - true[int(odometry.stamps_ns[-1])])
    assert drifted > 1.2
    assert abs(corrected.poses[-1].position[0] - true[int(corrected.stamps_ns[-1])]) < drifted / 3


def test_a_bag_that_starts_again_is_a_new_drive(graph, tmp_path):
    slam = Slam(graph, tmp_path / "out", tmp_path / "log", node_distance_m=0.4)
    try:
        slam.drive(range(30, 40))
        slam.poses.clear()
        slam.drive(range(5))
        summary = slam.stop()
    finally:
        slam.kill()
    assert "odometry went back by 3.9 s: a new run" in slam.log
    assert summary["restarts"] == 1 and summary["counts"]["odometry"] == summary["counts"]["nodes"] == 5
    assert summary["frame"] == "odom"


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--ros-args", "-p", "kernel:=square"], 1, "kernel"),
        (["--ros-args", "-p", "node_distance_m:=-1.0"], 1, "node_distance_m"),
        (["--ros-args", "-p", "node_distance_m:=far"], 1, "node_distance_m"),
        (["--outt", "here"], 2, "--outt"),
    ],
)
def test_wrong_arguments_end_it_with_one_line(arguments, code, part):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    script = REPOSITORY / "examples" / "pose_graph_slam.py"
    ended = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == code and part in ended.stderr and "Traceback" not in ended.stderr
