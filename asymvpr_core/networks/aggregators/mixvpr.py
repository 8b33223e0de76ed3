"""MixVPR (Ali-bey et al., "MixVPR: Feature Mixing for Visual Place Recognition", WACV 2023)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.aggregators.feature_map import check_feature_map


class FeatureMixer(nn.Module):
    """Let all positions of each channel's map see each other: x + MLP(LN(x)) over the last axis, section 3, equation 1."""

    def __init__(self, positions: int, mlp_ratio: float):
        super().__init__()
        hidden = int(positions * mlp_ratio)
        self.mix = nn.Sequential(nn.LayerNorm(positions), nn.Linear(positions, hidden), nn.ReLU(), nn.Linear(hidden, positions))
        for layer in self.mix:
            if isinstance(layer, nn.Linear):
                # Near zero, so that a stack of mixers starts close to the identity.
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Mix `(B, C, h·w)` to the same shape."""
        return maps + self.mix(maps)


class MixVPR(nn.Module):
    """Pool `(B, C, in_h, in_w)` to `(B, out_channels · out_rows)`: mixers over the positions, then a projection of each axis.

    The mixers' layers are as wide as the feature map has positions, so that the input size is fixed.
    """

    def __init__(
        self,
        in_channels: int = 1024,
        in_h: int = 20,
        in_w: int = 20,
        out_channels: int = 1024,
        mix_depth: int = 4,
        mlp_ratio: float = 1,
        out_rows: int = 4,
    ):
        super().__init__()
        self.in_channels, self.in_h, self.in_w = in_channels, in_h, in_w
        self.dimension = out_channels * out_rows
        positions = in_h * in_w
        self.mix = nn.Sequential(*(FeatureMixer(positions, mlp_ratio) for _ in range(mix_depth)))
        self.channel_proj = nn.Linear(in_channels, out_channels)
        self.row_proj = nn.Linear(positions, out_rows)

    def forward(self, features: Tensor) -> Tensor:
        """Pool `(B, in_channels, in_h, in_w)` features to `(B, dimension)`, L2-normalised.

        Raises:
            NetworkError: features of another shape, or of another height or width.
        """
        check_feature_map(features, self.in_channels, "MixVPR")
        height, width = features.shape[-2:]
        if (height, width) != (self.in_h, self.in_w):
            raise NetworkError(
                f"MixVPR was given a {height}x{width} feature map",
                expected=f"{self.in_h}x{self.in_w}",
                remedy="resize the images to the size that the network was made for",
            )
        mixed = self.mix(features.flatten(2))  # (B, C, h·w)
        projected = self.channel_proj(mixed.transpose(1, 2)).transpose(1, 2)  # (B, out_channels, h·w)
        return functional.normalize(self.row_proj(projected).flatten(1), dim=1)
