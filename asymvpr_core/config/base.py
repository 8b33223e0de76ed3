"""What all settings have in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused, numbers finite, every field described."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_off(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {name: "off" if name in fields and is_yaml_off(fields[name], value) else value for name, value in values.items()}


def is_yaml_off(field: FieldInfo, value: Any) -> bool:
    """Whether `value` is the false that YAML 1.1 makes of an unquoted `off`, where "off" is a choice of `field`."""
    return value is False and "off" in get_args(field.annotation)
