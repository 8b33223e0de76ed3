"""Decide for each query frame whether it shows a place of the gallery: threshold, exclusion, agreement over time."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from asymvpr_core.config import MatcherSettings
from asymvpr_core.errors import RetrievalError, SettingsError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.retrieval.index import SearchIndex, search
from asymvpr_core.types import Match, MatchResult, Pose

# A revisit is never pixel-aligned: people and robots drive a place again within about these angles.
_TILT_STD_RAD = math.radians(5.0)
_YAW_STD_RAD = math.radians(10.0)
# Of a gallery without headings nothing is known of the orientation; rtabmap reads 9999 as "ignore this axis".
_UNKNOWN_VARIANCE = 9999.0
# Keyframes closer together than this are one position (a turn on the spot), so they say nothing about spacing.
_SAME_POSITION_M = 0.1


class Matcher:
    """Matches descriptors of a stream of frames against one gallery. Not thread-safe.

    A frame is accepted when its best candidate scores at least `score_threshold` and, with
    `sequence="vote"`, when the best candidates of at least `min_votes` of the last
    `sequence_length` frames (this one included) lie at the same place. Frames below the
    threshold do not vote. Keyframes taken within `exclude_time_s` of the frame are no
    candidates at all; keyframes without a stamp are never excluded.
    """

    def __init__(self, gallery: Gallery, index: SearchIndex, settings: MatcherSettings | None = None):
        """Check that gallery, index and settings fit together.

        Raises:
            RetrievalError: empty gallery, keyframes without a pose, or an index of another gallery.
            SettingsError: a vote that can never be won.
        """
        self.gallery, self.index, self.settings = gallery, index, settings or MatcherSettings()
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
        if self.settings.sequence == "vote" and self.settings.min_votes > self.settings.sequence_length:
            raise SettingsError(
                f"min_votes is {self.settings.min_votes}", expected=f"at most sequence_length, {self.settings.sequence_length}",
                remedy="lower min_votes or raise sequence_length",
            )  # fmt: skip
        stamped = [(k.stamp_ns, i) for i, k in enumerate(gallery.keyframes) if k.stamp_ns is not None]
        stamped.sort()
        self._stamps_ns = np.array([stamp for stamp, _ in stamped], dtype=np.int64)
        self._stamped_indices = np.array([i for _, i in stamped], dtype=np.int64)
        # Frames of the vote: (stamp, best candidate, or None where it scored below the threshold).
        self._votes: deque[tuple[int, Match | None]] = deque(maxlen=self.settings.sequence_length)

    def reset(self) -> None:
        """Forget the frames seen so far; the next frame starts a new vote."""
        self._votes.clear()

    def match(self, descriptor: np.ndarray, stamp_ns: int) -> MatchResult:
        """Say whether the frame `stamp_ns` shows a place of the gallery, and why or why not.

        Args:
            descriptor: (D,) float32, L2-normalised.
            stamp_ns: when the frame was taken, on the clock of the keyframes.

        Raises:
            RetrievalError: another dimension, or a descriptor that is not finite.
        """
        candidates = self._candidates(descriptor, stamp_ns)
        self._forget_unless_follows(stamp_ns)
        threshold = self.settings.score_threshold
        best = candidates[0] if candidates else None
        confident = best is not None and best.score >= threshold
        self._votes.append((stamp_ns, best if confident else None))

        if best is None:
            reason = f"all {len(self.gallery)} keyframes were taken within {self.settings.exclude_time_s:g} s of the frame"
            return MatchResult(stamp_ns, candidates, None, reason)
        if not confident:
            return MatchResult(stamp_ns, candidates, None, f"best score {best.score:.3f} is below the threshold {threshold:.3f}")
        reason = f"score {best.score:.3f} reaches the threshold {threshold:.3f}"
        agreeing = [c for c in candidates if self._agree(c, best)]
        if self.settings.sequence == "vote":
            voters = [vote for _, vote in self._votes if vote is not None and self._agree(vote, best)]
            counted = f"{len(voters)} of the last {len(self._votes)} frames agree"
            if len(voters) < self.settings.min_votes:
                return MatchResult(stamp_ns, candidates, None, f"{counted}, {self.settings.min_votes} needed")
            reason += f", {counted}"
            agreeing += voters[:-1]  # the last voter is this frame's best candidate, counted already
        return MatchResult(stamp_ns, candidates, best, reason, self._covariance(best, agreeing))

    def _candidates(self, descriptor: np.ndarray, stamp_ns: int) -> tuple[Match, ...]:
        """The top k among the keyframes that are not excluded by time, best first."""
        window_ns = round(self.settings.exclude_time_s * 1e9)
        first = int(np.searchsorted(self._stamps_ns, stamp_ns - window_ns, side="right"))
        last = int(np.searchsorted(self._stamps_ns, stamp_ns + window_ns, side="left"))
        excluded = set(self._stamped_indices[first:last].tolist())
        # Asking for as many more as can drop out keeps the top k exact.
        scores, indices = search(self.index, descriptor[np.newaxis], self.settings.top_k + len(excluded))
        kept = [(int(i), float(s)) for i, s in zip(indices[0], scores[0], strict=True) if int(i) not in excluded]
        return tuple(Match(i, score, self._pose(i)) for i, score in kept[: self.settings.top_k])

    def _forget_unless_follows(self, stamp_ns: int) -> None:
        """Start a new vote after a backward jump or a pause; a frame that comes twice replaces itself."""
        if not self._votes:
            return
        gap_ns = stamp_ns - self._votes[-1][0]
        if gap_ns < 0 or gap_ns > self.settings.max_frame_gap_s * 1e9:
            self._votes.clear()
        elif gap_ns == 0:
            self._votes.pop()

    def _agree(self, a: Match, b: Match) -> bool:
        near = a.pose.distance_m(b.pose) <= self.settings.agreement_radius_m
        return near and a.pose.yaw_distance_deg(b.pose) <= self.settings.agreement_yaw_deg

    def _pose(self, index: int) -> Pose:
        pose = self.gallery.keyframes[index].pose
        assert pose is not None  # the constructor refused such galleries
        return pose

    def _spacing_m(self, index: int) -> float:
        """Distance from keyframe `index` to the nearest keyframe elsewhere; the agreement radius where there is none."""
        distances = np.linalg.norm(self.gallery.positions - self.gallery.positions[index], axis=1)
        elsewhere = distances[distances > _SAME_POSITION_M]
        return float(elsewhere.min()) if len(elsewhere) else self.settings.agreement_radius_m

    def _covariance(self, match: Match, agreeing: list[Match]) -> np.ndarray:
        """(6, 6) float64, ROS order: half the local keyframe spacing, plus the spread of the agreeing candidates about the match.

        The orientation of a keyframe without heading is unknown, and its variances say so.
        """
        positions = np.array([c.pose.position for c in agreeing]) - np.array(match.pose.position)
        yaws = np.radians([c.pose.yaw_distance_deg(match.pose) for c in agreeing])
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = np.eye(3) * (self._spacing_m(match.keyframe_index) / 2) ** 2 + positions.T @ positions / len(agreeing)
        if self.gallery.keyframes[match.keyframe_index].heading_deg is None:
            covariance[[3, 4, 5], [3, 4, 5]] = _UNKNOWN_VARIANCE
            return covariance
        covariance[3, 3] = covariance[4, 4] = _TILT_STD_RAD**2
        covariance[5, 5] = _YAW_STD_RAD**2 + float(np.mean(yaws**2))
        return covariance
