"""Typed settings: the only home of defaults.

YAML files, command-line flags and ROS parameters are all made from these models. Unknown keys
are refused at every depth; precedence is flag > file > default; each stage saves the settings
as resolved beside its result.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from pydantic.fields import FieldInfo


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused, numbers finite, every field described."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_off(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {name: "off" if name in fields and is_yaml_off(fields[name], value) else value for name, value in values.items()}


def is_yaml_off(field: FieldInfo, value: Any) -> bool:
    """Whether `value` is the false that YAML 1.1 makes of an unquoted `off`, where "off" is a choice of `field`."""
    return value is False and "off" in get_args(field.annotation)


# Longer side of thumbnails where they are asked for without a size: a VGA picture is halved once, small text in it is gone.
THUMBNAIL_SIDE_PX = 480

WeatherName = Literal["day", "overcast", "rain", "fog", "evening"]


class KeyframeSettings(Settings):
    """Which frames of a recording enter a gallery: a frame is kept when any limit is passed."""

    min_distance_m: float = Field(1.0, ge=0.0, description="distance to the last keyframe [m] that makes a new one")
    min_yaw_deg: float = Field(15.0, gt=0.0, le=180.0, description="turn since the last keyframe [deg] that makes a new one")
    min_interval_s: float | None = Field(None, gt=0.0, description="time since the last keyframe [s] that makes a new one; None: none does")
    max_pose_gap_s: float = Field(0.5, gt=0.0, description="longest gap between poses [s] over which a pose is interpolated")


class SourceSettings(Settings):
    """How images and poses are read from a dataset: topics and keyframes of a rosbag, cities of GSV-Cities."""

    image_topic: str | None = Field(None, description="image topic; None: the only one in the bag")
    pose_topic: str | None = Field(
        None,
        description="topic of Odometry, PoseStamped, PoseWithCovarianceStamped or NavSatFix; None: the only one in the bag",
    )
    trajectory_file: Path | None = Field(None, description="TUM trajectory that gives the poses instead of a topic")
    map_frame: str | None = Field(None, description="name of the frame of the poses; None: the topic's header.frame_id")
    keyframes: KeyframeSettings | None = Field(KeyframeSettings(), description="None: every frame that has a pose")
    cities: tuple[str, ...] | None = Field(None, min_length=1, description="cities of GSV-Cities, in the order of their ids; None: all")
    min_images_per_place: int = Field(4, ge=1, description="places of GSV-Cities with fewer images are left out")


class ProjectionSettings(Settings):
    """How a projection to fewer dimensions is made."""

    projection: Literal["pca", "random"] = Field("pca", description="pca, fitted on the gallery, or a random orthogonal projection")
    whitening: float = Field(0.5, ge=0.0, le=1.0, description="exponent of PCA's whitening: 0 plain PCA, 1 full whitening")
    projection_images: int = Field(16384, ge=2, description="images that PCA is fitted on at most, drawn at random")
    projection_seed: int = Field(0, ge=0, lt=2**32, description="seed of the random projection and of the images that are drawn")


class GallerySettings(ProjectionSettings):
    """How a gallery is built."""

    network: str = Field("efficientnet_lite2_gem", description="name of the gallery network")
    batch_size: int = Field(16, ge=1, description="images per forward pass")
    chunk_size: int = Field(64, ge=1, description="images per resumable chunk: a kill loses at most one")
    projection_dim: int | Literal["auto"] | None = Field(
        "auto", description="dimension after the projection; auto: the network's own default; None: no projection"
    )
    descriptor_dtype: Literal["float32", "float16"] = Field("float32", description="type of the stored descriptors")
    threads: int = Field(2, ge=1, description="CPU threads of the forward pass")
    thumbnail_side_px: int = Field(
        0, ge=0, le=4096, description="longer side of the thumbnails [px] that geometric verification needs; 0: none are stored"
    )

    @field_validator("projection_dim")
    @classmethod
    def _check_dimension(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, 'auto' or null")
        return value


IndexKind = Literal["exact", "float16", "sq8", "rabitq", "hnsw", "pq", "ivfpq"]


class IndexSettings(Settings):
    """How the search index of a gallery is chosen and built; docs/artefacts.md says which kind is for what."""

    kind: Literal["auto"] | IndexKind = Field(
        "auto", description="kind of index; auto: by size and dimension of the gallery, within the memory"
    )
    memory_mb: float = Field(1024.0, gt=0.0, description="most memory that a search needs to have at hand [MB]")
    recall: float = Field(0.99, gt=0.0, le=1.0, description="share of the k exact neighbours that has to be found")
    k: int = Field(10, ge=1, le=1000, description="neighbours over which that recall is measured")
    refine: Literal["descriptors", "sq8"] = Field(
        "descriptors", description="what the candidates are ranked again with: the stored descriptors, or an 8-bit copy in the index"
    )
    queries: int = Field(200, ge=10, description="queries, made up from the descriptors, that recall and time are measured on")
    threads: int = Field(1, ge=1, description="CPU threads of the build; only one builds hnsw the same every time")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the queries and of all training")


class EngineSettings(Settings):
    """Where a gallery's images are described; the result does not depend on it."""

    engine: Literal["local", "ray"] = Field("local", description="this process, or the workers of a Ray cluster")
    address: str | None = Field(None, description="address of a Ray cluster; None: a cluster on this machine")
    workers: int | None = Field(None, ge=1, description="Ray workers; None: as many as the cluster has cores for")
    local_cpus: int | None = Field(None, ge=1, description="cores of a cluster on this machine; None: all")


