"""The report's figures, as SVG: map, precision-recall, score against distance, score along the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, MaxNLocator

from asymvpr_core.evaluation.drawing import CURVES, INK, MARKERS, MUTED, STYLE, draw_threshold, legend_above, new_figure, to_svg
from asymvpr_core.evaluation.loop_closure import PrecisionRecall
from asymvpr_core.evaluation.map_figure import MapFigure

_MANY_POINTS = 4000  # beyond this a vector file grows past what a phone draws smoothly
_MANY_CURVES = 3  # beyond this the legend names curves only


@dataclass(frozen=True)
class PointStyle:
    """How the points of one outcome look; shape differs too, so that a grey print keeps the meaning."""

    colour: str
    marker: str
    size: float
    order: int
    link: bool = False  # draw a line to the matched keyframe


GOOD = PointStyle("#16866b", "o", 20, 4, link=True)
BAD = PointStyle("#cf3f2e", "X", 48, 6, link=True)
MISSED = PointStyle("#e0a100", "v", 17, 3)
IGNORED = PointStyle("#7a8fa6", "D", 14, 3, link=True)
NEUTRAL = PointStyle("#9aa5b1", "o", 9, 2)


@dataclass(frozen=True)
class PointGroup:
    """Frames or queries of one outcome.

    `xy` (P, 2) positions [m]; `matched_xy` (P, 2) positions of their matches, NaN without one;
    `scores` and `distances_m` (P,) of the match; `times_s` (P,) since the start of the run.
    """

    label: str
    style: PointStyle
    xy: np.ndarray
    matched_xy: np.ndarray
    scores: np.ndarray
    distances_m: np.ndarray
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def legend(self) -> str:
        return f"{self.label} ({len(self.xy)})"


def plot_map(groups: Sequence[PointGroup], gallery_xy: np.ndarray, background: Sequence[np.ndarray] = ()) -> bytes:
    """SVG map in metres: gallery keyframes (N, 2), frames by outcome, a line from each match to its keyframe.

    Args:
        background: polygons (V, 2) [m] drawn beneath, such as outlines of buildings.
    """
    with matplotlib.rc_context(STYLE):
        drawn = MapFigure([gallery_xy, *[group.xy for group in groups]], background)
        axes, origin = drawn.axes, drawn.origin
        x, y = (gallery_xy - origin).T
        axes.scatter(
            x, y, s=7, c="#8fb3d1", marker="s", linewidths=0, zorder=1, label=f"gallery ({len(gallery_xy)})",
            rasterized=len(gallery_xy) > _MANY_POINTS,
        )  # fmt: skip
        for group in groups:
            _draw_on_map(axes, group, origin)
        return drawn.to_svg()


def plot_precision_recall(curves: Sequence[tuple[str, PrecisionRecall]], operating_point: tuple[float, float] | None = None) -> bytes:
    """SVG of one or several precision-recall curves.

    Args:
        curves: (name, sweep), the first one drawn strongest.
        operating_point: (recall, precision) of the accepted matches, marked on the plot.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.0 + 0.2 * len(curves) * (1 if len(curves) > _MANY_CURVES else 2))
        for number, (name, sweep) in enumerate(curves):
            colour = CURVES[number % len(CURVES)]
            if len(sweep.recall) and sweep.n_opportunities:
                recall, precision = np.concatenate([[0.0], sweep.recall]), np.concatenate([sweep.precision[:1], sweep.precision])
                area = "" if sweep.average_precision is None else f", AP {sweep.average_precision:.3f}"
                label, width = f"{name}{area}", 2.0 if number == 0 else 1.5
                axes.plot(recall, precision, drawstyle="steps-pre", color=colour, lw=width, label=label, zorder=3)
            full = sweep.recall_at_full_precision
            if full:
                label = (f"{name}: " if len(curves) > 1 else "") + f"recall {100 * full:.1f} % at 100 % precision"
                label = "_" + label if len(curves) > _MANY_CURVES else label  # matplotlib leaves such labels out of the legend
                axes.plot([full], [1.0], "o", ms=8, mew=2, mfc="white", color=colour, label=label, zorder=4, clip_on=False)
        if operating_point is not None:
            recall_now, precision_now = operating_point
            label = f"accepted matches: precision {100 * precision_now:.1f} %, recall {100 * recall_now:.1f} %"
            axes.plot([recall_now], [precision_now], marker="D", ms=7, ls="none", color=INK, label=label, zorder=5, clip_on=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        axes.grid(True)
        if axes.lines:
            legend_above(figure, axes)  # inside, it would cover the curve of a poor system
        else:
            axes.text(0.5, 0.5, "no revisit opportunity", ha="center", va="center", color=MUTED)
        return to_svg(figure)


def plot_recall(hits: Mapping[str, np.ndarray]) -> bytes:
    """SVG of Recall@K over K.

    Args:
        hits: by name, (Q, K) bool: answer j of query i is correct; queries with a correct match only.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(3.2 + 0.2 * len(hits))
        for number, (name, hit) in enumerate(hits.items()):
            recall = np.logical_or.accumulate(hit, axis=1).mean(axis=0)
            marker = MARKERS[number % len(MARKERS)]
            colour = CURVES[number % len(CURVES)]
            label = f"{name}, Recall@1 {100 * recall[0]:.1f} %"
            axes.plot(np.arange(1, len(recall) + 1), 100 * recall, color=colour, marker=marker, ms=5, lw=1.5, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("K")
        axes.set_ylabel("Recall@K [%]")
        axes.set_ylim(top=101)
        axes.grid(True)
        legend_above(figure, axes)
        return to_svg(figure)


def plot_score_distance(groups: Sequence[PointGroup], radius_m: float, threshold: float | None = None) -> bytes:
    """SVG of the match's score against its distance [m]; linear up to the radius, logarithmic beyond."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.0)
        for group in groups:
            shown = np.isfinite(group.distances_m) & np.isfinite(group.scores)
            _scatter(axes, group.distances_m[shown], group.scores[shown], group)
        far = max((float(np.nanmax(g.distances_m)) for g in groups if np.isfinite(g.distances_m).any()), default=radius_m)
        axes.set_xscale("symlog", linthresh=radius_m, linscale=1.0)
        ticks = _distance_ticks(radius_m, max(far, 2 * radius_m))
        axes.set_xticks(ticks, minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(-0.02 * radius_m, max(far, 2 * radius_m) * 1.15)
        axes.axvline(radius_m, color=MUTED, lw=1.0, ls=(0, (4, 3)))
        label = f" correct within {radius_m:g} m"
        axes.annotate(label, (radius_m, 1.0), xycoords=("data", "axes fraction"), va="top", color=MUTED, fontsize=8.5)
        draw_threshold(axes, threshold)
        axes.set_xlabel(f"distance to the match [m] (logarithmic beyond {radius_m:g} m)")
        axes.set_ylabel("score (cosine)")
        axes.grid(True)
        legend_above(figure, axes)
        return to_svg(figure)


def plot_timeline(groups: Sequence[PointGroup], threshold: float | None = None) -> bytes:
    """SVG of the best score along the run [s], coloured by outcome."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(2.9)
        for group in groups:
            shown = np.isfinite(group.scores)
            _scatter(axes, group.times_s[shown], group.scores[shown], group)
        draw_threshold(axes, threshold)
        axes.set_xlabel("time since the first frame [s]")
        axes.set_ylabel("score (cosine)")
        axes.grid(True)
        axes.margins(x=0.01)
        legend_above(figure, axes)
        return to_svg(figure)


def _draw_on_map(axes: Axes, group: PointGroup, origin: np.ndarray) -> None:
    xy, matched = group.xy - origin, group.matched_xy - origin
    if group.style.link and len(xy):
        linked = np.isfinite(matched).all(axis=1)
        lines = LineCollection(
            list(np.stack([xy[linked], matched[linked]], axis=1)), colors=group.style.colour, linewidths=0.9, alpha=0.55,
            zorder=group.style.order - 0.5, rasterized=len(xy) > _MANY_POINTS,
        )  # fmt: skip
        axes.add_collection(lines)
    _scatter(axes, xy[:, 0], xy[:, 1], group)


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, group: PointGroup) -> None:
    if len(group.xy) == 0:
        return
    style = group.style
    axes.scatter(
        x, y, s=style.size, c=style.colour, marker=style.marker, linewidths=0, alpha=0.85, zorder=style.order,
        label=group.legend, rasterized=len(x) > _MANY_POINTS,
    )  # fmt: skip


def _distance_ticks(radius_m: float, far_m: float) -> list[float]:
    inside = [0.0, radius_m / 2, radius_m]
    decades = range(math.floor(math.log10(radius_m)), math.ceil(math.log10(far_m)) + 1)
    beyond = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return inside + [value for value in beyond if 1.5 * radius_m <= value <= far_m * 1.15]
