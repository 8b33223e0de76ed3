"""From scores and what turned out right to a calibration: isotonic probabilities, thresholds that a precision is shown for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import beta

from asymvpr_core.config import MatcherSettings
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.decisions import Decisions
from asymvpr_core.retrieval.calibration import AgreedPoints, Errors, OperatingPoints, ScoreCalibration, agreement_settings


@dataclass(frozen=True)
class Samples:
    """Best candidates whose truth is known, one a frame.

    `scores` (S,) and `correct` (S,) bool; `offsets_m` (S, 2) from the true position to the matched keyframe's in x and y [m];
    `yaw_errors_deg` (S,), NaN where unknown. `basis` says where they come from. `stretches` (S,) int: frames of one stretch of way,
    which are no independent witnesses of a precision; None: each is one by itself.
    """

    scores: np.ndarray
    correct: np.ndarray
    offsets_m: np.ndarray
    yaw_errors_deg: np.ndarray
    basis: Literal["run", "gallery"]
    stretches: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, rows: np.ndarray) -> Samples:
        """The samples of these row numbers."""
        stretches = None if self.stretches is None else self.stretches[rows]
        return Samples(self.scores[rows], self.correct[rows], self.offsets_m[rows], self.yaw_errors_deg[rows], self.basis, stretches)

    @property
    def witnesses(self) -> int:
        """How many stretches there are; without them, frames."""
        return len(self) if self.stretches is None else len(np.unique(self.stretches))


def fit_scores(samples: Samples, confidence: float, agreed: AgreedPoints | None = None) -> ScoreCalibration:
    """The calibration of one kind of search; `agreed` is taken over as it is.

    Raises:
        EvaluationError: no samples, or scores that are not finite.
    """
    if len(samples) == 0 or not np.isfinite(samples.scores).all():
        raise EvaluationError("there is no frame with a candidate to calibrate with", expected="frames with candidates and ground truth")
    scores, correct = np.asarray(samples.scores, dtype=np.float64), np.asarray(samples.correct, dtype=bool)
    knots, probabilities = isotonic_probabilities(scores, correct)
    single = single_points(scores, correct, confidence, samples.stretches)
    return ScoreCalibration(
        scores=tuple(knots.tolist()), probabilities=tuple(probabilities.tolist()), single=single,
        agreed=agreed, frames=len(scores), correct=int(correct.sum()), basis=samples.basis,
    )  # fmt: skip


def isotonic_probabilities(scores: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots (K,) ascending and probabilities (K,) non-decreasing: isotonic regression of `correct` on `scores`.

    Pool-adjacent-violators (Ayer et al. 1955). Each block's share is drawn towards one half by one frame, (c + 0.5) / (n + 1), so that
    no finite number of frames makes a certainty. A block is two knots, its smallest and its largest score.

    Args:
        scores: (S,) finite.
        correct: (S,) bool.
    """
    values, row = np.unique(scores, return_inverse=True)
    counts = np.bincount(row, minlength=len(values)).astype(np.float64)
    rights = np.bincount(row, weights=correct, minlength=len(values))
    blocks: list[list[float]] = []  # right, count, smallest score, largest score
    for value, count, right in zip(values, counts, rights, strict=True):
        blocks.append([right, count, value, value])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            right, count, _, high = blocks.pop()
            blocks[-1] = [blocks[-1][0] + right, blocks[-1][1] + count, blocks[-1][2], high]
    shares = np.array([(right + 0.5) / (count + 1.0) for right, count, _, _ in blocks])
    # The pull is stronger on small blocks, and could turn the order of two neighbours.
    shares = np.maximum.accumulate(shares)
    knots, probabilities = [], []
    for (_, _, low, high), share in zip(blocks, shares, strict=True):
        for knot in (low,) if low == high else (low, high):
            knots.append(knot)
            probabilities.append(float(share))
    return np.array(knots), np.array(probabilities)


