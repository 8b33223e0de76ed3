"""Calibrate a gallery for a query model: from a labelled run, or from the gallery alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import CalibrationSettings, EvaluationSettings, KeyframeSettings, MatcherSettings, RuntimeSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.keyframes import select_keyframes
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError, ImageError
from asymvpr_core.evaluation.calibration_fit import Samples, fit_errors, fit_scores
from asymvpr_core.evaluation.calibration_report import write_calibration_report
from asymvpr_core.evaluation.calibration_samples import Placed, describe_run, samples_of_gallery, samples_of_run, samples_of_session
from asymvpr_core.evaluation.held_out import HeldOut, held_out
from asymvpr_core.evaluation.protocol import check_map_frames, check_poses, correct_match_rule
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair, new_folder, refuse_existing, write_text_atomically
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.calibration import CALIBRATION, Calibration, ScoreCalibration, Search, gallery_key, model_key, write_calibration

REPORT = "report.html"


@dataclass(frozen=True)
class CalibrationResult:
    """What was written, the samples of each kind of search, and how the calibration did on parts of them that it had not seen.

    `missing` says why a kind of search has no calibration.
    """

    calibration: Calibration
    samples: dict[Search, Samples]
    held_out: dict[Search, HeldOut]
    missing: dict[Search, str]


def calibrate(
    gallery_path: Path,
    model_path: Path,
    *,
    run: Dataset | None = None,
    out: Path | None = None,
    settings: CalibrationSettings | None = None,
    evaluation: EvaluationSettings | None = None,
    matcher: MatcherSettings | None = None,
    runtime: RuntimeSettings | None = None,
    progress: Progress = silent,
) -> CalibrationResult:
    """Write `calibration.json` into the gallery's folder, and with `out` a folder with the same file and a report.

    The prior search is calibrated with `run` where one is given. The session is, where the run comes back to its own places often enough
    to show the wanted precision; else with the gallery's own pictures.

    Args:
        run: images with true poses, in the gallery's frame; None: the gallery alone.

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
    samples, missing = stage.of_gallery() if run is None else stage.of_run(run)
    parts: dict[Search, ScoreCalibration] = {search: fit_scores(found, settings.confidence) for search, found in samples.items()}
    prior = parts["prior"]
    threshold = prior.threshold_for(settings.target_precision)
    if threshold is None:
        raise _too_little(prior, settings, run)
    calibration = Calibration(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gallery=gallery_key(gallery),
        model=model_key(model_path, model.manifest),
        settings={
            "calibration": settings.model_dump(mode="json"),
            "radius_m": evaluation.radius_m, "ignore_ring_m": evaluation.ignore_ring_m, "max_yaw_deg": evaluation.max_yaw_deg,
            "exclude_time_s": matcher.exclude_time_s,
        },
        protocol=_protocol(gallery, evaluation, run),
        prior=prior,
        session=parts.get("session"),
        errors=fit_errors(samples["prior"], threshold),
    )  # fmt: skip
    tried = {search: held_out(found, settings) for search, found in samples.items()}
    result = CalibrationResult(calibration, samples, tried, missing)
    if out is not None:
        with new_folder(out) as folder:
            write_calibration_report(folder / REPORT, result)
            write_text_atomically(folder / CALIBRATION, write_calibration(gallery.path, calibration).read_text(encoding="utf-8"))
    else:
        write_calibration(gallery.path, calibration)
    return result


@dataclass(frozen=True)
class _Stage:
    gallery: Gallery
    model: QueryModel
    settings: CalibrationSettings
    evaluation: EvaluationSettings
    matcher: MatcherSettings
    progress: Progress

    def of_run(self, run: Dataset) -> tuple[dict[Search, Samples], dict[Search, str]]:
        """Samples of both searches from a labelled run, the session's from the gallery's pictures where the run has too few revisits."""
        check_poses(run.records, str(run.root), self.evaluation.max_yaw_deg)
        check_map_frames(self.gallery, run.map_frame, str(run.root))
        frames = describe_run(run, self.model, self.progress)
        stored = Placed.of(self.gallery.keyframes, self.gallery.descriptors)
        samples: dict[Search, Samples] = {"prior": samples_of_run(frames, stored, self.evaluation, self.matcher.exclude_time_s)}
        missing: dict[Search, str] = {}
        if all(record.stamp_ns is not None for record in run.records):
            keyframes = select_keyframes([record.pose for record in run.records if record.pose is not None], KeyframeSettings())
            session = samples_of_session(frames, self.evaluation, self.matcher.exclude_time_s, np.array(keyframes))
            if self._is_enough(session):
                samples["session"] = session
        if "session" not in samples:
            try:
                samples["session"] = self.of_gallery()[0]["session"]
            except ImageError as error:
                missing["session"] = f"the run comes back to too few of its own places, and of the gallery {error}"
        return samples, missing

    def of_gallery(self) -> tuple[dict[Search, Samples], dict[Search, str]]:
        """Samples of both searches from the gallery's own pictures."""
        stored = Placed.of(self.gallery.keyframes, self.gallery.descriptors)
        plain, views = self._describe_gallery()
        impostor_m = self.settings.impostor_distance_m or 2.0 * self.evaluation.radius_m
        return {
            "prior": samples_of_gallery(plain, views, stored, self.evaluation, self.matcher.exclude_time_s, impostor_m),
            "session": samples_of_gallery(plain, views, plain, self.evaluation, self.matcher.exclude_time_s, impostor_m),
        }, {}

    def _is_enough(self, samples: Samples) -> bool:
        if not samples.correct.any():
            return False
        return fit_scores(samples, self.settings.confidence).threshold_for(self.settings.target_precision) is not None

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
        "precision_bound": "one-sided Clopper-Pearson bound of the share of right candidates among those of at least the threshold; "
        "neighbouring frames of a run resemble each other, which it does not know",
        "from the gallery": "a keyframe that was passed again is asked for without its own pass, any other in augmented views without "
        "itself; every query once more of the keyframes beyond impostor_distance_m, where every answer is wrong",
        "errors": "over the right candidates that the threshold of target_precision accepts in the prior search",
    }


def _too_little(prior: ScoreCalibration, settings: CalibrationSettings, run: Dataset | None) -> EvaluationError:
    needed = int(np.ceil(np.log(1.0 - settings.confidence) / np.log(settings.target_precision)))
    longer = "give a labelled run with --run" if run is None else "give a longer run"
    return EvaluationError(
        f"{prior.frames} frames, of which {prior.correct} have a right best candidate, show a precision of {prior.best_bound:.3f} at most",
        expected=f"{settings.target_precision:g} at a confidence of {settings.confidence:g}, "
        f"which takes {needed} accepted frames without a wrong one",
        remedy=f"{longer}, or ask for less with --target-precision",
    )  # fmt: skip
