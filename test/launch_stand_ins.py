"""Stand-ins for launch and launch_ros that record what a launch file asks for: neither is in the package registry."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY


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


class LaunchDescription(Recorded):
    pass


class DeclareLaunchArgument(Recorded):
    pass


class OpaqueFunction(Recorded):
    pass


class Node(Recorded):
    pass


class LifecycleNode(Node):
    pass


class ExecuteProcess(Recorded):
    pass


class ExecutableInPackage(Recorded):
    pass


class EmitEvent(Recorded):
    pass


class RegisterEventHandler(Recorded):
    pass


class OnStateTransition(Recorded):
    pass


class ChangeState(Recorded):
    pass


class matches_action(Recorded):  # noqa: N801 (a function in launch.events)
    pass


_MODULES: dict[str, tuple[type, ...]] = {
    "launch": (LaunchDescription,),
    "launch.actions": (DeclareLaunchArgument, OpaqueFunction, EmitEvent, RegisterEventHandler, ExecuteProcess),
    "launch.events": (matches_action,),
    "launch.substitutions": (LaunchConfiguration, PathJoinSubstitution),
    "launch_ros": (),
    "launch_ros.actions": (Node, LifecycleNode),
    "launch_ros.event_handlers": (OnStateTransition,),
    "launch_ros.events": (),
    "launch_ros.events.lifecycle": (ChangeState,),
    "launch_ros.parameter_descriptions": (ParameterValue,),
    "launch_ros.substitutions": (FindPackageShare, ExecutableInPackage),
}


def actions_of(monkeypatch: pytest.MonkeyPatch, file: Path, **given: str) -> list[Any]:
    """What the launch file's function returns when it is started with the arguments `given`."""
    for name, members in _MODULES.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(file.name.replace(".", "_"), file)
    assert spec is not None and spec.loader is not None
    launch_file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch_file)
    (entities,) = launch_file.generate_launch_description().positional
    context = {}
    for argument in (entity for entity in entities if isinstance(entity, DeclareLaunchArgument)):
        (name,) = argument.positional
        assert argument.named["description"]
        assert "default_value" in argument.named or name in given, f"argument {name} of {file.name} must be given"
        context[name] = given.pop(name) if name in given else argument.named["default_value"]
    assert not given, f"arguments that {file.name} does not declare: {given}"
    (function,) = [entity for entity in entities if isinstance(entity, OpaqueFunction)]
    return function.named["function"](context)


def overrides(node: dict) -> dict:
    """The parameters of a node that do not come from files."""
    return {name: value.value if isinstance(value, ParameterValue) else value for name, value in node["parameters"][-1].items()}


def ros_arguments(node: dict) -> list[str]:
    """The command line that launch_ros makes of a node's name, namespace, parameters and remappings."""
    words = ["--ros-args", "-r", f"__node:={node['name']}"]
    if node.get("namespace"):
        words += ["-r", f"__ns:=/{node['namespace']}"]
    for file in node["parameters"][:-1]:
        words += ["--params-file", file]
    for name, value in overrides(node).items():
        text = str(value).lower() if isinstance(value, bool) else "[" + ",".join(value) + "]" if isinstance(value, list) else value
        words += ["-p", f"{name}:={text}"]
    for old, new in node.get("remappings", []):
        words += ["-r", f"{old}:={new}"]
    return [*words, *node.get("ros_arguments", [])]
