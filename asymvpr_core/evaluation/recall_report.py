"""The report of a Recall@K evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.evaluation.picture_pairs import N_PAIRS, PairChoice, choose_apart, load_pairs
from asymvpr_core.evaluation.plots import BAD, GOOD, NEUTRAL, PointGroup, PointStyle, plot_map, plot_precision_recall, plot_score_distance
from asymvpr_core.evaluation.report import (
    Block,
    Column,
    Figure,
    ImagePairs,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    number,
    percent,
    render_report,
)
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.types import ImageRecord

if TYPE_CHECKING:
    from asymvpr_core.evaluation.recall import RecallResult

# Wrong best matches are many here and mostly far: points without the lines that a run's map has.
_WRONG = PointStyle(BAD.colour, BAD.marker, 34, BAD.order)
_BEST = "Query left, its best match right. Highest scores among the correct ones."
_WORST = "Query left, its best match right. Highest scores among the wrong ones."


def write_recall_report(out_html: Path, result: RecallResult, gallery: Gallery, queries: Dataset) -> None:
    """Write the report of one query set.

    Raises:
        EvaluationError: the file cannot be written.
    """
    metrics = result.metrics
    groups = _groups(result, gallery, queries)
    radius_m = metrics["protocol"]["radius_m"]
    encoder = metrics["encoder"]
    sections = [
        _summary(result),
        Section(
            "Map",
            [Figure(
                plot_map(groups, gallery.positions[:, :2]), "Map of the queries, coloured by outcome.",
                "A line leads from a correctly matched query to its match. Queries at one position are drawn apart, along their headings.",
            )],
            "Each query at its true position, coloured by whether its best match is correct.",
        ),
        Section("Precision and recall", [
            Figure(
                plot_precision_recall([(encoder["name"], result.sweep)]), "Precision over recall of the best match, for every threshold.",
                "Best match of every query, for every threshold on its score.",
            ),
            Figure(
                plot_score_distance(groups, radius_m), "Score over distance of each query's best match.",
                "A good descriptor puts everything right of the dashed line below everything left of it.",
            ),
        ]),
        *_pair_sections(result, gallery, queries),
        _protocol(result),
    ]  # fmt: skip
    subtitle = f"{encoder['name']} on {metrics['queries']['path']} against {metrics['gallery']['path']}"
    render_report(out_html, "Place recognition: Recall@K", sections, subtitle=subtitle)


def _summary(result: RecallResult) -> Section:
    metrics = result.metrics
    n_with = metrics["n_queries"] - metrics["n_without_positive"]
    figures = [KeyFigure(f"Recall@{k}", percent(value), "%", f"of {n_with} queries") for k, value in metrics["recall_at_k"].items()]
    figures += [
        KeyFigure("average precision", number(metrics["average_precision"], 3)),
        KeyFigure("recall at 100 % precision", percent(metrics["recall_at_full_precision"]), "%"),
        KeyFigure("position error, median", number(metrics["median_position_error_m"], 1), "m", "of the best match"),
    ]
    rows = (
        ("queries", str(metrics["n_queries"]), ""),
        ("queries without a correct match in the gallery", str(metrics["n_without_positive"]), "not in Recall@K"),
        ("gallery images", str(metrics["n_gallery"]), ""),
        ("threshold at 100 % precision", number(metrics["full_precision_threshold"], 3), "cosine"),
    )
    blocks: list[Block] = [
        KeyFigures(tuple(figures)),
        Table(rows, (Column("quantity", numeric=False), Column("value"), Column("unit", numeric=False))),
    ]
    return Section("Summary", blocks)


def _groups(result: RecallResult, gallery: Gallery, queries: Dataset) -> list[PointGroup]:
    evaluable = np.array([len(positive) > 0 for positive in result.positives])
    xy = spread_by_heading(queries.records)
    matched = gallery.positions[result.indices[:, 0], :2]
    wrong = evaluable & ~result.correct
    outcomes = (("correct", GOOD, result.correct), ("wrong", _WRONG, wrong), ("no correct match exists", NEUTRAL, ~evaluable))
    return [
        PointGroup(label, style, xy[mask], matched[mask], result.scores[mask, 0], result.distances_m[mask])
        for label, style, mask in outcomes
        if mask.any()
    ]


def spread_by_heading(records: Sequence[ImageRecord]) -> np.ndarray:
    """(Q, 2) positions to draw [m]: images that share a position move apart along their headings, by 1.5 % of the map."""
    xy = np.array([record.pose.position[:2] for record in records if record.pose is not None])
    _, inverse, counts = np.unique(xy.round(2), axis=0, return_inverse=True, return_counts=True)
    shift_m = 0.015 * float(np.ptp(xy, axis=0).max())
    for i in np.flatnonzero(counts[inverse.ravel()] > 1).tolist():
        heading_deg = records[i].heading_deg
        if heading_deg is not None:
            heading_rad = np.radians(heading_deg)
            xy[i] += shift_m * np.array([np.sin(heading_rad), np.cos(heading_rad)])
    return xy


def _pair_sections(result: RecallResult, gallery: Gallery, queries: Dataset) -> list[Section]:
    by_score = np.argsort(-result.scores[:, 0], kind="stable").tolist()
    right = choose_apart([i for i in by_score if result.correct[i]], N_PAIRS, 1)
    wrong = choose_apart([i for i in by_score if not result.correct[i]], N_PAIRS, 1)
    pairs = load_pairs([_choice(i, result) for i in (*right, *wrong)], queries, gallery)
    best, worst = tuple(pairs[: len(right)]), tuple(pairs[len(right) :])
    sections = []
    if best:
        sections.append(Section("Best matches", [ImagePairs(best, _BEST)]))
    if worst:
        sections.append(Section("Worst matches", [ImagePairs(worst, _WORST)]))
    return sections


def _choice(index: int, result: RecallResult) -> PairChoice:
    facts = (("score", f"{result.scores[index, 0]:.3f}"), ("distance", f"{result.distances_m[index]:.1f} m"))
    if result.correct[index]:
        verdict, tone = "Correct", "good"
    elif len(result.positives[index]):
        verdict, tone = "Wrong", "bad"
    else:
        verdict, tone = "Wrong: the gallery holds no correct match", "warn"
    return PairChoice(index, int(result.indices[index, 0]), verdict, tone, f"query {index}", facts)  # type: ignore[arg-type]


def _protocol(result: RecallResult) -> Section:
    metrics = result.metrics
    protocol, gallery, encoder = metrics["protocol"], metrics["gallery"], metrics["encoder"]
    rows = (
        ("correct match", protocol["correct_match"]),
        ("similarity", protocol["similarity"]),
        ("recall at K", protocol["recall_at_k"]),
        ("average precision", protocol["average_precision"]),
        ("position error", protocol["median_position_error_m"]),
        ("gallery", f"{gallery['path']}: {gallery['n_keyframes']} images, {gallery['network']}, {gallery['dimension']}-D"),
        ("query side", f"{encoder['kind']} {encoder['name']}, pair {encoder['pair_id']}"),
        ("queries", metrics["queries"]["path"]),
    )
    return Section("Protocol", [Table(rows)])
