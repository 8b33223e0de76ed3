"""Settings as resolved: flag, section of the YAML file, recipe, default, in that order; unknown names are refused at every depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from asymvpr_core.config import SECTIONS, Settings
from asymvpr_core.errors import SettingsError

S = TypeVar("S", bound=Settings)

# A settings file of all sections has some hundred values, five deep. A file of a kilobyte whose aliases stand for aliases
# would otherwise be printed in an error as gigabytes.
_MOST_PARTS, _MOST_DEPTH = 10_000, 50


def recipe_file(name: str) -> Path:
    """Settings file of a named training recipe.

    Raises:
        SettingsError: unknown name; lists the known ones.
    """
    folder = Path(__file__).parent / "training" / "recipes"
    path = folder / f"{name}.yaml"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise SettingsError(f"unknown recipe '{name}'", remedy=f"known recipes: {', '.join(known)}")
    return path


def make_settings(kind: type[S], /, file: Path | None = None, *, recipe: str | None = None, **flags: Any) -> S:
    """Resolve settings of `kind`: flag (where not None) > section of the YAML file > recipe > default.

    All sections of the file are checked, so that a misspelt name is refused whichever stage reads it first.

    Raises:
        SettingsError: unknown section, unknown key at any depth, wrong type, value out of range, unreadable file.
    """
    values = {} if recipe is None else _section(kind, recipe_file(recipe))
    if file is not None:
        values |= _section(kind, file)
    return _resolve(kind, values, flags)


def _section(kind: type[S], file: Path) -> dict[str, Any]:
    """The values that a settings file holds for `kind`, after all its sections were checked."""
    used: dict[str, Any] = {}
    for name, values in _read_yaml(file).items():
        if name not in SECTIONS:
            raise SettingsError(f"settings file {file}: unknown section '{name}'", remedy=f"known sections: {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise SettingsError(f"settings file {file}: section '{name}' is {_shown(values)}", expected="a mapping of settings")
        try:
            _resolve(SECTIONS[name], values, {})
        except SettingsError as error:
            raise SettingsError(f"settings file {file}: {error.found}", expected=error.expected, remedy=error.remedy) from error
        if SECTIONS[name] is kind:
            used = values
    return used


def _resolve(kind: type[S], values: dict[str, Any], flags: dict[str, Any]) -> S:
    merged = values | {name: value for name, value in flags.items() if value is not None}
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        unknown = next((item["loc"][:-1] for item in error.errors() if item["type"] == "extra_forbidden"), None)
        remedy = None if unknown is None else f"known: {', '.join(_settings_at(kind, unknown).model_fields)}"
        raise SettingsError(_describe(kind, error), remedy=remedy) from error


def _settings_at(kind: type[Settings], location: tuple[int | str, ...]) -> type[Settings]:
    """The class of the settings nested in `kind` at `location`."""
    for name in location:
        annotation = kind.model_fields[str(name)].annotation
        kind = next(part for part in (annotation, *get_args(annotation)) if isinstance(part, type) and issubclass(part, Settings))
    return kind


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {file} cannot be read: {error.strerror}", remedy="give a readable YAML file") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"settings file {file} is no text file", expected="a YAML file in UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that YAML's syntax allows and Python refuses
        raise SettingsError(f"settings file {file} is not YAML: {' '.join(str(error).split())}", remedy="correct the file") from error
    except RecursionError as error:
        raise SettingsError(f"settings file {file} is nested too deep", remedy="correct the file") from error
    if _parts(values) > _MOST_PARTS:
        found = f"settings file {file} has more than {_MOST_PARTS} parts once its aliases are put in, or they lead in a circle"
        raise SettingsError(found, remedy="write the values out")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"settings file {file} holds a {type(values).__name__}", expected="sections of settings")
    return values


def _parts(value: Any, depth: int = 0, known: dict[int, int] | None = None) -> int:
    """How many values there are with every alias written out; above `_MOST_PARTS` where there are more, or no end."""
    known = {} if known is None else known
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    if depth > _MOST_DEPTH:
        return _MOST_PARTS + 1
    if id(value) not in known:
        # An alias is the same object again: counted once, and nine lists of nine aliases each cost nothing here.
        known[id(value)] = _MOST_PARTS + 1  # what it is where it holds itself
        known[id(value)] = 1 + sum(_parts(one, depth + 1, known) for one in inner)
    return known[id(value)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _describe(kind: type[Settings], error: ValidationError) -> str:
    problems = []
    items = error.errors()
    for item in items:
        depth = len(item["loc"])
        if any(other["loc"][:depth] == item["loc"] and len(other["loc"]) > depth for other in items):
            continue  # "k is too short" because its only element was refused
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown setting '{name}'")
        else:
            problems.append(f"setting '{name}' is {_shown(item['input'])}: {item['msg'].lower()}")
    return f"{kind.__name__}: " + "; ".join(problems)
