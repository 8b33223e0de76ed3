"""What a dataset or benchmark holds and what is wrong with it, in a few lines or as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asymvpr_core.datasets.benchmark import Benchmark
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.identical_files import identical_files
from asymvpr_core.datasets.plausibility import implausible_positions, implausible_sides
from asymvpr_core.datasets.utm import area_numbers
from asymvpr_core.progress import Progress, silent

_SHOWN = 5


@dataclass(frozen=True)
class SideReport:
    """One set of images.

    `extent_m` is width and height [m] of the box around all positions, of the largest box where
    they lie in `areas` separate areas; None without positions. `duplicates` are images beyond the
    first of each group of identical files, None where files were not compared. `places` is the number
    of place ids, None without them; `conditions` counts the images of each.
    """

    role: str
    root: str
    layout: str
    map_frame: str
    images: int
    missing: int
    first_missing: tuple[str, ...]
    duplicates: int | None
    without_position: int
    with_heading: int
    areas: int
    extent_m: tuple[float, float] | None
    places: int | None
    conditions: dict[str, int]


@dataclass(frozen=True)
class GroundTruthReport:
    """Correct matches by the benchmark's rule; mean, min and max are over all queries."""

    rule: str
    pairs: int
    mean: float
    min: int
    max: int
    queries_without: int
    first_without: tuple[str, ...]


