"""CosPlace's head, which EigenPlaces shares.

Berton et al., "Rethinking Visual Geo-localization for Large-Scale Applications", CVPR 2022.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.networks.aggregators.feature_map import check_feature_map
from asymvpr_core.networks.aggregators.gem import GeM


class _L2Norm(nn.Module):
    """Divide each `(B, C, …)` vector along C by its norm."""

    def forward(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=1)


class CosPlace(nn.Sequential):
    """Pool `(B, C, h, w)` to `(B, D)`: L2 over the channels, GeM, a linear layer, L2.

    A sequence, so that the parameters have the released names: `1.p`, `3.weight`, `3.bias`.
    """

    def __init__(self, in_channels: int, dimension: int = 512):
        super().__init__(_L2Norm(), GeM(normalise=False), nn.Flatten(), nn.Linear(in_channels, dimension), _L2Norm())
        self.in_channels = in_channels
        self.dimension = dimension

    def forward(self, features: Tensor) -> Tensor:
        """Pool `(B, in_channels, h, w)` features to `(B, dimension)`, L2-normalised.

        Raises:
            NetworkError: features of another shape.
        """
        check_feature_map(features, self.in_channels, "CosPlace")
        return super().forward(features)
