"""The metrics of a threshold sweep once more, as slowly and as plainly as they are defined."""

from __future__ import annotations

from collections.abc import Sequence


def naive_sweep(
    scores: Sequence[float], correct: Sequence[bool], n_opportunities: int, precision_asked: float
) -> tuple[float, float, float]:
    """Average precision, largest F1, and recall at a precision."""
    average, last_recall, best_f1, best_recall = 0.0, 0.0, 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        accepted = [c for s, c in zip(scores, correct, strict=True) if s >= threshold]
        precision, recall = sum(accepted) / len(accepted), sum(accepted) / n_opportunities
        average += (recall - last_recall) * precision
        last_recall = recall
        if precision + recall > 0:
            best_f1 = max(best_f1, 2 * precision * recall / (precision + recall))
        if precision >= precision_asked:
            best_recall = max(best_recall, recall)
    return average, best_f1, best_recall
