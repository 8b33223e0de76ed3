"""Backbones by name: what a query network's name says before its aggregator."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
from torch import Tensor, nn

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.backbones import Stage, TimmBackbone, find_stage, timm_checkpoint
from asymvpr_core.networks.dinov2 import PATCH_SIZE, SHAPES, DinoV2
from asymvpr_core.networks.efficientnet_lite import EFFICIENTNET_LITE, lite_checkpoint
from asymvpr_core.networks.spec import IMAGENET_MEAN, IMAGENET_STD, Conversion, Converter, WeightsSource, renamed

# The paper's input size; elsewhere 320, a multiple of every CNN's stride, which spares MobileViT a resize.
# A transformer whose tensors belong to one size has that one.
PAPER_BACKBONES = ("mobilevitv2_100", "efficientvit_b2")
PAPER_SIZE, DEFAULT_SIZE = 322, 320

_Triple = tuple[float, float, float]
_DINOV2 = re.compile(r"dinov2_vit(?P<size>[sbl])14(?P<registers>_reg)?")
_DINOV2_SIZES: dict[str, Literal["small", "base", "large"]] = {"s": "small", "b": "base", "l": "large"}


@dataclass(frozen=True)
class BackboneKind:
    """A backbone by name: how it is built for an input size and a stride (None: the last stage), and where its weights come from."""

    size: int  # default input size [px]
    stage: Callable[[int, int | None], Stage]
    build: Callable[[int, int | None], nn.Module]
    mean: _Triple
    std: _Triple
    weights: WeightsSource
    convert: Converter

    def tokens(self, size: int, stride: int | None) -> int:
        """Positions of the feature map; 0 where there is no such stage or size."""
        try:
            stage = self.stage(size, stride)
        except NetworkError:
            return 0
        return stage.height * stage.width


def is_backbone(name: str) -> bool:
    """Whether `find_backbone` knows `name`."""
    return _DINOV2.fullmatch(name) is not None or name in EFFICIENTNET_LITE or timm.is_model(name)


def find_backbone(name: str) -> BackboneKind:
    """The backbone `name`: `dinov2_vit{s,b,l}14[_reg]`, `efficientnet_lite{0,1,2}`, or a timm model.

    Raises:
        NetworkError: timm has no such model, or no such weights of it ("resnet18.a1_in1k" names both).
    """
    dinov2 = _DINOV2.fullmatch(name)
    if dinov2 is not None:
        return _dinov2(name, _DINOV2_SIZES[dinov2["size"]], 4 if dinov2["registers"] else 0)
    lite = EFFICIENTNET_LITE.get(name)
    model = name if lite is None else lite.timm_name
    if not timm.is_model(model):
        raise NetworkError(f"timm {timm.__version__} has no model '{model}'", remedy="see timm.list_models(), or update timm")
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise NetworkError(f"timm {timm.__version__} has no weights '{model}'", expected=f"one of {', '.join(tags)}") from error
    fixed = config is not None and config.fixed_input_size
    return BackboneKind(
        size=PAPER_SIZE if name in PAPER_BACKBONES else config.input_size[-1] if fixed else DEFAULT_SIZE,
        stage=lambda size, stride: find_stage(model, size, size, stride),
        build=lambda size, stride: TimmBackbone(model, size, size, stride),
        mean=IMAGENET_MEAN if config is None else tuple(config.mean),
        std=IMAGENET_STD if config is None else tuple(config.std),
        weights=_timm_weights(config) if lite is None else lite.weights,
        convert=timm_checkpoint if lite is None else lite_checkpoint,
    )


def _dinov2(name: str, size: Literal["small", "base", "large"], registers: int) -> BackboneKind:
    def stage(pixels: int, stride: int | None) -> Stage:
        if stride not in (None, PATCH_SIZE):
            raise NetworkError(f"{name} has no stage of stride {stride}", expected=f"{PATCH_SIZE}, its patch size")
        if pixels % PATCH_SIZE:
            nearest = max(1, round(pixels / PATCH_SIZE)) * PATCH_SIZE
            raise NetworkError(f"{name} has an input of {pixels} px", expected=f"a multiple of {PATCH_SIZE}", remedy=f"take {nearest} px")
        side = pixels // PATCH_SIZE
        return Stage(0, PATCH_SIZE, SHAPES[size].embed_dim, side, side, {})

    folder, variant = name.removesuffix("_reg"), "reg4_" if registers else ""
    address = f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{folder}_{variant}pretrain.pth"
    return BackboneKind(
        PAPER_SIZE, stage, lambda pixels, stride: DinoV2(size, registers), IMAGENET_MEAN, IMAGENET_STD,
        WeightsSource("Apache-2.0", "backbone", address=address), dinov2_checkpoint,
    )  # fmt: skip


def dinov2_checkpoint(state: Mapping[str, Tensor], network: nn.Module) -> Conversion:
    """Fit the official DINOv2 file to the backbone of a `DescriptorNetwork`; a file of the whole network passes as it is."""
    if any(name.startswith("aggregator.") for name in state):
        return dict(state), {}
    return renamed(state, lambda name: f"backbone.{name}"), {}


def _timm_weights(config: timm.models.PretrainedCfg | None) -> WeightsSource:
    """The official file of timm's default weights for a backbone."""
    if config is None or not (config.hf_hub_id or config.url):
        return WeightsSource(licence="unknown", covers="backbone")
    licence = config.license or "unknown"
    if config.hf_hub_id:
        repository, file = config.hf_hub_id, config.hf_hub_filename or "model.safetensors"
        return WeightsSource(
            licence, "backbone", address=f"https://huggingface.co/{repository}/resolve/main/{file}",
            file_name=f"{repository.split('/')[-1]}{Path(file).suffix}",
        )  # fmt: skip
    digest = re.search(r"-([0-9a-f]{8})\.pth$", config.url)
    return WeightsSource(licence, "backbone", address=config.url, sha256=digest[1] if digest else None)