class CellSettings(Settings):
    """Places of a dataset without place ids: cells of position and heading."""

    cell_size_m: float = Field(5.0, gt=0.0, description="side of a square position cell [m]")
    heading_sectors: int = Field(4, ge=1, description="number of equal heading sectors; 1: heading is ignored")


class BankSettings(Settings):
    """How the descriptors of a gallery become place statistics on disk."""

    rank: int = Field(0, ge=0, le=256, description="rank of the covariance beside its diagonal; 0: the paper's diagonal alone")
    dtype: Literal["float32", "float16"] = Field("float32", description="type of stored centroids and factors; variances stay float32")
    memory_gb: float = Field(2.0, gt=0.0, description="memory for the statistics in work [GB]")
    cells: CellSettings = CellSettings()


class NeighbourSettings(Settings):
    """How the exact neighbour lists of a gallery are made, which CSD, ROP and D3still train with."""

    k: int = Field(10, ge=1, le=65536, description="neighbours of every gallery image, itself included")
    chunk_size: int = Field(4096, ge=1, description="gallery images between two saved pieces of work")
    memory_gb: float = Field(1.0, gt=0.0, description="memory for the descriptors in work [GB]")
    threads: int = Field(2, ge=1, description="CPU threads of the search")


class AugmentationSettings(Settings):
    """Random changes of the training image that imitate a revisit in other light and from beside."""

    crop_scale_min: float = Field(0.6, gt=0.0, le=1.0, description="smallest area share of the random crop")
    perspective: float = Field(0.15, ge=0.0, le=0.5, description="largest corner shift as a share of the image size")
    brightness: float = Field(0.4, ge=0.0, le=1.0, description="largest relative change of brightness")
    contrast: float = Field(0.4, ge=0.0, le=1.0, description="largest relative change of contrast")
    saturation: float = Field(0.3, ge=0.0, le=1.0, description="largest relative change of saturation")
    hue: float = Field(0.02, ge=0.0, le=0.5, description="largest shift of hue (share of the circle)")
    rand_augment_ops: int = Field(0, ge=0, le=14, description="operations that RandAugment draws for every image; 0: no RandAugment")
    rand_augment_magnitude: int = Field(9, ge=0, le=30, description="strength of RandAugment's operations")


class BaselineSettings(Settings):
    """Parameters of the losses beside the paper's own; see docs/losses.md for their equations."""

    aml_contrastive_weight: float = Field(0.0, ge=0.0, description="aml: weight of the contrast beside the regression")
    aml_margin: float = Field(0.7, gt=0.0, le=2.0, description="aml: margin of the contrast")
    raml_asymmetric_weight: float = Field(0.7482, ge=0.0, description="raml: weight lambda 1 of query against gallery")
    raml_symmetric_weight: float = Field(0.6778, ge=0.0, description="raml: weight lambda 2 of query against query")
    csd_query_temperature: float = Field(1.0, gt=0.0, description="csd: temperature of the query's similarities")
    csd_gallery_temperature: float = Field(0.01, gt=0.0, description="csd: temperature of the gallery's similarities")
    rop_temperature: float = Field(0.1, gt=0.0, description="rop: temperature of the query's order")
    d3still_alpha: float = Field(100.0, ge=0.0, description="d3still: weight of the image's own similarity")
    d3still_beta: float = Field(5.0, ge=0.0, description="d3still: weight of the pairs in the wrong order")
    d3still_gamma: float = Field(1.0, ge=0.0, description="d3still: weight of the pairs in the right order")
    symmetric_alpha: float = Field(1.0, gt=0.0, description="symmetric: weight of positive pairs")
    symmetric_beta: float = Field(50.0, gt=0.0, description="symmetric: weight of negative pairs")
    symmetric_epsilon: float = Field(0.1, ge=0.0, description="symmetric: margin of the miner")


