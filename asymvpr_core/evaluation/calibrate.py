"""Calibrate a gallery for a query model: from a labelled run, or from the gallery alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import CalibrationSettings, EvaluationSettings, KeyframeSettings, MatcherSettings, RuntimeSettings
from asymvpr_core.datasets.bag_odometry import read_odometry
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.keyframes import select_keyframes
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError, ImageError
from asymvpr_core.evaluation.bag import verifier_of
from asymvpr_core.evaluation.calibration_fit import Samples, agreed_points, fit_errors, fit_scores, stretches_along
from asymvpr_core.evaluation.calibration_report import write_calibration_report
from asymvpr_core.evaluation.calibration_samples import Placed, describe_run, samples_of_gallery, samples_of_run, samples_of_session
from asymvpr_core.evaluation.decisions import decide, judge_by
from asymvpr_core.evaluation.encoded_run import EncodedRun, encode_run
from asymvpr_core.evaluation.held_out import HeldOut, Split, held_out, held_out_agreed
from asymvpr_core.evaluation.outcomes import in_ring, without_recent
from asymvpr_core.evaluation.protocol import check_map_frames, check_poses, correct_match_rule
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair, new_folder, write_text_atomically
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.calibration import (
    CALIBRATION,
    AgreedPoints,
    Calibration,
    ScoreCalibration,
    Search,
    gallery_key,
    model_key,
    write_calibration,
)
from asymvpr_core.retrieval.gallery_index import open_index
from asymvpr_core.work_folder import refuse_existing

REPORT = "report.html"


@dataclass(frozen=True)
class CalibrationResult:
    """What was written, the samples of each kind of search, and how the calibration did on parts of them that it had not seen.

    `held_out_agreed` is the same for the prior search with agreement over time; empty where that was not calibrated.
    `missing` says why a kind of search has no calibration.
    """

    calibration: Calibration
    samples: dict[Search, Samples]
    held_out: dict[Search, HeldOut]
    held_out_agreed: tuple[Split, ...]
    missing: dict[Search, str]


def calibrate(
    gallery_path: Path,
    model_path: Path,
    *,
    run: Dataset | None = None,
    odometry_topic: str | None = None,
    out: Path | None = None,
    settings: CalibrationSettings | None = None,
    evaluation: EvaluationSettings | None = None,
    matcher: MatcherSettings | None = None,
    runtime: RuntimeSettings | None = None,
    progress: Progress = silent,
) -> CalibrationResult:
    """Write `calibration.json` into the gallery's folder, and with `out` a folder with the same file and a report.

    The prior search is calibrated with `run` where one is given: single frames, and what the matcher accepts with the agreement over time
    of its settings. The session is, where the run comes back to its own places often enough to show the wanted precision; else
    with the gallery's own pictures.

    Args:
        run: images with true poses, in the gallery's frame; None: the gallery alone.
        odometry_topic: of the run's bag, what the matcher knows of the robot's motion; None: nothing.

    Raises:
        ArtefactError: gallery or model missing, damaged or of different pairs; `out` exists.
        EvaluationError: poses are missing or of another frame, or the data cannot show `settings.target_precision`.
        ImageError: a picture of the gallery that is needed cannot be read.
    """
    settings, evaluation = settings or CalibrationSettings(), evaluation or EvaluationSettings()
    matcher = matcher or MatcherSettings()
    if out is not None:
        refuse_existing(out)
    gallery, model = Gallery.open(gallery_path), QueryModel.open(model_path, runtime)
    check_pair(gallery.manifest, model.manifest, gallery.path, Path(model_path))
    check_poses(gallery.keyframes, f"gallery {gallery.path}", evaluation.max_yaw_deg)
    stage = _Stage(gallery, model, settings, evaluation, matcher, progress)
    found = _Found(stage.of_gallery()) if run is None else stage.of_run(run, odometry_topic)
    parts = {
        search: fit_scores(samples, settings.confidence, found.agreed if search == "prior" else None)
        for search, samples in found.samples.items()
    }
    threshold = _threshold(parts["prior"], found.samples["prior"].witnesses, settings, run)
    calibration = Calibration(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gallery=gallery_key(gallery),
        model=model_key(model_path, model.manifest),
        settings={
            "calibration": settings.model_dump(mode="json"),
            "radius_m": evaluation.radius_m, "ignore_ring_m": evaluation.ignore_ring_m, "max_yaw_deg": evaluation.max_yaw_deg,
            "exclude_time_s": matcher.exclude_time_s, "odometry_topic": odometry_topic,
        },
        protocol=_protocol(gallery, evaluation, run),
        prior=parts["prior"],
        session=parts.get("session"),
        errors=fit_errors(found.samples["prior"], threshold),
    )  # fmt: skip
    tried = {search: held_out(samples, settings) for search, samples in found.samples.items()}
    result = CalibrationResult(calibration, found.samples, tried, found.held_out_agreed, found.missing)
    if out is None:
        write_calibration(gallery.path, calibration)
        return result
    with new_folder(out) as folder:
        write_calibration_report(folder / REPORT, result)
        write_text_atomically(folder / CALIBRATION, write_calibration(gallery.path, calibration).read_text(encoding="utf-8"))
    return result


@dataclass
class _Found:
    """What the data gave, before anything is fitted."""

    samples: dict[Search, Samples]
    agreed: AgreedPoints | None = None
    held_out_agreed: tuple[Split, ...] = ()
    missing: dict[Search, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stage:
    gallery: Gallery
    model: QueryModel
    settings: CalibrationSettings
    evaluation: EvaluationSettings
    matcher: MatcherSettings
    progress: Progress

    def of_run(self, run: Dataset, odometry_topic: str | None) -> _Found:
        """Both searches along a labelled run; the session's from the gallery's pictures where the run has too few revisits."""
        check_poses(run.records, str(run.root), self.evaluation.max_yaw_deg)
        check_map_frames(self.gallery, run.map_frame, str(run.root))
        stored = Placed.of(self.gallery.keyframes, self.gallery.descriptors)
        if any(record.stamp_ns is None for record in run.records):  # pictures in no order of time
            frames = describe_run(run, self.model, self.progress)
            found = _Found({"prior": samples_of_run(frames, stored, self.evaluation, self.matcher.exclude_time_s, self.settings.stretch_m)})
        else:
            odometry = None if odometry_topic is None else read_odometry(run.root, odometry_topic)
            encoded = encode_run(run, self.model, odometry, self.progress)
            frames = Placed.of(run.records, encoded.descriptors)
            found = _Found({"prior": samples_of_run(frames, stored, self.evaluation, self.matcher.exclude_time_s, self.settings.stretch_m)})
            if self.matcher.sequence != "off" or self.matcher.geometric_verification != "off":
                self._add_agreed(found, encoded)
            keyframes = select_keyframes([record.pose for record in run.records if record.pose is not None], KeyframeSettings())
            session = samples_of_session(frames, self.evaluation, self.matcher.exclude_time_s, np.array(keyframes), self.settings.stretch_m)
            if self._is_enough(session):
                found.samples["session"] = session
        if "session" not in found.samples:
            try:
                found.samples["session"] = self.of_gallery()["session"]
            except ImageError as error:
                found.missing["session"] = f"the session has no calibration: the run seldom comes back to its own places, and {error}"
        return found

    def of_gallery(self) -> dict[Search, Samples]:
        """Both searches from the gallery's own pictures."""
        stored = Placed.of(self.gallery.keyframes, self.gallery.descriptors)
        plain, views = self._describe_gallery()
        impostor_m = self.settings.impostor_distance_m or 2.0 * self.evaluation.radius_m
        protocol = (self.evaluation, self.matcher.exclude_time_s, impostor_m, self.settings.stretch_m)
        return {
            "prior": samples_of_gallery(plain, views, stored, *protocol),
            "session": samples_of_gallery(plain, views, plain, *protocol),
        }

    def _add_agreed(self, found: _Found, run: EncodedRun) -> None:
        evaluation, keyframes, records = self.evaluation, self.gallery.keyframes, run.dataset.records
        everything = find_positives(records, keyframes, evaluation.radius_m, evaluation.max_yaw_deg)
        positives = [without_recent(everything[i], s, keyframes, self.matcher.exclude_time_s) for i, s in enumerate(run.stamps_ns)]
        ring_m = (evaluation.radius_m, evaluation.radius_m + evaluation.ignore_ring_m)
        judge = judge_by(positives, lambda frame, match: in_ring(records[frame], keyframes[match.keyframe_index], ring_m))
        index, verifier = open_index(self.gallery), verifier_of(self.gallery, self.matcher)
        decisions = decide(run, self.gallery, index, self.matcher, judge, verifier)
        opportunities = np.array([len(right) > 0 for right in positives])
        positions = np.array([record.pose.position[:2] for record in records if record.pose is not None])  # checked before: all have one
        stretches = stretches_along(positions, self.settings.stretch_m)
        found.agreed = agreed_points(decisions, self.matcher, self.settings.confidence, stretches=stretches)
        found.held_out_agreed = held_out_agreed(decisions, opportunities, self.matcher, self.settings, stretches)

    def _is_enough(self, samples: Samples) -> bool:
        if not samples.correct.any():
            return False
        return fit_scores(samples, self.settings.confidence).single.threshold_for(self.settings.target_precision) is not None

    def _describe_gallery(self) -> tuple[Placed, list[Placed]]:
        from asymvpr_core.training.data import GalleryImages  # torch: not needed with a labelled run

        keyframes, total = self.gallery.keyframes, len(self.gallery)
        places = np.zeros(total, dtype=np.int64)
        changed = GalleryImages(self.gallery, places, self.model.preprocess, self.settings.augmentation, self.settings.seed)
        plain = np.empty((total, self.model.dimension), dtype=np.float32)
        views = np.empty((self.settings.views, total, self.model.dimension), dtype=np.float32)
        for index in self.progress(range(total), "describing the gallery's pictures with the query model", total):
            plain[index] = self.model.encode(self.gallery.read_image(index))
            for view in range(self.settings.views):
                views[view, index] = self.model.encode(changed.picture((view, index)))
        return Placed.of(keyframes, plain), [Placed.of(keyframes, view) for view in views]


