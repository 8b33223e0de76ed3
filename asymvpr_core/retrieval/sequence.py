"""Temporal agreement: what the last frames say about the place that this frame seems to show. Off, vote, or Bayes filter."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.errors import SettingsError
from asymvpr_core.retrieval.bayes import BayesFilter, Belief, Likelihood, standardised_evidence
from asymvpr_core.retrieval.candidates import Found
from asymvpr_core.retrieval.odometry import Moment, between, compose, wrap_angle
from asymvpr_core.retrieval.places import KeyframePlaces
from asymvpr_core.types import Match

# The best place is looked for around the most probable keyframes; a place that none of so many lies at is not probable.
_PLACES_TRIED = 16
# Of a place as wide as two agreement radii, the match is looked for in the middle: a keyframe at its rim may lie beyond the radius
# from the robot that is at the other.
_MIDDLE_SHARE = 0.5


@dataclass(frozen=True)
class Verdict:
    """The place that the last frames agree on, or why there is none.

    `match` is the proposed match. `reason` is a clause for the user. `agreeing` (A, 4) are the places that speak
    for the match, itself included: x, y, z [m], yaw [rad]; `weights` (A,) how much each counts.
    """

    match: Match | None
    reason: str
    agreeing: np.ndarray
    weights: np.ndarray
    posterior: float | None = None


class TemporalAgreement(Protocol):
    """What is remembered of the frames of one camera."""

    def observe(self, found: Found, moment: Moment) -> Verdict:
        """Take in a frame with at least one candidate, and say what it and those before it agree on."""

    def missed(self, moment: Moment) -> None:
        """Take in a frame without any candidate."""

    def reset(self) -> None:
        """Forget the frames seen so far."""


def make_agreement(places: KeyframePlaces, settings: MatcherSettings, likelihood: Likelihood | None = None) -> TemporalAgreement:
    """The temporal agreement that the settings name.

    Raises:
        SettingsError: a vote that can never be won.
    """
    if settings.sequence == "vote" and settings.min_votes > settings.sequence_length:
        raise SettingsError(
            f"min_votes is {settings.min_votes}", expected=f"at most sequence_length, {settings.sequence_length}",
            remedy="lower min_votes or raise sequence_length",
        )  # fmt: skip
    if settings.sequence == "vote":
        return VoteAgreement(places, settings)
    if settings.sequence == "bayes":
        return BayesAgreement(places, settings, likelihood)
    return NoAgreement(places, settings)


class NoAgreement:
    """Each frame by itself: its best candidate, where that reaches the threshold."""

    def __init__(self, places: KeyframePlaces, settings: MatcherSettings):
        self._places, self._settings = places, settings

    def observe(self, found: Found, moment: Moment) -> Verdict:
        """The best candidate, where it reaches the threshold."""
        best = found.candidates[0]
        if best.score < self._settings.score_threshold:
            return below_threshold(best.score, self._settings)
        return _supported(best, reached_threshold(best.score, self._settings), self._agreeing_candidates(found))

    def missed(self, moment: Moment) -> None:
        """Nothing is remembered."""

    def reset(self) -> None:
        """Nothing is remembered."""

    def _agreeing_candidates(self, found: Found) -> np.ndarray:
        """(A, 4) places of the candidates that lie where the best one lies, itself included."""
        indices = np.array([candidate.keyframe_index for candidate in found.candidates])
        settings = self._settings
        agree = self._places.agreeing(int(indices[0]), indices, settings.agreement_radius_m, settings.agreement_yaw_deg)
        return _rows(self._places, indices[agree])


@dataclass(frozen=True)
class _Vote:
    moment: Moment
    best: Match | None  # None where it scored below the threshold


class VoteAgreement(NoAgreement):
    """The best candidates of `min_votes` of the last `sequence_length` frames, this one included, lie at the same place.

    Frames below the threshold do not vote. Where odometry is known, a vote moves along with the robot: what
    has to agree is where each frame would have the robot now. With `vote_distance_m` the window is that much way,
    and of frames closer than `vote_distance_m / sequence_length` only the last one is in it.
    """

    def __init__(self, places: KeyframePlaces, settings: MatcherSettings):
        super().__init__(places, settings)
        self._votes: deque[_Vote] = deque(maxlen=settings.sequence_length)

    def observe(self, found: Found, moment: Moment) -> Verdict:
        """The best candidate, where it reaches the threshold and enough frames agree."""
        best, settings = found.candidates[0], self._settings
        confident = best.score >= settings.score_threshold
        self._remember(_Vote(moment, best if confident else None))
        if not confident:
            return below_threshold(best.score, settings)
        voters = [place for vote in self._votes if (place := self._agreeing(vote, best, moment)) is not None]
        counted = f"{len(voters)} of the last {len(self._votes)} frames agree"
        if len(voters) < settings.min_votes:
            return _nothing(f"{counted}, {settings.min_votes} needed")
        # The last voter is this frame's best candidate, which is among the agreeing candidates.
        agreeing = np.concatenate([self._agreeing_candidates(found), *(voter[np.newaxis] for voter in voters[:-1])])
        return _supported(best, f"{reached_threshold(best.score, settings)}, {counted}", agreeing)

    def missed(self, moment: Moment) -> None:
        """A frame that votes for nothing."""
        self._remember(_Vote(moment, None))

    def reset(self) -> None:
        """Start a new vote."""
        self._votes.clear()

    def _remember(self, vote: _Vote) -> None:
        """Add a frame. A pause or a backward jump starts a new vote; a frame that comes twice replaces itself."""
        settings, moment = self._settings, vote.moment
        if self._votes:
            gap_ns = moment.stamp_ns - self._votes[-1].moment.stamp_ns
            if gap_ns < 0 or gap_ns > settings.max_frame_gap_s * 1e9:
                self._votes.clear()
            elif gap_ns == 0:
                self._votes.pop()
        if settings.vote_distance_m > 0 and moment.odometry is not None:
            slot_m = settings.vote_distance_m / settings.sequence_length
            if len(self._votes) > 1 and self._votes[-1].moment.travelled_m - self._votes[-2].moment.travelled_m < slot_m:
                self._votes.pop()
            while self._votes and moment.travelled_m - self._votes[0].moment.travelled_m > settings.vote_distance_m:
                self._votes.popleft()
        self._votes.append(vote)

    def _agreeing(self, vote: _Vote, best: Match, moment: Moment) -> np.ndarray | None:
        """(4,) where the vote has the robot now, if that agrees with `best`; None otherwise."""
        if vote.best is None:
            return None
        place = _rows(self._places, np.array([vote.best.keyframe_index]))[0]
        target = _rows(self._places, np.array([best.keyframe_index]))[0]
        headed = self._places.headings_known[vote.best.keyframe_index]
        if vote.moment.odometry is not None and moment.odometry is not None and headed:
            place[[0, 1, 3]] = compose(place[[0, 1, 3]], between(vote.moment.odometry, moment.odometry))
        near = np.linalg.norm(place[:3] - target[:3]) <= self._settings.agreement_radius_m
        turn = abs(float(wrap_angle(place[3] - target[3])))
        return place if near and turn <= math.radians(self._settings.agreement_yaw_deg) else None


class BayesAgreement:
    """The best place of a Bayes filter, where its probability and the frame's own score suffice."""

    def __init__(self, places: KeyframePlaces, settings: MatcherSettings, likelihood: Likelihood | None = None):
        self._places, self._settings = places, settings
        self._filter = BayesFilter(places, settings, likelihood or standardised_evidence)
        self._last: Moment | None = None

    def observe(self, found: Found, moment: Moment) -> Verdict:
        """Of the most probable place, followed for long enough, the keyframe near its middle that this frame resembles most."""
        self._forget_unless_follows(moment)
        belief = self._filter.observe(found, moment)
        region, posterior = self._best_place(belief)
        shown = f"probability {posterior:.3f} of the best place"
        if posterior < self._settings.min_posterior:
            outside = f", {belief.outside:.3f} that the gallery does not show it" if belief.outside > posterior else ""
            return _nothing(f"{shown} is below {self._settings.min_posterior:.3f}{outside}", posterior)
        observations = float(np.average(belief.observations[region], weights=belief.masses[region]))
        if observations < self._settings.min_observations:
            blind = " (without odometry one a second)" if moment.odometry is None else ""
            needed = f"{observations:.1f} observations, {self._settings.min_observations:g} needed{blind}"
            return _nothing(f"{shown}, but that is known from {needed}", posterior)
        inside = self._in_the_middle(belief, region, found)
        if not len(inside):
            return _nothing("the best place is not among the keyframes that the frame resembles", posterior)
        first = int(inside[0])
        index, score = int(found.indices[first]), float(found.scores[first])
        if score < self._settings.score_threshold:
            return _nothing(f"score {score:.3f} of the best place is below the threshold {self._settings.score_threshold:.3f}", posterior)
        match = Match(index, score, self._places.pose(index))
        reason = f"{reached_threshold(score, self._settings)}, {shown} reaches {self._settings.min_posterior:.3f}"
        rows = _rows(self._places, np.append(belief.indices[region], index))
        return Verdict(match, reason, rows, np.append(belief.masses[region], _SMALLEST_WEIGHT), posterior)

    def missed(self, moment: Moment) -> None:
        """A frame that nothing can be compared with says nothing; belief moves on with the next one."""
        self._forget_unless_follows(moment)

    def reset(self) -> None:
        """Believe nothing."""
        self._filter.reset()
        self._last = None

    def _forget_unless_follows(self, moment: Moment) -> None:
        """Believe nothing after a backward jump, and after a pause of which odometry does not tell what happened."""
        last, self._last = self._last, moment
        if last is None:
            return
        gap_ns = moment.stamp_ns - last.stamp_ns
        blind = last.odometry is None or moment.odometry is None
        if gap_ns < 0 or (blind and gap_ns > self._settings.max_frame_gap_s * 1e9):
            self._filter.reset()

    def _best_place(self, belief: Belief) -> tuple[np.ndarray, float]:
        """Positions in `belief.indices` of the keyframes of the most probable place, and its probability."""
        best, highest = np.zeros(0, dtype=np.int64), 0.0
        for centre in np.argsort(-belief.masses, kind="stable")[:_PLACES_TRIED]:
            near = self._places.agreeing(
                int(belief.indices[centre]), belief.indices, self._settings.agreement_radius_m, self._settings.agreement_yaw_deg
            )
            mass = float(belief.masses[near].sum())
            if mass > highest:
                best, highest = np.flatnonzero(near), mass
        return best, min(highest, 1.0)

    def _in_the_middle(self, belief: Belief, region: np.ndarray, found: Found) -> np.ndarray:
        """Rows of `found`, best first, of the place's keyframes near where the robot is expected; of all of them where none is."""
        inside = np.flatnonzero(np.isin(found.indices, belief.indices[region]))
        shares = belief.masses[region] / belief.masses[region].sum()
        expected = shares @ (self._places.positions[belief.indices[region], :2] + belief.residuals[region, :2])
        apart = np.linalg.norm(self._places.positions[found.indices[inside], :2] - expected, axis=1)
        middle = apart <= _MIDDLE_SHARE * self._settings.agreement_radius_m
        return inside[middle] if middle.any() else inside


# The match itself is always among what agrees, also where the filter gives its keyframe next to nothing.
_SMALLEST_WEIGHT = 1e-6


def reached_threshold(score: float, settings: MatcherSettings) -> str:
    """The clause for a score that suffices."""
    return f"score {score:.3f} reaches the threshold {settings.score_threshold:.3f}"


def below_threshold(score: float, settings: MatcherSettings) -> Verdict:
    """The verdict on a frame whose best score does not suffice."""
    return _nothing(f"best score {score:.3f} is below the threshold {settings.score_threshold:.3f}")


def _nothing(reason: str, posterior: float | None = None) -> Verdict:
    return Verdict(None, reason, np.zeros((0, 4)), np.zeros(0), posterior)


def _supported(match: Match, reason: str, agreeing: np.ndarray) -> Verdict:
    return Verdict(match, reason, agreeing, np.ones(len(agreeing)))


def _rows(places: KeyframePlaces, indices: np.ndarray) -> np.ndarray:
    """(A, 4): x, y, z [m], yaw [rad] of keyframes."""
    return np.column_stack([places.positions[indices], places.yaws_rad[indices]])
