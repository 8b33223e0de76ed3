"""The launch files, evaluated with stand-ins; then the installed executables with the same arguments."""

from __future__ import annotations

import shlex
import signal
import time
from pathlib import Path

import pytest
import typer
import yaml
from conftest import REPOSITORY
from launch_stand_ins import (
    EmitEvent,
    ExecuteProcess,
    LifecycleNode,
    Node,
    RegisterEventHandler,
    actions_of,
    overrides,
    ros_arguments,
)
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from live_ros import RosProcess, image_message, jpeg_message, open_graph
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CompressedImage, Image
from tiny_artefacts import SECOND_NS, encode_jpeg, make_model, make_picture, make_street

from asymvpr_core.cli.main import app
from asymvpr_core.config import SourceSettings
from asymvpr_core.datasets.bag_dataset import BagDataset
from asymvpr_ros import keyframe_recorder
from asymvpr_ros.bag_player import _parse
from asymvpr_ros.conversions import stamp_message
from asymvpr_ros.outputs import OUTPUTS
from asymvpr_ros.parameters import fields

LAUNCH = REPOSITORY / "launch"
STACKS = sorted(path.stem for path in (REPOSITORY / "config" / "stacks").glob("*.yaml"))


@pytest.fixture
def launch(monkeypatch):
    """Evaluate place_recognition.launch.py; the nodes that it starts, by executable."""

    def evaluate(**given: str) -> dict[str, dict]:
        actions = actions_of(monkeypatch, LAUNCH / "place_recognition.launch.py", **given)
        return {action.named["executable"]: action.named for action in actions if isinstance(action, Node)}

    return evaluate


def test_by_default_only_the_node_with_the_shipped_parameter_file(launch):
    nodes = launch()
    assert list(nodes) == ["place_recognition_node"]
    node = nodes["place_recognition_node"]
    assert (node["package"], node["name"], node["namespace"]) == ("asymvpr_ros", "place_recognition", "")
    (file, _) = node["parameters"]
    (section,) = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    assert section == f"/**/{node['name']}"  # the file is for a node of this name, in any namespace
    assert overrides(node) == {"autostart": False}  # launch manages the lifecycle
    assert node["remappings"] == [
        ("image", "image"), ("image/compressed", "image/compressed"), ("odom", "odom"), ("trigger_hint", "trigger_hint"),
    ]  # fmt: skip
    assert node["ros_arguments"] == ["--log-level", "info"]


def test_arguments_become_parameters_remappings_and_options(launch):
    node = launch(
        gallery_path="/data/0042", model_path="/data/model", params_file="/my.yaml", stack="nav2_amcl", namespace="robot1",
        use_sim_time="True", cameras="front=/front/image_raw, rear=/rear/image_raw", transport="compressed", odom="/wheel/odom",
        trigger_hint="/visual_slam/trigger_hint", lifecycle="node", log_level="debug",
    )["place_recognition_node"]  # fmt: skip
    # The robot's own file wins over the stack's, which wins over the defaults; arguments win over all.
    assert [Path(file).name for file in node["parameters"][:-1]] == ["place_recognition.yaml", "nav2_amcl.yaml", "my.yaml"]
    assert overrides(node) == {
        "gallery_path": "/data/0042", "model_path": "/data/model", "transport": "compressed", "camera_names": ["front", "rear"],
        "use_sim_time": True,
    }  # fmt: skip
    assert set(overrides(node)) <= {*fields(), "use_sim_time"}
    assert node["remappings"] == [
        ("front/image", "/front/image_raw"), ("front/image/compressed", "/front/image_raw/compressed"),
        ("rear/image", "/rear/image_raw"), ("rear/image/compressed", "/rear/image_raw/compressed"),
        ("odom", "/wheel/odom"), ("trigger_hint", "/visual_slam/trigger_hint"),
    ]  # fmt: skip
    assert (node["namespace"], node["ros_arguments"]) == ("robot1", ["--log-level", "debug"])


@pytest.mark.parametrize(("given", "reason"), [({"cameras": "front"}, "NAME=TOPIC"), ({"lifecycle": "auto"}, "launch, node, none")])
def test_wrong_arguments_are_refused(launch, given, reason):
    with pytest.raises(RuntimeError, match=reason):
        launch(**given)


