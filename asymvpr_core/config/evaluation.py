"""Settings of benchmarks, calibration and evaluation."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from asymvpr_core.config.base import Settings
from asymvpr_core.config.gallery import SourceSettings
from asymvpr_core.config.training import AugmentationSettings


class BenchmarkSettings(Settings):
    """How a benchmark of two sides, database and queries, is read from its folder."""

    layout: str | None = Field(None, description="how it lies on disk (asymvpr dataset layouts); None: recognised where it is unambiguous")
    split: str | None = Field(None, description="train, val or test; None: test, or the only one there is")
    version: str | None = Field(None, description="which published version or rule of the layout; None: its first")
    radius_m: float | None = Field(None, gt=0.0, description="radius of a correct match [m]; None: the benchmark's own rule")
    max_yaw_deg: float | None = Field(None, gt=0.0, le=180.0, description="largest yaw difference [deg] of a correct match; None: any")
    allow_missing: bool = Field(False, description="leave out images that are listed and absent, and report them, instead of refusing")
    source: SourceSettings = SourceSettings()  # of the two bags, where its sides are bags


class CalibrationSettings(Settings):
    """How scores become probabilities, and how sure a precision has to be."""

    target_precision: float = Field(0.99, gt=0.0, lt=1.0, description="precision that the data has to show, or nothing is written")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="confidence of the lower bound of a precision, one-sided")
    stretch_m: float = Field(
        3.0, ge=0.0, description="frames within this distance [m] of a run, or of the gallery, count once for that bound; 0: each by itself"
    )
    views: int = Field(2, ge=1, le=16, description="augmented pictures of a keyframe that stand for revisits where none was recorded")
    impostor_distance_m: float | None = Field(
        None, gt=0.0, description="keyframes beyond this [m] stand for places that are not mapped; None: twice the radius"
    )
    augmentation: AugmentationSettings = AugmentationSettings()
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the augmented pictures")


class EvaluationSettings(Settings):
    """The protocol of an evaluation; printed with every result."""

    radius_m: float = Field(25.0, gt=0.0, description="a gallery image within this distance [m] is a correct match")
    max_yaw_deg: float | None = Field(None, gt=0.0, le=180.0, description="largest yaw difference [deg] of a correct match; None: any")
    ignore_ring_m: float = Field(0.0, ge=0.0, description="a match this far [m] beyond the radius counts neither as true nor as false")
    k: tuple[PositiveInt, ...] = Field((1, 5, 10), min_length=1, description="the K of Recall@K")
    bootstrap_resamples: int = Field(1000, ge=0, description="resamples of the queries behind every interval; 0: no intervals")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="share of the resamples that an interval covers")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the resampling")
    cache_limit_gb: float = Field(4.0, gt=0.0, description="size of the descriptor cache [GB] beyond which the oldest files go")
    descriptor_memory_gb: float = Field(1.0, ge=0.0, description="descriptors of one side beyond this size [GB] go to a temporary file")
    boards: int = Field(8, ge=0, le=200, description="most prediction boards of a kind in the report")
    only_wrong: bool = Field(False, description="show prediction boards of wrong best matches only")
