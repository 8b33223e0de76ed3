"""Settings of sources, galleries and their indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from asymvpr_core.config.base import Settings

# Longer side of thumbnails where they are asked for without a size: a VGA picture is halved once, small text in it is gone.
THUMBNAIL_SIDE_PX = 480


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
    refine: Literal["auto", "descriptors", "sq8"] = Field(
        "auto",
        description="what the candidates are ranked again with: the stored descriptors, or an 8-bit copy in the index; "
        "auto: the copy for rabitq above 1024-D, where it fits the memory",
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
