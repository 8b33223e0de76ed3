"""Random values for every parameter of the node: taken, or refused with a reason and nothing changed; never an error of the callback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

rclpy = pytest.importorskip("rclpy")

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from tiny_artefacts import make_model, make_street

from asymvpr_core.errors import AsymvprError
from asymvpr_ros.parameters import LIVE, choices_of, fields, parameter_type, resolve
from asymvpr_ros.place_recognition_node import PlaceRecognitionNode

KNOWN = fields()
int64 = st.integers(-(2**63), 2**63 - 1)
# What comes over the wire is UTF-8: half a surrogate pair cannot.
texts = st.one_of(
    st.sampled_from(["", "off", "vote", "bayes", "raw", "/map", "a b", "map", "..", "a\0b", "😀", "x" * 5000]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
doubles = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 0.5, 1.0, 1e308]))
VALUES: dict[Parameter.Type, st.SearchStrategy[Any]] = {
    Parameter.Type.NOT_SET: st.none(),
    Parameter.Type.BOOL: st.booleans(),
    Parameter.Type.INTEGER: st.one_of(st.integers(-2, 20), int64),
    Parameter.Type.DOUBLE: doubles,
    Parameter.Type.STRING: texts,
    Parameter.Type.BYTE_ARRAY: st.lists(st.binary(min_size=1, max_size=1), max_size=3),
    Parameter.Type.BOOL_ARRAY: st.lists(st.booleans(), max_size=3),
    Parameter.Type.INTEGER_ARRAY: st.lists(int64, max_size=3),
    Parameter.Type.DOUBLE_ARRAY: st.lists(doubles, max_size=3),
    Parameter.Type.STRING_ARRAY: st.lists(texts, max_size=3),
}


@st.composite
def parameters(draw: st.DrawFn, known: tuple[str, ...] = tuple(KNOWN)) -> Parameter:
    """One parameter, half of the time of the right type, sometimes with a choice that exists."""
    name = draw(st.sampled_from(known))
    right = parameter_type(KNOWN[name])
    if choices_of(KNOWN[name]) and draw(st.booleans()):
        choice = draw(st.sampled_from(choices_of(KNOWN[name])))
        return Parameter(name, right, [choice] if right is Parameter.Type.STRING_ARRAY else choice)
    kind = right if draw(st.booleans()) else draw(st.sampled_from(list(VALUES)))
    return Parameter(name, kind, draw(VALUES[kind]))


@pytest.fixture(scope="module", params=["unconfigured", "active"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaceRecognitionNode]:
    folder: Path = tmp_path_factory.mktemp("artefacts")
    rclpy.init()
    values = {
        "gallery_path": str(make_street(folder / "gallery", 6)), "model_path": str(make_model(folder / "model")), "session_gallery": True,
        "autostart": False,
    }  # fmt: skip
    node = PlaceRecognitionNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
    try:
        if request.param == "active":
            assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
            assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        yield node
    finally:
        node.close()
        rclpy.shutdown()


def state_of(node: PlaceRecognitionNode) -> tuple[Any, ...]:
    """All that a parameter can change: the values themselves, what they were resolved to, and what the recogniser uses."""
    # repr: NaN differs from itself, and no value may become one either.
    values = {name: repr(node.get_parameter(name).value) for name in KNOWN}
    used: tuple[Any, ...] = ()
    if node._pipeline is not None:
        node._pipeline.between_frames(lambda: None).result(timeout=20.0)  # changes are made between two frames
        used = (node._pipeline.recogniser.matcher_settings, node._pipeline.recogniser.session_settings)
    return values, node._settings.resolved, used


@given(changes=st.lists(parameters(), min_size=1, max_size=3, unique_by=lambda parameter: parameter.name))
def test_values_are_taken_together_or_refused_with_a_reason(node: PlaceRecognitionNode, changes: list[Parameter]):
    before = state_of(node)
    result = node.set_parameters_atomically(changes)
    after = state_of(node)
    if not result.successful:
        assert result.reason.strip() and "\n" not in result.reason
        assert after == before
        return
    assert after[1] == resolve({name: _value(node.get_parameter(name)) for name in KNOWN})
    if node._pipeline is not None:
        assert {name for name in KNOWN if after[0][name] != before[0][name]} <= LIVE
        assert after[2] == (after[1].matcher, after[1].session)


@given(changes=st.lists(parameters(), min_size=1, max_size=4))
def test_the_same_through_the_messages_of_the_parameter_service(node: PlaceRecognitionNode, changes: list[Parameter]):
    before = state_of(node)
    # As the service's callback does: messages in, one result for each parameter.
    messages = [change.to_parameter_msg() for change in changes]
    results = node.set_parameters([Parameter.from_parameter_msg(message) for message in messages])
    assert all(result.successful or result.reason for result in results)
    if not any(result.successful for result in results):
        assert state_of(node) == before


@given(change=parameters(tuple(name for name in KNOWN if name != "autostart")))
def test_a_value_given_at_start_is_taken_or_refused(node: PlaceRecognitionNode, change: Parameter):
    try:
        started = PlaceRecognitionNode(parameter_overrides=[change, Parameter("autostart", value=False)])
    except AsymvprError as error:
        assert change.name in str(error)
    else:
        started.close()


@given(change=parameters(("gallery_path", "model_path", "session_path", "camera_names", "outputs", "transport", "base_frame", "map_frame")))
def test_a_node_that_took_a_value_configures_or_says_why_not(node: PlaceRecognitionNode, change: Parameter):
    if node._pipeline is not None:
        return
    before = node.get_parameter(change.name)
    if not node.set_parameters_atomically([change]).successful:
        return
    try:
        if node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
            assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
            assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        assert "failed with" not in node._status._refusal  # what a transition says of an error that nobody foresaw
    finally:
        assert node.set_parameters_atomically([before]).successful


def test_a_parameter_message_whose_type_and_value_differ_is_refused(node: PlaceRecognitionNode):
    message = ParameterMessage(name="top_k", value=ParameterValue(type=4, string_value="five", integer_value=5))
    (result,) = node.set_parameters([Parameter.from_parameter_msg(message)])
    # rclpy's own words, which differ between Jazzy and Kilted.
    assert not result.successful and result.reason.startswith("Wrong parameter type, expected ")


def _value(parameter: Parameter) -> Any:
    return tuple(parameter.value) if parameter.type_ is Parameter.Type.STRING_ARRAY else parameter.value
