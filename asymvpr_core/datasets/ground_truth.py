"""Which gallery images are correct matches of a query, by distance in metres."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from scipy.spatial import cKDTree

from asymvpr_core.datasets.positives import Positives
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord

# Rounding of a heading that was stored as a quaternion must not push it over the limit.
_YAW_SLACK_DEG = 1e-6
# Pairs in work at a time: as Python integers, which the tree gives, about 40 MB.
_PAIRS_IN_WORK = 1_000_000


def find_positives(
    query: Sequence[ImageRecord], gallery: Sequence[ImageRecord], radius_m: float, max_yaw_deg: float | None = None
) -> Positives:
    """For each query the indices (int64, ascending, maybe none) of the gallery images that are correct matches.

    Correct: at most `radius_m` away in x and y (height is ignored, as in the benchmarks), and,
    where `max_yaw_deg` is given, with a heading at most that far from the query's.

    Raises:
        DatasetError: an image without a position, or with one that is not finite; or, where yaw is tested, without a heading.
    """
    if not gallery:
        return Positives(np.zeros(len(query) + 1, np.int64), np.empty(0, np.int32))
    headings = None if max_yaw_deg is None else (_headings(query, "query"), _headings(gallery, "gallery"), max_yaw_deg)
    return positives_within(_positions(query, "query"), _positions(gallery, "gallery"), radius_m, headings)


def positives_within(
    query_xy: np.ndarray, gallery_xy: np.ndarray, radius_m: float, headings: tuple[np.ndarray, np.ndarray, float] | None = None
) -> Positives:
    """`find_positives` on arrays: positions (Q, 2) and (G, 2) float64 [m] of one frame, G > 0.

    Exact: the KD-tree only leaves out what is too far. Memory beside the result does not grow with
    the number of pairs, which are made in chunks of queries.

    Args:
        headings: (Q,) and (G,) [deg] of the two sides, and the largest difference [deg] that is correct.
    """
    tree = cKDTree(gallery_xy)
    near = tree.query_ball_point(query_xy, radius_m, return_length=True) if len(query_xy) else np.empty(0, np.int64)
    ends = np.cumsum(near, dtype=np.int64)
    counts = near.astype(np.int64)
    # Filled from the front: what a heading refuses leaves room at the end.
    indices = np.empty(int(ends[-1]) if len(ends) else 0, np.int32 if len(gallery_xy) < 2**31 else np.int64)
    begin = filled = 0
    while begin < len(query_xy):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _PAIRS_IN_WORK, side="right")))
        lists = tree.query_ball_point(query_xy[begin:end], radius_m, return_sorted=True)
        found = np.fromiter(chain.from_iterable(lists), indices.dtype, count=int(ends[end - 1]) - before)
        if headings is not None:
            query = np.repeat(np.arange(begin, end), near[begin:end])
            found, counts[begin:end] = _facing_alike(query, found, headings, begin, end)
        indices[filled : filled + len(found)] = found
        begin, filled = end, filled + len(found)
    return Positives(np.concatenate([[0], np.cumsum(counts)]), indices if filled == len(indices) else indices[:filled].copy())


def _facing_alike(
    query: np.ndarray, found: np.ndarray, headings: tuple[np.ndarray, np.ndarray, float], begin: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs whose headings agree, and how many each query of [begin, end) has."""
    query_deg, gallery_deg, max_yaw_deg = headings
    difference_deg = np.abs((gallery_deg[found] - query_deg[query] + 180.0) % 360.0 - 180.0)
    alike = difference_deg <= max_yaw_deg + _YAW_SLACK_DEG
    return found[alike], np.bincount(query[alike] - begin, minlength=end - begin)


def _positions(records: Sequence[ImageRecord], role: str) -> np.ndarray:
    for record in records:
        if record.pose is None:
            raise DatasetError(f"{role} image {record.name} has no position", remedy="give positions, or leave it out")
    xy = np.array([record.pose.position[:2] for record in records if record.pose], dtype=np.float64).reshape(-1, 2)
    wrong = ~np.isfinite(xy).all(axis=1)
    if wrong.any():
        record, (x, y) = records[int(np.argmax(wrong))], xy[np.argmax(wrong)]
        raise DatasetError(
            f"{role} image {record.name} is at ({x:g}, {y:g})", expected="finite metres", remedy="correct it, or leave it out"
        )
    return xy


def _headings(records: Sequence[ImageRecord], role: str) -> np.ndarray:
    for record in records:
        if record.heading_deg is None:
            raise DatasetError(f"{role} image {record.name} has no heading", remedy="give headings, or evaluate without a yaw limit")
    return np.array([record.heading_deg for record in records], dtype=np.float64)
