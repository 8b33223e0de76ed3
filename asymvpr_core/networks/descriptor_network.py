"""A backbone and an aggregator as one network: images in, descriptors out."""

from __future__ import annotations

from torch import Tensor, nn


class DescriptorNetwork(nn.Module):
    """`(B, 3, H, W)` float32 images to `(B, D)` descriptors, L2-normalised.

    The backbone gives `(features (B, C, h, w), token (B, C))`; for a CNN the token is the global
    average of the features. Aggregators that say `takes_token` (SALAD, MegaLoc's) get both, the others the features.
    """

    def __init__(self, backbone: nn.Module, aggregator: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.aggregator = aggregator

    def forward(self, images: Tensor) -> Tensor:
        """Describe `(B, 3, H, W)` images: `(B, D)`, L2-normalised."""
        return self.aggregate(*self.backbone(images))

    def aggregate(self, features: Tensor, token: Tensor) -> Tensor:
        """The descriptor of what the backbone gives."""
        return self.aggregator(features, token) if getattr(self.aggregator, "takes_token", False) else self.aggregator(features)
