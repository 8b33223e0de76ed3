"""How a calibration does on frames that it has not seen: contiguous parts of the samples, each judged by the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asymvpr_core.config import CalibrationSettings
from asymvpr_core.evaluation.calibration_fit import Samples, fit_scores

N_PARTS = 3


@dataclass(frozen=True)
class Split:
    """One part, and what the threshold from the other parts let through there; `threshold` None: they could not show the precision."""

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
        """Accepted right candidates over all right ones."""
        return self.accepted_right / self.right if self.right else None


@dataclass(frozen=True)
class HeldOut:
    """`splits` in their order, and for all samples (S,) the probability by the other parts beside what turned out."""

    splits: tuple[Split, ...]
    probabilities: np.ndarray
    correct: np.ndarray

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean |share right - mean probability| of ten bins, weighted by frames."""
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
    """Judge each third of the samples, in their order, by the calibration of the other two.

    Thirds are contiguous: of neighbouring frames on both sides, one would be judged by its twin.
    """
    parts = np.array_split(np.arange(len(samples)), N_PARTS)
    probabilities, splits = np.zeros(len(samples)), []
    for rows in parts:
        others = np.setdiff1d(np.arange(len(samples)), rows)
        if len(rows) == 0 or len(others) == 0:
            continue
        fitted, here = fit_scores(samples.part(others), settings.confidence), samples.part(rows)
        probabilities[rows] = fitted.probability(here.scores)
        threshold = fitted.threshold_for(settings.target_precision)
        accepted = np.zeros(len(rows), dtype=bool) if threshold is None else here.scores >= threshold
        splits.append(
            Split(threshold, len(rows), int(here.correct.sum()), int(accepted.sum()), int((accepted & here.correct).sum()))
        )  # fmt: skip
    return HeldOut(tuple(splits), probabilities, samples.correct)
