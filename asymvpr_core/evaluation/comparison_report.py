"""Several systems on the same queries, as tables and curves of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.evaluation.bootstrap import PairedComparison
from asymvpr_core.evaluation.report import Column, Section, Table, interval, number, percent

_SHOWN = ("recall@1", "average_precision")


def systems_table(systems: Mapping[str, Mapping[str, Any]], settings: EvaluationSettings) -> Table:
    """One row a system: Recall@K with intervals, average precision, recall at full precision, largest F1, position error.

    Args:
        systems: the statistics of each, as in `metrics.json`, with their `intervals`.
    """
    columns = [Column("system", numeric=False), *[Column(f"Recall@{k}", "%") for k in settings.k]]
    columns += [Column("average precision"), Column("recall at 100 % precision", "%"), Column("max F1"), Column("median error", "m")]
    rows = []
    for number_of_system, (name, values) in enumerate(systems.items(), start=1):
        bounds = values["intervals"]
        recalls = [interval(values["recall_at_k"][str(k)], bounds.get(f"recall@{k}")) for k in settings.k]
        rest = (
            interval(values["average_precision"], bounds.get("average_precision"), share=False),
            percent(values["recall_at_full_precision"]),
            number(values["max_f1"], 3),
            number(values["median_position_error_m"], 1),
        )
        rows.append((f"{number_of_system}.\u00a0{name}", *recalls, *rest))
    return Table(tuple(rows), tuple(columns), f"In brackets: {100 * settings.confidence:g} % interval over the queries.")


def comparison_section(comparison: Sequence[PairedComparison], names: Sequence[str]) -> Section:
    """What of the differences between systems the queries bear out; systems by their numbers in `systems_table`."""
    columns = (
        Column("systems", numeric=False), Column("Recall@1, second − first", "points"), Column("p, bootstrap"),
        Column("right alone, first / second", "queries"), Column("p, McNemar"), Column("p, Holm"), Column("AP, second − first"),
        Column("p, bootstrap"),
    )  # fmt: skip
    number_of = {name: number for number, name in enumerate(names, start=1)}
    rows = []
    for pair in comparison:
        found = {difference.metric: difference for difference in pair.differences}
        cells: list[str] = []
        for metric in _SHOWN:
            difference = found.get(metric)
            scale, digits = (100, 1) if metric.startswith("recall") else (1, 3)
            if difference is None:
                cells += ["–", "–"]
                continue
            value, low, high = (f"{scale * v:+.{digits}f}" for v in (difference.value, difference.low, difference.high))
            cells += [f"{value}\n({low} to {high})", p_value(difference.p_value)]
        alone = f"{pair.only_first} / {pair.only_second}"
        systems = f"{number_of[pair.first]} and {number_of[pair.second]}"
        rows.append((systems, *cells[:2], alone, p_value(pair.mcnemar_p), p_value(pair.mcnemar_p_holm), *cells[2:]))
    intro = (
        "The same queries went to all systems, so differences are judged query by query. "
        "McNemar's exact test counts the queries that one system alone answers correctly; Holm corrects it for the number of pairs. "
        "Numbers as in the table of systems."
    )
    return Section("Differences", [Table(tuple(rows), columns)], intro)


def p_value(p: float) -> str:
    """Three digits, and "< 0.001" where three would say zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def conditions_table(by_condition: Mapping[str, Mapping[str, Any]], ks: Sequence[int]) -> Table:
    """One row a condition."""
    columns = [Column("condition", numeric=False), Column("queries"), Column("without a correct match")]
    columns += [Column(f"Recall@{k}", "%") for k in ks] + [Column("average precision"), Column("median error", "m")]
    rows = []
    for name, values in by_condition.items():
        recalls = [percent(values["recall_at_k"][str(k)]) for k in ks]
        rest = (number(values["average_precision"], 3), number(values["median_position_error_m"], 1))
        rows.append((name, str(values["n_queries"]), str(values["n_without_positive"]), *recalls, *rest))
    return Table(tuple(rows), tuple(columns))