LossName = Literal["asym+", "asym", "explicit", "queue", "regression", "aml", "raml", "csd", "rop", "d3still", "symmetric"]

# What L_asym+ is given where no gamma is: the paper's gamma, and the mean exponent that it has at the paper's dimension.
_PAPER_GAMMA, _RELATIVE_GAMMA = 15.0, 0.1


class TrainSettings(Settings):
    """How a query network is trained against a gallery."""

    query_network: str = Field("efficientnet_lite0_gem", description="name of the query network")
    loss: LossName = Field("asym+", description="asym+ is L_asym with implicit embedding augmentation; docs/losses.md has all")
    init: Literal["aligned", "random"] = Field("aligned", description="start of the last layer: closed-form alignment, or random")
    alignment_copies: int = Field(2, ge=0, description="augmented copies of every image that the alignment sees beside the image itself")
    validation_share: float = Field(0.1, ge=0.0, le=0.5, description="share of the images that is held out to choose the best epoch")
    max_validation_images: int = Field(2000, ge=1, description="most images that are held out, however many there are")
    validation_views: int = Field(4, ge=1, description="augmented views of every held-out image at each validation")
    epochs: int = Field(15, ge=0, description="passes over the gallery's images; 0: alignment only")
    batch_size: int = Field(64, ge=2, description="images per step")
    learning_rate: float = Field(5e-4, gt=0.0, description="AdamW learning rate at the start of the cosine")
    learning_rate_end: float = Field(1e-4, ge=0.0, description="learning rate at the end of the cosine")
    weight_decay: float = Field(1e-2, ge=0.0, description="AdamW weight decay")
    temperature: float = Field(0.05, gt=0.0, description="softmax temperature tau of the paper")
    gamma: float | None = Field(
        None, ge=0.0, description="strength of the embedding augmentation (paper: 15); None: 0.1 on the relative scale, 15 on the paper's"
    )
    gamma_scale: Literal["paper", "relative"] | None = Field(
        None,
        description="what gamma is: the paper's factor, or the mean exponent that it brings, which carries over between dimensions; "
        "None: the paper's where gamma is given, relative where it is not",
    )
    covariance_rank: int = Field(0, ge=0, le=256, description="rank of the covariance beside its diagonal, where no --bank is given")
    bank_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type of the centroids in memory")
    draws: int = Field(10, ge=1, description="draws of the explicit loss for every image (paper: 10)")
    queue_capacity: int = Field(4096, ge=1, description="gallery descriptors in the queue of the loss queue")
    neighbours_k: int = Field(10, ge=2, le=65536, description="neighbours of every image, itself included, of csd, rop and d3still")
    regression_weight: float = Field(
        0.0, ge=0.0, description="weight of a regression term ||q-g||^2 beside the loss; without effect on regression and symmetric"
    )
    baselines: BaselineSettings = BaselineSettings()
    sampler: Literal["auto", "plain", "places"] = Field(
        "auto", description="batches of any images, or of several images of each place; auto: places for the symmetric loss"
    )
    images_per_place: int = Field(4, ge=2, description="most images of one place in a batch of the sampler places")
    frozen_share: float = Field(0.0, ge=0.0, le=1.0, description="share of the backbone's blocks, from the first, that stays as it is")
    cached_views: int = Field(
        0, ge=0, description="augmented views of every image, computed once up to the end of the frozen stages; 0: new ones each epoch"
    )
    view_seed: int | None = Field(
        None, ge=0, lt=2**32, description="seed of cached_views, for several seeds to share them; None: that of the training"
    )
    augmentation: AugmentationSettings = AugmentationSettings()
    cells: CellSettings = CellSettings()
    precision: Literal["32", "bf16-mixed", "16-mixed"] = Field("32", description="of the network's forward and backward pass")
    accumulate_batches: int = Field(1, ge=1, description="batches whose gradients are added up for one step")
    gradient_clip: float = Field(0.0, ge=0.0, description="largest norm of the gradient; 0: no limit")
    ema_decay: float = Field(
        0.0, ge=0.0, lt=1.0, description="decay of a moving average of the weights, which is validated and kept instead; 0: none"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU where there is one")
    devices: int = Field(1, ge=1, description="processes of a node, one for each GPU; batch_size is that of each")
    num_nodes: int = Field(1, ge=1, description="machines; with several, start the command on each with torchrun")
    boards: int = Field(4, ge=0, le=64, description="prediction boards for TensorBoard at each validation; 0: none")
    workers: int = Field(1, ge=0, description="image-loading processes")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    threads: int = Field(2, ge=1, description="CPU threads of the training")

    @field_validator("precision", mode="before")
    @classmethod
    def _read_number(cls, value: Any) -> Any:
        return "32" if value == 32 else value  # YAML reads 32 as a number

    @property
    def resolved_gamma(self) -> tuple[float, Literal["paper", "relative"]]:
        """The strength of the augmentation and what it is on: `memory.spread.scaled_gamma` makes the loss's γ of both."""
        scale = self.gamma_scale or ("relative" if self.gamma is None else "paper")
        if self.gamma is not None:
            return self.gamma, scale
        return (_RELATIVE_GAMMA if scale == "relative" else _PAPER_GAMMA), scale

    @property
    def resolved_view_seed(self) -> int:
        """The seed of the cached views."""
        return self.seed if self.view_seed is None else self.view_seed

    @model_validator(mode="after")
    def _check_cached_views(self) -> TrainSettings:
        if self.cached_views == 0:
            return self
        if self.init == "aligned" and self.alignment_copies > self.cached_views:
            raise ValueError(
                f"{self.cached_views} cached_views serve the alignment too, which wants alignment_copies {self.alignment_copies}"
            )
        if self.devices * self.num_nodes > 1:
            raise ValueError("cached_views are for one process: set devices and num_nodes to 1, or cached_views to 0")
        return self

    @property
    def resolved_sampler(self) -> Literal["plain", "places"]:
        """The sampler that the loss is trained with."""
        if self.sampler == "auto":
            return "places" if self.loss == "symmetric" else "plain"
        return self.sampler


class ComparisonSettings(Settings):
    """How losses are compared: the same network, images, schedule and seeds for each."""

    seeds: tuple[NonNegativeInt, ...] = Field((0, 1, 2), min_length=1, description="seeds that every loss is trained with")
    overrides: dict[str, dict[str, Any]] = Field(
        {}, description="settings of single losses that differ from the common ones, by the name of the loss"
    )


class ExportSettings(Settings):
    """How a query network becomes something that the robot runs."""

    opset: int = Field(18, ge=18, description="ONNX opset; below 18 OpenVINO computes SALAD's log-sum-exp wrongly")
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(
        ("fp32",), min_length=1, description="precisions of the written variants; fp32 is always written"
    )
    formats: tuple[Literal["onnx", "openvino"], ...] = Field(
        ("onnx",), min_length=1, description="file formats of the variants; ONNX is always written and OpenVINO reads it too"
    )
    parity_images: int = Field(16, ge=1, description="real images on which every variant is compared with torch")
    recall_views: int = Field(
        128, ge=0, description="augmented gallery images on which Recall@1 is compared with torch's, where fp16 or int8 is written; 0: none"
    )
    calibration_images: int = Field(64, ge=1, description="gallery images that give int8 its ranges")
    self_test_images: int = Field(4, ge=0, description="images stored with the model, on which the robot checks what it runs; 0: none")
    min_cosine: float = Field(0.9999, gt=0.0, le=1.0, description="smallest cosine of fp32 to the torch model that is accepted")
    min_cosine_fp16: float = Field(0.999, gt=0.0, le=1.0, description="the same for fp16")
    min_cosine_bf16: float = Field(0.995, gt=0.0, le=1.0, description="the same for OpenVINO's bf16, which needs no file of its own")
    min_cosine_int8: float = Field(0.995, gt=0.0, le=1.0, description="the same for int8")
    force: bool = Field(False, description="write variants that miss their smallest cosine, and say so in the manifest")

    @property
    def tolerances(self) -> dict[str, float]:
        """The smallest accepted cosine of every precision."""
        return {"fp32": self.min_cosine, "fp16": self.min_cosine_fp16, "bf16": self.min_cosine_bf16, "int8": self.min_cosine_int8}


class RuntimeSettings(Settings):
    """How the robot runs the query model. What is left to `auto` is measured with `runtime: auto`, and conservative otherwise."""

    runtime: Literal["onnxruntime", "openvino", "auto"] = Field(
        "onnxruntime", description="inference runtime; auto: the fastest on this machine, measured once and remembered"
    )
    provider: Literal["cpu", "cuda", "tensorrt"] = Field("cpu", description="execution provider of onnxruntime")
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto",
        description="auto: with runtime auto the fastest that agrees with the trained network, otherwise fp32; bf16: OpenVINO only",
    )
    threads: int = Field(0, ge=0, le=64, description="CPU threads of the query network; 0: measured with runtime auto, otherwise 1")

    @property
    def fixed_threads(self) -> int:
        """The number of threads where none is measured."""
        return self.threads or 1


