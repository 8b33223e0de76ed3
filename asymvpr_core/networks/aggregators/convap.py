"""Conv-AP (Ali-bey et al., "GSV-Cities: Toward Appropriate Supervised Visual Place Recognition", Neurocomputing 2022)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.networks.aggregators.feature_map import check_feature_map


class ConvAP(nn.Module):
    """Pool `(B, C, h, w)` to `(B, D)`: a 1x1 convolution over the channels, then averages over an s1 x s2 grid of cells.

    D = out_channels · s1 · s2, channel by channel; the grid keeps a rough layout of the image.
    """

    def __init__(self, in_channels: int, out_channels: int = 512, s1: int = 2, s2: int = 2):
        super().__init__()
        self.in_channels = in_channels
        self.dimension = out_channels * s1 * s2
        self.channel_pool = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.spatial_pool = nn.AdaptiveAvgPool2d((s1, s2))

    def forward(self, features: Tensor) -> Tensor:
        """Pool `(B, in_channels, h, w)` features to `(B, dimension)`, L2-normalised.

        Raises:
            NetworkError: features of another shape.
        """
        check_feature_map(features, self.in_channels, "ConvAP")
        return functional.normalize(self.spatial_pool(self.channel_pool(features)).flatten(1), dim=1)
