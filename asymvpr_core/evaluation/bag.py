"""Evaluate a recorded run: every frame of a bag through the robot's own place recogniser."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.source import open_source
from asymvpr_core.datasets.trajectory import Trajectory, write_tum
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.bag_report import write_bag_report
from asymvpr_core.evaluation.loop_closure import PrecisionRecall, precision_recall
from asymvpr_core.evaluation.outcomes import FrameOutcome, Outcome, detection_delay, judge, without_recent
from asymvpr_core.evaluation.picture_pairs import PicturePairs, picture_pairs
from asymvpr_core.evaluation.protocol import (
    check_map_frames,
    check_poses,
    correct_match_rule,
    encoder_identity,
    gallery_identity,
    median,
    percentiles,
    write_metrics,
)
from asymvpr_core.evaluation.retrieval_metrics import recall_at_k
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import new_folder
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import QueryFrame

METRICS, MATCHES, TRAJECTORY, REPORT = "metrics.json", "matches.csv", "matches.tum", "report.html"


@dataclass(frozen=True)
class BagResult:
    """What a run gave: `metrics` as in `metrics.json`, every frame in order, the sweep, and pairs to look at."""

    metrics: dict[str, Any]
    frames: list[FrameOutcome]
    sweep: PrecisionRecall
    gallery: Gallery
    pairs: PicturePairs
    out: Path


def evaluate_bag(
    bag: Path,
    gallery_path: Path,
    model_path: Path,
    *,
    out: Path,
    source: SourceSettings | None = None,
    evaluation: EvaluationSettings | None = None,
    matcher: MatcherSettings | None = None,
    runtime: RuntimeSettings | None = None,
    progress: Progress = silent,
) -> BagResult:
    """Match every frame of `bag` that has ground truth, and write metrics, matches, trajectory and report to `out`.

    The bag is read directly and no frame is dropped, whatever its rate. Ground truth comes from
    `source` (a pose topic, or a TUM file); its keyframe settings are ignored.

    Raises:
        BagError, DatasetError: the bag, a topic or the ground truth cannot be read.
        ArtefactError: gallery or model missing, damaged or of different pairs; `out` exists or cannot be written.
        EvaluationError: no frame has ground truth, or it is in another frame than the gallery.
    """
    evaluation, matcher = evaluation or EvaluationSettings(), matcher or MatcherSettings()
    every_frame = (source or SourceSettings()).model_copy(update={"keyframes": None})
    recogniser = PlaceRecogniser.open(gallery_path, model_path, matcher, runtime)
    dataset = open_source(Path(bag), every_frame)
    return evaluate_run(dataset, recogniser, evaluation, out, progress)


def evaluate_run(
    dataset: Dataset, recogniser: PlaceRecogniser, evaluation: EvaluationSettings, out: Path, progress: Progress = silent
) -> BagResult:
    """Match every image of a dataset in its order of time; what `evaluate_bag` does once the bag is open.

    Raises:
        EvaluationError: images without stamp or pose, stamps out of order, poses in another frame than the gallery's, or no prior gallery.
    """
    gallery, matcher = _prior(recogniser)
    check_poses(dataset.records, str(dataset.root), evaluation.max_yaw_deg)
    check_poses(gallery.keyframes, f"gallery {gallery.path}", evaluation.max_yaw_deg)
    check_map_frames(gallery, dataset.map_frame, str(dataset.root))
    stamps_ns = _stamps(dataset)
    positives = find_positives(dataset.records, gallery.keyframes, evaluation.radius_m, evaluation.max_yaw_deg)
    with new_folder(out) as folder:
        frames = []
        images = dataset.read_images(list(range(len(dataset.records))))
        for index, image in progress(images, "matching frames", total=len(dataset.records)):
            begin = time.perf_counter()
            answer = recogniser.process(image, QueryFrame(stamps_ns[index])).prior
            latency_ms = (time.perf_counter() - begin) * 1e3
            assert answer is not None  # there is a prior gallery
            allowed = without_recent(positives[index], stamps_ns[index], gallery.keyframes, matcher.exclude_time_s)
            frames.append(judge(dataset.records[index], answer, allowed, latency_ms, gallery.keyframes))
        sweep = precision_recall(
            np.array([frame.best_score for frame in frames]),
            np.array([frame.best_correct for frame in frames]),
            sum(frame.is_opportunity for frame in frames),
        )
        metrics = _metrics(dataset, recogniser, frames, sweep, evaluation)
        result = BagResult(metrics, frames, sweep, gallery, picture_pairs(frames, dataset, gallery), Path(out))
        write_metrics(folder / METRICS, metrics)
        _write_matches(folder / MATCHES, result)
        _write_trajectory(folder / TRAJECTORY, frames)
        write_bag_report(folder / REPORT, result)
    return result


def _prior(recogniser: PlaceRecogniser) -> tuple[Gallery, MatcherSettings]:
    if recogniser.gallery is None or recogniser.matcher is None:
        raise EvaluationError("the recogniser has no prior gallery", remedy="open it with the gallery that the run is judged by")
    return recogniser.gallery, recogniser.matcher.settings


def _stamps(dataset: Dataset) -> list[int]:
    stamps = [record.stamp_ns for record in dataset.records if record.stamp_ns is not None]
    if len(stamps) != len(dataset.records):
        raise EvaluationError(f"{len(dataset.records) - len(stamps)} images of {dataset.root} have no stamp", expected="a stamp for each")
    if any(later < earlier for earlier, later in zip(stamps, stamps[1:], strict=False)):
        raise EvaluationError(f"images of {dataset.root} are not in order of time", expected="stamps that do not go back")
    return stamps


def _metrics(
    dataset: Dataset, recogniser: PlaceRecogniser, frames: list[FrameOutcome], sweep: PrecisionRecall, evaluation: EvaluationSettings
) -> dict[str, Any]:
    gallery, matcher = _prior(recogniser)
    accepted = [frame for frame in frames if frame.result.accepted]
    n_true = sum(frame.outcome is Outcome.TRUE for frame in accepted)
    opportunities = [frame for frame in frames if frame.is_opportunity]
    ks = [k for k in evaluation.k if k <= matcher.top_k] or [1]
    ranked = np.full((len(opportunities), matcher.top_k), -1, dtype=np.int64)
    for row, frame in zip(ranked, opportunities, strict=True):
        row[: len(frame.result.candidates)] = [candidate.keyframe_index for candidate in frame.result.candidates]
    recall = recall_at_k(ranked, [frame.positives for frame in opportunities], ks) if opportunities else {}
    delay = detection_delay(frames)
    position_errors = np.array([frame.position_error_m for frame in accepted])
    heading_errors = np.array([frame.heading_error_deg for frame in accepted])
    return {
        "protocol": {
            "task": "bag",
            "correct_match": correct_match_rule(evaluation),
            "radius_m": evaluation.radius_m,
            "max_yaw_deg": evaluation.max_yaw_deg,
            "exclude_time_s": matcher.exclude_time_s,
            "opportunity": "a frame with a correct keyframe that is not excluded by time",
            "k": ks,
            "recall_at_k": f"over the opportunities, before threshold and vote; K beyond the matcher's top_k, {matcher.top_k}, is left out",
            "average_precision": "over the best candidate of every frame, unthresholded scores, recall over the opportunities",
            "precision_of_accepted": "true matches / accepted matches, with the matcher's threshold and vote",
            "recall_of_accepted": "true matches / opportunities, with the matcher's threshold and vote",
            "errors": "horizontal distance and heading difference between frame and matched keyframe, over all accepted matches",
            "latency_ms": "one frame through pre-processing, query network, search and matcher; decoding not included",
            "frames": "every frame with ground truth, none dropped; frames without ground truth are skipped and counted apart",
            "matcher": matcher.model_dump(mode="json"),
        },
        "n_frames": len(frames),
        "n_skipped": getattr(dataset, "skipped", 0),
        "skipped": getattr(dataset, "skipped_summary", ""),
        "n_opportunities": len(opportunities),
        "n_without_positive": len(frames) - len(opportunities),
        "n_accepted": len(accepted),
        "n_true": n_true,
        "n_false": len(accepted) - n_true,
        "n_missed": sum(frame.outcome is Outcome.MISSED for frame in frames),
        "precision_of_accepted": n_true / len(accepted) if accepted else None,
        "recall_of_accepted": n_true / len(opportunities) if opportunities else None,
        "recall_at_k": {str(k): value for k, value in recall.items()},
        "average_precision": sweep.average_precision,
        "max_f1": sweep.max_f1,
        "max_f1_threshold": sweep.max_f1_threshold,
        "recall_at_full_precision": sweep.recall_at_full_precision,
        "full_precision_threshold": sweep.full_precision_threshold,
        "position_error_m": {"median": median(position_errors), **percentiles(position_errors, 95)},
        "heading_error_deg": {"median": median(heading_errors), **percentiles(heading_errors, 95)},
        "latency_ms": percentiles(np.array([frame.latency_ms for frame in frames]), 50, 95, 99),
        "detection_delay_s": {
            "median": median(np.array(delay.delays_s)),
            "max": max(delay.delays_s, default=None),
            "n_stretches": delay.n_stretches,
            "n_found": len(delay.delays_s),
        },
        "gallery": gallery_identity(gallery),
        "encoder": encoder_identity(recogniser.model, gallery),
        "source": {"path": str(dataset.root), "layout": dataset.layout, "map_frame": dataset.map_frame},
    }


def _write_matches(path: Path, result: BagResult) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([
            "stamp_ns", "image", "x", "y", "heading_deg", "outcome", "accepted", "n_positives", "keyframe_index", "keyframe_image",
            "keyframe_x", "keyframe_y", "score", "position_error_m", "heading_error_deg", "latency_ms", "reason",
        ])  # fmt: skip
        for frame in result.frames:
            record, judged = frame.record, frame.judged
            assert record.pose is not None  # checked before the run
            keyframe: list[Any] = [""] * 5
            if judged is not None and judged.pose is not None:
                x, y = judged.pose.position[:2]
                name = result.gallery.keyframes[judged.keyframe_index].name
                keyframe = [judged.keyframe_index, name, f"{x:.4f}", f"{y:.4f}", f"{judged.score:.6f}"]
            writer.writerow([
                frame.result.stamp_ns, record.name, f"{record.pose.position[0]:.4f}", f"{record.pose.position[1]:.4f}",
                "" if record.heading_deg is None else f"{record.heading_deg:.3f}",
                frame.outcome.value, int(frame.result.accepted), len(frame.positives), *keyframe,
                _number(frame.position_error_m), _number(frame.heading_error_deg), f"{frame.latency_ms:.3f}", frame.result.reason,
            ])  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""


def _write_trajectory(path: Path, frames: list[FrameOutcome]) -> None:
    """The accepted match poses at the frames' stamps; only a comment where nothing was accepted."""
    matches = {frame.result.stamp_ns: frame.result.match for frame in frames if frame.result.match is not None}
    poses = {stamp_ns: match.pose for stamp_ns, match in matches.items() if match.pose is not None}
    if not poses:
        path.write_text("# timestamp[s] x y z qx qy qz qw (no match was accepted)\n", encoding="utf-8")
        return
    write_tum(path, Trajectory(list(poses), list(poses.values()), name="accepted matches"))
