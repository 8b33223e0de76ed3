"""Evaluate a recorded run: every frame of a bag through the robot's own place recogniser."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings
from asymvpr_core.datasets.bag_odometry import read_odometry
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.bag_files import write_matches, write_trajectory
from asymvpr_core.evaluation.bag_metrics import bag_metrics
from asymvpr_core.evaluation.bag_report import write_bag_report
from asymvpr_core.evaluation.decisions import decide, judge_by
from asymvpr_core.evaluation.encoded_run import EncodedRun, encode_run
from asymvpr_core.evaluation.loop_closure import PrecisionRecall, precision_recall
from asymvpr_core.evaluation.outcomes import FrameOutcome, in_ring, judge, without_recent
from asymvpr_core.evaluation.picture_pairs import PicturePairs, picture_pairs
from asymvpr_core.evaluation.protocol import check_map_frames, check_poses, write_metrics
from asymvpr_core.manifest import new_folder
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.retrieval.matcher import Verifier
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import Match, QueryFrame, Recognition

METRICS, MATCHES, TRAJECTORY, REPORT = "metrics.json", "matches.csv", "matches.tum", "report.html"


@dataclass(frozen=True)
class BagResult:
    """What a run gave: `metrics` as in `metrics.json`, every frame in order, the sweeps, and pairs to look at.

    `sweep` is over the best candidate of every frame alone; `agreed` is what the matcher accepts at one threshold after
    another, with agreement over time and verification. `descriptors` (F, D) are the frames'.
    """

    metrics: dict[str, Any]
    frames: list[FrameOutcome]
    sweep: PrecisionRecall
    agreed: PrecisionRecall
    gallery: PriorGallery
    pairs: PicturePairs
    descriptors: np.ndarray
    out: Path


def evaluate_bag(
    bag: Path,
    gallery_path: Path | Sequence[Path],
    model_path: Path,
    *,
    out: Path,
    source: SourceSettings | None = None,
    evaluation: EvaluationSettings | None = None,
    matcher: MatcherSettings | None = None,
    runtime: RuntimeSettings | None = None,
    odometry_topic: str | None = None,
    progress: Progress = silent,
) -> BagResult:
    """Match every frame of `bag` that has ground truth, and write metrics, matches, trajectory and report to `out`.

    The bag is read directly and no frame is dropped, whatever its rate. Ground truth comes from
    `source` (a pose topic, or a TUM file); its keyframe settings are ignored.

    Args:
        gallery_path: several galleries in one map frame are searched as one.
        odometry_topic: what the matcher knows of the robot's motion; None: nothing.

    Raises:
        BagError, DatasetError: the bag, a topic or the ground truth cannot be read.
        ArtefactError: gallery or model missing, damaged or of different pairs; `out` exists or cannot be written.
        EvaluationError: no frame has ground truth, or it is in another frame than the gallery.
    """
    evaluation, matcher = evaluation or EvaluationSettings(), matcher or MatcherSettings()
    recogniser = PlaceRecogniser.open(gallery_path, model_path, matcher, runtime)
    dataset = open_run(bag, source)
    return evaluate_run(dataset, recogniser, evaluation, out, progress, odometry_topic=odometry_topic)


def open_run(bag: Path, source: SourceSettings | None = None) -> Dataset:
    """Every frame of a bag that has ground truth."""
    return open_source(Path(bag), (source or SourceSettings()).model_copy(update={"keyframes": None}))


def evaluate_run(
    dataset: Dataset,
    recogniser: PlaceRecogniser,
    evaluation: EvaluationSettings,
    out: Path,
    progress: Progress = silent,
    *,
    odometry_topic: str | None = None,
) -> BagResult:
    """Match every image of a dataset in its order of time; what `evaluate_bag` does once the bag is open.

    Raises:
        EvaluationError: images without stamp or pose, stamps out of order, or poses in another frame than the gallery's.
    """
    check_run(dataset, prior_of(recogniser)[0], evaluation)
    with new_folder(out) as folder:
        result = match_run(encode(dataset, recogniser, odometry_topic, progress), recogniser, evaluation, Path(out))
        write_result(folder, result)
    return result


def prior_of(recogniser: PlaceRecogniser) -> tuple[PriorGallery, MatcherSettings]:
    """The gallery that a run is judged by, and the matcher's settings as resolved. Raises EvaluationError without a prior gallery."""
    if recogniser.gallery is None or recogniser.matcher is None:
        raise EvaluationError("the recogniser has no prior gallery", remedy="open it with the gallery that the run is judged by")
    return recogniser.gallery, recogniser.matcher.settings


