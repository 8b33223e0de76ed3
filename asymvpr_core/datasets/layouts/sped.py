"""SPED: 607 pictures of fixed surveillance cameras, and the same cameras at another time."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark import Benchmark, Layout, PublishedCounts
from asymvpr_core.datasets.layouts.pairs import count_images, open_pairs

NAME = "sped"


def open_sped(path: Path, settings: BenchmarkSettings) -> Benchmark:
    """`query/` and `ref/`, as VPR-Bench publishes them; the pair has the same name."""
    return open_pairs(path, settings, NAME, "ref", "query", PublishedCounts(queries=607, database=607))


def _recognises(path: Path) -> bool:
    # Nordland of VPR-Bench has the same folders, with ten references a query.
    return 0 < count_images(path / "query") == count_images(path / "ref")


LAYOUT = Layout(NAME, "query/ and ref/ of equally many images, pairs by name", _recognises, open_sped)