def stretches_along(xy: np.ndarray, stretch_m: float) -> np.ndarray:
    """(F,) int: the stretch of way that each frame belongs to, counted up; a new one begins `stretch_m` from where the last one did.

    Args:
        xy: (F, 2) [m], in the order of the run.
        stretch_m: 0: each frame by itself.
    """
    stretches = np.arange(len(xy))
    if stretch_m <= 0 or len(xy) == 0:
        return stretches
    number, begin = 0, xy[0]
    for row, position in enumerate(xy):
        if np.hypot(*(position - begin)) >= stretch_m:
            number, begin = number + 1, position
        stretches[row] = number
    return stretches


def single_points(scores: np.ndarray, correct: np.ndarray, confidence: float, stretches: np.ndarray | None = None) -> OperatingPoints:
    """Thresholds on single frames, and the precision that is shown for each.

    Args:
        stretches: (S,) int; a stretch is accepted where one of its frames is, and wrong where one of those is wrong.
            None: each frame by itself.
    """
    _, stretch = np.unique(np.arange(len(scores)) if stretches is None else stretches, return_inverse=True)
    best, best_wrong = np.full((2, len(scores) and int(stretch.max()) + 1), -np.inf)
    np.maximum.at(best, stretch, scores)
    np.maximum.at(best_wrong, stretch[~correct], scores[~correct])
    values = np.unique(scores)
    accepted, wrong = (len(column) - np.searchsorted(np.sort(column), values, side="left") for column in (best, best_wrong))
    thresholds, bounds = _records(values, precision_bounds(accepted, accepted - wrong, confidence))
    return OperatingPoints(thresholds=thresholds, precision_bounds=bounds)


def agreed_points(
    decisions: Decisions,
    settings: MatcherSettings,
    confidence: float,
    rows: np.ndarray | None = None,
    stretches: np.ndarray | None = None,
) -> AgreedPoints:
    """The same for what the matcher accepted at each threshold, on the frames `rows` where given; `stretches` (F,) of all frames."""
    accepted, right = decisions.counts(rows, stretches)
    thresholds, bounds = _records(decisions.thresholds, precision_bounds(accepted, right, confidence))
    return AgreedPoints(thresholds=thresholds, precision_bounds=bounds, settings=agreement_settings(settings))


def precision_bounds(accepted: np.ndarray, right: np.ndarray, confidence: float) -> np.ndarray:
    """(T,) lower bounds of precision by Clopper and Pearson (1934), one-sided: with c of n accepted frames right, the beta quantile
    B(1 - confidence; c, n - c + 1).

    299 of 299 show 0.99 at a confidence of 0.95, 298 of 298 do not.
    """
    return np.where(right > 0, beta.ppf(1.0 - confidence, np.maximum(right, 1), accepted - right + 1), 0.0)


def _records(thresholds: np.ndarray, bounds: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of ascending thresholds those that show more than all below them."""
    below = np.concatenate([[0.0], np.maximum.accumulate(bounds)[:-1]])
    chosen = bounds > below
    return tuple(thresholds[chosen].tolist()), tuple(bounds[chosen].tolist())


def fit_errors(samples: Samples, threshold: float) -> Errors | None:
    """Standard deviations of position and yaw over the right candidates that `threshold` accepts; None where there is none."""
    chosen = samples.correct & (samples.scores >= threshold)
    if not chosen.any():
        return None
    position_std_m = float(np.sqrt((samples.offsets_m[chosen] ** 2).sum(axis=1).mean() / 2))
    yaw = samples.yaw_errors_deg[chosen]
    yaw = yaw[np.isfinite(yaw)]
    yaw_std_deg = max(float(np.sqrt((yaw**2).mean())), _SMALLEST_YAW_DEG) if len(yaw) else None
    return Errors(position_std_m=max(position_std_m, _SMALLEST_M), yaw_std_deg=yaw_std_deg, matches=int(chosen.sum()))


# Ground truth is no better than this; a covariance of zero makes consumers divide by it.
_SMALLEST_M, _SMALLEST_YAW_DEG = 0.01, 0.1
