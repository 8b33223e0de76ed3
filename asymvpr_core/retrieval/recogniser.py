"""Place recognition as one object: image and stamp in, decision out.

The ROS node and the bag evaluation both run exactly this, so their candidates are identical.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asymvpr_core.config import MatcherSettings, RuntimeSettings
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import RetrievalError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair
from asymvpr_core.retrieval.gallery_index import open_index
from asymvpr_core.retrieval.index import SearchIndex
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.types import LoopClosure, MatchResult


@dataclass
class PlaceRecogniser:
    """A gallery, the query model of its pair, and the matcher over both. Not thread-safe."""

    gallery: Gallery
    model: QueryModel
    index: SearchIndex
    matcher: Matcher

    @staticmethod
    def open(
        gallery_path: Path, model_path: Path, matcher: MatcherSettings | None = None, runtime: RuntimeSettings | None = None
    ) -> PlaceRecogniser:
        """Open gallery and query model, verify their checksums, and check that they are of one pair.

        Descriptors of more than 256 MiB are verified behind the work; damage is then raised by `process`.

        Raises:
            ArtefactError: missing or damaged artefact, or gallery and model of different pairs.
            RetrievalError: empty gallery, or an index that does not fit it.
            DeployError: the runtime refuses the model.
            SettingsError: matcher settings that contradict each other.
        """
        gallery_path, model_path = Path(gallery_path), Path(model_path)
        gallery = Gallery.open(gallery_path, verify="auto")
        model = QueryModel.open(model_path, runtime)
        check_pair(gallery.manifest, model.manifest, gallery_path, model_path)
        index = open_index(gallery)
        return PlaceRecogniser(gallery, model, index, Matcher(gallery, index, matcher))

    def process(self, image: np.ndarray, stamp_ns: int) -> MatchResult:
        """Say whether an `(H, W, 3)` uint8 RGB frame taken at `stamp_ns` shows a place of the gallery.

        Raises:
            ImageError: another shape or type.
        """
        return self.matcher.match(self.model.encode(image), stamp_ns)

    def reset(self) -> None:
        """Forget the frames seen so far."""
        self.matcher.reset()

    def change_settings(self, settings: MatcherSettings) -> None:
        """Use other matcher settings from the next frame on, with a new vote.

        Raises:
            SettingsError: settings that contradict each other; the old ones stay.
        """
        self.matcher = Matcher(self.gallery, self.index, settings)

    def loop_closure(self, result: MatchResult) -> LoopClosure | None:
        """Give the edge between the matched keyframe and the frame; None where the keyframe has no stamp.

        The frame's pose is the keyframe's: place recognition knows no finer one.

        Raises:
            RetrievalError: the frame was not accepted.
        """
        if result.match is None or result.covariance is None:
            raise RetrievalError(f"the frame was rejected: {result.reason}", expected="an accepted match")
        stamp_ns = self.gallery.keyframes[result.match.keyframe_index].stamp_ns
        if stamp_ns is None:
            return None
        pose = result.match.pose
        return LoopClosure(result.match.keyframe_index, stamp_ns, pose, result.stamp_ns, pose, result.covariance)
