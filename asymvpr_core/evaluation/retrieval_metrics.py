"""Recall@K and the metrics of the best match, of one system on one query set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.loop_closure import PrecisionRecall, precision_recall
from asymvpr_core.evaluation.predictions import Predictions
from asymvpr_core.evaluation.protocol import median

# What each number of `statistics` counts; goes into every metrics.json and report.
PROTOCOL = {
    "recall_at_k": "queries with a correct match among their first K answers / queries that have a correct match in the gallery",
    "recall_at_k_of_all_queries": "the same / all queries: a query without a correct match in the gallery counts as a miss",
    "average_precision": "over the best match of all queries, unthresholded; recall over the queries with a correct match",
    "average_precision_of_best_match": "the same, recall over the correct best matches (scikit-learn's average_precision_score)",
    "area_of_best_match": "trapezoidal area below that curve (scikit-learn's auc of precision_recall_curve)",
    "recall_at_precision": "largest recall over the queries with a correct match at which some threshold has that precision",
    "max_f1": "largest harmonic mean of precision and recall over all thresholds on the best score",
    "median_position_error_m": "horizontal distance to the best match, over the queries with a correct match",
    "without_positive": "queries without a correct match in the gallery are not in Recall@K; in the sweep every answer to them is false",
}


def recall_at_k(ranked: np.ndarray, positives: Sequence[np.ndarray], ks: Sequence[int]) -> dict[int, float]:
    """Share of the queries with a positive that have one among their first K matches, for every K of `ks`.

    Queries without a positive are left out of the count; the caller reports their number. A K beyond
    the number of matches counts all of them.

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
        raise no_positives(len(positives))
    return {k: float(np.mean([hit[:k].any() for hit in hits])) for k in ks}


def no_positives(queries: int, hint: str | None = None) -> EvaluationError:
    """The error of a query set of which nothing can be found; `hint` says why, where that is known."""
    return EvaluationError(
        f"none of {queries} queries has a correct match in the gallery", expected="at least one",
        remedy=hint or "check that both are of one site and in one frame, or raise --radius-m",
    )  # fmt: skip


def sweep_of(predictions: Predictions) -> PrecisionRecall:
    """Precision and recall of the best match of every query, for every threshold on its score."""
    return precision_recall(predictions.scores[:, 0], predictions.correct, int(predictions.evaluable.sum()))


def point_statistics(predictions: Predictions, ks: Sequence[int], rows: np.ndarray | None = None) -> dict[str, float | None]:
    """Every metric of the protocol as one flat dictionary; "recall@1" and so on for Recall@K.

    Args:
        rows: numbers of the queries to count, which may repeat; None: all. None as a value: not defined there.
    """
    rows = np.arange(len(predictions)) if rows is None else rows
    evaluable, hits = predictions.evaluable[rows], predictions.hits[rows]
    n_evaluable = int(evaluable.sum())
    values: dict[str, float | None] = {}
    for k in ks:
        found = int(hits[evaluable, :k].any(axis=1).sum())
        values[f"recall@{k}"] = found / n_evaluable if n_evaluable else None
    sweep = precision_recall(predictions.scores[rows, 0], hits[:, 0], n_evaluable)
    return values | {
        "average_precision": sweep.average_precision,
        "average_precision_of_best_match": sweep.average_precision_of_best_match,
        "area_of_best_match": sweep.area_of_best_match,
        "recall_at_full_precision": sweep.recall_at_full_precision,
        "recall_at_99_precision": sweep.recall_at_precision(0.99)[0],
        "max_f1": sweep.max_f1,
        "median_position_error_m": median(predictions.distances_m[rows][evaluable]),
    }


def statistics(predictions: Predictions, ks: Sequence[int]) -> dict[str, Any]:
    """Counts and metrics of one system, as they go into `metrics.json`.

    Raises:
        EvaluationError: no query has a correct match.
    """
    evaluable = predictions.evaluable
    if not evaluable.any():
        raise no_positives(len(predictions))
    points, sweep = point_statistics(predictions, ks), sweep_of(predictions)
    of_all = {str(k): float(predictions.hits[:, :k].any(axis=1).mean()) for k in ks}
    return {
        "recall_at_k": {str(k): points.pop(f"recall@{k}") for k in ks},
        "recall_at_k_of_all_queries": of_all,
        "n_queries": len(predictions),
        "n_without_positive": int((~evaluable).sum()),
        **points,
        "full_precision_threshold": sweep.full_precision_threshold,
        "max_f1_threshold": sweep.max_f1_threshold,
    }


def statistics_by_condition(predictions: Predictions, ks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The metrics of each condition by itself, in alphabetical order; empty where queries carry none.

    A condition of which no query has a correct match keeps its counts, with None for every metric.
    """
    if predictions.conditions is None:
        return {}
    conditions = np.array(predictions.conditions)
    found = {}
    for condition in sorted(set(predictions.conditions)):
        part = predictions.subset(np.flatnonzero(conditions == condition), f"{predictions.name}, {condition}")
        points = point_statistics(part, ks)
        found[condition] = {
            "recall_at_k": {str(k): points.pop(f"recall@{k}") for k in ks},
            "n_queries": len(part),
            "n_without_positive": int((~part.evaluable).sum()),
            **points,
        }
    return found
