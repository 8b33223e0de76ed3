"""What `asymvpr evaluate` prints: the numbers of metrics.json as a table, below the rule by which they were counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

# Parts of metrics.json that say what was compared, or are too long for a terminal: they are in the report.
_NOT_NUMBERS = ("protocol", "warnings", "gallery", "encoder", "queries", "source", "intervals", "by_condition", "compared", "comparison")


def print_metrics(out: Path) -> None:
    """The metrics of one system, with their intervals where there are some."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    bounds = metrics.get("intervals", {})
    table = Table(show_header=False)
    for label, value in _rows(metrics):
        between = f"{bounds[label][0]:.4g} to {bounds[label][1]:.4g}" if label in bounds else ""
        table.add_row(label, f"{value:.4g}" if isinstance(value, float) else str(value), *([between] if bounds else []))
    _print(metrics, table, out)
    _print_comparison(metrics, [metrics["encoder"]["name"], *metrics.get("compared", {})])


def print_pairings(out: Path) -> None:
    """One row a pairing, and what of their differences the queries bear out."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    if "judged" in metrics["protocol"]:
        _print_predictions(metrics, out)
        return
    ks = metrics["protocol"]["k"]
    # Without frames the names have room to be read in 80 columns.
    table = Table(
        "",
        Column("pairing", overflow="fold"),
        *[f"R@{k} %" for k in ks],
        "R@1 interval",
        "AP",
        "R@100%P %",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, (name, values) in enumerate(metrics["systems"].items(), start=1):
        low, high = values["intervals"].get("recall@1", (None, None))
        cells = [f"{100 * values['recall_at_k'][str(k)]:.1f}" for k in ks]
        between = "" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
        table.add_row(
            str(number), name, *cells, between, f"{values['average_precision']:.3f}", f"{100 * values['recall_at_full_precision']:.1f}"
        )
    _print(metrics, table, out)
    _print_comparison(metrics, list(metrics["systems"]))


def print_runs(out: Path) -> None:
    """One row a recorded run, model and way of matching."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    table = Table(
        Column("run", overflow="fold"), "model", "matching", "true", "false", "recall %", "R@1 %", "R@100%P %", box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for run in metrics["runs"].values():
        shares = (run["recall_of_accepted"], run["recall_at_k"].get("1"), run["with_agreement"]["recall_at_full_precision"])
        cells = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
        table.add_row(run["bag"], run["model"], run["way"], str(run["n_true"]), str(run["n_false"]), *cells)
    _print(metrics, table, out)


def _print_predictions(metrics: dict[str, Any], out: Path) -> None:
    table = Table("", Column("pairing", overflow="fold"), "queries", "median best score", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, (name, values) in enumerate(metrics["systems"].items(), start=1):
        table.add_row(str(number), name, str(values["n_queries"]), f"{values['best_score']['p50']:.3f}")
    Console(highlight=False).print(metrics["protocol"]["judged"], markup=False)
    _print(metrics, table, out)


def _rows(metrics: dict[str, Any]) -> list[tuple[str, int | float]]:
    rows = []
    for name, value in metrics.items():
        if name == "recall_at_k":
            value = {f"recall@{k}": recall for k, recall in value.items()}
        elif name in _NOT_NUMBERS:
            continue
        elif isinstance(value, dict):
            value = {f"{name} {part}": number for part, number in value.items()}
        else:
            value = {name: value}
        rows += [(label, number) for label, number in value.items() if isinstance(number, int | float)]
    return rows


def _print_comparison(metrics: dict[str, Any], names: list[str]) -> None:
    if not metrics.get("comparison"):
        return
    table = Table("systems", "R@1, second - first", "right alone", "p (McNemar, Holm)")
    number_of = {name: number for number, name in enumerate(names, start=1)}
    for pair in metrics["comparison"]:
        found = pair["differences"].get("recall@1")
        change = "" if found is None else f"{100 * found['value']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
        systems = f"{number_of[pair['first']]} and {number_of[pair['second']]}"
        table.add_row(systems, change, f"{pair['only_first']} / {pair['only_second']}", f"{pair['mcnemar_p_holm']:.3g}")
    console = Console(highlight=False)
    if "systems" not in metrics:
        console.print("systems: " + ", ".join(f"{number}. {name}" for name, number in number_of.items()), markup=False)
    console.print(table)


def _print(metrics: dict[str, Any], table: Table, out: Path) -> None:
    console = Console(highlight=False)
    console.print(f"correct match: {metrics['protocol']['correct_match']}", markup=False)
    console.print(table)
    for warning in metrics.get("warnings", []):
        console.print(f"warning: {warning}", markup=False)
    console.print(f"report: {out / 'report.html'}", markup=False)
