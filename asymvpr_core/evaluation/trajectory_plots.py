"""Figures of estimated trajectories beside the true one, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection

from asymvpr_core.evaluation.drawing import CURVES, INK, STYLE, legend_above, new_figure, to_svg
from asymvpr_core.evaluation.map_figure import MapFigure
from asymvpr_core.evaluation.plots import BAD, GOOD


def plot_trajectories(
    true_xy: np.ndarray, lines: Sequence[tuple[str, np.ndarray]], closures: Sequence[np.ndarray] = (), background: Sequence[np.ndarray] = ()
) -> bytes:
    """SVG of trajectories in metres over the true one.

    Args:
        true_xy: (N, 2) true positions.
        lines: (label, (M, 2) positions), drawn in red and then in green: before and after.
        closures: (2, 2) each, the two ends of a closure.
        background: polygons (V, 2) [m] drawn beneath, such as outlines of buildings.
    """
    with matplotlib.rc_context(STYLE):
        drawn = MapFigure([true_xy, *[xy for _, xy in lines]], background)
        axes, origin = drawn.axes, drawn.origin
        axes.plot(*(true_xy - origin).T, color=INK, lw=4.5, alpha=0.22, solid_capstyle="round", zorder=2, label="ground truth")
        if len(closures):
            segments = [np.asarray(ends) - origin for ends in closures]
            axes.add_collection(LineCollection(segments, colors=CURVES[0], linewidths=1.2, alpha=0.7, zorder=3))
            ends = np.stack([segment[-1] for segment in segments])
            axes.scatter(ends[:, 0], ends[:, 1], s=13, c=CURVES[0], linewidths=0, zorder=6, label=f"loop closures ({len(closures)})")
        for (label, xy), style, dashes in zip(lines, (BAD, GOOD), ((0, (4, 2)), "-"), strict=False):
            axes.plot(*(xy - origin).T, color=style.colour, lw=1.6, ls=dashes, zorder=style.order - 1 if style is GOOD else 4, label=label)
        start = true_xy[0] - origin
        axes.plot([start[0]], [start[1]], marker="o", ms=7, mfc="white", mec=INK, mew=1.6, ls="none", zorder=7, label="start")
        return drawn.to_svg()


def plot_errors(series: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> bytes:
    """SVG of position errors [m] along the run.

    Args:
        series: (label, (N,) way [m], (N,) errors [m]), drawn in red and then in green: before and after.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(2.6)
        for (label, way_m, errors_m), style, dashes in zip(series, (BAD, GOOD), ((0, (4, 2)), "-"), strict=False):
            axes.plot(way_m, errors_m, color=style.colour, lw=1.6, ls=dashes, label=label)
        axes.set_xlabel("way driven [m]")
        axes.set_ylabel("position error [m]")
        axes.set_ylim(bottom=0)
        axes.grid(True)
        axes.margins(x=0.01)
        legend_above(figure, axes)
        return to_svg(figure)
