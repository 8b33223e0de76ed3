"""The similarity matrix of a run: frames over keyframes, with the matches that were accepted."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np

from asymvpr_core.evaluation.drawing import STYLE, legend_above, new_figure, to_svg
from asymvpr_core.evaluation.plots import PointStyle

_MOST_CELLS = 400  # on a side: more than a screen shows

Marks = tuple[str, PointStyle, np.ndarray, np.ndarray]  # label, style, frame numbers (P,), keyframe numbers (P,)


def plot_similarity(frames: np.ndarray, keyframes: np.ndarray, marks: Sequence[Marks]) -> bytes:
    """SVG of the cosine of every frame to every keyframe; large matrices as the largest value of each block.

    Args:
        frames: (F, D) float32, L2-normalised, in order of time.
        keyframes: (N, D), in the order of the gallery.
        marks: matches to draw on it.
    """
    cells, extent = similarity_cells(frames, keyframes)
    low, high = np.percentile(cells, [5, 99.8])
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.2)
        image = axes.imshow(
            cells, aspect="auto", interpolation="nearest", origin="upper", cmap="Greys", vmin=low, vmax=max(high, low + 1e-6), extent=extent
        )
        for label, style, rows, columns in marks:
            if len(rows):
                axes.scatter(
                    columns, rows, s=0.6 * style.size, c=style.colour, marker=style.marker, linewidths=0, alpha=0.8,
                    label=f"{label} ({len(rows)})", rasterized=True,
                )  # fmt: skip
        axes.set_xlim(extent[0], extent[1])
        axes.set_ylim(extent[2], extent[3])
        axes.set_xlabel("keyframe of the gallery")
        axes.set_ylabel("frame of the run")
        figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
        if axes.collections:
            legend_above(figure, axes)
        return to_svg(figure)


def similarity_cells(
    frames: np.ndarray, keyframes: np.ndarray, most: int = _MOST_CELLS
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """(rows, columns) at most `most` a side: the largest cosine of each block; and its extent (left, right, bottom, top) in numbers."""
    high, wide = -(-len(frames) // most), -(-len(keyframes) // most)
    starts = np.arange(0, len(keyframes), wide)
    gallery = np.asarray(keyframes, dtype=np.float32)
    rows = []
    for begin in range(0, len(frames), high):
        block = frames[begin : begin + high] @ gallery.T
        rows.append(np.maximum.reduceat(block.max(axis=0), starts))
    cells = np.array(rows)
    return cells, (-0.5, cells.shape[1] * wide - 0.5, cells.shape[0] * high - 0.5, -0.5)
