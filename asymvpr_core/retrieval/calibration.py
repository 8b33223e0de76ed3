"""What the scores of a gallery mean: probability of being right, threshold for a wanted precision, size of the errors.

`asymvpr calibrate` writes `calibration.json` beside the gallery's files; the robot reads it with numpy alone.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from asymvpr_core import __version__
from asymvpr_core.config import MatcherSettings, SessionSettings
from asymvpr_core.deploy.runtime import MODEL
from asymvpr_core.errors import ArtefactError, SettingsError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.json_files import read_json
from asymvpr_core.manifest import Manifest, digest_of, refuse_outside, write_text_atomically
from asymvpr_core.work_folder import unwritable

CALIBRATION = "calibration.json"
FORMAT_VERSION = 1

Search = Literal["prior", "session"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OperatingPoints(_Part):
    """Thresholds and what was shown for them: accepting all scores of at least `thresholds[i]` had a precision of at
    least `precision_bounds[i]`, at the confidence of the calibration.

    Both ascend, and each threshold is the smallest for its bound.
    """

    thresholds: tuple[float, ...]
    precision_bounds: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> OperatingPoints:
        _check_columns(self.thresholds, self.precision_bounds, strict=True)
        return self

    def threshold_for(self, target_precision: float) -> float | None:
        """The smallest threshold whose precision was shown to be at least `target_precision`; None where none was."""
        reached = int(np.searchsorted(self.precision_bounds, target_precision, side="left"))
        return self.thresholds[reached] if reached < len(self.thresholds) else None

    @property
    def best_bound(self) -> float:
        """The largest precision that could be shown; 0 where nothing could."""
        return self.precision_bounds[-1] if self.precision_bounds else 0.0


class AgreedPoints(OperatingPoints):
    """The same for what agreement over time lets through, under `settings` of the matcher and no others."""

    settings: dict[str, Any]


class ScoreCalibration(_Part):
    """What the best score of a frame means in one kind of search.

    `scores` (K,) ascending and `probabilities` (K,) non-decreasing are the knots of the probability that the best
    candidate is right. `single` are the thresholds of single frames, `agreed` those with agreement over time, where they
    were counted. `frames`, `correct`: what this was counted on, and how many had a right best candidate.
    """

    scores: tuple[float, ...] = Field(min_length=1)
    probabilities: tuple[float, ...] = Field(min_length=1)
    single: OperatingPoints
    agreed: AgreedPoints | None = None
    frames: int = Field(ge=1)
    correct: int = Field(ge=0)
    basis: Literal["run", "gallery"]

    @model_validator(mode="after")
    def _check(self) -> ScoreCalibration:
        _check_columns(self.scores, self.probabilities, strict=False)
        return self

    def probability(self, score: float | np.ndarray) -> Any:
        """Probability that a best candidate of this score is right: as `score`, linear between the knots, constant beyond them."""
        return np.interp(score, *self._knots)

    def points_for(self, settings: MatcherSettings | None) -> OperatingPoints:
        """The thresholds that hold for a matcher: those with agreement where it agrees by the same settings, else those of single frames.

        Agreement over time rejects what single frames would accept, wrong candidates rather than right ones: the thresholds of single
        frames err on the safe side for it.
        """
        if settings is not None and self.agreed is not None and self.agreed.settings == agreement_settings(settings):
            return self.agreed
        return self.single

    @cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.scores), np.array(self.probabilities)


def _check_columns(ascending: tuple[float, ...], shares: tuple[float, ...], *, strict: bool) -> None:
    if len(ascending) != len(shares):
        raise ValueError("columns of different lengths")
    if shares and not (min(shares) >= 0 and max(shares) <= 1):
        raise ValueError("a probability outside of 0 to 1")
    steps = np.diff(shares)
    if (np.diff(ascending) <= 0).any() or (steps < 0).any() or (strict and (steps == 0).any()):
        raise ValueError("a column that does not ascend")


# What does not change which frames agree.
_NOT_AGREEMENT = ("score_threshold", "target_precision", "top_k")


def agreement_settings(settings: MatcherSettings) -> dict[str, Any]:
    """All that decides about a match beside the threshold, as JSON values."""
    return {name: value for name, value in settings.model_dump(mode="json").items() if name not in _NOT_AGREEMENT}


class Errors(_Part):
    """Error of the accepted true matches, as standard deviations about the published pose.

    `position_std_m` of x and of y, `yaw_std_deg` None where keyframes or frames have no heading; `matches`: how many
    they were counted on.
    """

    position_std_m: float = Field(gt=0)
    yaw_std_deg: float | None = Field(gt=0)
    matches: int = Field(ge=1)


class Calibration(_Part):
    """Contents of `calibration.json`, which belongs to one gallery and one query model; `sha256` is the digest of all other fields."""

    format_version: int = FORMAT_VERSION
    created: str
    asymvpr_version: str = __version__
    gallery: dict[str, str]
    model: dict[str, str]
    settings: dict[str, Any]
    protocol: dict[str, Any]
    prior: ScoreCalibration | None = None
    session: ScoreCalibration | None = None
    errors: Errors | None = None
    sha256: str | None = None

    def summary(self) -> list[str]:
        """Lines for a terminal: what was counted on, thresholds, errors."""
        target = float(self.settings.get("calibration", {}).get("target_precision", 0.99))
        lines = [f"calibrated   {self.created} for query model {self.model.get('path')}"]
        for search in ("prior", "session"):
            scores = self.of(search)  # type: ignore[arg-type]
            if scores is None:
                lines.append(f"{search:12} no calibration")
                continue
            ways: dict[str, OperatingPoints] = {"single frames": scores.single}
            if scores.agreed is not None:
                ways[str(scores.agreed.settings.get("sequence"))] = scores.agreed
            for way, points in ways.items():
                threshold = points.threshold_for(target)
                shown = f"{points.best_bound:.3f} at most" if threshold is None else f"threshold {threshold:.3f}"
                lines.append(f"{search:12} target_precision {target:g}, {way}: {shown}; {scores.frames} frames of the {scores.basis}")
        if self.errors is not None:
            yaw = "" if self.errors.yaw_std_deg is None else f", yaw {self.errors.yaw_std_deg:.1f} deg"
            lines.append(f"match error  {self.errors.position_std_m:.2f} m{yaw} (standard deviation of {self.errors.matches} matches)")
        return lines

    def of(self, search: Search) -> ScoreCalibration | None:
        """The calibration of one kind of search."""
        return self.prior if search == "prior" else self.session


def gallery_key(gallery: Gallery) -> dict[str, str]:
    """What ties a calibration to a gallery."""
    return {"path": str(gallery.path.resolve()), "digest": gallery.digest, "pair_id": gallery.manifest.gallery_network.pair_id}


def model_key(path: Path, model: Manifest) -> dict[str, str]:
    """What ties a calibration to a query model: another export of the same network may score differently."""
    return {"path": str(Path(path).resolve()), "sha256": model.files[MODEL].sha256}


def write_calibration(gallery: Path, calibration: Calibration) -> Path:
    """Write `calibration.json` into the folder of a gallery, in one step, in place of the one before.

    Raises:
        ArtefactError: the folder cannot be written.
    """
    path = Path(gallery) / CALIBRATION
    sealed = calibration.model_copy(update={"sha256": _digest(json.loads(calibration.model_dump_json()))})
    try:
        write_text_atomically(path, sealed.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise unwritable(path, error, "free space, or check the permissions of the folder") from error
    return path


def read_calibration(gallery: Path) -> Calibration | None:
    """The calibration in the folder of a gallery, whosever it is; None where there is none.

    Raises:
        ArtefactError: unreadable, damaged, or of a newer format.
    """
    path = Path(gallery) / CALIBRATION
    remedy = "make it anew with 'asymvpr calibrate', or remove it"
    try:
        refuse_outside(gallery, path)
        raw = read_json(path, remedy)
    except FileNotFoundError:
        return None
    if isinstance(raw, dict) and isinstance(raw.get("format_version"), int) and raw["format_version"] > FORMAT_VERSION:
        raise ArtefactError(f"{path} has format version {raw['format_version']}", expected=f"at most {FORMAT_VERSION}", remedy=remedy)
    if not isinstance(raw, dict) or raw.get("sha256") != _digest(raw):
        raise ArtefactError(f"{path} is damaged: its content differs from its own checksum", remedy=remedy)
    try:
        return Calibration.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path} is damaged: '{where}': {first['msg'].lower()}", remedy=remedy) from error


def mismatch(calibration: Calibration, gallery: Gallery, model_path: Path, model: Manifest) -> str | None:
    """Why a calibration does not belong to this gallery and model, as a clause; None where it does."""
    ours, theirs = gallery_key(gallery), calibration.gallery
    if ours["digest"] != theirs.get("digest"):
        if ours["path"] == theirs.get("path"):
            return f"the calibration of gallery {gallery.path} is older than its descriptors or keyframes, which have changed since"
        return f"the calibration in {gallery.path} is of gallery {theirs.get('path')}, whose descriptors or keyframes are others"
    if model_key(model_path, model)["sha256"] != calibration.model.get("sha256"):
        return f"the calibration of gallery {gallery.path} is of query model {calibration.model.get('path')}, not of {model_path}"
    return None


def usable_calibration(gallery: Gallery, model_path: Path, model: Manifest, *, needed: bool) -> Calibration | None:
    """The calibration that belongs to this gallery and model, or None.

    Args:
        needed: a precision is asked for: one of another gallery or model is refused instead of passed over.

    Raises:
        ArtefactError: damaged, or needed and of another gallery or model.
    """
    calibration = read_calibration(gallery.path)
    if calibration is None:
        return None
    reason = mismatch(calibration, gallery, model_path, model)
    if reason is None:
        return calibration
    if needed:
        raise ArtefactError(
            reason, expected="a calibration of this gallery and this model",
            remedy=f"run 'asymvpr calibrate {gallery.path} --model {model_path}'",
        )  # fmt: skip
    return None


def threshold_of(settings: MatcherSettings | SessionSettings, calibration: Calibration | None) -> float:
    """The smallest score that a search may accept: from the wanted precision where one is set, else the threshold that is given.

    Args:
        settings: of the prior search or of the session's.

    Raises:
        SettingsError: a precision is wanted and there is no calibration of this search, or it cannot show so much.
    """
    search: Search = "session" if isinstance(settings, SessionSettings) else "prior"
    prefix = "session_" if isinstance(settings, SessionSettings) else ""
    target = settings.session_target_precision if isinstance(settings, SessionSettings) else settings.target_precision
    if not target:
        return settings.session_score_threshold if isinstance(settings, SessionSettings) else settings.score_threshold
    scores = None if calibration is None else calibration.of(search)
    if scores is None:
        missing = "there is no calibration" if calibration is None else f"the calibration has no part for the {search} search"
        raise SettingsError(
            f"{prefix}target_precision is {target:g} and {missing}", expected=f"a {CALIBRATION} of this model in the gallery's folder",
            remedy=f"run 'asymvpr calibrate' on the gallery, or leave {prefix}target_precision at 0 and set {prefix}score_threshold",
        )  # fmt: skip
    points = scores.points_for(settings if isinstance(settings, MatcherSettings) else None)
    threshold = points.threshold_for(target)
    if threshold is None:
        how = "with these settings of agreement" if points is scores.agreed else "for single frames"
        raise SettingsError(
            f"{prefix}target_precision is {target:g}; the calibration, counted on {scores.frames} frames, "
            f"shows {points.best_bound:.4f} at most {how}",
            expected=f"at most {points.best_bound:.4f}",
            remedy="ask for less, or calibrate with a longer labelled run and these settings of the matcher",
        )
    return threshold


def with_threshold(settings: MatcherSettings, calibration: Calibration | None) -> MatcherSettings:
    """The settings with the threshold that `threshold_of` gives. Raises as it does."""
    return settings.model_copy(update={"score_threshold": threshold_of(settings, calibration)})


def _digest(content: dict[str, Any]) -> str:
    return digest_of({name: value for name, value in content.items() if name != "sha256"})
