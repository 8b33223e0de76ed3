"""Generalised-mean pooling (Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GeM(nn.Module):
    """Pool (B, C, h, w) to (B, C): (mean_hw max(x, eps)^p)^(1/p), then L2-normalise.

    p = 1 is average pooling, p → ∞ max pooling; p is learnable, 3 at the start as in the paper.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Pool `(B, C, h, w)` features to `(B, C)`, L2-normalised."""
        pooled = features.clamp(min=self.eps).pow(self.p).mean(dim=(-2, -1)).pow(1.0 / self.p)
        return functional.normalize(pooled, dim=-1)
