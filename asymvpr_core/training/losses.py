"""Asymmetric contrastive losses over the geographical memory bank.

Source: Kim, Cho, Yoon, AAAI 2026, arXiv 2512.13055, whose symbols are kept: q query descriptor, g
gallery descriptor, c_j centroid of place j, Σ_p diagonal covariance of the image's own place p.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from asymvpr_core.errors import TrainingError

# Centroids per block when the bank is in half precision: a block is converted to float32 for the
# product, since a bfloat16 result would round exponents of 20 to 0.06.
_BLOCK = 8192


def asymmetric_loss(
    query: Tensor,
    gallery: Tensor,
    place: Tensor,
    centroids: Tensor,
    variances: Tensor,
    temperature: float = 0.05,
    gamma: float = 15.0,
) -> Tensor:
    """L_asym+ averaged over the batch, a scalar ≥ 0; `gamma` = 0 gives L_asym exactly.

        L_asym+ = −log e^{q·g/τ} / ( e^{q·g/τ} + Σ_{j≠p} e^{q·c_j/τ + (γ/2τ²)·Σ_d s_{p,d} q_d²} )

    The second exponent is the closed form (Jensen's inequality and the Gaussian moment-generating
    function) of drawing infinitely many g̃ ~ N(g, γ·diag(s_p)), an upper bound of the explicit loss.

    Args:
        query, gallery: `(B, D)`, L2-normalised, floating point; gradients flow into `query`.
        place: `(B,)` int64, index of each image's own place into `centroids`.
        centroids, variances: `(M, D)`; half precision is allowed, sums are in float32 or better.
        temperature: τ > 0; the paper uses 0.05.
        gamma: γ ≥ 0; the paper uses 15 for descriptors of 8448 and 12288 dimensions.

    Raises:
        TrainingError: shapes that do not fit, or τ ≤ 0, or γ < 0.
    """
    _check(query, gallery, place, centroids, variances, temperature, gamma)
    wide = torch.promote_types(query.dtype, torch.float32)
    query, gallery = query.to(wide), gallery.to(wide)
    positive = (query * gallery).sum(dim=1) / temperature
    negatives = _similarities(query, centroids) / temperature
    if gamma > 0:
        spread = (variances[place].to(wide) * query**2).sum(dim=1)
        negatives = negatives + (gamma / (2 * temperature**2)) * spread[:, None]
    negatives = negatives.scatter(1, place[:, None], -torch.inf)
    return (torch.logsumexp(torch.cat([positive[:, None], negatives], dim=1), dim=1) - positive).mean()


def regression_loss(query: Tensor, gallery: Tensor) -> Tensor:
    """Mean squared distance of `(B, D)` query to gallery descriptors: 2 − 2·q·g for unit vectors, a scalar."""
    return (query - gallery).pow(2).sum(dim=1).mean()


def _similarities(query: Tensor, centroids: Tensor) -> Tensor:
    """`(B, M)` products q·c_j in the query's precision, without a second copy of a half-precision bank."""
    if centroids.dtype == query.dtype:
        return query @ centroids.T
    blocks = [checkpoint(_product, query, block, use_reentrant=False) for block in centroids.split(_BLOCK)]
    return torch.cat([block for block in blocks if block is not None], dim=1)


def _product(query: Tensor, block: Tensor) -> Tensor:
    return query @ block.to(query.dtype).T


def _check(query: Tensor, gallery: Tensor, place: Tensor, centroids: Tensor, variances: Tensor, temperature: float, gamma: float) -> None:
    batch, dimension = query.shape if query.ndim == 2 else (-1, -1)
    fits = (
        gallery.shape == (batch, dimension)
        and place.shape == (batch,)
        and centroids.ndim == 2
        and centroids.shape[1] == dimension
        and variances.shape == centroids.shape
    )
    if not fits:
        tensors = {"query": query, "gallery": gallery, "place": place, "centroids": centroids, "variances": variances}
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise TrainingError(f"shapes do not fit: {shapes}", expected="(B, D), (B, D), (B,), (M, D), (M, D)")
    if place.dtype != torch.int64:
        raise TrainingError(f"place is {place.dtype}", expected="int64")
    if temperature <= 0 or gamma < 0:
        raise TrainingError(f"temperature is {temperature}, gamma {gamma}", expected="temperature > 0 and gamma >= 0")