@dataclass(frozen=True)
class DatasetReport:
    """Counts and warnings; `queries_in_database` are queries whose file is also in the database, None where not compared."""

    title: str
    sides: tuple[SideReport, ...]
    ground_truth: GroundTruthReport | None
    queries_in_database: int | None
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as numbers and texts for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as text, a warning a line at the end."""
        lines = [self.title]
        for side in self.sides:
            lines += [f"  {name:12} {text}" for name, text in _side_rows(side)]
        if self.ground_truth is not None:
            truth = self.ground_truth
            lines.append(f"  {'correct':12} {truth.rule}")
            if truth.pairs:
                lines.append(f"  {'matches':12} {truth.pairs} in all; a query has {truth.mean:.2f} on average, {truth.min} to {truth.max}")
            lines.append(f"  {'without':12} {truth.queries_without} queries have no correct match{_named(truth.first_without)}")
        elif len(self.sides) > 1:
            lines.append(f"  {'correct':12} no ground truth: predictions only")
        if self.queries_in_database is not None:
            lines.append(f"  {'shared':12} {self.queries_in_database} queries are files of the database too")
        return lines + [f"warning: {warning}" for warning in self.warnings]


def describe_dataset(dataset: Dataset, compare_files: bool = True, progress: Progress = silent) -> DatasetReport:
    """The report of one set of images; `compare_files` reads those of equal size to find duplicates."""
    groups = _identical([dataset], progress) if compare_files else None
    side = _side(dataset, "images", groups, 0)
    return DatasetReport(str(dataset.root), (side,), None, None, tuple(_side_warnings(side) + implausible_positions(dataset)))


def describe_benchmark(benchmark: Benchmark, compare_files: bool = True, progress: Progress = silent) -> DatasetReport:
    """The report of both sides and their ground truth.

    Raises:
        DatasetError: an image lacks the position or heading that the benchmark's rule needs.
    """
    datasets = [benchmark.database, benchmark.queries]
    groups = _identical(datasets, progress) if compare_files else None
    sides = tuple(_side(dataset, role, groups, i) for i, (dataset, role) in enumerate(zip(datasets, ("database", "queries"), strict=True)))
    truth = None if benchmark.rule is None else _ground_truth(benchmark)
    shared = None if groups is None else sum(len({s for s, _ in g}) == 2 and sum(s == 1 for s, _ in g) for g in groups)
    warnings = [text for side in sides for text in _side_warnings(side)]
    warnings += [f"{role}: {text}" for d, role in zip(datasets, ("database", "queries"), strict=True) for text in implausible_positions(d)]
    warnings += implausible_sides(*datasets) + _benchmark_warnings(benchmark, sides, truth, shared)
    return DatasetReport(f"{benchmark.title}, layout {benchmark.layout}", sides, truth, shared, tuple(warnings))


def _identical(datasets: list[Dataset], progress: Progress) -> list[list[tuple[int, int]]] | None:
    """Groups of identical files as (dataset, index); None where the images are no files."""
    if any(dataset.layout == "bag" for dataset in datasets):
        return None
    owners = [(s, i) for s, dataset in enumerate(datasets) for i in range(len(dataset.records))]
    paths = [datasets[s].root / datasets[s].records[i].name for s, i in owners]
    return [[owners[k] for k in group] for group in identical_files(paths, progress)]


def _side(dataset: Dataset, role: str, groups: list[list[tuple[int, int]]] | None, position: int) -> SideReport:
    records = dataset.records
    missing = tuple(getattr(dataset, "missing", ()))
    xy = np.array([record.pose.position[:2] for record in records if record.pose is not None], dtype=np.float64).reshape(-1, 2)
    areas, extent_m = _extent(xy)
    places = {record.place_id for record in records if record.place_id is not None}
    copies = None
    if groups is not None:
        copies = sum(max(0, sum(side == position for side, _ in group) - 1) for group in groups)
    return SideReport(
        role=role,
        root=str(dataset.root),
        layout=dataset.layout,
        map_frame=dataset.map_frame,
        images=len(records),
        missing=len(missing),
        first_missing=missing[:_SHOWN],
        duplicates=copies,
        without_position=len(records) - len(xy),
        with_heading=sum(record.heading_deg is not None for record in records),
        areas=areas,
        extent_m=extent_m,
        places=len(places) or None,
        conditions=dict(sorted(Counter(record.condition for record in records if record.condition).items())),
    )


def _extent(xy_m: np.ndarray) -> tuple[int, tuple[float, float] | None]:
    if not len(xy_m):
        return 0, None
    numbers = area_numbers(xy_m)
    boxes = [np.ptp(xy_m[numbers == number], axis=0) for number in np.unique(numbers)]
    width, height = max(boxes, key=lambda box: float(box[0] * box[1]))
    return len(boxes), (float(width), float(height))


def _ground_truth(benchmark: Benchmark) -> GroundTruthReport:
    counts = benchmark.positives.counts
    without = np.flatnonzero(counts == 0)
    return GroundTruthReport(
        rule=benchmark.rule_text,
        pairs=benchmark.positives.total,
        mean=float(counts.mean()),
        min=int(counts.min()),
        max=int(counts.max()),
        queries_without=len(without),
        first_without=tuple(benchmark.queries.records[i].name for i in without[:_SHOWN]),
    )


def _side_warnings(side: SideReport) -> list[str]:
    warnings = []
    if side.missing:
        warnings.append(f"{side.role}: {side.missing} images are listed and absent{_named(side.first_missing)}")
    if side.duplicates:
        warnings.append(f"{side.role}: {side.duplicates} images are copies of another one, byte for byte")
    if 0 < side.without_position < side.images:
        warnings.append(f"{side.role}: {side.without_position} of {side.images} images have no position")
    # Stand-in positions on a line (AmsterTime as VPR-datasets-downloader writes it) may be as long as they like.
    if side.extent_m is not None and max(side.extent_m) > 1_000_000.0 and min(side.extent_m) > 0.0:
        width, height = (f"{metres / 1000:.0f} km" for metres in side.extent_m)
        warnings.append(f"{side.role}: positions cover {width} x {height}: are easting and northing, or latitude and longitude, swapped?")
    return warnings


def _benchmark_warnings(
    benchmark: Benchmark, sides: tuple[SideReport, ...], truth: GroundTruthReport | None, shared: int | None
) -> list[str]:
    warnings = []
    database, queries = sides
    if database.images == 1:
        warnings.append("the database is one image: every query finds it, and recall means nothing")
    if shared:
        warnings.append(f"{shared} queries are files of the database too: a network finds those without recognising a place")
    if truth is not None and not truth.pairs:
        warnings.append("no query has a correct match: are both sides of one place, in one frame?")
    if benchmark.published is not None:
        found, expected = (queries.images, database.images), (benchmark.published.queries, benchmark.published.database)
        if found != expected:
            warnings.append(
                f"{found[0]} queries and {found[1]} database images; {benchmark.title} is published with {expected[0]} and "
                f"{expected[1]}: results are not comparable"
            )
    return warnings


def _side_rows(side: SideReport) -> list[tuple[str, str]]:
    places = "" if side.places is None else f", {side.places} places"
    heading = f", {side.with_heading} with heading" if side.with_heading else ""
    rows = [(side.role, f"{side.images} images{places}{heading}; layout {side.layout}, {side.root}")]
    if side.extent_m is not None:
        width, height = (f"{metres:.0f} m" if metres < 10_000.0 else f"{metres / 1000:.1f} km" for metres in side.extent_m)
        areas = f"{side.areas} areas, the largest " if side.areas > 1 else ""
        rows.append(("area", f"{areas}{width} x {height} in frame {side.map_frame or 'unknown'}"))
    if side.conditions:
        rows.append(("conditions", ", ".join(f"{name} {count}" for name, count in side.conditions.items())))
    if side.duplicates is not None:
        rows.append(("duplicates", str(side.duplicates)))
    return rows


def _named(names: tuple[str, ...]) -> str:
    return f": {', '.join(names)}" + (", …" if len(names) == _SHOWN else "") if names else ""
