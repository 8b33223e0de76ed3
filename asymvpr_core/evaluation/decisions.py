"""What the matcher decides along a run at one threshold after another, agreement over time and verification included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.evaluation.encoded_run import EncodedRun
from asymvpr_core.evaluation.loop_closure import PrecisionRecall
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.retrieval.matcher import Matcher, Verifier
from asymvpr_core.types import Match, QueryFrame

N_THRESHOLDS = 24
_LOWEST_SHARE = 0.05  # of the frames that lie below the lowest threshold tried

# (frame number, match) -> right; None: neither right nor wrong.
Judge = Callable[[int, Match], bool | None]


@dataclass(frozen=True)
class Decisions:
    """`thresholds` (T,) ascending; `accepted` and `right` (T, F) bool at each, without matches that are neither right nor wrong."""

    thresholds: np.ndarray
    accepted: np.ndarray
    right: np.ndarray

    def counts(self, rows: np.ndarray | None = None, stretches: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(T,) accepted and (T,) right frames, of the frames `rows` only where given.

        Args:
            stretches: (F,) int; counts stretches of way in place of frames: accepted where one of its frames is, right where all those are.
        """
        chosen = np.arange(self.accepted.shape[1]) if rows is None else rows
        accepted, right = self.accepted[:, chosen], self.right[:, chosen]
        if stretches is None:
            return accepted.sum(axis=1), right.sum(axis=1)
        _, stretch = np.unique(stretches[chosen], return_inverse=True)
        member = np.zeros((len(chosen), len(np.unique(stretch))))
        member[np.arange(len(chosen)), stretch] = 1.0
        some, wrong = accepted @ member > 0, (accepted & ~right) @ member > 0
        return some.sum(axis=1), (some & ~wrong).sum(axis=1)

    def curve(self, n_opportunities: int) -> PrecisionRecall:
        """Precision and recall at the thresholds that accept something, highest threshold first; there is no area below so few points."""
        accepted, right = (counts[::-1] for counts in self.counts())
        some = accepted > 0
        accepted, right, thresholds = accepted[some], right[some], self.thresholds[::-1][some]
        recall = right / n_opportunities if n_opportunities else np.zeros(len(right))
        return PrecisionRecall(thresholds, right / accepted, recall, None, None, None, n_opportunities)


def decide(
    run: EncodedRun, gallery: PriorGallery, index: object, settings: MatcherSettings, judge: Judge, verifier: Verifier | None = None
) -> Decisions:
    """Run the matcher over the whole run, with its threshold at one quantile of the best scores after another.

    Args:
        index: of the gallery.
        settings: `score_threshold` is replaced.
        verifier: of the gallery, where the settings ask for verification.
    """
    best = (run.descriptors @ np.asarray(gallery.descriptors, dtype=np.float32).T).max(axis=1)
    thresholds = np.unique(np.quantile(best, np.linspace(_LOWEST_SHARE, 1.0, N_THRESHOLDS)))
    remembered = None if verifier is None else _RememberingVerifier(verifier, run)

    def pass_over_run(threshold: float) -> list[Match | None]:
        matcher = Matcher(gallery, index, settings.model_copy(update={"score_threshold": threshold}), verifier=remembered)
        matches = []
        for frame, descriptor in enumerate(run.descriptors):
            if remembered is not None:
                remembered.frame = frame
            matches.append(matcher.match(descriptor, QueryFrame(run.stamps_ns[frame], run.odometry[frame]), _NO_PICTURE).match)
        return matches

    # A frame below the threshold does not vote, and a gate remembers what was accepted. Otherwise the threshold
    # changes no later frame: one pass without it holds the decisions at all of them.
    depends = settings.sequence == "vote" or settings.odom_gate_sigma > 0
    unthresholded = None if depends else pass_over_run(-1.0)
    accepted = np.zeros((len(thresholds), len(run)), dtype=bool)
    right = np.zeros_like(accepted)
    verdicts: dict[tuple[int, int], bool | None] = {}
    for row, threshold in enumerate(thresholds):
        for frame, match in enumerate(unthresholded or pass_over_run(float(threshold))):
            if match is None or match.score < threshold:
                continue
            key = (frame, match.keyframe_index)
            if key not in verdicts:
                verdicts[key] = judge(frame, match)
            verdict = verdicts[key]
            accepted[row, frame], right[row, frame] = verdict is not None, bool(verdict)
    return Decisions(thresholds, accepted, right)


_NO_PICTURE = np.zeros((0, 0, 3), dtype=np.uint8)  # `_RememberingVerifier` has its own


class _RememberingVerifier:
    """Verifies each pair of frame and keyframe once; the pictures stay in memory as they are encoded."""

    def __init__(self, verifier: Verifier, run: EncodedRun):
        self.frame = 0
        self._verifier, self._records = verifier, run.dataset.records
        self._pictures = [data for _, data in run.dataset.read_encoded(list(range(len(run))))]
        self._known: dict[tuple[int, int], int] = {}

    def verify(self, image: np.ndarray, keyframe_index: int) -> int:
        """Feature pairs of the current frame and a keyframe; `image` is not looked at."""
        key = (self.frame, keyframe_index)
        if key not in self._known:
            picture = decode_image(self._pictures[self.frame], self._records[self.frame].name)
            self._known[key] = self._verifier.verify(picture, keyframe_index)
        return self._known[key]


def judge_by(positives: Sequence[np.ndarray], ignored: Callable[[int, Match], bool]) -> Judge:
    """A judge from the gallery indices that are right for each frame, and what is ignored of the others."""

    def judge(frame: int, match: Match) -> bool | None:
        if match.keyframe_index in positives[frame]:
            return True
        return None if ignored(frame, match) else False

    return judge
