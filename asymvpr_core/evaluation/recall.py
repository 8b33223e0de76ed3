"""Recall@K of a query set against a gallery, whatever describes the queries."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.loop_closure import PrecisionRecall, precision_recall
from asymvpr_core.evaluation.protocol import (
    check_map_frames,
    check_poses,
    correct_match_rule,
    encoder_identity,
    gallery_identity,
    heading_difference_deg,
    horizontal_distance_m,
    median,
    write_metrics,
)
from asymvpr_core.evaluation.recall_report import write_recall_report
from asymvpr_core.gallery.store import INDEX, Gallery
from asymvpr_core.manifest import check_pair, new_folder
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.index import read_index, search

_BATCH = 16
METRICS, PREDICTIONS, REPORT = "metrics.json", "predictions.csv", "report.html"


class Encoder(Protocol):
    """The query side: `deploy.runtime.QueryModel`, or `gallery.encoder.GalleryEncoder`."""

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def dimension(self) -> int: ...

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        """(B, D) float32, L2-normalised, from pre-processed images (B, 3, H, W) float32."""
        ...


@dataclass(frozen=True)
class RecallResult:
    """Recall@K and what it was counted from.

    `scores` and `indices` are (Q, K), best first; `positives[i]` are the correct gallery indices
    of query i; `distances_m` (Q,) and `correct` (Q,) belong to the best match of each query;
    `metrics` is what `metrics.json` holds.
    """

    metrics: dict[str, Any]
    scores: np.ndarray
    indices: np.ndarray
    positives: Sequence[np.ndarray]
    distances_m: np.ndarray
    correct: np.ndarray
    sweep: PrecisionRecall
    out: Path


def recall_at_k(ranked: np.ndarray, positives: Sequence[np.ndarray], ks: Sequence[int]) -> dict[int, float]:
    """Share of the queries with a positive that have one among their first K matches, for every K of `ks`.

    Queries without a positive are left out of the count; the caller reports their number.

    Args:
        ranked: (Q, K_max) gallery indices, best first; -1 where a query has fewer matches.
        positives: Q arrays of gallery indices.

    Raises:
        EvaluationError: no query has a positive, or the lengths differ.
    """
    if len(ranked) != len(positives):
        raise EvaluationError(f"{len(ranked)} queries are ranked, {len(positives)} have ground truth", expected="the same queries")
    hits = [np.isin(row, positive) for row, positive in zip(ranked, positives, strict=True) if len(positive)]
    if not hits:
        raise _no_positives(len(positives))
    return {k: float(np.mean([hit[:k].any() for hit in hits])) for k in ks}


def _no_positives(queries: int) -> EvaluationError:
    return EvaluationError(
        f"none of {queries} queries has a correct match in the gallery", expected="at least one",
        remedy="check that both are of one site and in one frame, or raise --radius-m",
    )  # fmt: skip


def evaluate_recall(
    gallery: Gallery,
    queries: Dataset,
    encoder: Encoder,
    settings: EvaluationSettings,
    out: Path,
    progress: Progress = silent,
) -> RecallResult:
    """Describe all queries, search them in the gallery, and write `metrics.json`, `predictions.csv`, `report.html` to `out`.

    Recall@K is counted over the queries that have a correct match. Average precision and recall at
    full precision are counted over all queries: a confident answer to a query without a correct
    match is a false match there.

    Raises:
        EvaluationError: no queries, missing positions, frames that differ, or no query with a correct match.
        ArtefactError: the query model is of another pair, or `out` exists or cannot be written.
        RetrievalError: descriptors of another dimension than the gallery's.
    """
    if isinstance(encoder, QueryModel):
        check_pair(gallery.manifest, encoder.manifest, gallery.path, encoder.path)
    check_poses(queries.records, str(queries.root), settings.max_yaw_deg)
    check_poses(gallery.keyframes, f"gallery {gallery.path}", settings.max_yaw_deg)
    check_map_frames(gallery, queries.map_frame, str(queries.root))
    positives = find_positives(queries.records, gallery.keyframes, settings.radius_m, settings.max_yaw_deg)
    n_with_positive = sum(len(positive) > 0 for positive in positives)
    if not n_with_positive:
        raise _no_positives(len(positives))

    with new_folder(out) as folder:
        descriptors = describe_queries(queries, encoder, progress)
        scores, indices = search(read_index(gallery.path / INDEX), descriptors, max(settings.k))
        recall = recall_at_k(indices, positives, settings.k)
        best = [gallery.keyframes[i] for i in indices[:, 0]]
        distances_m = np.array([horizontal_distance_m(q, g) for q, g in zip(queries.records, best, strict=True)])
        correct = np.array([i in positive for i, positive in zip(indices[:, 0], positives, strict=True)])
        sweep = precision_recall(scores[:, 0], correct, n_with_positive)
        evaluable = np.array([len(positive) > 0 for positive in positives])
        metrics = {
            "protocol": {
                "task": "recall",
                "correct_match": correct_match_rule(settings),
                "radius_m": settings.radius_m,
                "max_yaw_deg": settings.max_yaw_deg,
                "k": list(settings.k),
                "similarity": "cosine, exact search",
                "recall_at_k": "over the queries that have a correct match in the gallery",
                "average_precision": "over the best match of all queries, unthresholded; recall over the queries with a correct match",
                "median_position_error_m": "horizontal distance to the best match, over the queries with a correct match",
            },
            "recall_at_k": {str(k): value for k, value in recall.items()},
            "n_queries": len(positives),
            "n_without_positive": len(positives) - n_with_positive,
            "n_gallery": len(gallery),
            "average_precision": sweep.average_precision,
            "recall_at_full_precision": sweep.recall_at_full_precision,
            "full_precision_threshold": sweep.full_precision_threshold,
            "median_position_error_m": median(distances_m[evaluable]),
            "gallery": gallery_identity(gallery),
            "encoder": encoder_identity(encoder, gallery),
            "queries": {"path": str(queries.root), "layout": queries.layout, "map_frame": queries.map_frame},
        }
        result = RecallResult(metrics, scores, indices, positives, distances_m, correct, sweep, Path(out))
        write_metrics(folder / METRICS, metrics)
        _write_predictions(folder / PREDICTIONS, result, gallery, queries)
        write_recall_report(folder / REPORT, result, gallery, queries)
    return result


def describe_queries(queries: Dataset, encoder: Encoder, progress: Progress = silent) -> np.ndarray:
    """(Q, D) float32 descriptors of all images of `queries`, in their order. Raises ImageError naming an unreadable image."""
    total = len(queries.records)
    descriptors = np.empty((total, encoder.dimension), dtype=np.float32)
    batch: list[np.ndarray] = []
    images = queries.read_images(list(range(total)))
    for index, image in progress(images, "describing queries", total=total):
        batch.append(encoder.preprocess(image))
        if len(batch) == _BATCH or index == total - 1:
            descriptors[index + 1 - len(batch) : index + 1] = encoder.encode_batch(np.stack(batch))
            batch.clear()
    return descriptors


def _write_predictions(path: Path, result: RecallResult, gallery: Gallery, queries: Dataset) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = "query_index,query_image,n_positives,rank,gallery_index,gallery_image,score,distance_m,heading_error_deg,correct"
        writer.writerow(columns.split(","))
        rows = zip(queries.records, result.positives, result.scores, result.indices, strict=True)
        for query_index, (query, positive, scores, indices) in enumerate(rows):
            for rank, (score, index) in enumerate(zip(scores, indices, strict=True), start=1):
                keyframe = gallery.keyframes[index]
                heading = heading_difference_deg(query, keyframe)
                writer.writerow([
                    query_index, query.name, len(positive), rank, index, keyframe.name, f"{score:.6f}",
                    f"{horizontal_distance_m(query, keyframe):.3f}", "" if np.isnan(heading) else f"{heading:.2f}", int(index in positive),
                ])  # fmt: skip
