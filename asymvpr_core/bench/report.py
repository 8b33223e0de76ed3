"""All results of the suite as one page with plots."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from asymvpr_core.bench.results import BenchmarkResult, Curves, aims_table, to_markdown

PAGE = "performance.md"

_INTRODUCTION = """\
# Performance

Written by `asymvpr bench --document docs/performance.md`; do not edit it. Every value names the command and the
commit that gave it. Times depend on the machine; what carries over are the ratios, which are measured side by side in
one run: the methods take turns, and the median is given with the smallest and the largest value.
"""


def write_page(results: Sequence[BenchmarkResult], page: Path, pictures: Path, *, remarks: str = "") -> Path:
    """Write the Markdown `page` and its plots into the folder `pictures`; returns `page`.

    Args:
        remarks: Markdown that stands behind the table of aims: what was missed, and why.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [_INTRODUCTION]
    aims = [(result, aim) for result in results for aim in result.aims]
    if aims:
        parts.append(f"## Aims\n\n{aims_table(aims)}\n")
    if remarks:
        parts.append(remarks.strip() + "\n")
    for result in results:
        addresses = {}
        for curves in result.curves:
            file = pictures / f"performance_{result.name}_{_slug(curves.title)}.png"
            draw(curves, file)
            addresses[curves.title] = os.path.relpath(file, page.parent)
        parts.append(to_markdown(result, pictures=addresses))
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def draw(curves: Curves, file: Path) -> None:
    """Draw curves as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 4.2), layout="constrained")
    for number, (name, points) in enumerate(curves.series.items()):
        points = sorted(points)
        axes.plot([x for x, _ in points], [y for _, y in points], marker="os^Dv<>Px*"[number % 10], markersize=5, linewidth=1.6, label=name)
    if curves.logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set(title=curves.title, xlabel=curves.x, ylabel=curves.y)
    axes.grid(alpha=0.3, which="both" if curves.logarithmic else "major")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:48]
