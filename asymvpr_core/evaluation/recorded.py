"""Evaluate what the live node published, as `match_recorder` wrote it down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import EvaluationSettings, MatcherSettings
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.trajectory import Trajectory
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.outcomes import FrameOutcome, without_recent
from asymvpr_core.evaluation.protocol import correct_match_rule, heading_difference_deg, horizontal_distance_m, median, percentiles
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.types import ImageRecord, Pose

POSE, CANDIDATES, DIAGNOSTICS = "place_match/pose", "place_match/candidates", "/diagnostics"


@dataclass(frozen=True)
class PublishedMatch:
    """One published pose beside the truth at its stamp; errors are horizontal metres and degrees."""

    stamp_ns: int
    pose: Pose
    truth: Pose
    position_error_m: float
    heading_error_deg: float
    correct: bool


@dataclass(frozen=True)
class RecordedResult:
    """What the node published, judged; `metrics` holds the counts and their protocol."""

    metrics: dict[str, Any]
    matches: list[PublishedMatch]


def read_recording(path: Path) -> list[dict[str, Any]]:
    """The lines of a recording, one dict each.

    Raises:
        EvaluationError: missing, unreadable, or a line that is no such record (with its number).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"recording {path} cannot be read: {error}", remedy="check that match_recorder ran") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["topic"], str) or not isinstance(record["stamp_ns"], int):
                raise TypeError("'topic' is no text or 'stamp_ns' no whole number")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EvaluationError(
                f"line {number} of recording {path} is no record of match_recorder", remedy="end the recorder with SIGINT, not SIGKILL"
            ) from error
        records.append(record)
    return records


def evaluate_recorded(
    records: Iterable[dict[str, Any]],
    ground_truth: Trajectory,
    gallery: Gallery,
    evaluation: EvaluationSettings | None = None,
    *,
    matcher: MatcherSettings | None = None,
    frame_stamps_ns: Sequence[int] | None = None,
    max_pose_gap_s: float = 0.5,
) -> RecordedResult:
    """Judge every published pose by the ground truth at its image stamp, and count frames, drops and latency.

    Args:
        records: what `read_recording` gives.
        ground_truth: true poses in the gallery's frame.
        matcher: settings that the node ran with; its `exclude_time_s` decides what was an opportunity.
        frame_stamps_ns: stamps of all frames sent to the node; None: those that it processed.
        max_pose_gap_s: longest gap between true poses over which they are interpolated.

    Raises:
        EvaluationError: nothing was processed, or a record lacks its fields.
    """
    records = list(records)
    evaluation, matcher = evaluation or EvaluationSettings(), matcher or MatcherSettings()
    processed = sorted({record["stamp_ns"] for record in records if record["topic"] == CANDIDATES})
    if not processed:
        raise EvaluationError("the node processed no frame", remedy="check its log, its image topic, and the recording")
    sent = processed if frame_stamps_ns is None else sorted(set(frame_stamps_ns))
    published = [record for record in records if record["topic"] == POSE]
    matches = [m for m in (_judge(record, ground_truth, evaluation, max_pose_gap_s) for record in published) if m is not None]
    n_true = sum(match.correct for match in matches)
    poses = [(stamp, ground_truth.at(stamp, max_pose_gap_s)) for stamp in sent]
    n_opportunities = _count_opportunities(poses, gallery, evaluation, matcher.exclude_time_s)
    values = _last_diagnostics(records)
    position_errors = np.array([match.position_error_m for match in matches])
    heading_errors = np.array([match.heading_error_deg for match in matches])
    metrics = {
        "protocol": {
            "task": "recorded",
            "correct_match": correct_match_rule(evaluation, "published pose", "the true pose"),
            "radius_m": evaluation.radius_m,
            "max_yaw_deg": evaluation.max_yaw_deg,
            "exclude_time_s": matcher.exclude_time_s,
            "latency_ms": "arrival of a frame to its published answer, by the node's own diagnostics, over its last frames",
            "frames": "sent: played to the node; processed: answered with candidates; dropped: sent but not processed",
        },
        "n_frames_sent": len(sent),
        "n_frames_processed": len(processed),
        "n_frames_dropped": len(set(sent) - set(processed)),
        "n_opportunities": n_opportunities,
        "n_published": len(published),
        "n_without_ground_truth": len(published) - len(matches),
        "n_true": n_true,
        "n_false": len(matches) - n_true,
        "precision_of_published": n_true / len(matches) if matches else None,
        "recall_of_published": n_true / n_opportunities if n_opportunities else None,
        "position_error_m": {"median": median(position_errors), **percentiles(position_errors, 95)},
        "heading_error_deg": {"median": median(heading_errors), **percentiles(heading_errors, 95)},
        "latency_ms": {"p50": _float(values.get("latency_ms_p50")), "p95": _float(values.get("latency_ms_p95"))},
        "diagnostics": values,
    }
    return RecordedResult(metrics, matches)