class MatcherSettings(Settings):
    """When a query frame is declared to be at a place of the gallery; docs/matching.md has the equations."""

    top_k: int = Field(5, ge=1, le=100, description="number of candidates per frame")
    score_threshold: float = Field(0.5, ge=-1.0, le=1.0, description="smallest cosine that may be accepted")
    target_precision: float = Field(
        0.0, ge=0.0, lt=1.0, description="wanted precision; takes the place of score_threshold where the gallery is calibrated; 0: not used"
    )
    exclude_time_s: float = Field(30.0, ge=0.0, description="keyframes closer in time than this [s] are no loop closure")
    sequence: Literal["off", "vote", "bayes"] = Field(
        "vote", description="temporal agreement: off, a vote over the last frames, or a discrete Bayes filter over the keyframes"
    )
    sequence_length: int = Field(5, ge=1, le=100, description="frames in the vote")
    min_votes: int = Field(4, ge=1, le=100, description="frames of the vote, this one included, whose best must agree")
    vote_distance_m: float = Field(
        0.0, ge=0.0, description="way [m] over which the frames of the vote are spread, where odometry is known; 0: the last frames"
    )
    min_posterior: float = Field(0.99, ge=0.5, le=1.0, description="bayes: smallest probability of the best place that is accepted")
    evidence_spacing_m: float = Field(3.0, gt=0.0, description="bayes: frames closer than this [m] are one observation")
    agreement_radius_m: float = Field(8.0, gt=0.0, description="candidates within this distance [m] agree")
    agreement_yaw_deg: float = Field(45.0, gt=0.0, le=180.0, description="candidates within this yaw [deg] agree")
    max_frame_gap_s: float = Field(3.0, gt=0.0, description="a pause between frames longer than this [s] starts a new vote")
    max_speed_m_s: float = Field(20.0, gt=0.0, description="odometry that is faster than this [m/s] has jumped")
    odometry_drift: float = Field(0.05, gt=0.0, le=1.0, description="standard deviation of odometry as a share of the way")
    odometry_yaw_drift_deg_m: float = Field(0.1, gt=0.0, le=10.0, description="standard deviation of odometry's yaw a metre [deg/m]")
    odom_gate_sigma: float = Field(
        0.0,
        ge=0.0,
        le=20.0,
        description="a match farther than this [standard deviations] from what odometry expects is refused; 0: no gate",
    )
    odom_gate_reopen_m: float = Field(
        20.0, gt=0.0, description="way [m] along which refused matches must agree with one another to be believed instead"
    )
    geometric_verification: Literal["off", "fundamental"] = Field(
        "off", description="off, or feature pairs between frame and thumbnail must fit one fundamental matrix"
    )
    min_inliers: int = Field(20, ge=8, description="feature pairs that must fit")


