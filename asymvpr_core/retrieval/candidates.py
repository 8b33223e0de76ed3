"""The keyframes that a frame may be matched with: nearest neighbours among those that are not excluded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from asymvpr_core.retrieval.index import search
from asymvpr_core.retrieval.odometry import Moment
from asymvpr_core.retrieval.places import KeyframePlaces
from asymvpr_core.types import Match

# Values of descriptors that a frame may be compared with beyond its nearest keyframes: at more than some hundred dimensions
# thousands of keyframes would take longer than the network.
_COMPARED_VALUES = 1 << 20
# The filter looks at so many keyframes a frame, by dimension. Up to there it sees all of a gallery, so that its cost is O(N).
_FEWEST, _MOST = 128, 2048
# Scores that say what is usual between a frame and any keyframe: median and spread of 512 are known to about 5 %, of 128 to 10 %.
_MOST_REFERENCE = 512


@dataclass(frozen=True)
class Found:
    """What a search gave. `indices`, `scores` (M,): allowed keyframes, best first; `candidates`: the first top_k of them.

    `excluded` (E,) are the keyframes that were no candidates, `reference` (R,) scores of keyframes taken
    without regard to the frame (empty unless the search is broad).
    """

    candidates: tuple[Match, ...]
    indices: np.ndarray
    scores: np.ndarray
    excluded: np.ndarray
    reference: np.ndarray


class Exclusion(Protocol):
    """Which keyframes are no loop closure for a frame, and how to say that none is left."""

    def __call__(self, moment: Moment) -> np.ndarray:
        """Indices of the excluded keyframes."""

    def reason(self, count: int) -> str:
        """Why all `count` keyframes are excluded."""


@dataclass(frozen=True)
class TimeExclusion:
    """Excludes keyframes taken within `seconds` of the frame; those without a stamp never are."""

    places: KeyframePlaces
    seconds: float

    def __call__(self, moment: Moment) -> np.ndarray:
        """Indices of the excluded keyframes."""
        return self.places.taken_within(moment.stamp_ns, self.seconds)

    def reason(self, count: int) -> str:
        """Why all keyframes are excluded."""
        return f"all {count} keyframes were taken within {self.seconds:g} s of the frame"


def breadth(dimension: int) -> int:
    """How many keyframes the filter is given the scores of, for descriptors of this dimension: 2048 up to 512-D, 128 from 8192-D on."""
    return min(max(_COMPARED_VALUES // dimension, _FEWEST), _MOST)


class CandidateSearch:
    """Finds the best allowed keyframes of a descriptor."""

    def __init__(
        self, places: KeyframePlaces, index: Any, rows: Callable[[np.ndarray], np.ndarray], exclusion: Exclusion, top_k: int, broad: bool
    ):
        """Search `index`, whose row i is keyframe i of `places`.

        Args:
            rows: indices (R,) -> their descriptors (R, D); for the reference scores of a large gallery.
            broad: give the scores of all keyframes (of the best `breadth` of a large gallery), which the filter needs.
        """
        self._places, self._index, self._rows, self._exclusion = places, index, rows, exclusion
        self._top_k, self._broad = top_k, broad
        self._sample = (np.zeros(0, dtype=np.int64), np.zeros((0, 1), dtype=np.float32))

    def find(self, descriptor: np.ndarray, moment: Moment) -> Found:
        """The best allowed keyframes for (D,) `descriptor`.

        Raises:
            RetrievalError: another dimension, or a descriptor that is not finite.
        """
        excluded = self._exclusion(moment)
        wanted = max(self._top_k, breadth(len(descriptor))) if self._broad else self._top_k
        # Asking for as many more as can drop out keeps the best exact.
        scores, indices = search(self._index, descriptor[np.newaxis], wanted + len(excluded))
        allowed = ~np.isin(indices[0], excluded) if len(excluded) else np.ones(indices.shape[1], dtype=bool)
        kept, kept_scores = indices[0][allowed][:wanted], scores[0][allowed][:wanted]
        best = zip(kept[: self._top_k].tolist(), kept_scores[: self._top_k].tolist(), strict=True)
        candidates = tuple(Match(index, score, self._places.pose(index)) for index, score in best)
        reference = self._reference(descriptor, kept_scores, excluded) if self._broad else np.zeros(0, dtype=np.float32)
        return Found(candidates, kept, kept_scores, excluded, reference)

    def reason(self) -> str:
        """Why there is no candidate."""
        return self._exclusion.reason(len(self._places))

    def _reference(self, descriptor: np.ndarray, scores: np.ndarray, excluded: np.ndarray) -> np.ndarray:
        if len(self._places) - len(excluded) <= len(scores):
            return scores  # all of them
        indices, rows = self._sample
        if len(self._places) > 1.1 * (indices[-1] + 1 if len(indices) else 0):  # the gallery has grown
            indices = np.linspace(0, len(self._places) - 1, min(breadth(len(descriptor)), _MOST_REFERENCE)).astype(np.int64)
            rows = np.asarray(self._rows(indices), dtype=np.float32)
            self._sample = indices, rows
        # Not `@`: that is BLAS, whose threads take every core for it and spin on for a while.
        return np.einsum("rd,d->r", rows, descriptor)[~np.isin(indices, excluded)]
