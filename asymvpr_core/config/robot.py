"""Settings of what the robot runs: export, runtime, matching, session, node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from asymvpr_core.config.base import Settings


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
    score_threshold: float = Field(0.55, ge=-1.0, le=1.0, description="smallest cosine that may be accepted")
    target_precision: float = Field(
        0.0, ge=0.0, lt=1.0, description="wanted precision; takes the place of score_threshold where the gallery is calibrated; 0: not used"
    )
    exclude_time_s: float = Field(30.0, ge=0.0, description="keyframes closer in time than this [s] are no loop closure")
    sequence: Literal["off", "vote", "bayes"] = Field(
        "bayes", description="temporal agreement: off, a vote over the last frames, or a discrete Bayes filter over the keyframes"
    )
    sequence_length: int = Field(5, ge=1, le=100, description="frames in the vote")
    min_votes: int = Field(4, ge=1, le=100, description="frames of the vote, this one included, whose best must agree")
    vote_distance_m: float = Field(
        0.0, ge=0.0, description="way [m] over which the frames of the vote are spread, where odometry is known; 0: the last frames"
    )
    min_posterior: float = Field(0.99, ge=0.5, le=1.0, description="bayes: smallest probability of the best place that is accepted")
    evidence_spacing_m: float = Field(3.0, gt=0.0, description="bayes: frames closer than this [m] are one observation")
    min_observations: float = Field(
        8.0, ge=0.0, description="bayes: observations, each evidence_spacing_m of way, for which a place is followed before it is accepted"
    )
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
    gallery_paths: tuple[str, ...] = Field(
        ("",),
        description="folders of more prior galleries in the same map frame, searched as one with gallery_path; empty: none",
    )
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

    @property
    def prior_paths(self) -> list[Path]:
        """The prior galleries: that of `gallery_path`, then those of `gallery_paths`."""
        return [Path(path) for path in (self.gallery_path, *self.gallery_paths) if path]

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
