"""The trade-off between kinds of index as a table and a plot, from what was measured when one was chosen."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from asymvpr_core.manifest import new_folder
from asymvpr_core.retrieval.gallery_index import IndexManifest
from asymvpr_core.retrieval.trials import is_chosen, trial_table

_MARKERS = {
    "exact": "o",
    "float16": "s",
    "sq8": "^",
    "rabitq": "D",
    "hnsw": "v",
    "pq": "P",
    "ivfpq": "X",
}  # a grey print tells them apart too


def write_index_report(gallery: Path, manifest: IndexManifest, out: Path) -> Path:
    """Write `index.md` (the table) and `index.svg` (time against recall) into the new folder `out`; returns it.

    Raises:
        ArtefactError: `out` exists or cannot be written.
    """
    title = f"Index of {gallery.name}: {manifest.keyframes} keyframes, {manifest.dimension}-D"
    with new_folder(out) as staging:
        text = f"# {title}\n\nChosen: {manifest.note}.\n\n{trial_table(manifest)}\n"
        (staging / "index.md").write_text(text, encoding="utf-8")
        _plot(manifest, title).savefig(staging / "index.svg")
    return out


def _plot(manifest: IndexManifest, title: str) -> Figure:
    """Milliseconds a query against the share of neighbours that is missed; the area of a point is its memory."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    largest = max((trial.memory_bytes for trial in manifest.trials), default=1)
    for kind, marker in _MARKERS.items():
        trials = [trial for trial in manifest.trials if trial.kind == kind]
        if not trials:
            continue
        times, recalls = [t.milliseconds for t in trials], [t.recall_at_k for t in trials]
        sizes = [30 + 170 * trial.memory_bytes / largest for trial in trials]
        axes.plot(times, recalls, linewidth=0.8, color="#9aa5b1", zorder=1)
        label = f"{kind}, {trials[-1].bytes_per_vector:.0f} bytes a vector"
        axes.scatter(times, recalls, s=sizes, marker=marker, label=label, zorder=2)
    for trial in manifest.trials:
        if is_chosen(trial, manifest):
            axes.annotate("chosen", (trial.milliseconds, trial.recall_at_k), textcoords="offset points", xytext=(8, -12))
    if "recall" in manifest.settings:
        axes.axhline(float(manifest.settings["recall"]), color="#cf3f2e", linewidth=0.8, linestyle="--", label="recall asked for")
    axes.set(xscale="log", xlabel="milliseconds a query, one thread", ylabel=f"recall@{manifest.settings.get('k', 10)}", title=title)
    axes.legend(frameon=False, fontsize=8)
    return figure
