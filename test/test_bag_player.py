"""The bag player and the match recorder as processes on a live graph."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from geometry_msgs.msg import Point, PoseArray, PoseStamped, PoseWithCovarianceStamped
from geometry_msgs.msg import Pose as PoseMessage
from live_ros import Graph, RosProcess, open_graph, parameters
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header
from tiny_artefacts import SECOND_NS, encode_jpeg, make_model, make_picture, make_street, revisit

from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.errors import BagError
from asymvpr_core.types import Pose
from asymvpr_ros.bag_player import PlayOptions, _Pace, message_class
from asymvpr_ros.conversions import stamp_message, stamp_ns

IMAGE, ODOM = "/camera/image/compressed", "/odom"
START_NS, STEP_NS, N_FRAMES = 1000 * SECOND_NS, SECOND_NS // 10, 12


def frame(index: int) -> bytes:
    return encode_jpeg(revisit(make_picture(index), index))


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    """Frames of the places 0, 1, … at 10 Hz, with odometry."""
    path = tmp_path_factory.mktemp("bags") / "drive"
    with BagWriter(path) as writer:
        for index in range(N_FRAMES):
            stamp = START_NS + index * STEP_NS
            writer.write_odometry(ODOM, stamp, Pose.from_xy_yaw(2.0 * index, 0.0, 0.0))
            writer.write_compressed_image(IMAGE, stamp, "camera", frame(index))
    return path


@pytest.fixture
def graph() -> Iterator[Graph]:
    with open_graph() as graph:
        yield graph


def stamps(messages: list) -> list[int]:
    return [stamp_ns(message.header.stamp) for message in messages]


def test_replays_every_message_in_order_with_the_clock_ahead_of_the_stamps(graph, bag, tmp_path):
    clock = graph.listen(Clock, "/clock")
    images, odometry = graph.listen(CompressedImage, IMAGE), graph.listen(Odometry, ODOM)
    with RosProcess("bag_player", [str(bag), "--rate", "4", "--wait-for", IMAGE, ODOM, "/clock"], tmp_path / "log") as player:
        graph.wait_until(lambda: len(images) == N_FRAMES and len(odometry) == N_FRAMES, "all messages")
        assert player.wait() == 0
        last_ns = START_NS + (N_FRAMES - 1) * STEP_NS
        graph.wait_until(lambda: clock and stamp_ns(clock[-1].clock) >= last_ns, "the last tick")
        assert f"played to the end: {2 * N_FRAMES} messages" in player.log
    assert stamps(images) == stamps(odometry) == [START_NS + i * STEP_NS for i in range(N_FRAMES)]
    assert [bytes(message.data) for message in images] == [frame(i) for i in range(N_FRAMES)]
    assert odometry[3].pose.pose.position.x == 6.0
    ticks = [stamp_ns(message.clock) for message in clock]
    assert ticks == sorted(ticks) and ticks[0] == START_NS and ticks[-1] == START_NS + (N_FRAMES - 1) * STEP_NS
    assert set(stamps(images)) <= set(ticks)


def test_two_subscribers_of_one_topic_are_waited_for(graph, bag, tmp_path):
    first = graph.listen(Odometry, ODOM)
    twice = [str(bag), "--rate", "2", "--wait-for", ODOM, ODOM]
    player = RosProcess("bag_player", [*twice, "--wait-timeout-s", "4"], tmp_path / "log")
    assert player.wait() == 1 and f"1 of 2 subscribe to {ODOM} after 4 s" in player.log and first == []
    second: list[Odometry] = []
    graph.node.create_subscription(Odometry, ODOM, second.append, N_FRAMES)
    with RosProcess("bag_player", twice, tmp_path / "log2") as player:
        graph.wait_until(lambda: len(first) == len(second) == N_FRAMES, "all messages at both")
        assert player.wait() == 0


def test_topics_are_selected_and_remapped(graph, bag, tmp_path):
    images, odometry, clock = graph.listen(CompressedImage, "/front/jpeg"), graph.listen(Odometry, ODOM), graph.listen(Clock, "/clock")
    arguments = [str(bag), "--topics", IMAGE, "--rate", "20", "--clock-hz", "0", "--start-s", "0.25", "--duration-s", "0.5"]
    with RosProcess("bag_player", [*arguments, "--ros-args", "-r", f"{IMAGE}:=/front/jpeg"], tmp_path / "log") as player:
        assert player.wait() == 0
        graph.wait_until(lambda: len(images) == 5, "the selected images")
    assert stamps(images) == [START_NS + i * STEP_NS for i in range(3, 8)]
    assert odometry == [] and clock == []


def test_a_signal_stops_the_replay_with_exit_code_0(graph, bag, tmp_path):
    images = graph.listen(CompressedImage, IMAGE)
    for number in (signal.SIGINT, signal.SIGTERM):
        images.clear()
        with RosProcess("bag_player", [str(bag), "--rate", "0.01"], tmp_path / "log", stop_with=number) as player:
            graph.wait_until(lambda: images, "the first image")
            assert player.stop() == 0
            assert "stopped: " in player.log and "Traceback" not in player.log


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["{bag}/nowhere"], 1, "error: there is no bag"),
        (["{bag}", "--topics", "/scan"], 1, f"/scan is not in bag .*{IMAGE} (sensor_msgs/msg/CompressedImage)"),
        (["{bag}", "--wait-for", "/scan"], 1, "/scan is waited for but not played"),
        (["{bag}", "--wait-for", IMAGE, "--wait-timeout-s", "0"], 1, f"nobody subscribes to {IMAGE} after 0 s"),
        (["{bag}", "--wait-for", "/clock", IMAGE, IMAGE, "--wait-timeout-s", "0"], 1, f"nobody subscribes to /clock, {IMAGE} after 0 s"),
        (["{bag}", "--rate", "0"], 2, "must be greater than 0"),
        (["{bag}", "--rate", "fast"], 2, "'fast' is no number"),
        ([], 2, "the following arguments are required: bag"),
    ],
)
def test_what_cannot_be_played_is_one_clear_line(bag, tmp_path, arguments, code, reason):
    player = RosProcess("bag_player", [argument.format(bag=bag) for argument in arguments], tmp_path / "log")
    assert player.wait() == code
    last = player.log.strip().splitlines()[-1]
    assert all(part in last for part in reason.split(".*"))
    assert "Traceback" not in player.log


def test_the_pace_follows_the_rate_and_ticks_reach_every_message():
    pace = _Pace(START_NS, PlayOptions(rate=2.0, clock_hz=4.0, start_s=1.0, duration_s=2.0))
    assert (pace.first_ns, pace.last_ns) == (START_NS + SECOND_NS, START_NS + 3 * SECOND_NS)
    # One second of the bag takes half a second at rate 2; the clock runs on, so only bounds are sure.
    assert 4.0 < pace.seconds_until(pace.first_ns + 10 * SECOND_NS) <= 5.0
    offsets = [(tick - pace.first_ns) / SECOND_NS for tick in pace.ticks_until(pace.first_ns + round(0.6 * SECOND_NS))]
    assert offsets == [0.0, 0.25, 0.5, 0.6]
    offsets = [(tick - pace.first_ns) / SECOND_NS for tick in pace.ticks_until(pace.first_ns + round(0.8 * SECOND_NS))]
    assert offsets == [0.75, 0.8]
    assert list(_Pace(START_NS, PlayOptions(clock_hz=0.0)).ticks_until(START_NS + SECOND_NS)) == []


def test_message_types_are_found_or_refused_by_name():
    assert message_class("sensor_msgs/msg/CompressedImage") is CompressedImage
    for unknown in ("nowhere_msgs/msg/Thing", "sensor_msgs/msg/Thing"):
        with pytest.raises(BagError, match=unknown):
            message_class(unknown)


def lines_of(file: Path, topic: str) -> list[dict]:
    return [line for text in file.read_text(encoding="utf-8").splitlines() if (line := json.loads(text))["topic"] == topic]


def test_the_recorder_writes_each_message_at_once_and_ends_on_sigterm(graph, tmp_path):
    out = tmp_path / "matches.jsonl"
    header = Header(stamp=stamp_message(123_456_789_012), frame_id="map")
    at = PoseMessage(position=Point(x=1.0, y=2.0, z=3.0))
    pose = PoseWithCovarianceStamped(header=header)
    pose.pose.pose, pose.pose.covariance = at, [float(i) for i in range(36)]
    keyframe = PoseStamped(header=Header(stamp=stamp_message(5 * SECOND_NS), frame_id="map"), pose=at)
    closure = PathMessage(header=header, poses=[keyframe, PoseStamped(header=header, pose=at)])
    before_ns = time.time_ns()
    with RosProcess("match_recorder", ["--out", str(out)], tmp_path / "log", stop_with=signal.SIGTERM):
        candidates = PoseArray(header=header, poses=[at, at])
        for message, topic in ((pose, "place_match/pose"), (candidates, "place_match/candidates"), (closure, "loop_closure")):
            graph.publisher(type(message), topic).publish(message)
            graph.wait_until(lambda: out.exists() and lines_of(out, topic), f"a line for {topic}")  # noqa: B023
    xyz_quaternion = [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0]
    (line,) = lines_of(out, "place_match/pose")
    assert (line["stamp_ns"], line["frame_id"]) == (123_456_789_012, "map")
    assert before_ns <= line["received_ns"] <= time.time_ns()
    assert [line[name] for name in ("x", "y", "z", "qx", "qy", "qz", "qw")] == xyz_quaternion
    assert line["covariance"] == [float(i) for i in range(36)]
    (line,) = lines_of(out, "place_match/candidates")
    assert line["poses"] == [xyz_quaternion] * 2
    (line,) = lines_of(out, "loop_closure")
    assert line["poses"] == [[5 * SECOND_NS, *xyz_quaternion], [123_456_789_012, *xyz_quaternion]]


def test_the_recorder_says_where_it_cannot_write(tmp_path):
    recorder = RosProcess("match_recorder", ["--out", str(tmp_path / "nowhere" / "matches.jsonl")], tmp_path / "log")
    assert recorder.wait() == 1
    assert "cannot be written: No such file or directory" in recorder.log and "Traceback" not in recorder.log


def test_bag_node_and_recorder_together_in_simulated_time(bag, tmp_path):
    out, gallery = tmp_path / "matches.jsonl", make_street(tmp_path / "gallery", n_keyframes=N_FRAMES)
    paths = {"gallery_path": gallery, "model_path": make_model(tmp_path / "model")}
    arguments = [*parameters(**paths, sequence="off", transport="compressed", use_sim_time=True), "-r", f"image/compressed:={IMAGE}"]
    node = RosProcess("place_recognition_node", arguments, tmp_path / "node_log", stop_with=signal.SIGTERM)
    with open_graph() as graph, node, RosProcess("match_recorder", ["--out", str(out)], tmp_path / "recorder_log"):
        graph.wait_until(lambda: out.exists() and lines_of(out, "/diagnostics"), "the recorder hears the node")
        with RosProcess("bag_player", [str(bag), "--wait-for", IMAGE, "/clock"], tmp_path / "player_log") as player:
            assert player.wait() == 0
        graph.wait_until(lambda: lines_of(out, "/diagnostics")[-1]["values"]["frames_received"] != "0", "diagnostics after the replay")
    poses = lines_of(out, "place_match/pose")
    assert len(poses) >= N_FRAMES // 2  # best-effort images: the first may come before the connection stands
    for line in poses:
        assert line["x"] == 2.0 * (line["stamp_ns"] - START_NS) / STEP_NS
    values = lines_of(out, "/diagnostics")[-1]["values"]
    assert (values["frames_stale"], values["frames_failed"]) == ("0", "0")
