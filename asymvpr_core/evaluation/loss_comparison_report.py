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
            "selected": [item.get("val_recall_at_1") is not None for item in tuned],
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
    selected = [epoch for row in rows for epoch, chosen in zip(row["epochs"], row["selected"], strict=True) if chosen]
    kept = (
        f"By recall on held-out images of the training gallery; 0 is the start, which {selected.count(0)} of {len(selected)} trained "
        "runs kept and which they share with aligned."
        if selected
        else "The last one: nothing was held out to choose by."
    )
    lines += [
        "",
        f"{n_queries} queries; mean ± sample standard deviation over the seeds {seeds}; {machine}. Asymmetric search, except where the "
        "table says otherwise.",
        f"Kept epochs: of each seed. {kept} "
        "Bank, lists, alignment: what is computed before the first step. Batch: median time from batch to batch, loading included. "
        "Peak memory: of the GPU where there is one, otherwise of the process.",
    ]
    return "\n".join(lines) + "\n"


def _plot(rows: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], k: int, file: Any) -> None:
    """One line for each loss: the mean as a square, one sample deviation as a bar, every seed as a dot; best on top."""
    ordered = sorted(rows, key=lambda row: -row["recall_at_k"][str(k)][0])
    figure = Figure(figsize=(7.5, 1.3 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    aligned = next((row for row in rows if row["name"] == "aligned"), None)
    if aligned is not None:
        axes.axvline(100 * aligned["recall_at_k"][str(k)][0], color="#b0413e", linewidth=1, linestyle="--", label="aligned, mean")
    for place, row in enumerate(ordered):
        mean, deviation = row["recall_at_k"][str(k)]
        colour = "#20446b" if row["pairing"] == "asymmetric" else "#8a8a8a"
        seeds = [100 * result["statistics"]["recall_at_k"][str(k)] for result in results if result["name"] == row["name"]]
        first = place == 0
        if len(seeds) > 1:
            axes.errorbar(
                100 * mean, place, xerr=100 * deviation, color=colour, capsize=3, linewidth=1.2,
                label="sample standard deviation over the seeds" if first else None,
            )  # fmt: skip
        axes.plot(100 * mean, place, "s", color=colour, markersize=6, label="mean" if first else None)
        # Beside the line, and seeds of one value one above the other, so that none hides another.
        heights = [place + 0.2 + 0.09 * seeds[:number].count(value) for number, value in enumerate(seeds)]
        axes.plot(seeds, heights, "o", color=colour, markersize=3, alpha=0.7, label="one seed" if first else None)
    axes.set_yticks(range(len(ordered)), [_label(row) for row in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.grid(axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(f"Recall@{k} [%] (the axis need not begin at 0)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(file, format="png", dpi=120)


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['name']} (both sides light)" if row["pairing"] == "symmetric" else str(row["name"])


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return stats.fmean(values), stats.stdev(values) if len(values) > 1 else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stats.fmean(known) if known else None


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
