"""Baselines that imitate the gallery's neighbourhoods: CSD, ROP, D3still.

Of each image they need the K nearest gallery descriptors g_{r_0} … g_{r_{K−1}} of its own gallery
descriptor g, in descending order, r_0 being the image itself. What enters the losses are only the
similarities u_j = g·g_{r_j} and s_j = q·g_{r_j}, both (B, K). The lists come from the full gallery
(`asymvpr bank neighbours`) or from the batch (`in_batch_neighbours`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from asymvpr_core.errors import TrainingError

# Neighbour descriptors in memory at a time: (B, K, D) of 64 images with 1024 neighbours of 8448-D would be 2 GB.
_GATHERED_BYTES = 256 << 20


def in_batch_neighbours(gallery: Tensor, k: int) -> Tensor:
    """The `k` nearest of the batch for every image of it, itself first: (B, k) int64 rows of `gallery`.

    Args:
        gallery: (B, D), L2-normalised.
        k: in 1 … B.

    Raises:
        TrainingError: k out of its range.
    """
    if gallery.ndim != 2 or not 1 <= k <= len(gallery):
        raise TrainingError(f"k is {k} in a batch of shape {tuple(gallery.shape)}", expected="1 <= k <= B")
    similarities = (gallery @ gallery.T).fill_diagonal_(torch.inf)  # also before a copy of itself
    return similarities.topk(k, dim=1).indices


def neighbour_similarities(query: Tensor, gallery: Tensor, descriptors: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities to the neighbours: u (B, K) of the gallery descriptors, s (B, K) of the query descriptors.

    The neighbours' descriptors are gathered a part of the batch at a time, and again in the backward pass.

    Args:
        query, gallery: (B, D), L2-normalised; gradients flow into `query`.
        descriptors: (N, D) of the gallery or of the batch, half precision allowed.
        neighbours: (B, K) int64 rows of `descriptors`, K ≥ 1, nearest first.

    Raises:
        TrainingError: empty neighbour lists, or shapes that do not fit.
    """
    if neighbours.ndim == 2 and neighbours.shape[1] == 0:
        raise TrainingError("the neighbour lists are empty", expected="at least one neighbour", remedy="use k >= 1")
    if (
        query.ndim != 2
        or gallery.shape != query.shape
        or descriptors.ndim != 2
        or descriptors.shape[1] != query.shape[1]
        or neighbours.ndim != 2
        or len(neighbours) != len(query)
    ):
        tensors = {"query": query, "gallery": gallery, "descriptors": descriptors, "neighbours": neighbours}
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise TrainingError(f"shapes do not fit: {shapes}", expected="(B, D), (B, D), (N, D), (B, K)")
    images = max(1, _GATHERED_BYTES // (neighbours.shape[1] * query.shape[1] * query.element_size()))
    parts = [slice(start, start + images) for start in range(0, len(query), images)]
    with torch.no_grad():
        u = torch.cat([_similarities(gallery[part], descriptors, neighbours[part]) for part in parts])
    s = torch.cat(
        [checkpoint(_similarities, query[part], descriptors, neighbours[part], use_reentrant=False) for part in parts]  # type: ignore[misc]
    )
    return u, s


def csd_loss(u: Tensor, s: Tensor, *, query_temperature: float = 1.0, gallery_temperature: float = 0.01) -> Tensor:
    """Contextual similarity distillation, a scalar ≥ 0: mean over the batch of KL( softmax(u/τ_g) ‖ softmax(s/τ_q) ).

    Source: Wu et al., "Contextual Similarity Distillation for Asymmetric Image Retrieval", CVPR
    2022, with neighbours from the full gallery.

    Args:
        u, s: (B, K) similarities to the neighbours, nearest first; gradients flow into `s`.
        query_temperature, gallery_temperature: τ_q, τ_g > 0.

    Raises:
        TrainingError: shapes that do not fit, empty lists, or a temperature ≤ 0.
    """
    _check(u, s)
    if query_temperature <= 0 or gallery_temperature <= 0:
        raise TrainingError(f"the temperatures are {query_temperature} and {gallery_temperature}", expected="both > 0")
    target = functional.softmax(u / gallery_temperature, dim=1)
    return functional.kl_div(functional.log_softmax(s / query_temperature, dim=1), target, reduction="batchmean")


def rop_loss(u: Tensor, s: Tensor, *, temperature: float = 0.1, weight_scale: float = 0.2) -> Tensor:
    """Rank-order preservation, a scalar ≥ 0.

        I_g[a, c] = σ((u_c − u_a)/1e-6),  I_q[a, c] = σ((s_c − u_a)/τ),  w_a = a·softmax_a(0.2·u),  a = 1 … K
        L = mean over the batch of (1/K) Σ_{a,c} w_a (I_g[a, c] − I_q[a, c])²

    Source: Wu et al., "A General Rank Preserving Framework for Asymmetric Image Retrieval", ICLR 2023.

    Args:
        u, s: (B, K) similarities to the neighbours, nearest first; gradients flow into `s`. Needs B·K² numbers.
        temperature: τ > 0.
        weight_scale: factor of u in the weights, ≥ 0.

    Raises:
        TrainingError: shapes that do not fit, empty lists, or a parameter out of its range.
    """
    _check(u, s)
    if temperature <= 0 or weight_scale < 0:
        raise TrainingError(f"temperature is {temperature}, weight_scale {weight_scale}", expected="> 0 and >= 0")
    k = u.shape[1]
    gallery_order = torch.sigmoid((u[:, None, :] - u[:, :, None]) / 1e-6)
    query_order = torch.sigmoid((s[:, None, :] - u[:, :, None]) / temperature)
    weights = torch.arange(1, k + 1, dtype=u.dtype, device=u.device) * functional.softmax(weight_scale * u, dim=1)
    return (weights[:, :, None] * (gallery_order - query_order) ** 2).sum(dim=(1, 2)).mean() / k


def d3still_loss(u: Tensor, s: Tensor, *, alpha: float = 100.0, beta: float = 5.0, gamma: float = 1.0) -> Tensor:
    """Decoupled differential distillation, a scalar ≥ 0::

        α‖1 − s_0‖₂/B  +  β·mean_b ‖H∘e‖_F/(k−1)  +  γ·mean_b ‖E∘e‖_F/(k−1),  over the neighbours 1 … k−1:
        ΔU[a, c] = u_a − u_c,  ΔS[a, c] = s_a − s_c,  e = (ΔS − ΔU)/(0.1 + |ΔU|),  r = ΔS/ΔU (1 where ΔU = 0)

    H = [r < 0] are the pairs in the wrong order (hard), E = [r > 0] those in the right one (easy); no
    gradient flows through either. The first norm is over the batch.

    Source: Xie et al., "D3still: Decoupled Differential Distillation for
    Asymmetric Image Retrieval", CVPR 2024.

    Args:
        u, s: (B, k) similarities to the neighbours, the image itself first; k ≥ 2, in the paper 10. Gradients flow into `s`.
        alpha, beta, gamma: ≥ 0; (100, 5, 1) or (50, 2, 1) in the paper.

    Raises:
        TrainingError: shapes that do not fit, fewer than two neighbours, or a negative weight.
    """
    _check(u, s, at_least=2)
    if min(alpha, beta, gamma) < 0:
        raise TrainingError(f"alpha is {alpha}, beta {beta}, gamma {gamma}", expected="all >= 0")
    batch, k = u.shape
    feature = torch.linalg.vector_norm(1 - s[:, 0]) / batch
    delta_u = u[:, 1:, None] - u[:, None, 1:]
    delta_s = s[:, 1:, None] - s[:, None, 1:]
    error = (delta_s - delta_u) / (0.1 + delta_u.abs())
    order = torch.where(delta_u == 0, 1.0, delta_s.detach() * delta_u.sign())  # the sign of r
    hard, easy = (_mean_norm(error * mask) / (k - 1) for mask in (order < 0, order > 0))
    return alpha * feature + beta * hard + gamma * easy


def _mean_norm(matrices: Tensor) -> Tensor:
    """Mean Frobenius norm of (B, A, C) matrices; torch gives a zero norm the gradient 0."""
    return torch.linalg.vector_norm(matrices, dim=(1, 2)).mean()


def _similarities(rows: Tensor, descriptors: Tensor, neighbours: Tensor) -> Tensor:
    return torch.einsum("bd,bkd->bk", rows, descriptors[neighbours].to(rows.dtype))


def _check(u: Tensor, s: Tensor, at_least: int = 1) -> None:
    if u.ndim != 2 or s.shape != u.shape:
        raise TrainingError(f"shapes do not fit: u {tuple(u.shape)}, s {tuple(s.shape)}", expected="(B, K) twice")
    if u.shape[1] < at_least:
        raise TrainingError(f"the lists hold {u.shape[1]} neighbours", expected=f"at least {at_least}", remedy="use a larger k")
