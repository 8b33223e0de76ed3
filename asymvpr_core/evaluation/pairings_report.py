"""The report of several pairings on one query set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.evaluation.boards import board_sections
from asymvpr_core.evaluation.comparison_report import comparison_section, conditions_table, systems_table
from asymvpr_core.evaluation.plots import plot_precision_recall, plot_recall
from asymvpr_core.evaluation.recall_report import map_section, protocol_rows
from asymvpr_core.evaluation.report import Figure, Section, Table, render_report
from asymvpr_core.evaluation.retrieval_metrics import sweep_of

if TYPE_CHECKING:
    from asymvpr_core.evaluation.pairings import PairingsResult


def write_pairings_report(out_html: Path, result: PairingsResult, queries: Dataset, settings: EvaluationSettings) -> None:
    """Write the report of all pairings; map and boards are those of the first.

    Raises:
        EvaluationError: the file cannot be written.
    """
    metrics, first = result.metrics, result.systems[0]
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
        if values["by_condition"]:
            sections.append(Section(f"Conditions: {name}", [conditions_table(values["by_condition"], settings.k)]))
    positions = np.array([record.pose.position for record in result.references.records if record.pose is not None])
    shown = [map_section(first, queries.records, positions), *board_sections(first, queries, result.references, settings)]
    for section in shown:
        sections.append(Section(section.title, section.blocks, f"{first.name}. {section.intro}".strip()))
    sections.append(_protocol(metrics))
    subtitle = f"{len(result.systems)} pairings on {metrics['queries']['path']} against {metrics['references']['path']}"
    render_report(out_html, "Place recognition: pairings", sections, subtitle=subtitle)


def _summary(metrics: dict[str, Any], settings: EvaluationSettings) -> Section:
    some = next(iter(metrics["systems"].values()))
    n_with = some["n_queries"] - some["n_without_positive"]
    intro = (
        f"{n_with} of {some['n_queries']} queries have a correct match among {metrics['n_gallery']} gallery images. "
        f"Correct: {metrics['protocol']['correct_match']}."
    )
    return Section("Summary", [systems_table(metrics["systems"], settings.k)], intro)


def _protocol(metrics: dict[str, Any]) -> Section:
    rows = protocol_rows(metrics["protocol"])
    for name, values in metrics["systems"].items():
        query, gallery = values["query_side"], values["gallery_side"]
        against = "the gallery's stored descriptors" if isinstance(gallery, str) else f"{gallery['name']}, {gallery['dimension']}-D"
        rows.append((name, f"queries by {query['name']}, {query['dimension']}-D; gallery by {against}"))
    rows += [("queries", metrics["queries"]["path"]), ("gallery images", metrics["references"]["path"])]
    return Section("Protocol", [Table(tuple(rows))])