class SessionSettings(Settings):
    """The session gallery: keyframes of this very run, compared light against light."""

    session_gallery: bool = Field(False, description="look for loop closures within this run")
    session_score_threshold: float = Field(0.6, ge=-1.0, le=1.0, description="smallest cosine that may be accepted within the session")
    session_target_precision: float = Field(
        0.0, ge=0.0, lt=1.0, description="wanted precision; takes the place of session_score_threshold where it is calibrated; 0: not used"
    )
    min_keyframe_distance_m: float = Field(
        1.0, gt=0.0, description="distance to the last keyframe [m] that makes a new one; [s] without odometry"
    )
    min_keyframe_yaw_deg: float = Field(15.0, gt=0.0, le=180.0, description="turn since the last keyframe [deg] that makes a new one")
    exclude_keyframes: int = Field(10, ge=0, description="the last keyframes, so many, are no loop closure")
    exclude_distance_m: float = Field(15.0, ge=0.0, description="keyframes fewer metres of way ago than this [m] are no loop closure")
    session_capacity: int = Field(5000, ge=2, le=10_000_000, description="most keyframes of a session; beyond it, every other one goes")


OutputName = Literal[
    "place_match/pose", "place_match/candidates", "place_match/image", "place_match/markers", "loop_closure",
    "initialpose", "global_pose", "lio_loop/loop_closure_detection",
]  # fmt: skip


