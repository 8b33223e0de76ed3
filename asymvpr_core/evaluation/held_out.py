"""How a calibration does on frames that it has not seen: contiguous parts of the samples, each judged by the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asymvpr_core.config import CalibrationSettings, MatcherSettings
from asymvpr_core.evaluation.calibration_fit import Samples, agreed_points, fit_scores
from asymvpr_core.evaluation.decisions import Decisions

N_PARTS = 3


@dataclass(frozen=True)
class Split:
    """One part, and what the threshold from the other parts let through there; `threshold` None: they could not show the precision.

    `right`: frames with a right best candidate; with agreement over time, frames that have a right keyframe.
    """

    threshold: float | None
    frames: int
    right: int
    accepted: int
    accepted_right: int

    @property
    def precision(self) -> float | None:
        return self.accepted_right / self.accepted if self.accepted else None

    @property
    def recall(self) -> float | None:
        """Accepted right matches over `right`."""
        return self.accepted_right / self.right if self.right else None


@dataclass(frozen=True)
class HeldOut:
    """`splits` in their order, and for all samples (S,) the probability by the other parts beside what turned out."""

    splits: tuple[Split, ...]
    probabilities: np.ndarray
    correct: np.ndarray

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean gap of share right and mean probability, ten bins."""
        return float(sum(abs(row.share - row.probability) * row.frames for row in self.bins()) / len(self.correct))

    def bins(self, count: int = 10) -> list[ReliabilityBin]:
        """Frames by their probability, in bins of equal width; empty ones are left out."""
        number = np.minimum((self.probabilities * count).astype(int), count - 1)
        return [
            ReliabilityBin(float(self.probabilities[number == b].mean()), float(self.correct[number == b].mean()), int((number == b).sum()))
            for b in range(count)
            if (number == b).any()
        ]


@dataclass(frozen=True)
class ReliabilityBin:
    """Mean probability, share that was right, and number of frames."""

    probability: float
    share: float
    frames: int


def held_out(samples: Samples, settings: CalibrationSettings) -> HeldOut:
    """Judge each third of the samples, in their order, by the calibration of the other two, frame by frame.

    Thirds are contiguous: of neighbouring frames on both sides, one would be judged by its twin.
    """
    probabilities, splits = np.zeros(len(samples)), []
    for rows, others in _thirds(len(samples)):
        fitted, here = fit_scores(samples.part(others), settings.confidence), samples.part(rows)
        probabilities[rows] = fitted.probability(here.scores)
        threshold = fitted.single.threshold_for(settings.target_precision)
        accepted = np.zeros(len(rows), dtype=bool) if threshold is None else here.scores >= threshold
        splits.append(Split(threshold, len(rows), int(here.correct.sum()), int(accepted.sum()), int((accepted & here.correct).sum())))
    return HeldOut(tuple(splits), probabilities, samples.correct)


def held_out_agreed(
    decisions: Decisions,
    opportunities: np.ndarray,
    matcher: MatcherSettings,
    settings: CalibrationSettings,
    stretches: np.ndarray | None = None,
) -> tuple[Split, ...]:
    """The same for what the matcher accepts with agreement over time.

    Args:
        opportunities: (F,) bool: frames that have a right keyframe.
        stretches: (F,) int; what counts once for the threshold. What is accepted in the part left out is counted by frames.
    """
    splits = []
    for rows, others in _thirds(decisions.accepted.shape[1]):
        threshold = agreed_points(decisions, matcher, settings.confidence, others, stretches).threshold_for(settings.target_precision)
        chosen = None if threshold is None else int(np.searchsorted(decisions.thresholds, threshold))
        accepted = 0 if chosen is None else int(decisions.accepted[chosen, rows].sum())
        right = 0 if chosen is None else int(decisions.right[chosen, rows].sum())
        splits.append(Split(threshold, len(rows), int(opportunities[rows].sum()), accepted, right))
    return tuple(splits)


def _thirds(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows of a third, rows of the others), of frames in their order; thirds without either are left out."""
    parts = [(rows, np.setdiff1d(np.arange(count), rows)) for rows in np.array_split(np.arange(count), N_PARTS)]
    return [(rows, others) for rows, others in parts if len(rows) and len(others)]
