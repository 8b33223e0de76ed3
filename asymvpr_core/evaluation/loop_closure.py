"""Precision and recall of one best match per query, swept over the unthresholded score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asymvpr_core.errors import EvaluationError


@dataclass(frozen=True)
class PrecisionRecall:
    """The sweep and its summary; point i accepts every query with score >= `thresholds[i]`.

    `thresholds` (T,) are the distinct scores, descending; `precision` and `recall` (T,) belong to
    them. `average_precision` is the sum of (R_i - R_{i-1}) P_i over the points, without
    interpolation. Recall is counted over `n_opportunities`, so average precision is at most the
    share of opportunities whose best match is correct.

    `average_precision_of_best_match` and `area_of_best_match` count recall over the *correct* best
    matches instead: how well the score tells right from wrong, whatever was never found. The first
    equals scikit-learn's `average_precision_score(correct, scores)`, the second its
    `auc(recall, precision)` over `precision_recall_curve`. None where no best match is correct.

    Values that need an opportunity or a match are None where there is none.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    average_precision: float | None
    max_f1: float | None
    max_f1_threshold: float | None
    n_opportunities: int
    average_precision_of_best_match: float | None = None
    area_of_best_match: float | None = None

    def recall_at_precision(self, precision: float) -> tuple[float, float | None] | tuple[None, None]:
        """Largest recall that some threshold reaches with at least `precision`, and that threshold.

        (0.0, None) where no threshold reaches it; (None, None) without opportunities.
        """
        if self.n_opportunities == 0:
            return None, None
        reached = np.flatnonzero((self.precision >= precision) & (self.recall > 0))
        if len(reached) == 0:
            return 0.0, None
        # Of equal recalls the lowest threshold; along a matcher's own decisions recall need not rise with every step.
        best = reached[len(reached) - 1 - int(np.argmax(self.recall[reached][::-1]))]
        return float(self.recall[best]), float(self.thresholds[best])

    @property
    def recall_at_full_precision(self) -> float | None:
        """Largest recall without a single false match."""
        return self.recall_at_precision(1.0)[0]

    @property
    def full_precision_threshold(self) -> float | None:
        """Threshold of `recall_at_full_precision`."""
        return self.recall_at_precision(1.0)[1]


def precision_recall(scores: np.ndarray, correct: np.ndarray, n_opportunities: int) -> PrecisionRecall:
    """Sweep a threshold over the scores of the best matches; equal scores are accepted together.

    Args:
        scores: (Q,) score of each query's best match, higher is better; -inf where it has none.
        correct: (Q,) bool, whether that match is correct.
        n_opportunities: number of queries that have a correct match in the gallery.

    Raises:
        EvaluationError: shapes that differ, NaN scores, or more correct matches than opportunities.
    """
    scores, correct = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=bool)
    if scores.ndim != 1 or scores.shape != correct.shape:
        raise EvaluationError(f"scores have shape {scores.shape}, correct has {correct.shape}", expected="(Q,) both")
    if np.isnan(scores).any():
        raise EvaluationError("a score is NaN", expected="a number, or -inf where a query has no match")
    if correct.sum() > n_opportunities:
        raise EvaluationError(f"{correct.sum()} matches are correct", expected=f"at most one for each of {n_opportunities} opportunities")
    if (correct & np.isneginf(scores)).any():
        raise EvaluationError("a query without a match is called correct", expected="a finite score for every correct match")

    matched = scores > -np.inf
    order = np.argsort(-scores[matched], kind="stable")
    sorted_scores, sorted_correct = scores[matched][order], correct[matched][order]
    last_of_each_score = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True)) if len(order) else np.zeros(0, dtype=np.int64)
    true_positives = np.cumsum(sorted_correct)[last_of_each_score]
    accepted = last_of_each_score + 1
    precision = true_positives / accepted
    thresholds = sorted_scores[last_of_each_score]
    of_best_match = _over_correct_matches(true_positives, precision)
    if n_opportunities == 0:
        return PrecisionRecall(thresholds, precision, np.zeros(len(precision)), None, None, None, 0, *of_best_match)

    recall = true_positives / n_opportunities
    average_precision = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    if len(thresholds) == 0:
        return PrecisionRecall(thresholds, precision, recall, average_precision, 0.0, None, n_opportunities, *of_best_match)
    f1 = 2 * true_positives / (accepted + n_opportunities)
    best = int(np.argmax(f1))
    threshold = float(thresholds[best]) if f1[best] > 0 else None
    return PrecisionRecall(thresholds, precision, recall, average_precision, float(f1[best]), threshold, n_opportunities, *of_best_match)


def _over_correct_matches(true_positives: np.ndarray, precision: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Average precision and trapezoidal area with recall counted over the correct best matches."""
    if len(true_positives) == 0 or true_positives[-1] == 0:
        return None, None
    recall = np.concatenate([[0.0], true_positives / true_positives[-1]])
    precision = np.concatenate([[1.0], precision])  # the point of no acceptance, as scikit-learn sets it
    steps = np.diff(recall)
    return float(np.sum(steps * precision[1:])), float(np.sum(steps * (precision[1:] + precision[:-1]) / 2))
