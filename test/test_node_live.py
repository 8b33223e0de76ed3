"""The real node in a process of its own, or with its threads in this one, on a live graph."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from live_ros import Graph, RosProcess, image_message, jpeg_message, open_graph, parameters
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from tiny_artefacts import SECOND_NS, encode_jpeg, make_identity, make_model, make_picture, make_street, revisit

from asymvpr_core.manifest import read_manifest
from asymvpr_ros.conversions import stamp_message, stamp_ns
from asymvpr_ros.place_recognition_node import PlaceRecognitionNode

pytestmark = pytest.mark.slow

SPACING_M = 2.0
POSE, CANDIDATES, CLOSURE = "place_match/pose", "place_match/candidates", "loop_closure"


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory) -> tuple[Path, Path]:
    """A gallery of 12 keyframes along +x and its model."""
    folder = tmp_path_factory.mktemp("artefacts")
    return make_street(folder / "gallery", spacing_m=SPACING_M), make_model(folder / "model")


def listen(graph: Graph) -> Graph:
    for message_type, topic in ((PoseWithCovarianceStamped, POSE), (PoseArray, CANDIDATES), (PathMessage, CLOSURE)):
        graph.listen(message_type, topic)
    return graph


@pytest.fixture
def graph() -> Iterator[Graph]:
    with open_graph() as graph:
        yield listen(graph)


@pytest.fixture(scope="class")
def running(artefacts, tmp_path_factory) -> Iterator[Graph]:
    """The graph of a node that several tests share; each looks only at frames of its own."""
    with open_graph() as graph, node_process(artefacts, tmp_path_factory.mktemp("running") / "log"):
        yield listen(graph)


def node_process(artefacts: tuple[Path, Path], log: Path, *, stop_with: signal.Signals = signal.SIGINT, **values) -> RosProcess:
    gallery, model = artefacts
    values = {"gallery_path": gallery, "model_path": model, "sequence": "off", **values}
    return RosProcess("place_recognition_node", parameters(**values), log, stop_with=stop_with)


def show(graph: Graph, seed: int) -> int:
    """Publish place `seed` until the node has answered that frame; the frame's stamp."""
    publisher, stamps = graph.publisher(Image, "image"), []

    def publish() -> None:
        stamps.append(time.time_ns())
        publisher.publish(image_message(revisit(make_picture(seed), seed), stamps[-1]))

    def answered() -> int | None:
        return next((stamp for m in graph.heard[CANDIDATES] if (stamp := stamp_ns(m.header.stamp)) in stamps), None)

    return graph.wait_until(answered, f"candidates for place {seed}", meanwhile=publish)


def of_stamp(messages: list, stamp: int) -> list:
    return [message for message in messages if stamp_ns(message.header.stamp) == stamp]


def set_parameter(graph: Graph, name: str, value: float | str) -> tuple[bool, str]:
    kind = {"double_value": value} if isinstance(value, float) else {"string_value": value}
    type_ = ParameterType.PARAMETER_DOUBLE if isinstance(value, float) else ParameterType.PARAMETER_STRING
    request = SetParameters.Request(parameters=[ParameterMessage(name=name, value=ParameterValue(type=type_, **kind))])
    (result,) = graph.call(SetParameters, "/place_recognition/set_parameters", request).results
    return result.successful, result.reason


