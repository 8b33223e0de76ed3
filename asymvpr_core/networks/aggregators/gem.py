"""Generalised-mean pooling (Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GeM(nn.Module):
    """Pool (B, C, h, w) to (B, C): (mean_hw max(x, eps)^p)^(1/p), then L2-normalise.

    p = 1 is average pooling, p → ∞ max pooling; p is learnable, 3 at the start as in the paper.
    `normalise=False` leaves the last step out, for a head that goes on from the pooled features.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6, normalise: bool = True):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps
        self.normalise = normalise

    def forward(self, features: Tensor) -> Tensor:
        """Pool `(B, C, h, w)` features to `(B, C)`, L2-normalised unless told otherwise."""
        pooled = features.clamp(min=self.eps).pow(self.p).mean(dim=(-2, -1)).pow(1.0 / self.p)
        return functional.normalize(pooled, dim=-1) if self.normalise else pooled
