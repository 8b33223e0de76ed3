"""Figures of estimated trajectories beside the true one, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection

from asymvpr_core.evaluation.drawing import CURVES, INK, STYLE, WIDTH_IN, legend_above, new_figure, to_svg
from asymvpr_core.evaluation.plots import BAD, BUILDING, FAR_M, GOOD, axis_label, widened


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
    everything = np.concatenate([true_xy, *[xy for _, xy in lines], *background])
    low, high = widened(np.nanmin(everything, axis=0), np.nanmax(everything, axis=0))
    origin = np.where(np.abs(low) > FAR_M, np.floor(low / 1000) * 1000, 0.0)
    height_in = min(0.9 * WIDTH_IN * (high[1] - low[1]) / (high[0] - low[0]), 7.0) + 0.95
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height_in)
        if background:
            polygons = [polygon - origin for polygon in background]
            axes.add_collection(PolyCollection(polygons, facecolors=BUILDING, edgecolors="#d3d9de", linewidths=0.6, zorder=0))
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
        axes.set_aspect("equal")
        axes.set_xlim(low[0] - origin[0], high[0] - origin[0])
        axes.set_ylim(low[1] - origin[1], high[1] - origin[1])
        axes.set_xlabel(axis_label("x", origin[0]))
        axes.set_ylabel(axis_label("y", origin[1]))
        axes.grid(True)
        legend_above(figure, axes)
        return to_svg(figure)


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