class TestOneNode:
    """What one running node does with a sequence of frames."""

    def test_publishes_pose_candidates_and_loop_closure_with_the_image_stamp(self, running):
        stamp = show(running, 5)
        (pose,) = running.wait_until(lambda: of_stamp(running.heard[POSE], stamp), "the pose")
        assert pose.header.frame_id == "map"
        assert pose.pose.pose.position.x == 5 * SPACING_M
        assert all(pose.pose.covariance[7 * axis] > 0 for axis in range(6))
        assert pose.pose.covariance[0] >= (SPACING_M / 2) ** 2
        (candidates,) = of_stamp(running.heard[CANDIDATES], stamp)
        assert len(candidates.poses) == 5
        assert candidates.poses[0].position.x == 5 * SPACING_M
        (edge,) = running.wait_until(lambda: of_stamp(running.heard[CLOSURE], stamp), "the loop closure")
        assert [stamp_ns(p.header.stamp) for p in edge.poses] == [6 * SECOND_NS, stamp]  # keyframe 5 was taken at second 6
        assert [p.pose.position.x for p in edge.poses] == [5 * SPACING_M] * 2
        level, message, values = running.wait_for_status(lambda level, message, values: message.startswith("accepted"), "the accept")
        assert level == DiagnosticStatus.OK
        assert message == f"accepted: {values['last_accept_reason']}" and "score 0.9" in message
        assert values["pair_id"] == make_identity().pair_id
        assert values["gallery_keyframes"] == "12"
        assert float(values["latency_ms_p95"]) >= float(values["latency_ms_p50"]) > 0
        assert int(values["frames_received"]) >= int(values["frames_processed"]) >= 1
        assert float(values["rate_hz"]) > 0 and float(values["image_age_s"]) > 0

    def test_unknown_place_is_rejected_with_the_reason_and_no_pose(self, running):
        stamp = show(running, 400)
        _, message, values = running.wait_for_status(lambda level, message, values: message.startswith("rejected"), "the rejection")
        assert "is below the threshold 0.550" in message and message == f"rejected: {values['last_reject_reason']}"
        assert not of_stamp(running.heard[POSE], stamp) and not of_stamp(running.heard[CLOSURE], stamp)

    @pytest.mark.parametrize(
        ("encoding", "height", "offset_s", "counter", "reason"),
        [
            ("infrared12", 120, 0.0, "frames_failed", "encoding 'infrared12'"),
            ("rgb8", 0, 0.0, "frames_failed", "at least one pixel"),
            ("rgb8", 240, 0.0, "frames_failed", "image holds 57600 bytes"),
            ("rgb8", 120, 3600.0, "frames_stale", "s in the future"),
            ("rgb8", 120, -3600.0, "frames_stale", "s old, at most 2 s are allowed"),
            ("rgb8", 120, None, "frames_stale", "the image has no stamp"),
        ],
    )
    def test_a_bad_frame_is_skipped_with_a_reason_and_the_next_one_is_matched(self, running, encoding, height, offset_s, counter, reason):
        camera, stamps = running.publisher(Image, "image"), []

        def publish() -> None:
            stamps.append(0 if offset_s is None else time.time_ns() + int(offset_s * SECOND_NS))
            message = image_message(make_picture(1), stamps[-1], encoding)
            message.height = height
            camera.publish(message)

        level, message, values = running.wait_for_status(lambda level, message, values: reason in message, reason, meanwhile=publish)
        assert level == DiagnosticStatus.WARN
        assert message == f"frame skipped: {values['last_skip_reason']}"
        assert int(values[counter]) >= 1
        assert not any(of_stamp(running.heard[CANDIDATES], stamp) for stamp in stamps)
        stamp = show(running, 3)
        running.wait_until(lambda: of_stamp(running.heard[POSE], stamp), "a pose after the bad frame")

    def test_parameters_change_live_or_are_refused_with_a_reason(self, running):
        assert set_parameter(running, "score_threshold", 1.0) == (True, "")
        stamp = show(running, 4)
        running.wait_for_status(lambda level, message, values: "below the threshold 1.000" in message, "the new threshold at work")
        assert not of_stamp(running.heard[POSE], stamp)
        assert set_parameter(running, "score_threshold", 0.5) == (True, "")
        stamp = show(running, 4)
        running.wait_until(lambda: of_stamp(running.heard[POSE], stamp), "a pose at the old threshold")
        for name, value, why in (
            ("score_threshold", 1.5, "out of range"),
            ("model_path", "/elsewhere", "read when the node configures"),
            ("sequence", "median", "'off', 'vote' or 'bayes'"),
            ("agreement_radius_m", 0.0, "greater than 0"),
        ):
            accepted, reason = set_parameter(running, name, value)
            assert not accepted and why in reason


