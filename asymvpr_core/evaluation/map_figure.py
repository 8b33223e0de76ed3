"""A map in metres: its bounds, its axes, and what lies beneath the points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PolyCollection

from asymvpr_core.evaluation.drawing import WIDTH_IN, legend_above, new_figure, to_svg

_FAR_M = 10_000.0  # UTM coordinates: show metres from a round origin instead of seven digits


class MapFigure:
    """An empty map around points; draw on `axes` what has `origin` taken off. Used within `matplotlib.rc_context(STYLE)`."""

    def __init__(self, shown: Sequence[np.ndarray], background: Sequence[np.ndarray]):
        """Bounds and background.

        Args:
            shown: arrays (N, 2) [m] of all points that are going to be drawn; NaN is left out.
            background: polygons (V, 2) [m] drawn beneath, such as outlines of buildings.
        """
        everything = np.concatenate([*shown, *background])
        low, high = np.nanmin(everything, axis=0), np.nanmax(everything, axis=0)
        self.origin: np.ndarray = np.where(np.abs(low) > _FAR_M, np.floor(low / 1000) * 1000, 0.0)
        self._low, self._high = _widened(low, high)
        span = self._high - self._low
        self._figure, self.axes = new_figure(min(0.9 * WIDTH_IN * span[1] / span[0], 7.0) + 0.95)
        if background:
            polygons = [polygon - self.origin for polygon in background]
            self.axes.add_collection(PolyCollection(polygons, facecolors="#e9ecef", edgecolors="#d3d9de", linewidths=0.6, zorder=0))

    def to_svg(self) -> bytes:
        """The map with equal scales, labelled axes and a legend."""
        axes, origin = self.axes, self.origin
        axes.set_aspect("equal")
        axes.set_xlim(self._low[0] - origin[0], self._high[0] - origin[0])
        axes.set_ylim(self._low[1] - origin[1], self._high[1] - origin[1])
        axes.set_xlabel(_axis_label("x", origin[0]))
        axes.set_ylabel(_axis_label("y", origin[1]))
        axes.grid(True)
        legend_above(self._figure, axes)
        return to_svg(self._figure)


def _widened(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds with a margin, never so narrow that the map becomes a strip."""
    span = np.maximum(high - low, 1.0)
    shown = 1.06 * np.maximum(span, [0.6 * span[1], 0.25 * span[0]])
    centre = (low + high) / 2
    return centre - shown / 2, centre + shown / 2


def _axis_label(name: str, origin: float) -> str:
    """Label of an axis whose numbers begin at `origin` [m]."""
    return f"{name} [m]" if origin == 0 else f"{name} - {origin:.0f} [m]"
