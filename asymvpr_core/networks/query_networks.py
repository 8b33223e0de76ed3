"""Query networks by name: `<backbone>[@<stride>]_<aggregator>[_<size>px]`.

The backbone is any timm model with feature maps, or DINOv2, the aggregator one of `AGGREGATORS`:

    mobilevitv2_100_boq                  last stage, BoQ, 322 x 322 px as in the paper
    mobilevitv2_100_boq_320px            the same at 320 px
    mobilenetv4_conv_small@16_salad      the last stage of stride 16
    dinov2_vits14_salad                  DINOv2 ViT-S/14
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.aggregators import SALAD, BoQ, ConvAP, CosPlace, GeM, MixVPR
from asymvpr_core.networks.backbone_kinds import BackboneKind, find_backbone, is_backbone
from asymvpr_core.networks.backbones import EfficientNetLite, Stage
from asymvpr_core.networks.descriptor_network import DescriptorNetwork
from asymvpr_core.networks.efficientnet_lite import EFFICIENTNET_LITE, lite_checkpoint
from asymvpr_core.networks.spec import NetworkSpec, squashed


@dataclass(frozen=True)
class AggregatorKind:
    """How an aggregator is made for a feature map (C, h, w), and what dimension it gives."""

    build: Callable[[int, int, int], nn.Module]
    dimension: Callable[[int], int]  # of the feature map's channels
    clusters: int = 0  # SALAD needs more tokens than this


AGGREGATORS = {
    "gem": AggregatorKind(lambda c, h, w: GeM(), lambda c: c),
    "salad": AggregatorKind(lambda c, h, w: SALAD(c), lambda c: 8448, 64),
    "salad_2112": AggregatorKind(lambda c, h, w: SALAD(c, 32, 64, 64), lambda c: 2112, 32),
    "salad_544": AggregatorKind(lambda c, h, w: SALAD(c, 16, 32, 32), lambda c: 544, 16),
    "boq": AggregatorKind(lambda c, h, w: BoQ(c), lambda c: 12288),
    "boq_16384": AggregatorKind(lambda c, h, w: BoQ(c, 512, 64, 2, 32), lambda c: 16384),
    "mixvpr": AggregatorKind(lambda c, h, w: MixVPR(c, h, w, 1024, 4, 1, 4), lambda c: 4096),
    "convap": AggregatorKind(lambda c, h, w: ConvAP(c, 1024, 2, 2), lambda c: 4096),
    "cosplace": AggregatorKind(lambda c, h, w: CosPlace(c, 512), lambda c: 512),
}
_NAME = re.compile(
    r"(?P<backbone>[a-z0-9_.]+?)(?:@(?P<stride>[0-9]{1,4}))?_(?P<aggregator>"
    + "|".join(sorted(AGGREGATORS, key=len, reverse=True))
    + r")(?:_(?P<size>[0-9]{1,5})px)?"
)


def is_query_name(name: str) -> bool:
    """Whether `name` has the form of a query network's name, of a known backbone; such a stage or size may still be missing."""
    match = _NAME.fullmatch(name)
    return match is not None and is_backbone(match["backbone"])


def query_network(name: str) -> NetworkSpec:
    """The query network that `name` describes.

    Raises:
        NetworkError: not of the form, unknown backbone or stage, or too few tokens for SALAD; then the
            message says which input size or stage gives enough.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise NetworkError(f"'{name}' is no query network", expected="<backbone>[@<stride>]_<aggregator>[_<size>px]")
    kind = AGGREGATORS[match["aggregator"]]
    backbone = find_backbone(match["backbone"])
    stride = int(match["stride"]) if match["stride"] else None
    size = int(match["size"]) if match["size"] else backbone.size
    if not 32 <= size <= 4096:
        raise NetworkError(f"{name} has an input of {size} px", expected="32 to 4096")
    stage = backbone.stage(size, stride)
    if stage.height * stage.width <= kind.clusters:
        raise _too_few_tokens(match, backbone, stage, kind.clusters, size)
    return NetworkSpec(
        name=name,
        role="query",
        description=f"{match['backbone']}, stride {stage.stride}, {stage.channels} x {stage.height} x {stage.width}; {match['aggregator']}",
        build=lambda: DescriptorNetwork(backbone.build(size, stride), kind.build(stage.channels, stage.height, stage.width)),
        dimension=kind.dimension(stage.channels),
        preprocess=squashed(size, backbone.mean, backbone.std),
        weights=backbone.weights,
        convert=backbone.convert,
    )


def lite_gem(name: str, role: str, model: str, size: int) -> NetworkSpec:
    """EfficientNet-Lite with GeM over its final 1280 channels: the offline pair, whose weights come as packages."""
    lite = EFFICIENTNET_LITE[model]
    return NetworkSpec(
        name=name,
        role="gallery" if role == "gallery" else "query",
        description=f"{model}, final convolution, 1280 channels; GeM",
        build=lambda: DescriptorNetwork(EfficientNetLite(lite.timm_name), GeM()),
        dimension=1280,
        # EfficientNet-Lite was trained on (x - 127) / 128, which timm writes as mean = std = 0.5.
        preprocess=squashed(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        weights=lite.weights,
        convert=lite_checkpoint,
        projection_dim=256,
    )


def _too_few_tokens(match: re.Match[str], backbone: BackboneKind, stage: Stage, clusters: int, size: int) -> NetworkError:
    """The error that says which input size, stage or aggregator works."""
    name, aggregator = match["backbone"], match["aggregator"]
    at, at_size = f"@{match['stride']}" if match["stride"] else "", f"_{size}px" if match["size"] else ""
    enough = (math.isqrt(clusters) + 1) * stage.stride
    remedies = []
    larger = next((s for s in range(enough, enough + 4 * stage.stride, stage.stride) if backbone.tokens(s, stage.stride) > clusters), None)
    if larger is not None:
        remedies.append(f"a larger input: {name}{at}_{aggregator}_{larger}px")
    finer = next((s for s in (stage.stride // 2, stage.stride // 4) if backbone.tokens(size, s) > clusters), None)
    if finer is not None:
        remedies.append(f"an earlier stage: {name}@{finer}_{aggregator}{at_size}")
    tokens = stage.height * stage.width
    fewer = [other for other, kind in AGGREGATORS.items() if 0 < kind.clusters < tokens]
    remedies += [f"fewer clusters: {name}{at}_{other}{at_size}" for other in fewer[:1]]
    return NetworkError(
        f"{match[0]} gives SALAD {stage.height} x {stage.width} = {tokens} tokens for {clusters} clusters",
        expected=f"at least {clusters + 1} tokens",
        remedy=f"take {', or '.join(remedies)}" if remedies else "take a larger input",
    )