def test_the_lifecycle_is_driven_from_launch(monkeypatch):
    actions = actions_of(monkeypatch, LAUNCH / "place_recognition.launch.py")
    (node,) = [action for action in actions if isinstance(action, LifecycleNode)]
    (configure,) = [action for action in actions if isinstance(action, EmitEvent)]
    (handler,) = [action for action in actions if isinstance(action, RegisterEventHandler)]
    assert actions.index(handler) < actions.index(configure)  # the answer must not come before somebody waits for it
    change = configure.named["event"].named
    assert change["transition_id"] == Transition.TRANSITION_CONFIGURE
    assert change["lifecycle_node_matcher"].positional == (node,)
    waited = handler.positional[0].named
    assert (waited["target_lifecycle_node"], waited["start_state"], waited["goal_state"]) == (node, "configuring", "inactive")
    (activate,) = waited["entities"]
    assert activate.named["event"].named["transition_id"] == Transition.TRANSITION_ACTIVATE
    for other in ("node", "none"):
        started = actions_of(monkeypatch, LAUNCH / "place_recognition.launch.py", lifecycle=other)
        assert not [action for action in started if isinstance(action, (EmitEvent, RegisterEventHandler))]
        assert overrides(started[0].named) == ({} if other == "node" else {"autostart": False})


def test_a_bag_brings_its_player_and_simulated_time(launch):
    nodes = launch(bag="/data/drive", bag_rate="2.0")
    assert overrides(nodes["place_recognition_node"])["use_sim_time"] is True
    arguments = nodes["bag_player"]["arguments"]
    assert arguments[:3] == ["/data/drive", "--rate", "2.0"]
    path, options = _parse(arguments)  # the player accepts what the launch file gives it
    assert (str(path), options.rate) == ("/data/drive", 2.0)
    assert overrides(launch(bag="/data/drive", use_sim_time="false")["place_recognition_node"])["use_sim_time"] is False


def test_rviz_is_given_topics_that_the_node_publishes(launch):
    rviz = launch(rviz="true", namespace="robot1")["rviz2"]
    assert (rviz["package"], rviz["namespace"], rviz["arguments"][0]) == ("rviz2", "robot1", "-d")
    content = yaml.safe_load(Path(rviz["arguments"][1]).read_text(encoding="utf-8"))
    kinds = {"MarkerArray": "MarkerArray", "PoseWithCovariance": "PoseWithCovarianceStamped", "PoseArray": "PoseArray"}
    shown = [display for display in content["Visualization Manager"]["Displays"] if "Topic" in display]
    assert len(shown) == 5
    for display in shown:
        output, kind = OUTPUTS[display["Topic"]["Value"]], display["Class"].partition("/")[2]
        assert output.message_type.__name__ == kinds.get(kind, kind)
        latched = display["Topic"]["Durability Policy"] == "Transient Local"
        assert latched == (display["Topic"]["Value"] == "place_match/markers")


@pytest.mark.parametrize(
    ("transport", "message_type", "topic"), [("raw", Image, "/cam/image"), ("compressed", CompressedImage, "/cam/image/compressed")]
)
def test_the_executable_runs_with_what_the_launch_file_gives(launch, tmp_path, transport, message_type, topic):
    gallery, model = make_street(tmp_path / "gallery"), make_model(tmp_path / "model")
    node = launch(
        gallery_path=str(gallery), model_path=str(model), namespace="robot1", image="/cam/image", transport=transport, odom="/wheel/odom"
    )["place_recognition_node"]
    with open_graph() as graph, RosProcess(node["executable"], ros_arguments(node), tmp_path / "log", stop_with=signal.SIGTERM):
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):  # as the events of the launch file do
            request = ChangeState.Request(transition=Transition(id=transition))
            assert graph.call(ChangeState, "/robot1/place_recognition/change_state", request).success
        graph.publisher(message_type, topic)  # waits until the node listens there
        graph.publisher(Odometry, "/wheel/odom")
        graph.wait_for_status(lambda level, message, values: values["image_topic"] == topic, "diagnostics")


@pytest.mark.parametrize("stack", STACKS)
def test_the_node_accepts_every_stacks_file(launch, stack, tmp_path):
    """Each file is of parameters that exist, in their ranges, and the node configures with it."""
    from rclpy.lifecycle import TransitionCallbackReturn

    from asymvpr_ros.place_recognition_node import PlaceRecognitionNode

    node = launch(stack=stack, model_path=str(make_model(tmp_path / "model")))["place_recognition_node"]
    (section, content) = next(iter(yaml.safe_load(Path(node["parameters"][1]).read_text(encoding="utf-8")).items()))
    given = content["ros__parameters"]
    assert section == "/**/place_recognition" and set(given) <= set(fields())
    arguments = ros_arguments(node)
    if "gallery_path" not in given:
        arguments += ["-p", f"gallery_path:={make_street(tmp_path / 'gallery')}"]
    with open_graph():
        place_recognition = PlaceRecognitionNode(cli_args=arguments)
        try:
            for name, value in given.items():
                assert place_recognition.get_parameter(name).value == value, name
            assert place_recognition.trigger_configure() == TransitionCallbackReturn.SUCCESS
        finally:
            place_recognition.close()