def compare_candidates(records: Iterable[dict[str, Any]], frames: Sequence[FrameOutcome]) -> tuple[int, int]:
    """(identical, compared): of the frames that the live node and the bag evaluation both saw, those with the same candidates in order."""
    found = {frame.result.stamp_ns: [candidate.pose for candidate in frame.result.candidates if candidate.pose] for frame in frames}
    expected = {stamp: [[*pose.position, *pose.quaternion] for pose in poses] for stamp, poses in found.items()}
    identical = compared = 0
    for record in records:
        if record["topic"] == CANDIDATES and record["stamp_ns"] in expected:
            poses = expected[record["stamp_ns"]]
            compared += 1
            identical += len(poses) == len(record["poses"]) and bool(np.allclose(poses, record["poses"], rtol=0, atol=1e-6))
    return identical, compared


def _judge(record: dict[str, Any], ground_truth: Trajectory, evaluation: EvaluationSettings, max_gap_s: float) -> PublishedMatch | None:
    """None where there is no true pose at the stamp."""
    try:
        pose = Pose(
            (float(record["x"]), float(record["y"]), float(record["z"])),
            (float(record["qx"]), float(record["qy"]), float(record["qz"]), float(record["qw"])),
        )
    except KeyError as error:
        raise EvaluationError(f"a recorded {POSE} lacks the field {error}", expected="x, y, z, qx, qy, qz, qw") from error
    truth = ground_truth.at(record["stamp_ns"], max_gap_s)
    if truth is None:
        return None
    ours, true = _as_record(pose), _as_record(truth)
    correct = len(find_positives([true], [ours], evaluation.radius_m, evaluation.max_yaw_deg)[0]) > 0
    return PublishedMatch(record["stamp_ns"], pose, truth, horizontal_distance_m(ours, true), heading_difference_deg(ours, true), correct)


def _count_opportunities(
    poses: Sequence[tuple[int, Pose | None]], gallery: Gallery, evaluation: EvaluationSettings, exclude_time_s: float
) -> int:
    frames = [(stamp, _as_record(pose)) for stamp, pose in poses if pose is not None]
    positives = find_positives([frame for _, frame in frames], gallery.keyframes, evaluation.radius_m, evaluation.max_yaw_deg)
    stamped = zip(frames, positives, strict=True)
    return sum(len(without_recent(positive, stamp, gallery.keyframes, exclude_time_s)) > 0 for (stamp, _), positive in stamped)


def _as_record(pose: Pose) -> ImageRecord:
    return ImageRecord("pose", pose, pose.heading_deg)


def _last_diagnostics(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Values of the last report that counts frames: an inactive node reports too."""
    for record in reversed(records):
        values = record.get("values", {})
        if record["topic"] == DIAGNOSTICS and _float(values.get("frames_processed")):
            return dict(values)
    return {}


def _float(text: str | None) -> float | None:
    return float(text) if text else None
