"""MegaLoc's head (Berton & Masone, "MegaLoc: One Retrieval to Place Them All", CVPR Workshops 2025)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.networks.aggregators.salad import SALAD


class MegaLocAggregator(nn.Module):
    """Aggregate `(B, C, h, w)` features and a `(B, C)` token to `(B, dimension)`: a wide SALAD, a linear layer, L2."""

    takes_token = True

    def __init__(
        self,
        in_channels: int = 768,
        num_clusters: int = 64,
        cluster_dim: int = 256,
        token_dim: int = 256,
        hidden_dim: int = 512,
        dimension: int = 8448,
    ):
        super().__init__()
        self.dimension = dimension
        self.agg = SALAD(in_channels, num_clusters, cluster_dim, token_dim, hidden_dim)
        self.linear = nn.Linear(self.agg.dimension, dimension)

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        """Aggregate `(B, in_channels, h, w)` features and `(B, in_channels)` token to `(B, dimension)`, L2-normalised.

        Raises:
            NetworkError: input of another shape, or not more positions than clusters.
        """
        return functional.normalize(self.linear(self.agg(features, token)), dim=1)