def _protocol(gallery: Gallery, evaluation: EvaluationSettings, run: Dataset | None) -> dict[str, Any]:
    return {
        "correct_match": correct_match_rule(evaluation),
        "run": None if run is None else str(Path(run.root).resolve()),
        "map_frame": gallery.map_frame,
        "probability": "isotonic regression of 'the best candidate is right' on its score",
        "precision_bound": "one-sided Clopper-Pearson bound of the share of right matches among what is accepted; single frames: all "
        "best candidates of at least the threshold; agreed: what the matcher accepts with it, tried at quantiles of the scores; "
        "frames of one stretch of stretch_m count once: accepted where one of them is, right where all of those are",
        "from the gallery": "a keyframe that was passed again is asked for without its own pass, any other in augmented views without "
        "itself; every query once more of the keyframes beyond impostor_distance_m, where every answer is wrong",
        "errors": "over the right candidates that the threshold of target_precision accepts in the prior search",
    }


def _threshold(prior: ScoreCalibration, witnesses: int, settings: CalibrationSettings, run: Dataset | None) -> float:
    """The threshold for the wanted precision: with agreement over time where that was counted.

    Args:
        witnesses: stretches of way that the frames are of.

    Raises:
        EvaluationError: the data cannot show so much, neither with agreement nor without.
    """
    ways = [points for points in (prior.agreed, prior.single) if points is not None]
    for points in ways:
        threshold = points.threshold_for(settings.target_precision)
        if threshold is not None:
            return threshold
    needed = int(np.ceil(np.log(1.0 - settings.confidence) / np.log(settings.target_precision)))
    longer = "give a labelled run with --run" if run is None else "give a longer run"
    raise EvaluationError(
        f"{prior.frames} frames of {witnesses} stretches, {prior.correct} with a right best candidate, show a precision of "
        f"{max(points.best_bound for points in ways):.3f} at most",
        expected=f"{settings.target_precision:g} at a confidence of {settings.confidence:g}, "
        f"which takes {needed} accepted stretches of {settings.stretch_m:g} m without a wrong one",
        remedy=f"{longer}, or ask for less with --target-precision or --confidence",
    )  # fmt: skip
