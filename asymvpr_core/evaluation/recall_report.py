"""The report of a Recall@K evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.datasets.benchmark import Benchmark
from asymvpr_core.evaluation.boards import board_sections
from asymvpr_core.evaluation.comparison_report import comparison_section, conditions_table, systems_table
from asymvpr_core.evaluation.ground_truth import positions_m
from asymvpr_core.evaluation.plots import BAD, GOOD, NEUTRAL, PointGroup, PointStyle, plot_map, plot_precision_recall, plot_score_distance
from asymvpr_core.evaluation.predictions import Predictions
from asymvpr_core.evaluation.report import (
    Block,
    Column,
    Figure,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    number,
    percent,
    render_report,
)
from asymvpr_core.evaluation.retrieval_metrics import sweep_of
from asymvpr_core.types import ImageRecord

if TYPE_CHECKING:
    from asymvpr_core.evaluation.recall import RecallResult

# Wrong best matches are many here and mostly far: points without the lines that a run's map has.
_WRONG = PointStyle(BAD.colour, BAD.marker, 34, BAD.order)


def write_recall_report(out_html: Path, result: RecallResult, benchmark: Benchmark, settings: EvaluationSettings) -> None:
    """Write the report of one query set.

    Raises:
        EvaluationError: the file cannot be written.
    """
    metrics, queries = result.metrics, benchmark.queries
    gallery_positions = positions_m(benchmark.database.records)
    encoder = metrics["encoder"]
    sections = [_summary(metrics)]
    if len(metrics["by_condition"]) > 1:
        sections.append(Section("Conditions", [conditions_table(metrics["by_condition"], settings.k)]))
    sections += [map_section(result.predictions, queries.records, gallery_positions)]
    sections += [_precision_recall(result, queries.records, gallery_positions)]
    if result.sequence is not None:
        sections.append(_sequence(result))
    if result.comparison:
        systems = {encoder["name"]: metrics} | metrics["compared"]
        sections += [Section("Compared", [systems_table(systems, settings)]), comparison_section(result.comparison, list(systems))]
    sections += [*board_sections(result.predictions, queries, benchmark.database, settings), _protocol(metrics)]
    subtitle = f"{encoder['name']} on {metrics['queries']['path']} against {metrics['gallery']['path']}"
    render_report(out_html, "Place recognition: Recall@K", sections, subtitle=subtitle)


def _summary(metrics: dict[str, Any]) -> Section:
    n_with = metrics["n_queries"] - metrics["n_without_positive"]
    bounds = metrics["intervals"]

    def between(name: str, digits: int = 1, scale: float = 100.0) -> str:
        if name not in bounds:
            return ""
        return f"{metrics['protocol']['confidence_percent']:g} %: " + " to ".join(f"{scale * value:.{digits}f}" for value in bounds[name])

    figures = [KeyFigure(f"Recall@{k}", percent(value), "%", between(f"recall@{k}")) for k, value in metrics["recall_at_k"].items()]
    figures += [
        KeyFigure("average precision", number(metrics["average_precision"], 3), "", between("average_precision", 3, 1.0)),
        KeyFigure("recall at 100 % precision", percent(metrics["recall_at_full_precision"]), "%", between("recall_at_full_precision")),
        KeyFigure("position error, median", number(metrics["median_position_error_m"], 1), "m", "of the best match"),
    ]
    rows = (
        ("queries", str(metrics["n_queries"]), ""),
        ("of these without a correct match in the gallery", str(metrics["n_without_positive"]), "not in Recall@K"),
        ("gallery images", str(metrics["n_gallery"]), ""),
        *[(f"Recall@{k} over all queries", percent(v), "%") for k, v in metrics["recall_at_k_of_all_queries"].items()
          if metrics["n_without_positive"]],
        ("recall at 99 % precision", percent(metrics["recall_at_99_precision"]), "%"),
        ("threshold at 100 % precision", number(metrics["full_precision_threshold"], 3), "cosine"),
        ("largest F1", number(metrics["max_f1"], 3), ""),
        ("threshold at the largest F1", number(metrics["max_f1_threshold"], 3), "cosine"),
        ("average precision of the best match", number(metrics["average_precision_of_best_match"], 3), "recall over correct matches"),
        ("area below that curve", number(metrics["area_of_best_match"], 3), ""),
    )  # fmt: skip
    blocks: list[Block] = [
        KeyFigures(tuple(figures)),
        Table(rows, (Column("quantity", numeric=False), Column("value"), Column("", numeric=False))),
    ]
    if metrics["warnings"]:
        blocks.append(warnings_block(metrics["warnings"]))
    return Section("Summary", blocks, f"Over {n_with} queries. Correct: {metrics['protocol']['correct_match']}.")


def warnings_block(warnings: Sequence[str]) -> Text:
    """What makes the numbers mean less than they seem to."""
    return Text(tuple(f"Note: {warning}." for warning in warnings))


def map_section(predictions: Predictions, queries: Sequence[ImageRecord], gallery_positions: np.ndarray) -> Section:
    """Where the queries lie, coloured by what became of them."""
    groups = outcome_groups(predictions, queries, gallery_positions)
    counts = ", ".join(f"{len(group.xy)} {group.label}" for group in groups)
    figure = Figure(
        plot_map(groups, gallery_positions[:, :2]), f"Map of the queries: {counts}.",
        "A line leads from a correctly matched query to its match. Queries at one position are drawn apart, along their headings.",
    )  # fmt: skip
    return Section("Map", [figure], "Each query at its true position, coloured by whether its best match is correct.")


def outcome_groups(predictions: Predictions, queries: Sequence[ImageRecord], gallery_positions: np.ndarray) -> list[PointGroup]:
    """Queries by outcome, as the plots take them; outcomes without a query are left out."""
    xy = spread_by_heading(queries)
    matched = gallery_positions[predictions.indices[:, 0], :2]
    wrong = predictions.evaluable & ~predictions.correct
    outcomes = (
        ("correct", GOOD, predictions.correct),
        ("wrong", _WRONG, wrong),
        ("no correct match exists", NEUTRAL, ~predictions.evaluable),
    )
    return [
        PointGroup(label, style, xy[mask], matched[mask], predictions.scores[mask, 0], predictions.distances_m[mask])
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


def _precision_recall(result: RecallResult, queries: Sequence[ImageRecord], gallery_positions: np.ndarray) -> Section:
    curves = [(result.predictions.name, result.sweep), *[(other.name, sweep_of(other)) for other in result.compared]]
    groups = outcome_groups(result.predictions, queries, gallery_positions)
    return Section("Precision and recall", [
        Figure(
            plot_precision_recall(curves), "Precision over recall of the best match, for every threshold.",
            "Best match of every query, for every threshold on its score.",
        ),
        Figure(
            plot_score_distance(groups, result.metrics["protocol"]["radius_m"]), "Score over distance of each query's best match.",
            "A good descriptor puts everything right of the dashed line below everything left of it.",
        ),
    ])  # fmt: skip


def _sequence(result: RecallResult) -> Section:
    run = result.sequence
    assert run is not None  # asked by the caller
    values, settings = run.statistics, run.statistics["matcher"]
    vote = settings["sequence"] == "vote"
    label = f"with a vote of {settings['min_votes']} in {settings['sequence_length']}" if vote else "without a vote"
    figures = KeyFigures((
        KeyFigure("accepted", str(values["n_accepted"]), "", f"of {len(run.accepted)} frames"),
        KeyFigure(
            "precision of accepted", percent(values["precision_of_accepted"]), "%", f"{values['n_false']} false",
            "neutral" if not values["n_accepted"] else "bad" if values["n_false"] else "good",
        ),
        KeyFigure("recall of accepted", percent(values["recall_of_accepted"]), "%", f"of {values['n_opportunities']} opportunities"),
    ))  # fmt: skip
    columns = (Column("", numeric=False), Column("average precision"), Column("recall at 100 % precision", "%"),
               Column("recall at 99 % precision", "%"), Column("max F1"))  # fmt: skip
    rows = tuple(
        (name, number(v["average_precision"], 3), percent(v["recall_at_full_precision"]), percent(v["recall_at_99_precision"]),
         number(v["max_f1"], 3))
        for name, v in (("single frame", values["single_frame"]), (label, values["with_vote"]))
    )  # fmt: skip
    curve = plot_precision_recall([(label, run.sweep), ("single frame", run.single_frame)], run.operating_point)
    intro = (
        f"The queries as consecutive frames through the robot's matcher {label}, threshold {settings['score_threshold']:g}. "
        f"Curves: {values['protocol']['sweep']}."
    )
    text = "Precision over recall with agreement over time and of the single frame, for every threshold; diamond: what was accepted."
    return Section("Sequence", [figures, Table(rows, columns), Figure(curve, text)], intro)


def _protocol(metrics: dict[str, Any]) -> Section:
    protocol, gallery, encoder = metrics["protocol"], metrics["gallery"], metrics["encoder"]
    rows = [
        *protocol_rows(protocol),
        ("gallery", f"{gallery['path']}: {gallery['n_keyframes']} images, {gallery['network']}, {gallery['dimension']}-D"),
        ("query side", f"{encoder['kind']} {encoder['name']}, pair {encoder['pair_id']}"),
        ("queries", metrics["queries"]["path"]),
    ]
    return Section("Protocol", [Table(tuple(rows))])


def protocol_rows(protocol: dict[str, Any]) -> list[tuple[str, str]]:
    """Every rule of a protocol in words; numbers and lists are settings that the rules name."""
    return [(name.replace("_", " "), value) for name, value in protocol.items() if isinstance(value, str) and name != "task"]
