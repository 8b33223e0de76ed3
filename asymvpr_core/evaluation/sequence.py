"""An ordered query set through the robot's matcher: what temporal agreement accepts, beside the single frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.loop_closure import PrecisionRecall, precision_recall
from asymvpr_core.evaluation.outcomes import without_recent
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.retrieval.index import SearchIndex, build_index
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.types import ImageRecord, QueryFrame

PROTOCOL = {
    "order": "the queries in the order of their source, as consecutive frames of one run",
    "accepted": "matches that the robot's matcher accepts, by its threshold and its temporal agreement, without odometry",
    "precision_of_accepted": "correct accepted matches / accepted matches",
    "recall_of_accepted": "correct accepted matches / queries with a correct match",
    "sweep": "the vote first, with every frame voting; then any threshold on the score of the frames that it accepts",
}


@dataclass(frozen=True)
class SequenceResult:
    """An ordered query set through the matcher.

    `accepted` and `correct` (Q,) bool: the matcher accepted a match, and that one is correct. `sweep` is
    precision and recall of the frames that the vote accepts, for every threshold on their scores;
    `single_frame` the same without the vote.
    """

    accepted: np.ndarray
    correct: np.ndarray
    n_opportunities: int
    sweep: PrecisionRecall
    single_frame: PrecisionRecall
    statistics: dict[str, Any]

    @property
    def operating_point(self) -> tuple[float, float] | None:
        """(recall, precision) of the accepted matches; None where nothing was accepted or nothing could be."""
        if not self.accepted.any() or not self.n_opportunities:
            return None
        true = int(self.correct.sum())
        return true / self.n_opportunities, true / int(self.accepted.sum())


def evaluate_sequence(
    gallery: Gallery,
    records: list[ImageRecord],
    descriptors: np.ndarray,
    positives: list[np.ndarray],
    settings: MatcherSettings,
    index: SearchIndex | None = None,
) -> SequenceResult:
    """Give the descriptors of ordered queries to the matcher, one by one.

    Where queries have no stamps, each is taken one second after the one before, and nothing is excluded
    by time: their clock is not the gallery's.

    Args:
        descriptors: (Q, D) float32, L2-normalised, of `records` in their order.
        positives: Q arrays, the gallery indices that would be correct.
        index: of the gallery's descriptors; None: it is made.

    Raises:
        EvaluationError: stamps for a part of the queries only, or stamps that go back.
        RetrievalError, SettingsError: as `Matcher`.
    """
    stamps, settings = _stamps(records, settings)
    index = build_index(gallery.descriptors) if index is None else index
    allowed = [without_recent(p, stamp, gallery.keyframes, settings.exclude_time_s) for p, stamp in zip(positives, stamps, strict=True)]
    n_opportunities = sum(len(positive) > 0 for positive in allowed)
    best, accepted = _match(Matcher(gallery, index, settings), descriptors, stamps)
    correct = _correct(best, allowed)
    # The lowest threshold lets every frame vote and be accepted, so that the sweep sees unthresholded scores.
    everything = settings.model_copy(update={"score_threshold": -1.0})
    voted_best, voted = _match(Matcher(gallery, index, everything), descriptors, stamps)
    scores = np.array([score for _, score in voted_best])
    right = _correct(voted_best, allowed)
    single = precision_recall(scores, right, n_opportunities)
    sweep = precision_recall(np.where(voted, scores, -np.inf), right & voted, n_opportunities)
    n_accepted, n_true = int(accepted.sum()), int((accepted & correct).sum())
    statistics = {
        "n_opportunities": n_opportunities,
        "n_accepted": n_accepted,
        "n_true": n_true,
        "n_false": n_accepted - n_true,
        "precision_of_accepted": n_true / n_accepted if n_accepted else None,
        "recall_of_accepted": n_true / n_opportunities if n_opportunities else None,
        "with_vote": _summary(sweep),
        "single_frame": _summary(single),
        "protocol": {**PROTOCOL, "stamps": "of the queries" if records[0].stamp_ns is not None else "none; one second a frame"},
        "matcher": settings.model_dump(mode="json"),
    }
    return SequenceResult(accepted, accepted & correct, n_opportunities, sweep, single, statistics)


def _stamps(records: list[ImageRecord], settings: MatcherSettings) -> tuple[list[int], MatcherSettings]:
    known = [record.stamp_ns for record in records if record.stamp_ns is not None]
    if not known:
        return [i * 1_000_000_000 for i in range(len(records))], settings.model_copy(update={"exclude_time_s": 0.0, "max_frame_gap_s": 3.0})
    if len(known) < len(records):
        raise EvaluationError(
            f"{len(records) - len(known)} of {len(records)} queries have no stamp", expected="stamps for all queries or for none",
            remedy="evaluate without --sequence, or complete the stamps",
        )  # fmt: skip
    if any(later < earlier for earlier, later in zip(known, known[1:], strict=False)):
        raise EvaluationError("the queries are not in order of time", expected="stamps that do not go back", remedy="sort them by stamp")
    return known, settings


def _match(matcher: Matcher, descriptors: np.ndarray, stamps: list[int]) -> tuple[list[tuple[int, float]], np.ndarray]:
    """(gallery index, score) of the best candidate of every frame, (-1, -inf) without one; (Q,) bool whether it was accepted."""
    best, accepted = [], np.zeros(len(stamps), dtype=bool)
    for i, (descriptor, stamp_ns) in enumerate(zip(descriptors, stamps, strict=True)):
        answer = matcher.match(descriptor, QueryFrame(stamp_ns))
        first = answer.candidates[0] if answer.candidates else None
        best.append((-1, -np.inf) if first is None else (first.keyframe_index, first.score))
        accepted[i] = answer.accepted
    return best, accepted


def _correct(best: list[tuple[int, float]], positives: list[np.ndarray]) -> np.ndarray:
    return np.array([index in positive for (index, _), positive in zip(best, positives, strict=True)], dtype=bool)


def _summary(sweep: PrecisionRecall) -> dict[str, float | None]:
    return {
        "average_precision": sweep.average_precision,
        "max_f1": sweep.max_f1,
        "recall_at_full_precision": sweep.recall_at_full_precision,
        "full_precision_threshold": sweep.full_precision_threshold,
        "recall_at_99_precision": sweep.recall_at_precision(0.99)[0],
    }
