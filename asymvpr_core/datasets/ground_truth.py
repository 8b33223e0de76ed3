"""Which gallery images are correct matches of a query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord


def find_positives(
    query: Sequence[ImageRecord], gallery: Sequence[ImageRecord], radius_m: float, max_yaw_deg: float | None = None
) -> list[np.ndarray]:
    """For each query the indices (int64, ascending, maybe none) of the gallery images that are correct matches.

    Correct: at most `radius_m` away in x and y (height is ignored, as in the benchmarks), and,
    where `max_yaw_deg` is given, with a heading at most that far from the query's.

    Raises:
        DatasetError: an image without a position, or, where yaw is tested, without a heading.
    """
    if not gallery:
        return [np.empty(0, np.int64) for _ in query]
    query_xy, gallery_xy = _positions(query, "query"), _positions(gallery, "gallery")
    positives: list[np.ndarray] = []
    if len(query):
        neighbours = cKDTree(gallery_xy).query_ball_point(query_xy, radius_m, return_sorted=True)
        positives = [np.asarray(n, dtype=np.int64) for n in neighbours]
    if max_yaw_deg is None:
        return positives
    query_heading, gallery_heading = _headings(query, "query"), _headings(gallery, "gallery")
    limit = max_yaw_deg + 1e-6
    return [
        near[np.abs((gallery_heading[near] - heading + 180.0) % 360.0 - 180.0) <= limit]
        for near, heading in zip(positives, query_heading, strict=True)
    ]


def _positions(records: Sequence[ImageRecord], role: str) -> np.ndarray:
    for record in records:
        if record.pose is None:
            raise DatasetError(f"{role} image {record.name} has no position", remedy="give positions, or leave it out")
    return np.array([record.pose.position[:2] for record in records if record.pose], dtype=np.float64).reshape(-1, 2)


def _headings(records: Sequence[ImageRecord], role: str) -> np.ndarray:
    for record in records:
        if record.heading_deg is None:
            raise DatasetError(f"{role} image {record.name} has no heading", remedy="give headings, or evaluate without a yaw limit")
    return np.array([record.heading_deg for record in records], dtype=np.float64)
