"""A discrete Bayes filter over the keyframes of a gallery, with odometry as its motion model.

The state is the keyframe that the robot is at, or "not in the gallery". As in Xu et al.,
"Probabilistic Visual Place Recognition for Hierarchical Localization" (RA-L 2021), belief moves with
odometry and is weighed by how well the frame fits each keyframe; the state outside of the map is that of
their "Probabilistic Appearance-Invariant Topometric Localization with New Place Awareness" (RA-L 2021)
and of FAB-MAP. docs/matching.md has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.retrieval.candidates import Found
from asymvpr_core.retrieval.odometry import Moment, between, compose, drift_covariance, wrap_angle
from asymvpr_core.retrieval.places import KeyframePlaces

# (scores (M,), reference scores (R,)) -> (M,) log of p(score | frame at this keyframe) / p(score | frame elsewhere).
Likelihood = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Evidence of one frame: e^-2 against a keyframe that it does not resemble at all, so that a lorry in the picture
# does not end a belief; e^4 at most for one, so that no single frame decides. Between them a logistic step.
_AGAINST, _FOR = 2.0, 4.0
# Standard deviations above the usual score at which the step has its middle. Measured on rendered towns, scores of the right
# keyframe and of wrong ones are equally frequent at 1.5; here they are at 2.3, on the safe side. The largest of some
# hundred unrelated scores lies about 3: a keyframe that is the best by chance gains a factor of e.
_MIDDLE_SIGMA = 3.0
# Spread of unrelated scores below which differences are noise of the network rather than of places.
_SMALLEST_SIGMA = 0.02
_FEWEST_SCORES = 8

_FIRST_SHARE = 0.5  # of the belief that lies in the gallery before the first frame
_LEAVE_M, _ENTER_M = 200.0, 50.0  # mean way after which a robot leaves the map, or comes into it again
_TURN_RAD = math.radians(30.0)  # a turn by this shows something else, as evidence_spacing_m of way does
_BLIND_S = 1.0  # without odometry: time between two observations
_BLIND_SPEED_M_S = 1.0  # and the way that is assumed for leaving and entering
_YAW_STD_RAD = math.radians(10.0)  # of a robot's direction against that of its keyframe, as in the covariance
_BLIND_YAW_STD_RAD = math.radians(45.0)
_PULL = 0.3  # of the residual goes with each observation: the robot is recognised at the keyframe, not beside it
_FREE_SIGMA = 2.0  # a keyframe this near to the expected pose explains it fully
_REACH_SIGMA = 4.0
_SMALLEST_MASS = 1e-8
_MOST_STATES = 1024


def standardised_evidence(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(M,) log likelihood ratios of scores by how far they stand out: z = (score - median) / (1.4826 MAD) of the reference.

    -2 + 6 / (1 + exp(3 - z)), between -2 and 4. Neither cosines nor networks have a common scale, but "unlike the other
    keyframes" has, so that the numbers carry over between sites. Zeros where there are fewer than 8 reference scores.
    """
    if len(reference) < _FEWEST_SCORES:
        return np.zeros(len(scores))
    median = float(np.median(reference))
    sigma = max(1.4826 * float(np.median(np.abs(reference - median))), _SMALLEST_SIGMA)
    z = (np.asarray(scores, dtype=np.float64) - median) / sigma
    return -_AGAINST + (_AGAINST + _FOR) / (1.0 + np.exp(np.clip(_MIDDLE_SIGMA - z, -50.0, 50.0)))


@dataclass(frozen=True)
class Belief:
    """Probabilities of the keyframes `indices` (A,), `masses` (A,), and `outside`: not in the gallery. They add up to 1.

    `residuals` (A, 3) say where a robot that is at the keyframe is expected beside it: x, y [m], yaw [rad]. Without them
    a robot that turns off its keyframes' street little by little would be put back onto it with every step.
    `observations` (A,) say for how many full observations, on average, the mass has been in the gallery since it came from outside.
    """

    indices: np.ndarray
    masses: np.ndarray
    outside: float
    residuals: np.ndarray
    observations: np.ndarray

    @staticmethod
    def outside_only() -> Belief:
        """Nothing in the gallery."""
        return Belief(np.zeros(0, dtype=np.int64), np.zeros(0), 1.0, np.zeros((0, 3)), np.zeros(0))


