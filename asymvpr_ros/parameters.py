"""ROS parameters made from the core's settings: names, types, defaults, ranges and descriptions come from there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from asymvpr_core.config import MatcherSettings, NodeSettings, RuntimeSettings, SessionSettings, Settings, is_yaml_off
from asymvpr_core.errors import AsymvprError, SettingsError
from asymvpr_core.settings_files import make_settings

GROUPS: tuple[type[Settings], ...] = (NodeSettings, MatcherSettings, SessionSettings, RuntimeSettings)
# What may change while the node is configured; all else is read once, when it configures.
_LIVE_IN_NODE = {"max_rate_hz", "max_image_age_s", "max_odom_gap_s", "cooldown_s", "relocalisation_distance_m", "relocalisation_yaw_deg"}
# May change as well, and is read when its service is called.
ON_CALL = {"gallery_path": "~/load_gallery", "gallery_paths": "~/load_gallery", "session_path": "~/save_session"}
LIVE = (
    frozenset(MatcherSettings.model_fields)
    | (frozenset(SessionSettings.model_fields) - {"session_gallery"})
    | frozenset(_LIVE_IN_NODE)
    | frozenset(ON_CALL)
)
_TYPES = {bool: Parameter.Type.BOOL, int: Parameter.Type.INTEGER, float: Parameter.Type.DOUBLE, str: Parameter.Type.STRING}


@dataclass(frozen=True)
class ResolvedSettings:
    """The settings that the parameters of a node stand for, validated."""

    node: NodeSettings
    matcher: MatcherSettings
    session: SessionSettings
    runtime: RuntimeSettings


class NodeParameters:
    """The parameters of one node: declared on construction, checked on every change.

    A change is refused with a reason when a value is of the wrong type or out of range, when
    `check` raises an AsymvprError, or when the parameter cannot change while `configured` is
    set. `apply` is called after a change has been accepted.

    Raises:
        SettingsError: a value given at start is refused, or is for a parameter that does not exist.
    """

    def __init__(self, node: Node, *, check: Callable[[ResolvedSettings], None], apply: Callable[[ResolvedSettings], None]):
        self._node, self._check, self._apply = node, check, apply
        self.configured = False
        given = getattr(node, "_parameter_overrides", {})  # rclpy offers no public way to see them
        for name, field in fields().items():
            _declare(node, name, field, given.get(name))
        _refuse_unknown(node, given)
        self.resolved = resolve(self._values())
        node.add_pre_set_parameters_callback(_read_off)
        node.add_on_set_parameters_callback(self._veto)
        node.add_post_set_parameters_callback(self._changed)

    def _values(self) -> dict[str, Any]:
        return {name: _value(self._node.get_parameter(name)) for name in fields()}

    def _veto(self, parameters: list[Parameter]) -> SetParametersResult:
        ours = {p.name: _value(p) for p in parameters if p.name in fields()}
        for name in ours:
            if self.configured and name not in LIVE:
                reason = f"'{name}' is read when the node configures; deactivate and clean up the node, then set it"
                return SetParametersResult(successful=False, reason=reason)
        try:
            self._check(resolve({**self._values(), **ours}))
        except AsymvprError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _changed(self, parameters: list[Parameter]) -> None:
        if any(p.name in fields() for p in parameters):
            self.resolved = resolve(self._values())
            self._apply(self.resolved)


def fields() -> dict[str, FieldInfo]:
    """Every parameter of the node by name, in the order of the settings classes."""
    return {name: field for group in GROUPS for name, field in group.model_fields.items()}


def resolve(values: Mapping[str, Any]) -> ResolvedSettings:
    """Turn parameter values into validated settings. Raises SettingsError naming what is wrong."""
    groups = [make_settings(group, **{name: values[name] for name in group.model_fields if name in values}) for group in GROUPS]
    return ResolvedSettings(*groups)  # type: ignore[arg-type]


def parameter_type(field: FieldInfo) -> Parameter.Type:
    """ROS type of a settings field: bool, integer, double, string, or array of strings."""
    annotation = field.annotation
    if get_origin(annotation) is tuple:
        return Parameter.Type.STRING_ARRAY
    if get_origin(annotation) is Literal:
        annotation = type(get_args(annotation)[0])
    return _TYPES[annotation]  # type: ignore[index]


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The values that a field, or each element of it, may have; empty where they are not listed."""
    annotation = field.annotation
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def descriptor_of(name: str, field: FieldInfo) -> ParameterDescriptor:
    """Descriptor with the description, the range and, where ROS has no range for it, the constraint in words."""
    kind = parameter_type(field)
    descriptor = ParameterDescriptor(name=name, type=kind.value, description=field.description or "")
    constraints = [] if name in LIVE else ["read when the node configures"]
    if name in ON_CALL:
        constraints.append(f"read by {ON_CALL[name]}" + (" and when the node configures" if name.startswith("gallery") else ""))
    if choices := choices_of(field):
        constraints.append(("each " if kind is Parameter.Type.STRING_ARRAY else "") + "one of: " + ", ".join(choices))
    low, high = None, None
    for limit in () if kind is Parameter.Type.STRING_ARRAY else field.metadata:
        if isinstance(limit, (Ge, Gt)):
            low = limit.ge if isinstance(limit, Ge) else limit.gt
        if isinstance(limit, (Le, Lt)):
            high = limit.le if isinstance(limit, Le) else limit.lt
        if isinstance(limit, Gt):  # ROS ranges include their ends
            constraints.append(f"greater than {limit.gt:g}")
        if isinstance(limit, Lt):
            constraints.append(f"less than {limit.lt:g}")
    if (low, high) != (None, None):
        if kind is Parameter.Type.INTEGER:
            low, high = -(2**63) if low is None else low, 2**63 - 1 if high is None else high
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
        else:
            largest = sys.float_info.max
            low, high = -largest if low is None else low, largest if high is None else high
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    descriptor.additional_constraints = "; ".join(constraints)
    return descriptor


