"""The ablation bank: a first-in first-out queue of recent gallery descriptors in place of the centroids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asymvpr_core.errors import TrainingError
from asymvpr_core.training.bank_log_sum_exp import bank_log_sum_exp


class QueueBank(nn.Module):
    """Recent gallery descriptors as negatives, with the loss over them.

    Source: Kim, Cho, Yoon, AAAI 2026, arXiv 2512.13055, ablation "queue bank"; the queue is that of He
    et al., "Momentum Contrast", CVPR 2020, without momentum, since the gallery network never changes.

        L = −log e^{q·g/τ} / ( e^{q·g/τ} + Σ_{g' in the queue, not of place p} e^{q·g'/τ} )

    The queue is a buffer that checkpoints keep, so that a resumed training has the same negatives. With
    several processes each has its own.

    Args:
        capacity: descriptors that are held, ≥ 1; the oldest are overwritten.
        dimension: D of the descriptors, ≥ 1.
        dtype: torch.float32, or torch.bfloat16 or torch.float16 for half the memory.

    Raises:
        TrainingError: capacity or dimension below 1.
    """

    descriptors: Tensor
    places: Tensor
    pushed: Tensor

    def __init__(self, capacity: int, dimension: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        if capacity < 1 or dimension < 1:
            raise TrainingError(f"a queue of {capacity} descriptors of dimension {dimension}", expected="both >= 1")
        self.register_buffer("descriptors", torch.zeros(capacity, dimension, dtype=dtype))
        self.register_buffer("places", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Number of descriptors in the queue, at most its capacity."""
        return min(int(self.pushed), len(self.descriptors))

    @torch.no_grad()
    def push(self, gallery: Tensor, place: Tensor) -> None:
        """Add `(B, D)` gallery descriptors and their `(B,)` int64 places; of more than fit, the last ones stay.

        Call it after the backward pass (Lightning's `on_train_batch_end`): the backward pass reads the
        queue again, and torch refuses one that has changed since.

        Raises:
            TrainingError: shapes that do not fit.
        """
        capacity, dimension = self.descriptors.shape
        if gallery.ndim != 2 or gallery.shape[1] != dimension or place.shape != gallery.shape[:1]:
            raise TrainingError(f"gallery {tuple(gallery.shape)}, place {tuple(place.shape)}", expected=f"(B, {dimension}), (B,)")
        start = int(self.pushed) + max(0, len(gallery) - capacity)
        gallery, place = gallery[-capacity:], place[-capacity:]
        slots = (start + torch.arange(len(gallery), device=gallery.device)) % capacity
        self.descriptors[slots] = gallery.to(self.descriptors.dtype)
        self.places[slots] = place
        self.pushed.fill_(start + len(gallery))

    def loss(self, query: Tensor, gallery: Tensor, place: Tensor, temperature: float = 0.05) -> Tensor:
        """The loss above averaged over the batch, a scalar ≥ 0; 0 while the queue is empty.

        Args:
            query, gallery: (B, D), L2-normalised; gradients flow into `query`.
            place: (B,) int64 ≥ 0.
            temperature: τ > 0.

        Raises:
            TrainingError: shapes that do not fit, or τ ≤ 0.
        """
        if query.shape != gallery.shape or query.ndim != 2 or query.shape[1] != self.descriptors.shape[1] or place.shape != query.shape[:1]:
            shapes = f"query {tuple(query.shape)}, gallery {tuple(gallery.shape)}, place {tuple(place.shape)}"
            raise TrainingError(f"shapes do not fit: {shapes}", expected=f"(B, {self.descriptors.shape[1]}) twice, (B,)")
        if temperature <= 0:
            raise TrainingError(f"temperature is {temperature}", expected="temperature > 0")
        filled = len(self)
        negatives = bank_log_sum_exp(query, self.descriptors[:filled], place, temperature, bank_places=self.places[:filled])
        exponent = negatives - (query * gallery).sum(dim=1) / temperature
        return torch.logaddexp(exponent, torch.zeros_like(exponent)).mean()