def test_every_stack_has_its_section_in_the_documents():
    text = (REPOSITORY / "docs" / "slam_stacks.md").read_text(encoding="utf-8")
    for stack in STACKS:
        assert f"stack:={stack}" in text, stack


def test_mapping_records_a_bag_that_a_gallery_is_built_from(monkeypatch, tmp_path):
    out = tmp_path / "map_bag"
    (action,) = actions_of(
        monkeypatch, LAUNCH / "mapping.launch.py", out=str(out), image="/cam/image", transport="compressed", pose="/slam/odom"
    )
    node = action.named
    assert node["executable"] == "keyframe_recorder"
    with open_graph() as graph:
        with RosProcess("keyframe_recorder", [*node["arguments"], *ros_arguments(node)], tmp_path / "log") as process:
            camera, odometry = graph.publisher(CompressedImage, "/cam/image/compressed"), graph.publisher(Odometry, "/slam/odom")
            jpegs, sent = [encode_jpeg(make_picture(seed)) for seed in range(4)], []

            def drive() -> None:
                """A tenth of a second: 0.5 m further along x, with an image in between."""
                stamp = (100 + len(sent)) * SECOND_NS // 10
                message = Odometry(child_frame_id="base_link")
                message.header.frame_id, message.header.stamp = "map", stamp_message(stamp)
                message.pose.pose.position.x, message.pose.pose.orientation.w = 0.5 * len(sent), 1.0
                odometry.publish(message)
                camera.publish(jpeg_message(jpegs[len(sent) % 4], stamp + SECOND_NS // 20))
                sent.append(stamp)

            deadline_s = time.monotonic() + 20
            while len(sent) < 25 and time.monotonic() < deadline_s:
                drive()
                before = time.monotonic()
                graph.wait_until(lambda before=before: time.monotonic() > before + 0.02, "the next step")
            assert process.stop() == 0, process.log
        assert "asymvpr gallery build" in process.log
    dataset = BagDataset(out, SourceSettings(image_topic="/cam/image/compressed", pose_topic="/slam/odom", keyframes=None))
    assert dataset.map_frame == "map"
    kept = [record.pose.position[0] for record in dataset.records]
    # The recorder decides by the newest pose, which is up to one step of 0.5 m from the image's.
    assert 3 <= len(kept) < len(sent) and all(b - a >= 0.5 - 1e-6 for a, b in zip(kept, kept[1:], strict=False))


def test_a_recording_without_a_keyframe_says_why_and_leaves_nothing(tmp_path):
    arguments = ["--out", str(tmp_path / "bag"), "--ros-args", "-r", "image:=/nobody"]
    process = RosProcess("keyframe_recorder", arguments, tmp_path / "log")
    with open_graph() as graph:
        camera = graph.publisher(Image, "/nobody")
        graph.wait_until(lambda: camera.get_subscription_count(), "the recorder")
        camera.publish(image_message(make_picture(1), SECOND_NS))
        time_ns = time.monotonic()
        graph.wait_until(lambda: time.monotonic() > time_ns + 0.3, "the image on its way")
        process.process.send_signal(signal.SIGTERM)
        assert process.wait() == 1
    assert "no keyframe was recorded" in process.log and not (tmp_path / "bag").exists()


def test_the_recorder_refuses_settings_out_of_range(tmp_path, capsys):
    assert keyframe_recorder.main(["--out", str(tmp_path / "bag"), "--min-yaw-deg", "200"]) == 2
    assert "min_yaw_deg" in capsys.readouterr().err


def test_bag_evaluation_is_the_command_of_the_command_line(monkeypatch):
    (action,) = actions_of(
        monkeypatch, LAUNCH / "bag_evaluation.launch.py", bag="/data/drive", gallery_path="/data/gallery", model_path="/data/model",
        ground_truth="/ground_truth/pose", out="/data/report", image="/cam/image", options="--radius-m 10 --k 1,5",
    )  # fmt: skip
    assert isinstance(action, ExecuteProcess)
    executable, *words = action.named["cmd"]
    assert executable.positional == ("asymvpr", "asymvpr_ros")
    assert shlex.join(words) == (
        "evaluate bag /data/drive --gallery /data/gallery --model /data/model --ground-truth /ground_truth/pose --out /data/report "
        "--image-topic /cam/image --radius-m 10 --k 1,5"
    )
    command = typer.main.get_command(app).commands["evaluate"].commands["bag"]
    command.make_context("asymvpr", words[2:])  # raises on an option that does not exist