def _read_off(parameters: list[Parameter]) -> list[Parameter]:
    """The parameters, with "off" in place of the false that ROS makes of `-p sequence:=off`."""
    known = fields()
    return [Parameter(p.name, value="off") if p.name in known and is_yaml_off(known[p.name], p.value) else p for p in parameters]


def _value(parameter: Parameter) -> Any:
    """The value as the settings want it: an array as a tuple."""
    return tuple(parameter.value) if parameter.type_ is Parameter.Type.STRING_ARRAY else parameter.value


def _declare(node: Node, name: str, field: FieldInfo, given: Parameter | None) -> None:
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if given is not None and given.type_ is Parameter.Type.NOT_SET:  # rclpy would declare it, and raise when it is read
        raise SettingsError(f"parameter '{name}' is given without a value", remedy=f"give a {parameter_type(field).name.lower()}")
    is_off = given is not None and is_yaml_off(field, given.value)
    try:
        node.declare_parameter(name, "off" if is_off else value, descriptor_of(name, field), ignore_override=is_off)
    except InvalidParameterTypeException as error:
        kind = parameter_type(field).name.lower()
        hint = ", with a decimal point" if kind == "double" else ""
        raise SettingsError(f"parameter '{name}' is refused: {_reason(error, name)}", remedy=f"give a {kind}{hint}") from error
    except InvalidParameterValueException as error:
        raise SettingsError(f"parameter '{name}' is refused: {_reason(error, name)}", remedy="correct the value") from error


def _reason(error: Exception, name: str) -> str:
    """rclpy's message without the parameter's name at its end."""
    return " ".join(str(error).split()).removesuffix(f": {name}").rstrip(".")


def _refuse_unknown(node: Node, given: Mapping[str, Parameter]) -> None:
    """ROS ignores a value for a parameter that nobody declares, and so hides a misspelt name."""
    unknown = sorted(name for name in given if not node.has_parameter(name) and not name.startswith("qos_overrides."))
    if unknown:
        raise SettingsError(
            "unknown parameter " + ", ".join(f"'{name}'" for name in unknown), remedy=f"known parameters: {', '.join(fields())}"
        )
