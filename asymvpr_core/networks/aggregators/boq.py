"""BoQ: learnt queries that look for what identifies a place.

Ali-bey et al., "BoQ: A Place is Worth a Bag of Learnable Queries", CVPR 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.aggregators.feature_map import check_feature_map

_HEAD_CHANNELS = 64


class BoQBlock(nn.Module):
    """One encoder layer over the features, and one bag of queries that attends to its output."""

    def __init__(self, channels: int, num_queries: int, dropout: float):
        super().__init__()
        heads = channels // _HEAD_CHANNELS
        self.encoder = nn.TransformerEncoderLayer(channels, heads, dim_feedforward=4 * channels, dropout=dropout, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, num_queries, channels))
        self.self_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_q = nn.LayerNorm(channels)
        self.cross_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, with_map: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encoded tokens `(B, n, C)`, query outputs `(B, q, C)` and, if asked for, the attention `(B, q, n)`, averaged over heads."""
        encoded = self.encoder(tokens)
        # The queries do not depend on the image: one copy attends to itself, and is repeated after that.
        queries = self.norm_q(self.queries + self.self_attn(self.queries, self.queries, self.queries, need_weights=False)[0])
        queries = queries.expand(tokens.shape[0], -1, -1)  # len() would fix the batch size of an exported graph
        output, attention = self.cross_attn(queries, encoded, encoded, need_weights=with_map)
        return encoded, self.norm_out(output), attention


class BoQ(nn.Module):
    """Aggregate `(B, C, h, w)` features to `(B, D)`, D = proj_channels · row_dim.

    Raises:
        NetworkError: proj_channels that is not a multiple of 64, the width of an attention head.
    """

    def __init__(
        self,
        in_channels: int,
        proj_channels: int = 384,
        num_queries: int = 64,
        num_layers: int = 2,
        row_dim: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        if proj_channels < _HEAD_CHANNELS or proj_channels % _HEAD_CHANNELS:
            raise NetworkError(
                f"BoQ was asked for {proj_channels} channels", expected=f"a multiple of {_HEAD_CHANNELS}", remedy="change proj_channels"
            )
        self.in_channels = in_channels
        self.dimension = proj_channels * row_dim
        self.proj_c = nn.Conv2d(in_channels, proj_channels, kernel_size=3, padding=1)
        self.norm_input = nn.LayerNorm(proj_channels)
        self.boqs = nn.ModuleList(BoQBlock(proj_channels, num_queries, dropout) for _ in range(num_layers))
        self.fc = nn.Linear(num_layers * num_queries, row_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Aggregate `(B, in_channels, h, w)` features to `(B, dimension)`, L2-normalised.

        Raises:
            NetworkError: features of another shape.
        """
        return self._aggregate(features, with_maps=False)[0]

    def attend(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The descriptor, and for each layer where its queries look: `(B, num_queries, h·w)`, rows summing to 1.

        Slower than `forward`, which never holds the attention in memory.

        Raises:
            NetworkError: features of another shape.
        """
        return self._aggregate(features, with_maps=True)

    def _aggregate(self, features: Tensor, with_maps: bool) -> tuple[Tensor, list[Tensor]]:
        check_feature_map(features, self.in_channels, "BoQ")
        tokens = self.norm_input(self.proj_c(features).flatten(2).transpose(1, 2))  # (B, n, C)
        outputs, maps = [], []
        for block in self.boqs:
            tokens, output, attention = block(tokens, with_maps)
            outputs.append(output)
            maps.append(attention)
        rows = self.fc(torch.cat(outputs, dim=1).transpose(1, 2))  # (B, C, row_dim)
        return functional.normalize(rows.flatten(1), dim=1), maps if with_maps else []