class BayesFilter:
    """Keeps a belief from frame to frame. Sparse: what is hardly possible is added to "outside".

    Evidence counts once for every `evidence_spacing_m` of way (or turn of 30 degrees; without odometry
    once a second): a frame after a fraction of it counts by this fraction, so that standing in front
    of a look-alike proves nothing.
    """

    def __init__(self, places: KeyframePlaces, settings: MatcherSettings, likelihood: Likelihood = standardised_evidence):
        self._places, self._settings, self._likelihood = places, settings, likelihood
        self.reset()

    def reset(self) -> None:
        """Believe nothing: half outside, half spread over the gallery."""
        self._belief: Belief | None = None
        self._anchor: Moment | None = None  # the frame that `_belief` belongs to

    def observe(self, found: Found, moment: Moment) -> Belief:
        """The belief after this frame."""
        if self._belief is None or self._anchor is None:
            share, predicted, enter = 1.0, Belief.outside_only(), _FIRST_SHARE
        else:
            share, predicted, enter = self._predict(self._belief, self._anchor, moment, found.excluded)
        belief = self._weigh(predicted, enter, share, found)
        if share >= 1.0:
            self._belief, self._anchor = belief, moment
        return belief

    def _predict(self, belief: Belief, anchor: Moment, moment: Moment, excluded: np.ndarray) -> tuple[float, Belief, float]:
        """(share of a full observation, belief moved to this frame, probability of having come into the map from outside)."""
        settings, seconds = self._settings, (moment.stamp_ns - anchor.stamp_ns) / 1e9
        known = anchor.odometry is not None and moment.odometry is not None
        if known:
            step = between(anchor.odometry, moment.odometry)  # type: ignore[arg-type]
            way_m = max(moment.travelled_m - anchor.travelled_m, math.hypot(step[0], step[1]))
            share = way_m / settings.evidence_spacing_m + abs(step[2]) / _TURN_RAD
            drift = drift_covariance(step, way_m, settings)
            moved_sigma_m, yaw_sigma = math.sqrt(drift[:2, :2].trace() / 2), math.hypot(_YAW_STD_RAD, math.sqrt(drift[2, 2]))
        else:
            step, way_m, share = np.zeros(3), _BLIND_SPEED_M_S * seconds, seconds / _BLIND_S
            moved_sigma_m, yaw_sigma = settings.max_speed_m_s * seconds / 2, _BLIND_YAW_STD_RAD
        leave, enter = -math.expm1(-way_m / _LEAVE_M), -math.expm1(-way_m / _ENTER_M)
        if not len(belief.indices):
            return min(share, 1.0), belief, enter
        targets, masses, residuals, observations = self._move(belief, step, moved_sigma_m, yaw_sigma, excluded)
        if not known:  # where in its neighbourhood the robot has gone is not known: it is at the keyframe that it is found at
            residuals = np.zeros_like(residuals)
        masses = masses * (1.0 - leave)
        return min(share, 1.0), Belief(targets, masses, max(0.0, 1.0 - float(masses.sum())), residuals, observations), enter

    def _move(
        self, belief: Belief, step: np.ndarray, moved_sigma_m: float, yaw_sigma: float, excluded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Keyframes, ascending, the masses that the motion brings to them, their residuals, and their observations so far.

        Mass that comes to no keyframe is not among them.
        """
        places, spacing_m = self._places, self._places.typical_spacing_m(self._settings.agreement_radius_m)
        headings = places.headings_known[belief.indices]
        start = np.column_stack([places.positions[belief.indices, :2], places.yaws_rad[belief.indices]]) + belief.residuals
        ahead = compose(start, step)
        # Without its heading a keyframe does not tell in which direction the robot has gone: it stays, with that much more spread.
        ahead[~headings] = start[~headings]
        unknown_m = np.where(headings, 0.0, math.hypot(step[0], step[1]))
        # Half the spacing: the robot is somewhere between its keyframe and the next.
        sigma_m = np.sqrt(moved_sigma_m**2 + (spacing_m / 2) ** 2 + unknown_m**2)
        rows, targets = places.near(ahead[:, :2], _REACH_SIGMA * float(sigma_m.max()))
        allowed = ~np.isin(targets, excluded)
        rows, targets = rows[allowed], targets[allowed]
        apart = np.linalg.norm(places.positions[targets, :2] - ahead[rows, :2], axis=1) / sigma_m[rows]
        turn = np.where(headings[rows], np.abs(wrap_angle(places.yaws_rad[targets] - ahead[rows, 2])) / yaw_sigma, 0.0)
        squared = apart**2 + turn**2
        nearest = np.full(len(start), np.inf)
        np.minimum.at(nearest, rows, squared)
        stays = np.exp(-0.5 * np.maximum(0.0, np.sqrt(nearest) - _FREE_SIGMA) ** 2)
        weights = np.exp(-0.5 * (squared - nearest[rows]))
        total = np.bincount(rows, weights, minlength=len(start))
        arriving = belief.masses[rows] * stays[rows] * weights / total[rows]
        kept, place = np.unique(targets, return_inverse=True)
        masses = np.bincount(place, arriving, minlength=len(kept))
        beside = ahead[rows] - np.column_stack([places.positions[targets, :2], places.yaws_rad[targets]])
        beside[:, 2] = wrap_angle(beside[:, 2])
        brought = np.column_stack([beside, belief.observations[rows]])
        sums = np.stack([np.bincount(place, arriving * column, minlength=len(kept)) for column in brought.T], axis=1)
        means = sums / np.maximum(masses, 1e-300)[:, np.newaxis]
        return kept, masses, means[:, :3], means[:, 3]

    def _weigh(self, predicted: Belief, enter: float, share: float, found: Found) -> Belief:
        """Bayes' rule: the predicted belief times the evidence of the frame to the power `share`."""
        count = max(1, len(self._places) - len(found.excluded))
        indices = np.union1d(predicted.indices, found.indices)
        masses = np.zeros(len(indices))
        masses[np.searchsorted(indices, predicted.indices)] = predicted.masses
        seen = np.searchsorted(indices, found.indices)
        # The part of the outside that comes in anywhere else stays where it is: those keyframes do not resemble the frame.
        moved = masses.copy()
        masses[seen] += predicted.outside * enter / count
        residuals = np.zeros((len(indices), 3))
        residuals[np.searchsorted(indices, predicted.indices)] = predicted.residuals
        # Who comes from outside is at the keyframe itself, and a frame that fits says so of the others too.
        stayed = moved / np.maximum(masses, 1e-300)
        residuals *= ((1.0 - _PULL * share) * stayed)[:, np.newaxis]
        observations = np.zeros(len(indices))
        observations[np.searchsorted(indices, predicted.indices)] = predicted.observations
        observations = observations * stayed + share
        outside = predicted.outside * (1.0 - enter * len(found.indices) / count)
        if len(found.scores):
            # A keyframe whose score was not asked for has at most the last one's, and in all likelihood a usual one.
            usual = float(np.median(found.reference)) if len(found.reference) else math.inf
            scores = np.full(len(indices), min(float(found.scores[-1]), usual))
            scores[seen] = found.scores
            masses *= np.exp(share * self._likelihood(scores, found.reference))
        total = float(masses.sum()) + outside
        masses, outside = masses / total, outside / total
        kept = np.flatnonzero(masses > _SMALLEST_MASS)
        if len(kept) > _MOST_STATES:
            kept = np.sort(kept[np.argsort(-masses[kept], kind="stable")[:_MOST_STATES]])
        return Belief(indices[kept], masses[kept], 1.0 - float(masses[kept].sum()), residuals[kept], observations[kept])
