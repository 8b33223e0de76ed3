"""The report of several pairings on one query set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.evaluation.boards import board_sections
from asymvpr_core.evaluation.comparison_report import comparison_section, conditions_table, systems_table
from asymvpr_core.evaluation.ground_truth import has_positions, positions_m
from asymvpr_core.evaluation.plots import plot_precision_recall, plot_recall
from asymvpr_core.evaluation.recall_report import map_section, protocol_rows, warnings_block
from asymvpr_core.evaluation.report import Block, Column, Figure, Section, Table, number, render_report
from asymvpr_core.evaluation.retrieval_metrics import sweep_of

if TYPE_CHECKING:
    from asymvpr_core.evaluation.pairings import PairingsResult


def write_pairings_report(out_html: Path, result: PairingsResult, settings: EvaluationSettings) -> None:
    """Write the report of all pairings; map and boards are those of the first.

    Raises:
        EvaluationError: the file cannot be written.
    """
    metrics = result.metrics
    sections = _judged(result, settings) if result.benchmark.rule is not None else [_not_judged(metrics)]
    first, benchmark = result.systems[0], result.benchmark
    shown = []
    if first.judged and has_positions(benchmark):
        shown.append(map_section(first, benchmark.queries.records, positions_m(benchmark.database.records)))
    shown += board_sections(first, benchmark.queries, benchmark.database, settings)
    for section in shown:
        sections.append(Section(section.title, section.blocks, f"{first.name}. {section.intro}".strip()))
    sections.append(_protocol(metrics))
    subtitle = f"{len(result.systems)} pairings on {metrics['queries']['path']} against {metrics['references']['path']}"
    # Of two sources the name says little: they are in the subtitle.
    title = benchmark.title if benchmark.layout not in ("gallery", "two_sources") else "pairings" if first.judged else "predictions"
    render_report(out_html, f"Place recognition: {title}", sections, subtitle=subtitle)


def _judged(result: PairingsResult, settings: EvaluationSettings) -> list[Section]:
    metrics = result.metrics
    curves = [(system.name, sweep_of(system)) for system in result.systems]
    ranks = {system.name: system.hits[system.evaluable] for system in result.systems}
    sections = [
        _summary(metrics, settings),
        Section("Curves", [
            Figure(plot_recall(ranks), "Recall@K over K of every pairing.", "Recall@K, for every K up to the largest one asked for."),
            Figure(plot_precision_recall(curves), "Precision over recall of every pairing.", "Best match of each query, any threshold."),
        ]),
    ]  # fmt: skip
    if result.comparison:
        sections.append(comparison_section(result.comparison, list(metrics["systems"])))
    for name, values in metrics["systems"].items():
        if len(values["by_condition"]) > 1:
            sections.append(Section(f"Conditions: {name}", [conditions_table(values["by_condition"], settings.k)]))
    return sections


def _summary(metrics: dict[str, Any], settings: EvaluationSettings) -> Section:
    some = next(iter(metrics["systems"].values()))
    n_with = some["n_queries"] - some["n_without_positive"]
    intro = (
        f"{n_with} of {some['n_queries']} queries have a correct match among {metrics['n_gallery']} gallery images. "
        f"Correct: {metrics['protocol']['correct_match']}."
    )
    return Section("Summary", [systems_table(metrics["systems"], settings), *_notes(metrics)], intro)


def _not_judged(metrics: dict[str, Any]) -> Section:
    """What was searched, and how high the best scores are; no number here says how good a system is."""
    columns = (Column("system", numeric=False), Column("queries"), Column("score of the best answer, median"), Column("5 % to 95 %"))
    rows = tuple(
        (f"{number_of_system}.\u00a0{name}", str(values["n_queries"]), number(values["best_score"]["p50"], 3),
         f"{number(values['best_score']['p5'], 3)} to {number(values['best_score']['p95'], 3)}")
        for number_of_system, (name, values) in enumerate(metrics["systems"].items(), start=1)
    )  # fmt: skip
    text = metrics["protocol"]["judged"]
    intro = f"{text[0].upper()}{text[1:]}. {metrics['n_gallery']} gallery images were searched."
    return Section("Predictions", [Table(rows, columns), *_notes(metrics)], intro)


def _notes(metrics: dict[str, Any]) -> list[Block]:
    return [warnings_block(metrics["warnings"])] if metrics["warnings"] else []


def _protocol(metrics: dict[str, Any]) -> Section:
    rows = protocol_rows(metrics["protocol"])
    for name, values in metrics["systems"].items():
        query, gallery = values["query_side"], values["gallery_side"]
        against = "the gallery's stored descriptors" if isinstance(gallery, str) else f"{gallery['name']}, {gallery['dimension']}-D"
        rows.append((name, f"queries by {query['name']}, {query['dimension']}-D; gallery by {against}"))
    rows += [("queries", metrics["queries"]["path"]), ("gallery images", metrics["references"]["path"])]
    return Section("Protocol", [Table(tuple(rows))])