def test_compressed_transport_skips_a_truncated_jpeg(graph, artefacts, tmp_path):
    with node_process(artefacts, tmp_path / "log", transport="compressed", stop_with=signal.SIGTERM):
        camera, jpeg = graph.publisher(CompressedImage, "image/compressed"), encode_jpeg(make_picture(2))
        half = jpeg[: len(jpeg) // 2]
        graph.wait_for_status(
            lambda level, message, values: level == DiagnosticStatus.WARN and "is a truncated JPEG" in message,
            "the truncated frame",
            meanwhile=lambda: camera.publish(jpeg_message(half, time.time_ns())),
        )
        assert not graph.heard[CANDIDATES]
        poses = graph.heard[POSE]
        graph.wait_until(lambda: poses, "the pose of a whole frame", meanwhile=lambda: camera.publish(jpeg_message(jpeg, time.time_ns())))
        assert poses[0].pose.pose.position.x == 2 * SPACING_M


def change_state(graph: Graph, transition: int) -> bool:
    return graph.call(ChangeState, "/place_recognition/change_state", ChangeState.Request(transition=Transition(id=transition))).success


def state(graph: Graph) -> str:
    return graph.call(GetState, "/place_recognition/get_state", GetState.Request()).current_state.label


def test_damaged_gallery_is_refused_until_it_is_restored(graph, artefacts, tmp_path):
    gallery, model = tmp_path / "gallery", artefacts[1]
    shutil.copytree(artefacts[0], gallery)
    whole = (gallery / "descriptors.npy").read_bytes()
    (gallery / "descriptors.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with node_process((gallery, model), tmp_path / "log") as process:
        level, message, values = graph.wait_for_status(lambda level, message, values: True, "diagnostics of the refused node")
        assert level == DiagnosticStatus.ERROR
        assert "descriptors.npy is damaged" in message and "gallery build" in message
        assert values["state"] == "unconfigured" == state(graph)
        assert message in process.log
        assert not change_state(graph, Transition.TRANSITION_CONFIGURE)
        (gallery / "descriptors.npy").write_bytes(whole)
        assert change_state(graph, Transition.TRANSITION_CONFIGURE) and change_state(graph, Transition.TRANSITION_ACTIVATE)
        graph.wait_until(lambda: of_stamp(graph.heard[POSE], show(graph, 7)), "a pose after the repair")


def test_gallery_of_another_pair_and_empty_gallery_are_refused(graph, artefacts, tmp_path):
    other = make_street(tmp_path / "other", identity=make_identity("another_network"))
    with node_process((other, artefacts[1]), tmp_path / "log", stop_with=signal.SIGTERM):
        level, message, _ = graph.wait_for_status(lambda level, message, values: True, "diagnostics of the refused node")
        assert level == DiagnosticStatus.ERROR
        assert make_identity().pair_id in message and read_manifest(other, "gallery").gallery_network.pair_id in message
    empty = make_street(tmp_path / "empty", n_keyframes=0)
    with node_process((empty, artefacts[1]), tmp_path / "log"):
        level, message, _ = graph.wait_for_status(lambda level, message, values: str(empty) in message, "the empty gallery")
        assert level == DiagnosticStatus.ERROR and "is empty" in message


def test_cooldown_holds_matches_back_but_not_candidates(graph, artefacts, tmp_path):
    with node_process(artefacts, tmp_path / "log", cooldown_s=1000.0):
        first = show(graph, 1)
        graph.wait_until(lambda: of_stamp(graph.heard[POSE], first), "the first pose")
        second = show(graph, 2)
        graph.wait_for_status(lambda level, message, values: "not published, cooldown" in message, "the cooldown as the reason")
        assert not of_stamp(graph.heard[POSE], second) and not of_stamp(graph.heard[CLOSURE], second)


def test_simulated_time_decides_the_age_and_a_jump_back_forgets_the_vote(graph, artefacts, tmp_path):
    options = {"use_sim_time": True, "sequence": "vote", "sequence_length": 2, "min_votes": 2}
    with node_process(artefacts, tmp_path / "log", **options):
        clock, camera = graph.publisher(Clock, "/clock"), graph.publisher(Image, "image")

        def at(second: float, seed: int) -> list:
            """Candidates of a frame shown when the clock says `second`."""
            stamp = int(second * SECOND_NS)

            def publish() -> None:
                clock.publish(Clock(clock=stamp_message(stamp)))
                camera.publish(image_message(revisit(make_picture(seed), seed), stamp))

            return graph.wait_until(lambda: of_stamp(graph.heard[CANDIDATES], stamp), f"candidates at {second}", meanwhile=publish)

        at(1000.0, 5)
        at(1000.5, 5)
        graph.wait_until(lambda: of_stamp(graph.heard[POSE], int(1000.5 * SECOND_NS)), "a pose after two votes")
        _, _, values = graph.wait_for_status(lambda level, message, values: message.startswith("accepted"), "the accept")
        resets = int(values["clock_resets"])  # the change to simulated time counts as one where it came after the start
        graph.wait_for_status(
            lambda level, message, values: "the image is 100.5" in message,
            "a frame too old in simulated time",
            meanwhile=lambda: camera.publish(image_message(make_picture(5), 900 * SECOND_NS)),
        )
        clock.publish(Clock(clock=stamp_message(500 * SECOND_NS)))
        graph.wait_for_status(lambda level, message, values: int(values["clock_resets"]) > resets, "the jump in diagnostics")
        at(500.5, 5)
        graph.wait_for_status(lambda level, message, values: "1 of the last 1 frames agree, 2 needed" in message, "a vote that starts anew")


def test_waiting_without_images_is_said_in_diagnostics(graph, artefacts, tmp_path):
    with node_process(artefacts, tmp_path / "log"):
        level, message, _ = graph.wait_for_status(lambda level, message, values: "no image on /image" in message, "silence")
        assert level == DiagnosticStatus.WARN and "nobody publishes it" in message


def test_namespace_moves_every_topic_but_diagnostics(graph, artefacts, tmp_path):
    poses = graph.listen(PoseWithCovarianceStamped, "/robot1/place_match/pose")
    gallery, model = artefacts
    arguments = [*parameters(gallery_path=gallery, model_path=model, sequence="off"), "-r", "__ns:=/robot1"]
    with RosProcess("place_recognition_node", arguments, tmp_path / "log"):
        publisher, picture = graph.publisher(Image, "/robot1/image"), make_picture(8)
        graph.wait_until(lambda: poses, "a pose", meanwhile=lambda: publisher.publish(image_message(picture, time.time_ns())))
        names = {status.name for array in graph.wait_until(lambda: graph.heard["/diagnostics"], "diagnostics") for status in array.status}
        assert names == {"/robot1/place_recognition: place recognition", "/robot1/place_recognition: camera image"}


def test_a_node_in_this_process_leaves_no_thread_and_configures_again(graph, artefacts):
    gallery, model = artefacts
    before = set(threading.enumerate())
    overrides = {"gallery_path": str(gallery), "model_path": str(model), "autostart": False}
    node = PlaceRecognitionNode(parameter_overrides=[Parameter(name, value=value) for name, value in overrides.items()])
    assert not node.autostart
    for _ in range(2):
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert any(thread.name == "place_recognition_worker" for thread in threading.enumerate())
        assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        assert set(threading.enumerate()) == before
        assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    node.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("score_threshold:=3.0", "score_threshold out of range Min: -1.0, Max: 1.0"),
        ("agreement_radius_m:=0.0", "setting 'agreement_radius_m' is 0.0: input should be greater than 0"),
        ("top_k:=2.5", "expecting type 'INTEGER'"),
        ("score_treshold:=0.3", "unknown parameter 'score_treshold'; known parameters: gallery_path"),
    ],
)
def test_a_bad_parameter_at_start_is_one_line_and_exit_code_1(argument, reason, tmp_path):
    process = RosProcess("place_recognition_node", ["--ros-args", "-p", argument], tmp_path / "log")
    assert process.wait() == 1
    assert reason in process.log and len(process.log.strip().splitlines()) == 1


def test_a_node_without_paths_says_which_parameter_is_missing(graph, artefacts, tmp_path):
    with RosProcess("place_recognition_node", parameters(gallery_path=artefacts[0]), tmp_path / "log"):
        graph.wait_for_status(lambda level, message, values: "parameter 'model_path' is not set" in message, "the refusal")


@pytest.mark.parametrize("module", ["place_recognition_node", "bag_player", "match_recorder"])
@pytest.mark.parametrize("arguments", [["-p", "gallery_path:="], ["--params-file", "/nowhere.yaml"]], ids=["parameter", "file"])
def test_malformed_ros_arguments_are_one_line_and_exit_code_2(module, arguments, tmp_path):
    process = RosProcess(module, ["--ros-args", *arguments], tmp_path / "log")
    assert process.wait() == 2
    assert "error: the ROS arguments are refused: " in process.log and arguments[0] in process.log
    assert "Traceback" not in process.log


def test_the_robots_process_imports_no_training_package():
    program = (
        "import sys; import asymvpr_ros.place_recognition_node;"
        "print([m for m in ('torch', 'torchvision', 'timm', 'lightning', 'matplotlib', 'onnx') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
