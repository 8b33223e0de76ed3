"""What became of each frame of a run: a true match, a false one, a missed revisit, or rightly nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from asymvpr_core.evaluation.protocol import heading_difference_deg, horizontal_distance_m
from asymvpr_core.types import ImageRecord, Keyframe, Match, MatchResult


class Outcome(str, Enum):
    """What can become of a frame; an opportunity is one with a correct keyframe that was not excluded by time."""

    TRUE = "true match"
    FALSE = "false match"
    MISSED = "missed"
    REJECTED = "rightly rejected"
    IGNORED = "in the ignored ring"


@dataclass(frozen=True)
class FrameOutcome:
    """One frame, what the matcher said of it, and what it should have said.

    `positives` are the gallery indices that would be correct. `judged` is the accepted match, or
    else the best candidate; errors and `judged_correct` belong to it (NaN and False without one).
    `judged_ignored`, `best_ignored`: that match lies in the ring about the radius, and is neither right nor wrong.
    """

    record: ImageRecord
    result: MatchResult
    positives: np.ndarray
    latency_ms: float
    position_error_m: float
    heading_error_deg: float
    judged_ignored: bool = False
    best_ignored: bool = False

    @property
    def judged(self) -> Match | None:
        return self.result.match or (self.result.candidates[0] if self.result.candidates else None)

    @property
    def judged_correct(self) -> bool:
        return self.judged is not None and self.judged.keyframe_index in self.positives

    @property
    def best_score(self) -> float:
        """Score of the best candidate, before any threshold; -inf without one."""
        return self.result.candidates[0].score if self.result.candidates else -np.inf

    @property
    def best_correct(self) -> bool:
        return bool(self.result.candidates) and self.result.candidates[0].keyframe_index in self.positives

    @property
    def is_opportunity(self) -> bool:
        return len(self.positives) > 0

    @property
    def outcome(self) -> Outcome:
        if self.result.accepted:
            if self.judged_ignored:
                return Outcome.IGNORED
            return Outcome.TRUE if self.judged_correct else Outcome.FALSE
        return Outcome.MISSED if self.is_opportunity else Outcome.REJECTED


def judge(
    record: ImageRecord,
    result: MatchResult,
    positives: np.ndarray,
    latency_ms: float,
    keyframes: Sequence[Keyframe],
    ring_m: tuple[float, float] = (0.0, 0.0),
) -> FrameOutcome:
    """Compare what the matcher said of a frame with its ground truth.

    Args:
        ring_m: matches farther than the first and at most as far as the second [m] are neither right nor wrong.
    """

    def ignored(match: Match | None) -> bool:
        return match is not None and match.keyframe_index not in positives and in_ring(record, keyframes[match.keyframe_index], ring_m)

    position_error_m = heading_error_deg = float("nan")
    best = result.candidates[0] if result.candidates else None
    judged = result.match or best
    if judged is not None:
        keyframe = keyframes[judged.keyframe_index]
        position_error_m, heading_error_deg = horizontal_distance_m(record, keyframe), heading_difference_deg(record, keyframe)
    return FrameOutcome(record, result, positives, latency_ms, position_error_m, heading_error_deg, ignored(judged), ignored(best))


def in_ring(record: ImageRecord, keyframe: Keyframe, ring_m: tuple[float, float]) -> bool:
    """Whether the keyframe is farther than the first and at most as far as the second of `ring_m` [m]."""
    return ring_m[0] < horizontal_distance_m(record, keyframe) <= ring_m[1]


def without_recent(positives: np.ndarray, stamp_ns: int, keyframes: Sequence[Keyframe], exclude_time_s: float) -> np.ndarray:
    """The positives that the matcher may answer with: keyframes close in time are no loop closure, those without stamp stay."""
    window_ns = round(exclude_time_s * 1e9)
    stamps = [keyframes[i].stamp_ns for i in positives]
    return np.array([i for i, s in zip(positives, stamps, strict=True) if s is None or abs(s - stamp_ns) >= window_ns], dtype=np.int64)


@dataclass(frozen=True)
class DetectionDelay:
    """How long a revisit lasted before its first true match.

    A stretch is an unbroken run of frames with an opportunity. `delays_s` holds the delay of each
    stretch that was found, from its first frame.
    """

    n_stretches: int
    delays_s: tuple[float, ...]


def detection_delay(frames: Sequence[FrameOutcome]) -> DetectionDelay:
    """Delay of every stretch of revisit opportunities; frames must be in order of time."""
    n_stretches, delays, start_ns, found = 0, [], None, False
    for frame in frames:
        if not frame.is_opportunity:
            start_ns = None
            continue
        if start_ns is None:
            n_stretches, start_ns, found = n_stretches + 1, frame.result.stamp_ns, False
        if frame.outcome is Outcome.TRUE and not found:
            delays.append((frame.result.stamp_ns - start_ns) / 1e9)
            found = True
    return DetectionDelay(n_stretches, tuple(delays))
