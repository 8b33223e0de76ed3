"""AmsterTime: historical photographs of Amsterdam and the same places today."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark import Benchmark, Layout, PublishedCounts
from asymvpr_core.datasets.layouts.pairs import open_pairs

NAME = "amstertime"


def open_amstertime(path: Path, settings: BenchmarkSettings) -> Benchmark:
    """`old/` are the queries, `new/` the database; the pair has the same name but for the suffix."""
    return open_pairs(path, settings, NAME, "new", "old", PublishedCounts(queries=1231, database=1231))


def _recognises(path: Path) -> bool:
    return (path / "old").is_dir() and (path / "new").is_dir()


LAYOUT = Layout(NAME, "old/ (queries) and new/ (database), pairs by name", _recognises, open_amstertime)
