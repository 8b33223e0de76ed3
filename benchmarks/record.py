"""What a benchmark found, in one form for all of them: tables, aims, curves; printed as Markdown, kept as JSON.

`asymvpr bench` runs the benchmarks, each in a process of its own, and makes docs/performance.md of these files.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import describe

from asymvpr_core.bench.report import draw
from asymvpr_core.bench.results import Aim, BenchmarkResult, Curves, Table, to_markdown


class Record:
    """Collects the result of one benchmark; `finish` prints and writes it."""

    def __init__(self, name: str, title: str, protocol: str, *packages: str):
        self._result = BenchmarkResult(
            name=name, title=title, protocol=" ".join(protocol.split()), command=_command(name),
            made_with=describe("numpy", *packages),
        )  # fmt: skip

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
        """Add a table; numbers are written as they come, so round them where they say too much."""
        self._result.tables.append(
            Table(title=title, columns=list(columns), rows=[[_cell(cell) for cell in row] for row in rows], note=note)
        )

    def aim(self, what: str, value: float | None, limit: float, *, at_most: bool) -> None:
        """Add a measured ratio beside what it should be; None where it could not be measured."""
        self._result.aims.append(Aim(what=what, value=value, limit=limit, at_most=at_most))

    def curves(self, title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, float]]], *, logarithmic: bool = True) -> None:
        """Add a plot of (x, y) points for each name."""
        points = {name: [(float(a), float(b)) for a, b in values] for name, values in series.items()}
        self._result.curves.append(Curves(title=title, x=x, y=y, series=points, logarithmic=logarithmic))

    def draw(self, folder: Path) -> None:
        """Draw all curves into `folder`, as `<benchmark>_<title>.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        for curves in self._result.curves:
            draw(curves, folder / f"{self._result.name}_{curves.title.lower().replace(' ', '_')}.png")

    def values(self, **values: Any) -> None:
        """Keep raw values in the JSON file."""
        self._result.values.update(values)

    def finish(self, out: Path | None) -> int:
        """Print the Markdown and write the JSON file; 0, the exit code."""
        print(to_markdown(self._result))
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(self._result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return 0


def interleaved(methods: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each method returns (seconds, mostly), `rounds` times in turn, every other time in reverse; one round before is not counted.

    On a shared machine a busy moment then meets all methods, so that their ratios stay right.
    """
    names = list(methods)
    for name in names:
        methods[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(methods[name]())
    return found


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """`median (smallest to largest)`."""
    low, middle, high = (f"{scale * v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def _command(name: str) -> str:
    """The command line, without where the result goes."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return " ".join(["python", f"benchmarks/{name}.py", *words])


def _cell(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def child_json(text: str) -> Any:
    """The JSON object on the last line of what a child process printed."""
    return json.loads(text.strip().splitlines()[-1])
