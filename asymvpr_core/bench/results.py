"""The result of a benchmark, as its script writes it and the report reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from asymvpr_core.errors import EvaluationError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Table(_Part):
    """Measured values as text, ready to print."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


class Aim(_Part):
    """A measured ratio and its limit; `value` is None where it could not be measured here."""

    what: str
    value: float | None
    limit: float
    at_most: bool

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None where nothing was measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


class Curves(_Part):
    """Points (x, y) by name, on logarithmic axes where `logarithmic`."""

    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float, float]]]
    logarithmic: bool = True


class BenchmarkResult(_Part):
    """Everything that one benchmark found, and with what."""

    name: str
    title: str
    protocol: str
    command: str
    made_with: dict[str, Any]
    tables: list[Table] = []
    aims: list[Aim] = []
    curves: list[Curves] = []
    values: dict[str, Any] = {}


def read_result(path: Path) -> BenchmarkResult:
    """The result in the file `path`. Raises EvaluationError where it is missing, or is no such file."""
    try:
        return BenchmarkResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} is no result of a benchmark", remedy="run it again with 'asymvpr bench'") from error


def to_markdown(result: BenchmarkResult, *, level: int = 2, pictures: dict[str, str] | None = None) -> str:
    """The result as Markdown, from a heading of `level` on; `pictures` are addresses of plots by the title of their curves."""
    made = result.made_with
    lines = [f"{'#' * level} {result.title}", "", f"    {result.command}", "", result.protocol, ""]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    load = made.get("load_average", [0.0])[0]
    lines += [f"Commit {made['commit']}; {made['processor']}, {made['cores']} cores, load {load:g} at the end; {versions}.", ""]
    for table in result.tables:
        lines += [f"**{table.title}**", "", _row(table.columns), "|---" * len(table.columns) + "|", *map(_row, table.rows), ""]
        lines += [table.note, ""] if table.note else []
    if result.aims:
        lines += [aims_table([(result, aim) for aim in result.aims], named=False), ""]
    for curves in result.curves:
        if pictures and curves.title in pictures:
            lines += [f"![{curves.title}]({pictures[curves.title]})", ""]
    return "\n".join(lines).rstrip() + "\n"


def aims_table(aims: list[tuple[BenchmarkResult, Aim]], *, named: bool = True) -> str:
    """What was measured beside what was aimed at, as a Markdown table; `named`: with the benchmark of each."""
    rows = [_row(["aim", "measured", "limit", "met", *(["benchmark"] if named else [])]), "|---" * (5 if named else 4) + "|"]
    for result, aim in aims:
        value = "–" if aim.value is None else f"{aim.value:.3g}"
        met = {True: "yes", False: "**no**", None: "not measured"}[aim.met]
        cells = [aim.what, value, f"{'≤' if aim.at_most else '≥'} {aim.limit:g}", met]
        rows.append(_row([*cells, *([f"`{result.name}`"] if named else [])]))
    return "\n".join(rows)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
