"""A comparison of losses as Markdown, JSON and a plot."""

from __future__ import annotations

import json
import platform
import statistics as stats
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asymvpr_core import __version__
from asymvpr_core.manifest import write_atomically, write_text_atomically

JSON, MARKDOWN, PLOT = "comparison.json", "comparison.md", "comparison.png"


def write_comparison(
    out: Path,
    results: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
    ks: Sequence[int],
    n_queries: int,
    list_seconds: float | None,
) -> None:
    """Write the three files to the folder `out`.

    Args:
        results: one dictionary for each loss and seed, as `loss_comparison` keeps them.
        list_seconds: what the neighbour lists of the whole gallery took; None where none were made.
    """
    rows = summarise(results, ks, list_seconds)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    content = {
        "protocol": dict(protocol), "n_queries": n_queries, "rows": rows, "results": [dict(result) for result in results],
        "machine": machine, "versions": {"asymvpr": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    write_text_atomically(out / JSON, json.dumps(content, indent=2) + "\n")
    write_text_atomically(out / MARKDOWN, markdown(rows, ks, n_queries, machine))
    write_atomically(out / PLOT, lambda file: _plot(rows, results, ks[0], file))


def summarise(results: Sequence[Mapping[str, Any]], ks: Sequence[int], list_seconds: float | None) -> list[dict[str, Any]]:
    """One dictionary for each loss, in the order of the results: means and sample deviations over the seeds, and costs."""
    names = list(dict.fromkeys(result["name"] for result in results))
    rows = []
    for name in names:
        own = [result for result in results if result["name"] == name]
        recalls = {str(k): _mean_and_deviation([result["statistics"]["recall_at_k"][str(k)] for result in own]) for k in ks}
        tuned = [result["fine_tuning"] or {} for result in own]
        needs_lists = own[0]["settings"]["loss"] in ("csd", "rop", "d3still") and own[0]["settings"]["epochs"] > 0
        rows.append({
            "name": name, "pairing": own[0]["pairing"], "seeds": [result["seed"] for result in own], "recall_at_k": recalls,
            "epochs": [item.get("epoch", 0) for item in tuned],
            "bank_s": _mean([result["seconds"].get("bank") for result in own]),
            "lists_s": list_seconds if needs_lists else None,
            "alignment_s": _largest([result["seconds"].get("alignment") for result in own]),  # others find its features in the cache
            "batch_s": _mean([item.get("median_batch_s") for item in tuned]),
            "peak_memory_bytes": _largest([result["peak_memory_bytes"] for result in own]),
        })  # fmt: skip
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], ks: Sequence[int], n_queries: int, machine: str) -> str:
    """The table, with what each column means below it."""
    head = [
        "loss",
        *[f"Recall@{k} [%]" for k in ks],
        "kept epochs",
        "bank [s]",
        "lists [s]",
        "alignment [s]",
        "batch [s]",
        "peak memory [MB]",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        recalls = [f"{100 * mean:.1f} ± {100 * deviation:.1f}" for mean, deviation in row["recall_at_k"].values()]
        name = row["name"] + (" (light network on both sides)" if row["pairing"] == "symmetric" else "")
        peak = row["peak_memory_bytes"]
        cells = [name, *recalls, ", ".join(str(epoch) for epoch in row["epochs"]), *[_number(row[c]) for c in ("bank_s", "lists_s")]]
        cells += [_number(row["alignment_s"]), _number(row["batch_s"], 3), "–" if peak is None else f"{peak / 1e6:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = ", ".join(str(seed) for seed in rows[0]["seeds"])
    lines += [
        "",
        f"{n_queries} queries; mean ± sample standard deviation over the seeds {seeds}; {machine}. Asymmetric search, except where the "
        "table says otherwise.",
        "Kept epochs: of each seed, by recall on held-out images of the training gallery; 0 is the start. "
        "Bank, lists, alignment: what is computed before the first step. Batch: median time from batch to batch, loading included. "
        "Peak memory: of the GPU where there is one, otherwise of the process.",
    ]
    return "\n".join(lines) + "\n"


def _plot(rows: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], k: int, file: Any) -> None:
    figure = Figure(figsize=(7.5, 1.0 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        mean, deviation = row["recall_at_k"][str(k)]
        axes.barh(place, 100 * mean, xerr=100 * deviation, color="#9bbbd6" if row["pairing"] == "asymmetric" else "#d0d0d0", capsize=3)
        seeds = [100 * result["statistics"]["recall_at_k"][str(k)] for result in results if result["name"] == row["name"]]
        axes.plot(seeds, [place] * len(seeds), "o", color="#20446b", markersize=3.5)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"Recall@{k} [%]; bar: mean, line: standard deviation, dots: seeds; grey: light network on both sides")
    figure.savefig(file, format="png", dpi=120)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return stats.fmean(values), stats.stdev(values) if len(values) > 1 else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stats.fmean(known) if known else None


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
