"""Settings of place statistics, losses and training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from asymvpr_core.config.base import Settings


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
