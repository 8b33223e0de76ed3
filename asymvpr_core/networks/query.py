"""The query network of a training run: a light network, and a linear layer to the gallery's dimension where it needs one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.errors import ArtefactError, NetworkError
from asymvpr_core.manifest import write_atomically
from asymvpr_core.networks.aggregators import GeM
from asymvpr_core.networks.checkpoints import load_strictly
from asymvpr_core.networks.descriptor_network import DescriptorNetwork
from asymvpr_core.networks.loading import LoadedNetwork, has_aggregator_weights
from asymvpr_core.networks.spec import NetworkSpec


class QueryNetwork(nn.Module):
    """`(B, 3, H, W)` float32 images to `(B, D)` descriptors, L2-normalised, comparable with the gallery's.

    `encoder` is the named network. `head` maps its descriptors to the gallery's dimension D: a linear
    layer, or nothing where an aggregator that learns (SALAD, BoQ, …) has dimension D itself, as in the
    paper. GeM learns nothing but its exponent, so that a linear layer always follows it.

    `gated` gives the second kind something that can be aligned: the descriptor is
    L2( head(GeM(features)) + gate · aggregator(features) ). The gate is 0 at first, so that the network
    starts as the aligned one, and the aggregator learns beside it. It costs C·D + D + 2 parameters.
    Without effect where a linear head follows the aggregator anyway.
    """

    def __init__(self, spec: NetworkSpec, dimension: int, encoder: nn.Module | None = None, *, gated: bool = False):
        super().__init__()
        self.spec = spec
        self._frozen: list[nn.Module] = []
        self.encoder = spec.build() if encoder is None else encoder
        same = spec.dimension == dimension and has_aggregator_weights(self.encoder)
        self.gate: nn.Parameter | None = None
        self.head: nn.Module = nn.Identity() if same else nn.Linear(spec.dimension, dimension)
        if same and gated and isinstance(self.encoder, DescriptorNetwork):
            self.pool = GeM()
            self.head = nn.Linear(int(self.encoder.aggregator.in_channels), dimension)  # type: ignore[arg-type]
            self.gate = nn.Parameter(torch.zeros(()))

    @staticmethod
    def from_pretrained(network: LoadedNetwork, dimension: int, seed: int, *, gated: bool = False) -> QueryNetwork:
        """The loaded network with a random last layer, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return QueryNetwork(network.spec, dimension, network.module, gated=gated)

    @property
    def has_linear_head(self) -> bool:
        """Whether a linear layer is there that the closed-form alignment can set."""
        return isinstance(self.head, nn.Linear)

    @property
    def is_gated(self) -> bool:
        """Whether the aggregator learns beside an aligned layer."""
        return self.gate is not None

    @property
    def head_channels(self) -> int:
        """C of what the linear last layer takes; 0 without one."""
        return self.head.in_features if isinstance(self.head, nn.Linear) else 0

    def pooled(self, images: Tensor) -> Tensor:
        """What the linear last layer takes: (B, C), of GeM L2-normalised."""
        if self.gate is None:
            features: Tensor = self.encoder(images)
        else:
            features = self.pool(self.encoder.backbone(images)[0])  # type: ignore[operator]
        return features

    def forward(self, images: Tensor) -> Tensor:
        if self.gate is None:
            return functional.normalize(self.head(self.encoder(images)), dim=-1)
        features, token = self.encoder.backbone(images)  # type: ignore[operator]
        aggregated = self.encoder.aggregate(features, token)  # type: ignore[operator]
        return functional.normalize(self.head(self.pool(features)) + self.gate * aggregated, dim=-1)

    def set_head(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Set the last layer to x·weight + bias, weight (C, D) and bias (D,).

        Raises:
            NetworkError: there is no linear last layer.
        """
        if not isinstance(self.head, nn.Linear):
            raise NetworkError(
                f"{self.spec.name} has no linear layer to align", expected="a gallery of another dimension than the network's"
            )
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight.T.copy()))
            self.head.bias.copy_(torch.from_numpy(bias))

    def freeze(self, share: float) -> None:
        """Exclude the stem and the first `share` of the backbone's stages from training; 1 leaves only aggregator and last layer.

        Raises:
            NetworkError: as `frozen_parts`.
        """
        self._frozen = self.frozen_parts(share)
        for part in self._frozen:
            part.requires_grad_(False)

    def frozen_parts(self, share: float) -> list[nn.Module]:
        """The first `share` of the backbone's stages, then the stem; with all stages also the backbone, and a GeM encoder as a whole.

        Raises:
            NetworkError: a network of the user's own without stages, unless `share` is 0.
        """
        backbone = getattr(self.encoder, "backbone", None)
        stages: list[nn.Module] | None = getattr(backbone, "stages", None)
        if backbone is None or stages is None:
            if share == 0:
                return []
            found = f"{self.spec.name} does not say its stages, of which {share:g} are to be left as they are"
            raise NetworkError(found, expected="a module 'backbone' with lists 'stages' and 'stem'", remedy="set frozen_share to 0")
        frozen = round(share * len(stages))
        parts = [*stages[:frozen], *(backbone.stem if frozen > 0 else [])]
        if frozen == len(stages):
            parts.append(backbone)
            if not has_aggregator_weights(self.encoder):  # GeM's exponent belongs to the backbone that is left as it is
                parts.append(self.encoder)
        return parts

    def train(self, mode: bool = True) -> QueryNetwork:
        """Training mode, with batch normalisation on its ImageNet statistics: a few hundred images of one site would spoil them.

        Frozen parts do not drop anything at random either.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        for part in self._frozen:
            part.eval()
        return self

    def save(self, path: Path) -> None:
        """Write all tensors as safetensors. Raises ArtefactError when the file cannot be written."""
        save_tensors(self.state_dict(), path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote, strictly. Raises ArtefactError when damaged, NetworkError when it does not fit."""
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"weights {path} cannot be read: {error}", remedy="train again with 'asymvpr train'") from error
        load_strictly(self, state, str(path))


def save_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors. Raises ArtefactError when the file cannot be written."""
    try:
        # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
        tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        # Not save_file: it puts a file of its own in this one's place, that others may not read and that nobody flushes.
        write_atomically(path, lambda file: file.write(save(tensors)))
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"weights {path} cannot be written: {error}", remedy="free space or give another --out") from error
