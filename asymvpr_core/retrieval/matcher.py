"""Decide for each query frame whether it shows a place of a gallery: candidates, agreement over time, odometry gate, verification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.errors import RetrievalError
from asymvpr_core.retrieval.bayes import Likelihood
from asymvpr_core.retrieval.calibration import Errors
from asymvpr_core.retrieval.candidates import CandidateSearch, Exclusion, Found, TimeExclusion
from asymvpr_core.retrieval.covariance import match_covariance
from asymvpr_core.retrieval.gate import OdometryGate
from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.retrieval.odometry import Moment, OdometryMonitor, planar
from asymvpr_core.retrieval.places import KeyframePlaces
from asymvpr_core.retrieval.sequence import TemporalAgreement, make_agreement
from asymvpr_core.types import Match, MatchResult, QueryFrame


class Verifier(Protocol):
    """Compares the picture of a frame with that of a keyframe; see `retrieval.verification`."""

    def verify(self, image: np.ndarray, keyframe_index: int) -> int:
        """Number of feature pairs that fit one fundamental matrix."""


class Matcher:
    """Matches the frames of a stream against one gallery. Not thread-safe.

    A frame is accepted when (1) the frames before it agree, by `sequence`, on a place where this frame
    scores at least `score_threshold`, (2) the match lies within `odom_gate_sigma` of where odometry
    expects it, and (3) with `geometric_verification`, features of the two pictures fit together.
    Each camera has a temporal agreement of its own; gate and odometry are the robot's.
    """

    def __init__(
        self, gallery: PriorGallery, index: Any, settings: MatcherSettings | None = None,
        *, likelihood: Likelihood | None = None, verifier: Verifier | None = None, errors: Errors | None = None,
    ):  # fmt: skip
        """Match against a gallery on disk.

        Args:
            index: what `retrieval.index` searches; row i is keyframe i.
            likelihood: what the Bayes filter makes of scores; None: `standardised_evidence`.
            verifier: needed where the settings ask for geometric verification.
            errors: of a calibration, the floor of every covariance; None: the keyframes' spacing is.

        Raises:
            RetrievalError: empty gallery, keyframes without a pose, an index of another gallery, or no verifier.
            SettingsError: a vote that can never be won.
        """
        settings = settings or MatcherSettings()
        _check_fit(gallery, index)
        places = KeyframePlaces(gallery.keyframes, settings.agreement_radius_m)
        self._set_up(
            places, index, lambda rows: gallery.descriptors[rows], TimeExclusion(places, settings.exclude_time_s), settings,
            OdometryGate(settings), likelihood, verifier, OdometryMonitor(settings),
        )  # fmt: skip
        self.gallery, self._errors = gallery, errors

    @classmethod
    def over(
        cls, places: KeyframePlaces, index: Any, rows: Callable[[np.ndarray], np.ndarray], exclusion: Exclusion, settings: MatcherSettings,
        gate: OdometryGate, odometry: OdometryMonitor, *, likelihood: Likelihood | None = None, verifier: Verifier | None = None,
    ) -> Matcher:  # fmt: skip
        """Match against keyframes that grow while matching: `places` and `index` are extended together by their owner.

        Args:
            rows: indices (R,) -> descriptors (R, D).
            odometry: shared with the owner, so that both count one way.

        Raises:
            SettingsError: a vote that can never be won.
        """
        matcher = cls.__new__(cls)
        matcher._set_up(places, index, rows, exclusion, settings, gate, likelihood, verifier, odometry)
        return matcher

    def _set_up(
        self, places: KeyframePlaces, index: Any, rows: Callable[[np.ndarray], np.ndarray], exclusion: Exclusion, settings: MatcherSettings,
        gate: OdometryGate, likelihood: Likelihood | None, verifier: Verifier | None, odometry: OdometryMonitor,
    ) -> None:  # fmt: skip
        if settings.geometric_verification != "off" and verifier is None:
            raise RetrievalError("geometric verification is on and there are no pictures to compare with", remedy="give a verifier")
        self.settings, self._places, self._gate, self._verifier = settings, places, gate, verifier
        self._likelihood, self._errors = likelihood, None
        self._search = CandidateSearch(places, index, rows, exclusion, settings.top_k, broad=settings.sequence == "bayes")
        self._odometry = odometry
        self._agreements: dict[str, TemporalAgreement] = {"": make_agreement(places, settings, likelihood)}

    @staticmethod
    def check_settings(settings: MatcherSettings) -> None:
        """Raise SettingsError where the settings contradict each other."""
        make_agreement(KeyframePlaces(), settings)

    def reset(self) -> None:
        """Forget the frames seen so far; the next frame starts anew."""
        for agreement in self._agreements.values():
            agreement.reset()
        self._gate.reset()
        self._odometry.forget()

    def match(self, descriptor: np.ndarray, frame: QueryFrame, image: np.ndarray | None = None) -> MatchResult:
        """Say whether the frame shows a place of the gallery, and why or why not.

        Args:
            descriptor: (D,) float32, L2-normalised.
            frame: its stamp is on the clock of the keyframes.
            image: `(H, W, 3)` uint8 RGB; needed for geometric verification only.

        Raises:
            RetrievalError: another dimension, or a descriptor that is not finite.
        """
        moment = self._odometry.observe(frame)
        if moment.jumped:
            self._forget_places()
        found = self._search.find(descriptor, moment)
        result = self._decide(found, moment, image)
        if not moment.fault:
            return result
        forgotten = ", what was seen before is forgotten" if moment.jumped else ""
        return replace(result, reason=f"{result.reason} ({moment.fault}{forgotten})")

    def _decide(self, found: Found, moment: Moment, image: np.ndarray | None) -> MatchResult:
        agreement = self._agreement(moment.camera)
        if not found.candidates:
            agreement.missed(moment)
            return MatchResult(moment.stamp_ns, (), None, self._search.reason())
        verdict = agreement.observe(found, moment)
        if verdict.match is None:
            return MatchResult(moment.stamp_ns, found.candidates, None, verdict.reason, posterior=verdict.posterior)
        covariance = match_covariance(self._places, verdict, self.settings.agreement_radius_m, self._errors)
        pose, ours = self._planar(verdict.match), covariance[np.ix_([0, 1, 5], [0, 1, 5])]
        passed, gated = (True, "") if pose is None else self._gate.check(pose, ours, moment)
        inliers, verified = None, ""
        if passed and self._verifier is not None and self.settings.geometric_verification != "off":
            passed, inliers, verified = self._verify(verdict.match, image)
        if not passed:
            return MatchResult(moment.stamp_ns, found.candidates, None, verified or gated, None, verdict.posterior, inliers)
        if pose is not None:
            self._gate.accept(pose, ours, moment)
        reason = ", ".join(clause for clause in (verdict.reason, gated, verified) if clause)
        return MatchResult(moment.stamp_ns, found.candidates, verdict.match, reason, covariance, verdict.posterior, inliers)

    def _verify(self, match: Match, image: np.ndarray | None) -> tuple[bool, int, str]:
        if image is None or self._verifier is None:
            raise RetrievalError("geometric verification is on and the frame has no picture", remedy="give the image to match()")
        inliers, needed = self._verifier.verify(image, match.keyframe_index), self.settings.min_inliers
        fit = f"{inliers} feature pairs fit"
        return (True, inliers, fit) if inliers >= needed else (False, inliers, f"{fit} one fundamental matrix, {needed} needed")

    def _agreement(self, camera: str) -> TemporalAgreement:
        if camera not in self._agreements:
            self._agreements[camera] = make_agreement(self._places, self.settings, self._likelihood)
        return self._agreements[camera]

    def _planar(self, match: Match) -> np.ndarray | None:
        """(3,) of the match; None where its pose or its heading is unknown, and nothing can be gated."""
        if match.pose is None or not self._places.headings_known[match.keyframe_index]:
            return None
        return planar(match.pose)

    def _forget_places(self) -> None:
        for agreement in self._agreements.values():
            agreement.reset()
        self._gate.reset()


def _check_fit(gallery: PriorGallery, index: Any) -> None:
    if len(gallery) == 0:
        raise RetrievalError(f"gallery {gallery.path} is empty", remedy="build it from a source with images")
    without_pose = sum(keyframe.pose is None for keyframe in gallery.keyframes)
    if without_pose:
        raise RetrievalError(
            f"{without_pose} of {len(gallery)} keyframes of gallery {gallery.path} have no pose", expected="a pose for each",
            remedy="build the gallery from a source with poses",
        )  # fmt: skip
    if (index.ntotal, index.d) != gallery.descriptors.shape:
        raise RetrievalError(
            f"the index holds {index.ntotal} descriptors of {index.d}-D",
            expected=f"{gallery.descriptors.shape[0]} of {gallery.descriptors.shape[1]}-D as in gallery {gallery.path}",
            remedy="rebuild with 'asymvpr gallery build'",
        )