class NodeSettings(Settings):
    """Parameters of the place-recognition node; the matcher's and the runtime's are declared beside them."""

    gallery_path: str = Field("", description="folder of the prior gallery; empty: none, and only the session's own keyframes are matched")
    model_path: str = Field("", description="folder of the exported query model")
    session_path: str = Field("", description="folder that ~/save_session writes the session gallery to")
    map_frame: str = Field("", description="frame of the published poses; empty: the gallery's own")
    base_frame: str = Field("", description="frame of the robot's base; empty: the child frame of `odom`")
    camera_names: tuple[str, ...] = Field(("",), description="cameras; each has its image below its name; an empty name: `image` itself")
    transport: Literal["raw", "compressed"] = Field("raw", description="subscribe to `image` or to `image/compressed`")
    max_rate_hz: float = Field(0.0, ge=0.0, le=1000.0, description="most frames per second that are encoded [Hz]; 0: no limit")
    max_image_age_s: float = Field(2.0, ge=0.0, description="older images [s] are dropped and counted; 0: no limit")
    max_odom_gap_s: float = Field(0.5, gt=0.0, description="longest gap between odometry messages [s] over which a pose is interpolated")
    cooldown_s: float = Field(0.0, ge=0.0, description="shortest time between two published matches [s]")
    relocalisation_distance_m: float = Field(
        8.0, gt=0.0, description="matches this far [m] from where odometry leads are a new localisation"
    )
    relocalisation_yaw_deg: float = Field(60.0, gt=0.0, le=180.0, description="matches turned this much [deg] are a new localisation")
    outputs: tuple[OutputName, ...] = Field(
        ("place_match/pose", "place_match/candidates", "place_match/image", "place_match/markers", "loop_closure"),
        min_length=1,
        description="topics to publish",
    )
    publish_tf: bool = Field(False, description="publish the transform from map to odom; needs tf2_msgs")
    autostart: bool = Field(True, description="configure and activate without a lifecycle manager")

    @field_validator("map_frame", "base_frame")
    @classmethod
    def _check_frame(cls, value: str) -> str:
        if value.startswith("/") or any(character.isspace() for character in value):
            raise ValueError("must be a frame name without a leading '/' and without spaces, as tf2 wants it")
        return value

    @field_validator("camera_names")
    @classmethod
    def _check_cameras(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("must name at least one camera, each once")
        for name in value:
            if not re.fullmatch(r"(/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*)?", name, re.ASCII):
                raise ValueError(f"'{name}' is no ROS name: letters, digits and '_', parts separated by '/'")
        return value

    @model_validator(mode="after")
    def _check_frames(self) -> NodeSettings:
        if self.map_frame and self.map_frame == self.base_frame:
            raise ValueError(f"map_frame and base_frame are both '{self.map_frame}': one is fixed and the other moves")
        return self


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


# The sections of a settings file: one file holds the settings of all stages.
SECTIONS: dict[str, type[Settings]] = {
    "source": SourceSettings,
    "benchmark": BenchmarkSettings,
    "gallery": GallerySettings,
    "index": IndexSettings,
    "engine": EngineSettings,
    "bank": BankSettings,
    "neighbours": NeighbourSettings,
    "train": TrainSettings,
    "comparison": ComparisonSettings,
    "export": ExportSettings,
    "runtime": RuntimeSettings,
    "matcher": MatcherSettings,
    "session": SessionSettings,
    "calibration": CalibrationSettings,
    "evaluation": EvaluationSettings,
}
