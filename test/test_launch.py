"""The launch file, evaluated with stand-ins that record what it asks for: launch is not in the package registry."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from conftest import REPOSITORY
from live_ros import RosProcess, open_graph
from sensor_msgs.msg import CompressedImage, Image
from tiny_artefacts import make_model, make_street

from asymvpr_ros.bag_player import _parse
from asymvpr_ros.parameters import fields

LAUNCH_FILE = REPOSITORY / "launch" / "place_recognition.launch.py"


class Recorded:
    """Keeps the arguments of its construction."""

    def __init__(self, *positional, **named):
        self.positional, self.named = positional, named


class FindPackageShare(Recorded):
    def perform(self, context: dict) -> str:
        assert self.positional == ("asymvpr_ros",)
        return str(REPOSITORY)  # the share folder holds the same launch/ and config/


class PathJoinSubstitution(Recorded):
    def perform(self, context: dict) -> str:
        return "/".join(part if isinstance(part, str) else part.perform(context) for part in self.positional[0])


class LaunchConfiguration(Recorded):
    def perform(self, context: dict) -> str:
        return context[self.positional[0]]


class ParameterValue(Recorded):
    @property
    def value(self):
        assert isinstance(self.positional[0], self.named["value_type"])
        return self.positional[0]


def stand_in(name: str, **members: type) -> ModuleType:
    module = ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    return module


class LaunchDescription(Recorded):
    pass


class DeclareLaunchArgument(Recorded):
    pass


class OpaqueFunction(Recorded):
    pass


class Node(Recorded):
    pass


@pytest.fixture
def launch(monkeypatch):
    """Evaluate the launch file with arguments; the nodes that it starts, by executable."""
    modules = [
        stand_in("launch", LaunchDescription=LaunchDescription),
        stand_in("launch.actions", DeclareLaunchArgument=DeclareLaunchArgument, OpaqueFunction=OpaqueFunction),
        stand_in("launch.substitutions", LaunchConfiguration=LaunchConfiguration, PathJoinSubstitution=PathJoinSubstitution),
        stand_in("launch_ros"),
        stand_in("launch_ros.actions", Node=Node),
        stand_in("launch_ros.parameter_descriptions", ParameterValue=ParameterValue),
        stand_in("launch_ros.substitutions", FindPackageShare=FindPackageShare),
    ]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("place_recognition_launch", LAUNCH_FILE)
    launch_file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch_file)

    def evaluate(**given: str) -> dict[str, dict]:
        (entities,) = launch_file.generate_launch_description().positional
        context = {}
        for argument in (entity for entity in entities if isinstance(entity, DeclareLaunchArgument)):
            (name,), default = argument.positional, argument.named["default_value"]
            assert argument.named["description"]
            context[name] = given.pop(name, default if isinstance(default, str) else default.perform({}))
        assert not given, f"arguments that the launch file does not declare: {given}"
        (function,) = [entity for entity in entities if isinstance(entity, OpaqueFunction)]
        return {node.named["executable"]: node.named for node in function.named["function"](context)}

    return evaluate


def overrides(node: dict) -> dict:
    return {name: value.value for name, value in node["parameters"][1].items()}


def test_by_default_only_the_node_with_the_shipped_parameter_file(launch):
    nodes = launch()
    assert list(nodes) == ["place_recognition_node"]
    node = nodes["place_recognition_node"]
    assert (node["package"], node["name"], node["namespace"]) == ("asymvpr_ros", "place_recognition", "")
    (section,) = yaml.safe_load(Path(node["parameters"][0]).read_text(encoding="utf-8"))
    assert section == f"/**/{node['name']}"  # the file is for a node of this name, in any namespace
    assert overrides(node) == {}
    assert node["remappings"] == [("image", "image"), ("image/compressed", "image/compressed")]
    assert node["ros_arguments"] == ["--log-level", "info"]


def test_arguments_become_parameters_remappings_and_options(launch, tmp_path):
    node = launch(
        gallery_path="/data/0042", model_path="/data/model", params_file="/my.yaml", namespace="robot1", use_sim_time="True",
        image="/camera/image", transport="compressed", log_level="debug",
    )["place_recognition_node"]  # fmt: skip
    assert node["parameters"][0] == "/my.yaml"
    assert overrides(node) == {"gallery_path": "/data/0042", "model_path": "/data/model", "transport": "compressed", "use_sim_time": True}
    assert set(overrides(node)) <= {*fields(), "use_sim_time"}
    assert node["remappings"] == [("image", "/camera/image"), ("image/compressed", "/camera/image/compressed")]
    assert (node["namespace"], node["ros_arguments"]) == ("robot1", ["--log-level", "debug"])


def test_a_bag_brings_its_player_and_simulated_time(launch):
    nodes = launch(bag="/data/drive", bag_rate="2.0")
    assert overrides(nodes["place_recognition_node"]) == {"use_sim_time": True}
    arguments = nodes["bag_player"]["arguments"]
    assert arguments[:3] == ["/data/drive", "--rate", "2.0"]
    path, options = _parse(arguments)  # the player accepts what the launch file gives it
    assert (str(path), options.rate) == ("/data/drive", 2.0)
    assert overrides(launch(bag="/data/drive", use_sim_time="false")["place_recognition_node"]) == {"use_sim_time": False}


@pytest.mark.parametrize(
    ("transport", "message_type", "topic"), [("raw", Image, "/cam/image"), ("compressed", CompressedImage, "/cam/image/compressed")]
)
def test_the_executable_runs_with_what_the_launch_file_gives(launch, tmp_path, transport, message_type, topic):
    gallery, model = make_street(tmp_path / "gallery"), make_model(tmp_path / "model")
    node = launch(gallery_path=str(gallery), model_path=str(model), namespace="robot1", image="/cam/image", transport=transport)[
        "place_recognition_node"
    ]
    module = node["executable"]
    arguments = ["--ros-args", "-r", f"__node:={node['name']}", "-r", f"__ns:=/{node['namespace']}", "--params-file", node["parameters"][0]]
    for name, value in overrides(node).items():
        arguments += ["-p", f"{name}:={value}"]
    for old, new in node["remappings"]:
        arguments += ["-r", f"{old}:={new}"]
    with open_graph() as graph, RosProcess(module, [*arguments, *node["ros_arguments"]], tmp_path / "log", stop_with=signal.SIGTERM):
        graph.publisher(message_type, topic)  # waits until the node listens there
        graph.wait_until(lambda: graph.last_status(), "diagnostics")
        assert graph.last_status()[2]["image_topic"] == topic
