"""Place recognition as one object: image and stamp in, decision out.

The ROS node and the bag evaluation both run exactly this, so their candidates are identical.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from asymvpr_core.config import MatcherSettings, RuntimeSettings, SessionSettings
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import RetrievalError, SettingsError
from asymvpr_core.gallery.store import INDEX, Gallery
from asymvpr_core.manifest import check_pair
from asymvpr_core.retrieval.calibration import Calibration, usable_calibration, with_threshold
from asymvpr_core.retrieval.index import read_index
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.types import LoopClosure, MatchResult, QueryFrame, Recognition


@dataclass
class PlaceRecogniser:
    """A query model, and what its descriptors are matched against: a prior gallery, this run's own keyframes, or both.

    `gallery`, `index` and `matcher` are those of the prior gallery, None without one. Not thread-safe.
    """

    model: QueryModel
    gallery: Gallery | None
    index: faiss.Index | None
    matcher: Matcher | None
    session_settings: SessionSettings
    calibration: Calibration | None = None

    @classmethod
    def open(
        cls,
        gallery_path: Path | None,
        model_path: Path,
        matcher: MatcherSettings | None = None,
        runtime: RuntimeSettings | None = None,
        *,
        session: SessionSettings | None = None,
    ) -> PlaceRecogniser:
        """Open query model and prior gallery, verify their checksums, and check that they are of one pair.

        Args:
            gallery_path: the prior gallery; None: the session gallery alone.

        Raises:
            ArtefactError: missing or damaged artefact, or gallery and model of different pairs.
            RetrievalError: empty gallery, or an index that does not fit it.
            DeployError: the runtime refuses the model.
            SettingsError: settings that contradict each other, or neither a prior nor a session gallery.
        """
        matcher, session = matcher or MatcherSettings(), session or SessionSettings()
        if gallery_path is None and not session.session_gallery:
            raise SettingsError(
                "there is no gallery to match against", expected="a prior gallery, or session_gallery true",
                remedy="give a gallery, or switch the session gallery on",
            )  # fmt: skip
        if session.session_gallery:
            raise SettingsError("session_gallery is true, and this version has no session gallery yet", remedy="set it to false")
        if gallery_path is None:
            return cls(QueryModel.open(Path(model_path), runtime), None, None, None, session)
        gallery_path, model_path = Path(gallery_path), Path(model_path)
        gallery = Gallery.open(gallery_path)
        model = QueryModel.open(model_path, runtime)
        check_pair(gallery.manifest, model.manifest, gallery_path, model_path)
        index = read_index(gallery_path / INDEX)
        needed = matcher.target_precision > 0 or session.session_target_precision > 0
        calibration = usable_calibration(gallery, model_path, model.manifest, needed=needed)
        prior = _prior_matcher(gallery, index, matcher, calibration)
        return cls(model, gallery, index, prior, session, calibration)

    def process(self, image: np.ndarray, frame: QueryFrame) -> Recognition:
        """Say whether an `(H, W, 3)` uint8 RGB frame shows a place of the prior gallery, or of this session.

        Raises:
            ImageError: another shape or type.
        """
        descriptor = self.model.encode(image)
        prior = None if self.matcher is None else self.matcher.match(descriptor, frame)
        return Recognition(frame, prior, None, self._prior_closure(prior), None, False)

    def reset(self) -> None:
        """Forget what is remembered from frame to frame; the galleries stay."""
        if self.matcher is not None:
            self.matcher.reset()

    def reset_session(self) -> None:
        """Begin an empty session gallery."""

    def save_session(self, path: Path) -> Path:
        """Write the session gallery as a gallery that the next run can open as its prior one; returns `path`.

        Raises:
            RetrievalError: the session gallery is off or empty, or its keyframes have no odometry.
            ArtefactError: `path` exists or cannot be written.
        """
        raise RetrievalError("the session gallery is off", remedy="set session_gallery to true")

    def check_settings(self, matcher: MatcherSettings, session: SessionSettings | None = None) -> None:
        """Raise what `change_settings` would raise, and change nothing."""
        if self.gallery is not None and self.index is not None:
            _prior_matcher(self.gallery, self.index, matcher, self.calibration)

    def change_settings(self, matcher: MatcherSettings, session: SessionSettings | None = None) -> None:
        """Use other settings from the next frame on, with nothing remembered of the frames before.

        Args:
            session: None: as they are.

        Raises:
            SettingsError: settings that contradict each other; the old ones stay.
        """
        if self.gallery is not None and self.index is not None:
            self.matcher = _prior_matcher(self.gallery, self.index, matcher, self.calibration)

    def _prior_closure(self, result: MatchResult | None) -> LoopClosure | None:
        if self.gallery is None or result is None or result.match is None or result.covariance is None:
            return None
        stamp_ns = self.gallery.keyframes[result.match.keyframe_index].stamp_ns
        if stamp_ns is None:
            return None
        pose = result.match.pose
        return LoopClosure(result.match.keyframe_index, stamp_ns, pose, result.stamp_ns, pose, result.covariance)


def _prior_matcher(gallery: Gallery, index: faiss.Index, settings: MatcherSettings, calibration: Calibration | None) -> Matcher:
    """The matcher with the threshold and the errors of the calibration, where there is one."""
    return Matcher(gallery, index, with_threshold(settings, calibration), errors=None if calibration is None else calibration.errors)