def check_run(dataset: Dataset, gallery: PriorGallery, evaluation: EvaluationSettings) -> None:
    """Refuse a run that cannot be judged by the gallery. Raises EvaluationError."""
    check_poses(dataset.records, str(dataset.root), evaluation.max_yaw_deg)
    check_poses(gallery.keyframes, f"gallery {gallery.path}", evaluation.max_yaw_deg)
    check_map_frames(gallery, dataset.map_frame, str(dataset.root))


def encode(dataset: Dataset, recogniser: PlaceRecogniser, odometry_topic: str | None, progress: Progress = silent) -> EncodedRun:
    """The run described by the recogniser's model, with its odometry where a topic is named."""
    odometry = None if odometry_topic is None else read_odometry(dataset.root, odometry_topic)
    return encode_run(dataset, recogniser.model, odometry, progress)


def match_run(run: EncodedRun, recogniser: PlaceRecogniser, evaluation: EvaluationSettings, out: Path) -> BagResult:
    """Give the frames to the recogniser in their order and judge its answers; `out` is what the result names as its folder."""
    gallery, matcher, dataset = *prior_of(recogniser), run.dataset
    everything = find_positives(dataset.records, gallery.keyframes, evaluation.radius_m, evaluation.max_yaw_deg)
    positives = [
        without_recent(everything[i], stamp_ns, gallery.keyframes, matcher.exclude_time_s) for i, stamp_ns in enumerate(run.stamps_ns)
    ]
    ring_m = (evaluation.radius_m, evaluation.radius_m + evaluation.ignore_ring_m)
    frames = []
    for i, (answer, match_ms) in enumerate(_answers(run, recogniser)):
        assert answer.prior is not None  # there is a prior gallery
        latency_ms = float(run.encode_ms[i]) + match_ms
        frames.append(judge(dataset.records[i], answer.prior, positives[i], latency_ms, gallery.keyframes, ring_m))
    sweep = sweep_of([f.best_score for f in frames], [f.best_correct for f in frames], [f.best_ignored for f in frames], frames)
    agreed = sweep
    if matcher.sequence != "off" or matcher.geometric_verification != "off":

        def is_ignored(frame: int, match: Match) -> bool:
            return in_ring(dataset.records[frame], gallery.keyframes[match.keyframe_index], ring_m)

        judged_by = judge_by(positives, is_ignored)
        agreed = decide(run, gallery, recogniser.index, matcher, judged_by, verifier_of(gallery, matcher)).curve(sweep.n_opportunities)
    metrics = bag_metrics(run, gallery, matcher, frames, sweep, agreed, evaluation)
    return BagResult(metrics, frames, sweep, agreed, gallery, picture_pairs(frames, dataset, gallery), run.descriptors, out)


def write_result(folder: Path, result: BagResult) -> None:
    """Write metrics, matches, trajectory and report of one run."""
    write_metrics(folder / METRICS, result.metrics)
    write_matches(folder / MATCHES, result.frames, result.gallery)
    write_trajectory(folder / TRAJECTORY, result.frames)
    write_bag_report(folder / REPORT, result)


def sweep_of(scores: list[float], correct: list[bool], ignored: list[bool], frames: list[FrameOutcome]) -> PrecisionRecall:
    """Precision and recall over all thresholds, without the answers that lie in the ignored ring; recall over the opportunities."""
    counted = ~np.array(ignored, dtype=bool)
    opportunities = sum(frame.is_opportunity for frame in frames)
    return precision_recall(np.array(scores)[counted], np.array(correct)[counted], opportunities)


def verifier_of(gallery: PriorGallery, matcher: MatcherSettings) -> Verifier | None:
    """What compares pictures, where the settings ask for it. Raises RetrievalError where the gallery holds no thumbnails."""
    if matcher.geometric_verification == "off":
        return None
    from asymvpr_core.retrieval.verification import gallery_verifier

    return gallery_verifier(gallery)


def _answers(run: EncodedRun, recogniser: PlaceRecogniser) -> Iterator[tuple[Recognition, float]]:
    """What the recogniser says of every frame, and how many ms that took beside the network."""
    recogniser.reset()
    if recogniser.session is not None:
        recogniser.reset_session()
    images: Iterable[tuple[int, np.ndarray | None]] = ((i, None) for i in range(len(run)))
    if recogniser.matcher_settings.geometric_verification != "off":
        images = run.dataset.read_images(list(range(len(run))))
    for i, image in images:
        begin = time.perf_counter()
        answer = recogniser.match(run.descriptors[i], QueryFrame(run.stamps_ns[i], run.odometry[i]), image)
        yield answer, (time.perf_counter() - begin) * 1e3
