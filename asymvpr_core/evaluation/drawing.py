"""How every figure of a report looks: colours, size, legend, and SVG bytes."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
CURVES = ("#1f6fb2", "#c7772b", "#7a5195", "#2f8f83", "#a23b5a")
MARKERS = ("o", "s", "^", "D", "v")  # a grey print tells them apart too
WIDTH_IN = 7.6
STYLE = {
    "font.size": 10, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "grid.color": GRID, "grid.linewidth": 0.8,
    "legend.frameon": False, "svg.hashsalt": "asymvpr", "axes.axisbelow": True,
}  # fmt: skip


def new_figure(height_in: float) -> tuple[Figure, Axes]:
    """A figure as wide as the report, and its axes; draw within `matplotlib.rc_context(STYLE)`."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same drawing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=160)
    return buffer.getvalue()


def draw_threshold(axes: Axes, threshold: float | None) -> None:
    """A dotted line at a score; nothing where there is none."""
    if threshold is None:
        return
    axes.axhline(threshold, color=INK, lw=1.0, ls=(0, (1, 2)))
    axes.annotate(
        f"threshold {threshold:g} ", (1.0, threshold), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        ha="right", va="bottom", fontsize=8.5, bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75}, zorder=7,
    )  # fmt: skip


def legend_above(figure: Figure, axes: Axes) -> None:
    """As many columns as the width holds."""
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, fontsize=9, markerscale=1.2,
            borderaxespad=0.2, handletextpad=0.2, columnspacing=0.9,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
