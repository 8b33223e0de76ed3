"""Place recognition as one object: image, stamp and odometry in, decision out.

The ROS node and the bag evaluation both run exactly this, so their candidates are identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import MatcherSettings, RuntimeSettings, SessionSettings
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, AsymvprError, RetrievalError, SettingsError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair, is_own_session, query_identity
from asymvpr_core.retrieval.bayes import Likelihood
from asymvpr_core.retrieval.calibration import Calibration, threshold_of, usable_calibration, with_threshold
from asymvpr_core.retrieval.joint import PriorCondition, PriorGallery, galleries_in, open_prior
from asymvpr_core.retrieval.matcher import Matcher, Verifier
from asymvpr_core.retrieval.session import SessionGallery, Verification
from asymvpr_core.types import LoopClosure, MatchResult, QueryFrame, Recognition


class PlaceRecogniser:
    """A query model, and what its descriptors are matched against: a prior gallery (or several), this run's own keyframes, or both.

    `gallery`, `index` and `matcher` are those of the prior gallery, None without one; `session` is None
    where it is off. Not thread-safe.
    """

    def __init__(
        self, model: QueryModel, gallery: PriorGallery | None, index: Any, matcher: MatcherSettings, session: SessionSettings,
        *, likelihood: Likelihood | None = None, session_likelihood: Likelihood | None = None, calibration: Calibration | None = None,
    ):  # fmt: skip
        """What `open` calls once the artefacts are open.

        Args:
            index: of the prior gallery, None without one.
            likelihood: what the Bayes filter makes of scores against the prior gallery; None: `standardised_evidence`.
            session_likelihood: the same within the session.
            calibration: of the prior gallery and this model; needed where a precision is asked for.
        """
        self.model, self.gallery, self.index, self.calibration = model, gallery, index, calibration
        self._likelihood, self._session_likelihood = likelihood, session_likelihood
        # Prior keyframes of an earlier session were described by the light network, like those of this one.
        self._light_prior = gallery is not None and all(is_own_session(one.manifest, model.manifest) for one in galleries_in(gallery))
        self.session: SessionGallery | None = None
        self.matcher: Matcher | None = None
        self.matcher_settings, self.session_settings = matcher, session
        self.change_settings(matcher, session)

    @classmethod
    def open(
        cls,
        gallery_path: Path | Sequence[Path] | None,
        model_path: Path,
        matcher: MatcherSettings | None = None,
        runtime: RuntimeSettings | None = None,
        *,
        session: SessionSettings | None = None,
    ) -> PlaceRecogniser:
        """Open query model and prior gallery, verify their checksums, and check that they are of one pair.

        Descriptors of more than 256 MiB are verified behind the work; damage is then raised by `process`.

        Args:
            gallery_path: the prior gallery; several in one map frame are searched as one; None: the session gallery alone.

        Raises:
            ArtefactError: missing or damaged artefact, gallery and model of different pairs, or a precision is asked for with
                several galleries: a calibration is of one.
            RetrievalError: empty gallery, several in different map frames, an index that does not fit it, or no thumbnails
                where geometric verification is on.
            DeployError: the runtime refuses the model.
            SettingsError: settings that contradict each other, or neither a prior nor a session gallery.
        """
        matcher, session = matcher or MatcherSettings(), session or SessionSettings()
        paths = [] if gallery_path is None else [Path(gallery_path)] if isinstance(gallery_path, str | Path) else list(gallery_path)
        gallery, index = open_prior(paths) if paths else (None, None)
        _check_some_gallery(gallery, session)
        model = QueryModel.open(Path(model_path), runtime)
        if gallery is None:
            return cls(model, None, None, matcher, session)
        for one in galleries_in(gallery):
            check_pair(one.manifest, model.manifest, one.path, model.path)
        needed = matcher.target_precision > 0 or session.session_target_precision > 0
        return cls(model, gallery, index, matcher, session, calibration=_calibration_of(gallery, model, needed))

    @property
    def condition(self) -> PriorCondition:
        """How the search of the prior gallery goes."""
        return PriorCondition.of(self.gallery, self.index)

    def gallery_of(self, keyframe_index: int) -> Path:
        """Folder of the prior gallery that holds a keyframe. Raises RetrievalError without one, or without such a keyframe."""
        if self.gallery is None:
            raise RetrievalError("there is no prior gallery", remedy="open one")
        return self.gallery.path if isinstance(self.gallery, Gallery) else self.gallery.locate(keyframe_index)[0].path

    def process(self, image: np.ndarray, frame: QueryFrame) -> Recognition:
        """Say whether an `(H, W, 3)` uint8 RGB frame shows a place of the prior gallery, or of this session.

        Raises:
            ImageError: another shape or type.
        """
        return self.match(self.model.encode(image), frame, image)

    def match(self, descriptor: np.ndarray, frame: QueryFrame, image: np.ndarray | None = None) -> Recognition:
        """What `process` does once the frame is described.

        Args:
            descriptor: (D,) float32, by `model.encode`.
            image: needed for geometric verification only.
        """
        prior = None if self.matcher is None else self.matcher.match(descriptor, frame, image)
        within, added = (None, False) if self.session is None else self.session.process(descriptor, frame, image)
        closure = None if self.session is None or within is None else self.session.closure(within)
        return Recognition(frame, prior, within, self._prior_closure(prior), closure, added)

    def reset(self) -> None:
        """Forget what is remembered from frame to frame; the galleries stay."""
        if self.matcher is not None:
            self.matcher.reset()
        if self.session is not None:
            self.session.reset()

    def reset_session(self) -> None:
        """Begin an empty session gallery.

        Raises:
            RetrievalError: the session gallery is off.
        """
        self._running_session().begin_anew()

    def save_session(self, path: Path, odometry_frame: str = "odom") -> Path:
        """Write the session gallery as a gallery that the next run, with this query model, can open as its prior one; returns `path`.

        Args:
            odometry_frame: name of the frame of the poses.

        Raises:
            RetrievalError: the session gallery is off or empty, or its keyframes have no odometry.
            ArtefactError: `path` exists or cannot be written.
        """
        session = self._running_session()
        return session.save(Path(path), query_identity(self.model.manifest), odometry_frame, f"session of {self.model.path.absolute()}")

    def check_settings(self, matcher: MatcherSettings, session: SessionSettings | None = None) -> None:
        """Raise what `change_settings` would raise, and change nothing."""
        _check_some_gallery(self.gallery, session or self.session_settings)
        Matcher.check_settings(matcher)
        _with_session_threshold(session or self.session_settings, self.calibration)
        if self.gallery is not None:
            self._prior_matcher(matcher, session or self.session_settings)

    def change_settings(self, matcher: MatcherSettings, session: SessionSettings | None = None) -> None:
        """Use other settings from the next frame on, with nothing remembered of the frames before; the session's keyframes stay.

        Args:
            session: None: as they are. Where it switches the session gallery off, its keyframes are let go.

        Raises:
            SettingsError: settings that contradict each other; the old ones stay.
            RetrievalError: geometric verification is on, and the prior gallery holds no thumbnails; the old settings stay.
        """
        session = session or self.session_settings
        _check_some_gallery(self.gallery, session)
        Matcher.check_settings(matcher)
        resolved = _with_session_threshold(session, self.calibration)
        prior = None if self.gallery is None else self._prior_matcher(matcher, session)
        verified_before = self.session is not None and self.matcher_settings.geometric_verification != "off"
        # Keyframes that were added without thumbnails cannot be verified later.
        anew = self.session is not None and (matcher.geometric_verification != "off") != verified_before
        if not session.session_gallery:
            self.session = None
        elif self.session is None or anew:
            self.session = SessionGallery(
                self.model.dimension, matcher, resolved, likelihood=self._session_likelihood, verification=_session_verification(matcher)
            )
        else:
            self.session.change_settings(matcher, resolved)
        self.matcher, self.matcher_settings, self.session_settings = prior, matcher, session

    def use_gallery_of(self, other: PlaceRecogniser) -> None:
        """Take the prior gallery of another recogniser into use from the next frame on; this session's keyframes stay.

        Raises:
            ArtefactError: it is of another pair than this model.
            RetrievalError: the other has no prior gallery, or these settings cannot be used with it; the old one stays.
        """
        if other.gallery is None:
            raise RetrievalError("there is no prior gallery to take over", remedy="open one")
        for one in galleries_in(other.gallery):
            check_pair(one.manifest, self.model.manifest, one.path, self.model.path)
        before = (self.gallery, self.index, self._likelihood, self._light_prior)
        self.gallery, self.index = other.gallery, other.index
        self._likelihood, self._light_prior = other._likelihood, other._light_prior
        try:
            self.change_settings(self.matcher_settings, self.session_settings)
        except AsymvprError:
            self.gallery, self.index, self._likelihood, self._light_prior = before
            raise

    def _prior_matcher(self, matcher: MatcherSettings, session: SessionSettings) -> Matcher:
        assert self.gallery is not None
        if self._light_prior:
            matcher = matcher.model_copy(update={"score_threshold": session.session_score_threshold})
        else:
            matcher = with_threshold(matcher, self.calibration)
        return Matcher(
            self.gallery, self.index, matcher, likelihood=self._likelihood, verifier=_gallery_verifier(self.gallery, matcher),
            errors=None if self.calibration is None else self.calibration.errors,
        )  # fmt: skip

    def _running_session(self) -> SessionGallery:
        if self.session is None:
            raise RetrievalError("the session gallery is off", remedy="set session_gallery to true")
        return self.session

    def _prior_closure(self, result: MatchResult | None) -> LoopClosure | None:
        if self.gallery is None or result is None or result.match is None or result.covariance is None:
            return None
        stamp_ns = self.gallery.keyframes[result.match.keyframe_index].stamp_ns
        if stamp_ns is None:
            return None
        pose = result.match.pose
        return LoopClosure(result.match.keyframe_index, stamp_ns, pose, result.stamp_ns, pose, result.covariance)


def _calibration_of(gallery: PriorGallery, model: QueryModel, needed: bool) -> Calibration | None:
    """The calibration of a gallery and this model; of several galleries there is none. Raises ArtefactError where one is needed."""
    if isinstance(gallery, Gallery):
        return usable_calibration(gallery, model.path, model.manifest, needed=needed)
    if needed:
        raise ArtefactError(
            f"a precision is asked for, and {len(gallery.galleries)} galleries are searched as one: {gallery.path}",
            expected="one gallery, which the calibration is of",
            remedy="set a score threshold instead of the precision, or build one gallery of all images and calibrate that",
        )
    return None


def _check_some_gallery(gallery: PriorGallery | None, session: SessionSettings) -> None:
    if gallery is None and not session.session_gallery:
        raise SettingsError(
            "there is no gallery to match against", expected="a prior gallery, or session_gallery true",
            remedy="give a gallery, or switch the session gallery on",
        )  # fmt: skip


def _with_session_threshold(session: SessionSettings, calibration: Calibration | None) -> SessionSettings:
    if not session.session_gallery:
        return session
    return session.model_copy(update={"session_score_threshold": threshold_of(session, calibration)})


def _gallery_verifier(gallery: PriorGallery, matcher: MatcherSettings) -> Verifier | None:
    if matcher.geometric_verification == "off":
        return None
    from asymvpr_core.retrieval.verification import gallery_verifier  # costs nothing where it is off

    return gallery_verifier(gallery)


def _session_verification(matcher: MatcherSettings) -> Verification | None:
    if matcher.geometric_verification == "off":
        return None
    from asymvpr_core.retrieval.verification import session_verification  # costs nothing where it is off

    return session_verification()
