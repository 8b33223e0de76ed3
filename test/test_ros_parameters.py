"""ROS parameters: declared from the core's settings, and refused with a reason where those refuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rclpy
import yaml
from conftest import REPOSITORY
from rclpy.node import Node
from rclpy.parameter import Parameter

from asymvpr_core.config import MatcherSettings, NodeSettings, RuntimeSettings, SessionSettings
from asymvpr_core.errors import RetrievalError, SettingsError
from asymvpr_ros.parameters import GROUPS, LIVE, NodeParameters, ResolvedSettings, descriptor_of, fields, resolve

CONFIG = REPOSITORY / "config" / "place_recognition.yaml"


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.shutdown()


def make_node(given: dict | None = None, check=lambda settings: None, cli_args: list[str] | None = None, **options):
    """A node with our parameters, some `given` at start, and the list of settings that were applied."""
    overrides = [Parameter(name, value=value) for name, value in (given or {}).items()]
    node = Node("place_recognition", parameter_overrides=overrides, cli_args=cli_args, **options)
    applied: list[ResolvedSettings] = []
    return node, NodeParameters(node, check=check, apply=applied.append), applied


def set_one(node: Node, name: str, value: object) -> tuple[bool, str]:
    (result,) = node.set_parameters([Parameter(name, value=value)])
    return result.successful, result.reason


def test_every_setting_is_a_parameter_with_type_default_range_and_description():
    node, parameters, _ = make_node()
    assert len(fields()) == sum(len(group.model_fields) for group in GROUPS)  # no name stands in two groups
    for name, field in fields().items():
        value = node.get_parameter(name).value
        assert (tuple(value) if isinstance(value, list) else value) == field.default
        assert node.describe_parameter(name).description == field.description != ""
    assert parameters.resolved == ResolvedSettings(NodeSettings(), MatcherSettings(), SessionSettings(), RuntimeSettings())
    top_k = node.describe_parameter("top_k").integer_range[0]
    assert (top_k.from_value, top_k.to_value) == (1, 100)
    threshold = node.describe_parameter("score_threshold").floating_point_range[0]
    assert (threshold.from_value, threshold.to_value) == (-1.0, 1.0)
    assert node.describe_parameter("sequence").additional_constraints == "one of: off, vote, bayes"
    assert "greater than 0" in node.describe_parameter("agreement_radius_m").additional_constraints
    assert "read when the node configures" in descriptor_of("threads", fields()["threads"]).additional_constraints


def test_the_parameter_file_names_every_parameter_with_its_default():
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    defaults = {name: list(field.default) if isinstance(field.default, tuple) else field.default for name, field in fields().items()}
    assert content["/**/place_recognition"]["ros__parameters"] == defaults
    descriptions = [line.strip("# ") for line in CONFIG.read_text(encoding="utf-8").splitlines() if line.startswith("    #")]
    for field in fields().values():
        assert any(line.startswith(field.description) for line in descriptions), field.description


@pytest.mark.parametrize("namespace", ["", "/robot1", "/site/robot1"])
def test_the_parameter_file_reaches_the_node_in_any_namespace(tmp_path, namespace):
    file = tmp_path / "changed.yaml"
    file.write_text(CONFIG.read_text(encoding="utf-8").replace("top_k: 5", "top_k: 7").replace('"bayes"', "off"), encoding="utf-8")
    arguments = ["--ros-args", "--params-file", str(file)]
    _, parameters, _ = make_node(cli_args=arguments, namespace=namespace)
    assert parameters.resolved.matcher.top_k == 7
    assert parameters.resolved.matcher.sequence == "off"  # a bare off, which YAML reads as false


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"score_threshold": 3.0}, "'score_threshold'.*out of range"),
        ({"score_threshold": None}, "'score_threshold' is given without a value; give a double"),
        ({"score_threshold": float("nan")}, "'score_threshold'.*nan"),
        ({"score_threshold": 1}, "expecting type 'DOUBLE'.*with a decimal point"),
        ({"top_k": 0}, "'top_k'.*out of range"),
        ({"agreement_yaw_deg": 0.0}, "'agreement_yaw_deg' is 0.0: input should be greater than 0"),
        ({"transport": "theora"}, "'transport' is 'theora': input should be 'raw' or 'compressed'"),
        ({"camera_names": ["front", "front"]}, "'camera_names'.*each once"),
        ({"camera_names": ["front camera"]}, "'front camera' is no ros name"),
        ({"outputs": ["loop_closures"]}, "'outputs.0' is 'loop_closures': input should be 'place_match/pose'"),
        ({"outputs": "loop_closure"}, "expecting type 'STRING_ARRAY'"),
        ({"map_frame": "/map"}, "'map_frame' is '/map'.*without a leading '/'"),
        ({"map_frame": "world", "base_frame": "world"}, "map_frame and base_frame are both 'world'"),
        ({"autostart": False, "sequence": True}, "expecting type 'STRING'"),
        ({"score_treshold": 0.5, "topk": 3}, "unknown parameter 'score_treshold', 'topk'; known parameters: gallery_path, "),
    ],
)
def test_bad_values_at_start_are_refused(given, reason):
    with pytest.raises(SettingsError, match=reason):
        make_node(given)


def test_parameters_of_rclpy_itself_are_no_unknown_ones():
    node, _, _ = make_node({"use_sim_time": True, "qos_overrides./image.subscription.depth": 3})
    assert node.get_parameter("use_sim_time").value is True


def test_live_changes_are_applied_and_bad_ones_leave_the_old_value():
    node, parameters, applied = make_node()
    parameters.configured = True
    assert set_one(node, "score_threshold", 0.25) == (True, "")
    assert [settings.matcher.score_threshold for settings in applied] == [0.25]
    for value, why in ((1.5, "out of range"), (float("nan"), "nan"), ("high", "Wrong parameter type")):
        successful, reason = set_one(node, "score_threshold", value)
        assert not successful and why in reason
    assert node.get_parameter("score_threshold").value == parameters.resolved.matcher.score_threshold == 0.25
    assert len(applied) == 1
    assert set_one(node, "sequence", False) == (True, "")
    assert node.get_parameter("sequence").value == parameters.resolved.matcher.sequence == "off"


def test_what_is_read_at_configuration_changes_only_before_it():
    node, parameters, _ = make_node()
    assert set_one(node, "gallery_path", "/one") == (True, "")
    parameters.configured = True
    for name, value in (
        ("outputs", ["loop_closure"]),
        ("threads", 2),
        ("transport", "compressed"),
        ("map_frame", "odom"),
        ("autostart", False),
    ):
        assert name not in LIVE
        successful, reason = set_one(node, name, value)
        assert not successful and "deactivate and clean up" in reason
    assert parameters.resolved.node.outputs == NodeSettings().outputs
    # These two are read by a service: they may change at any time, and nothing happens before the call.
    assert set_one(node, "gallery_path", "/two") == set_one(node, "session_path", "/three") == (True, "")
    assert "read by ~/load_gallery" in node.describe_parameter("gallery_path").additional_constraints


def test_the_check_of_the_node_can_refuse():
    def check(settings: ResolvedSettings) -> None:
        if settings.matcher.top_k > 50:
            raise RetrievalError(f"top_k is {settings.matcher.top_k}", expected="at most 50 here")

    node, parameters, applied = make_node(check=check)
    assert set_one(node, "top_k", 60) == (False, "top_k is 60; expected at most 50 here")
    assert (parameters.resolved.matcher.top_k, applied) == (5, [])


def test_parameters_of_others_pass():
    node, _, applied = make_node()
    node.declare_parameter("somebody_elses", 1)
    assert set_one(node, "somebody_elses", 2) == (True, "")
    assert applied == []


def test_arrays_are_declared_with_their_choices_and_read_as_tuples():
    node, parameters, _ = make_node({"camera_names": ["front", "rig/left"], "outputs": ["loop_closure", "initialpose"]})
    assert parameters.resolved.node.camera_names == ("front", "rig/left")
    assert parameters.resolved.node.outputs == ("loop_closure", "initialpose")
    constraints = node.describe_parameter("outputs").additional_constraints
    assert "each one of: place_match/pose, place_match/candidates" in constraints and "lio_loop/loop_closure_detection" in constraints


def test_resolve_takes_defaults_for_what_is_not_given():
    settings = resolve({"top_k": 3, "threads": 2})
    assert (settings.matcher.top_k, settings.runtime.threads, settings.node) == (3, 2, NodeSettings())
