"""The query network: a light backbone, its aggregator, and a linear layer to the gallery's dimension."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.errors import ArtefactError
from asymvpr_core.networks.checkpoints import load_strictly
from asymvpr_core.networks.registry import LoadedNetwork, NetworkSpec, PooledNetwork


class QueryNetwork(nn.Module):
    """`(B, 3, H, W)` float32 images to `(B, D)` descriptors, L2-normalised, comparable with the gallery's."""

    def __init__(self, spec: NetworkSpec, dimension: int, pooled: PooledNetwork | None = None):
        super().__init__()
        self.spec = spec
        self.pooled = PooledNetwork(spec) if pooled is None else pooled
        self.head = nn.Linear(spec.channels, dimension)

    @staticmethod
    def from_pretrained(network: LoadedNetwork, dimension: int, seed: int) -> QueryNetwork:
        """ImageNet backbone with a random last layer, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return QueryNetwork(network.spec, dimension, network.module)

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize(self.head(self.pooled(images)), dim=-1)

    def set_head(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Set the last layer to x·weight + bias, weight (C, D) and bias (D,)."""
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight.T.copy()))
            self.head.bias.copy_(torch.from_numpy(bias))

    def freeze(self, share: float) -> None:
        """Exclude the stem and the first `share` of the backbone's stages from training; 1 leaves only the last layer."""
        stages = list(self.pooled.backbone.blocks.children())
        frozen = round(share * (len(stages) + 1))  # the convolution and pooling after the stages count as one more
        parts: list[nn.Module] = stages[:frozen]
        if frozen > 0:
            parts += [self.pooled.backbone.conv_stem, self.pooled.backbone.bn1]
        if frozen > len(stages):
            parts += [self.pooled]
        for part in parts:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> QueryNetwork:
        """Training mode, with batch normalisation on its ImageNet statistics: a few hundred images of one site would spoil them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def save(self, path: Path) -> None:
        """Write all tensors as safetensors. Raises ArtefactError when the file cannot be written."""
        try:
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path)
        except SafetensorError as error:
            raise ArtefactError(f"weights {path} cannot be written: {error}", remedy="free space or give another --out") from error

    def load(self, path: Path) -> None:
        """Read what `save` wrote, strictly. Raises ArtefactError when damaged, NetworkError when it does not fit."""
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"weights {path} cannot be read: {error}", remedy="train again with 'asymvpr train'") from error
        load_strictly(self, state, str(path))
