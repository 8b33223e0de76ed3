"""The report of several recorded runs side by side: one table, curves of each bag, and the map of each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asymvpr_core.evaluation.bag_report import map_figure, outcome_groups, pair_sections, protocol_section, similarity_figure
from asymvpr_core.evaluation.plots import plot_precision_recall, plot_score_distance
from asymvpr_core.evaluation.report import Block, Column, Figure, Section, Table, Text, number, percent, render_report

if TYPE_CHECKING:
    from asymvpr_core.evaluation.bag_runs import NamedRun


def write_runs_report(out_html: Path, runs: Sequence[NamedRun]) -> None:
    """Write the comparison of several runs.

    Raises:
        EvaluationError: the file cannot be written.
    """
    bags = list(dict.fromkeys(run.bag for run in runs))
    sections = [Section("Comparison", [comparison_table(runs), _legend()])]
    for bag in bags:
        of_bag = [run for run in runs if run.bag == bag]
        sections.append(_bag_section(bag, of_bag))
        worst = max(of_bag, key=lambda run: (run.result.metrics["n_false"], run.result.metrics["n_missed"]))
        for section in pair_sections(worst.result):
            if section.title == "Worst matches":
                sections.append(Section(f"Worst matches of {bag}", section.blocks, f"Of the run with most false matches, {_name(worst)}."))
    sections.append(protocol_section(runs[0].result.metrics, ways={run.way: run.result.metrics["protocol"]["matcher"] for run in runs}))
    models = len({run.model for run in runs})
    subtitle = f"bags: {len(bags)}, query models: {models}, ways of matching: {len({run.way for run in runs})}"
    render_report(out_html, "Place recognition along recorded runs", sections, subtitle=subtitle)


def comparison_table(runs: Sequence[NamedRun]) -> Table:
    """One row a run: what was accepted, and what a threshold alone or after agreement could reach."""
    rows = []
    for run in runs:
        m, delay = run.result.metrics, run.result.metrics["detection_delay_s"]
        rows.append((
            run.bag, run.model, run.way, str(m["n_opportunities"]), f"{m['n_true']} / {m['n_false']}", percent(m["recall_of_accepted"]),
            percent(m["recall_at_k"].get("1")), number(m["average_precision"], 3), percent(m["with_agreement"]["recall_at_full_precision"]),
            number(delay["median"], 1), f"{delay['n_found']} of {delay['n_stretches']}", number(m["position_error_m"]["median"], 1),
            number(m["latency_ms"]["p95"], 1),
        ))  # fmt: skip
    columns = (
        Column("bag", numeric=False), Column("model", numeric=False), Column("matching", numeric=False), Column("revisits"),
        Column("true / false"), Column("recall", "%"), Column("R@1", "%"), Column("AP"), Column("R@100P", "%"), Column("delay", "s"),
        Column("found"), Column("error", "m"), Column("latency p95", "ms"),
    )  # fmt: skip
    return Table(tuple(rows), columns)


def _legend() -> Text:
    return Text((
        "True and false: accepted matches; recall of accepted over the revisit opportunities. R@1 and AP (average precision) are "
        "those of the best candidate alone, the same for every way of matching. R@100P: largest recall without a false match, over all "
        "thresholds, after agreement and verification. Delay: median time from the start of a stretch of revisits to its first true "
        "match; found: stretches with one. Error: median distance of the accepted matches. Every run's own report lies in its folder.",
    ))  # fmt: skip


def _bag_section(bag: str, runs: Sequence[NamedRun]) -> Section:
    curves = [(_name(run), run.result.agreed) for run in runs]
    blocks: list[Block] = [
        Figure(
            plot_precision_recall(curves), f"Precision over recall on {bag}, for every threshold.",
            "After agreement and verification, which let some frames through only: their curves end early.",
        )
    ]  # fmt: skip
    for run in runs:
        blocks.append(map_figure(run.result, title=_name(run)))
    for run in list({run.model: run for run in reversed(runs)}.values())[::-1]:
        metrics = run.result.metrics
        blocks.append(
            Figure(
                plot_score_distance(
                    outcome_groups(run.result.frames), metrics["protocol"]["radius_m"], metrics["protocol"]["matcher"]["score_threshold"]
                ),
                f"{_name(run)}: score over distance of each frame's match.",
            )
        )
        blocks.append(similarity_figure(run.result))
    return Section(f"Run {bag}", blocks)


def _name(run: NamedRun) -> str:
    return f"{run.model}, {run.way}"
