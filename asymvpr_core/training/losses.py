"""The paper's losses over the geographical memory bank: L_asym, L_asym+, explicit augmentation.

Source: Kim, Cho, Yoon, AAAI 2026, arXiv 2512.13055, whose symbols are kept: q query descriptor, g
gallery descriptor, c_j centroid of place j, Σ_p covariance of the image's own place p, N(x) all places
but the own one. The negatives are the same number Λ = log Σ_{j∈N(x)} e^{q·c_j/τ} in all of them, so that
each is log(1 + e^{Λ + … − q·g/τ}).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asymvpr_core.errors import TrainingError
from asymvpr_core.training.bank_log_sum_exp import bank_log_sum_exp


@dataclass(frozen=True)
class LowRankFactors:
    """The factors U_p of covariances Σ_p = diag(s_p) + U_p U_pᵀ, of all places one after the other.

    `rows` (R, D) are the columns of the U_p, half precision allowed; `offsets` (M + 1,) int64: those
    of place p are `rows[offsets[p]:offsets[p + 1]]`. Beyond the paper, which keeps the diagonal only.
    """

    rows: Tensor
    offsets: Tensor

    def of_places(self, place: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The factors of the `(B,)` places, (r_total, D), and for each of them the image, (r_total,) int64."""
        counts = self.offsets[place + 1] - self.offsets[place]
        image = torch.repeat_interleave(torch.arange(len(place), device=place.device), counts)
        within = torch.arange(len(image), device=place.device) - (torch.cumsum(counts, 0) - counts)[image]
        return self.rows[self.offsets[place][image] + within].to(dtype), image


def asymmetric_loss(
    query: Tensor,
    gallery: Tensor,
    place: Tensor,
    centroids: Tensor,
    variances: Tensor,
    temperature: float = 0.05,
    gamma: float = 15.0,
    *,
    factors: LowRankFactors | None = None,
    half_products: bool = True,
) -> Tensor:
    """L_asym+ averaged over the batch, a scalar ≥ 0; `gamma` = 0 gives L_asym exactly.

        L_asym+ = −log e^{q·g/τ} / ( e^{q·g/τ} + Σ_{j≠p} e^{q·c_j/τ + (γ/2τ²)·qᵀΣ_p q} )

    The second exponent is the closed form (Jensen's inequality and the Gaussian moment-generating
    function) of drawing infinitely many g̃ ~ N(g, γ·Σ_p), an upper bound of the explicit loss. In the
    paper Σ_p is diagonal, qᵀΣ_p q = Σ_d s_{p,d} q_d²; with `factors` it is + ‖U_pᵀq‖².

    Args:
        query, gallery: `(B, D)`, L2-normalised, floating point; gradients flow into `query`.
        place: `(B,)` int64, index of each image's own place into `centroids`.
        centroids, variances: `(M, D)`; half precision is allowed, sums are in float32 or better.
        temperature: τ > 0; the paper uses 0.05.
        gamma: γ ≥ 0; the paper uses 15 for descriptors of 8448 and 12288 dimensions. At another
            dimension see `asymvpr_core.memory.spread.relative_gamma`.
        factors: low-rank part of the covariances beside the diagonal `variances`.
        half_products: see `bank_log_sum_exp`.

    Raises:
        TrainingError: shapes that do not fit, a place that is not in the bank, τ ≤ 0, or γ < 0.
    """
    _check(query, gallery, place, centroids, variances, temperature, gamma, factors)
    q, g = _wide(query), _wide(gallery)
    exponent = bank_log_sum_exp(q, centroids, place, temperature, half_products=half_products) - (q * g).sum(dim=1) / temperature
    if gamma > 0:
        exponent = exponent + (gamma / (2 * temperature**2)) * covariance_form(q, place, variances, factors)
    return _log_one_plus_exp(exponent).mean()


def explicit_asymmetric_loss(
    query: Tensor,
    gallery: Tensor,
    place: Tensor,
    centroids: Tensor,
    variances: Tensor,
    temperature: float = 0.05,
    gamma: float = 15.0,
    *,
    draws: int = 10,
    generator: torch.Generator | None = None,
    factors: LowRankFactors | None = None,
    half_products: bool = True,
) -> Tensor:
    """Explicit embedding augmentation, the paper's ablation: L_asym averaged over `draws` gallery descriptors, a scalar ≥ 0.

        (1/K) Σ_k −log e^{q·g̃_k/τ} / ( e^{q·g̃_k/τ} + Σ_{j≠p} e^{q·c_j/τ} ),   g̃_k ~ N(g, γ·Σ_p)

    The draws are not normalised again, so that with K → ∞ the loss is bounded by L_asym+. Memory
    is one (B, D) draw at a time and what autograd keeps of each.

    Args:
        draws: K ≥ 1; the paper uses 10.
        generator: where the random numbers come from, on the query's device; None: torch's own.
        (others): as of `asymmetric_loss`.

    Raises:
        TrainingError: as `asymmetric_loss`, or K < 1.
    """
    _check(query, gallery, place, centroids, variances, temperature, gamma, factors)
    if draws < 1:
        raise TrainingError(f"draws is {draws}", expected="draws >= 1")
    q, g = _wide(query), _wide(gallery)
    negatives = bank_log_sum_exp(q, centroids, place, temperature, half_products=half_products)
    deviations = (gamma * variances[place].to(q.dtype)).sqrt()
    own_factors = None if factors is None else factors.of_places(place, q.dtype)
    losses = []
    for _ in range(draws):
        noise = deviations * torch.randn(g.shape, generator=generator, dtype=q.dtype, device=q.device)
        if own_factors is not None:
            rows, image = own_factors
            weights = gamma**0.5 * torch.randn(len(rows), generator=generator, dtype=q.dtype, device=q.device)
            noise = noise.index_add(0, image, weights[:, None] * rows)
        losses.append(_log_one_plus_exp(negatives - (q * (g + noise)).sum(dim=1) / temperature).mean())
    return torch.stack(losses).mean()


def covariance_form(query: Tensor, place: Tensor, variances: Tensor, factors: LowRankFactors | None = None) -> Tensor:
    """qᵀΣ_p q of every image, (B,): Σ_d s_{p,d} q_d², and with `factors` + ‖U_pᵀq‖².

    Args:
        query: (B, D) float32 or float64.
        place: (B,) int64.
        variances: (M, D) diagonal, half precision allowed; only the rows of the batch are read.
    """
    form = (variances[place].to(query.dtype) * query**2).sum(dim=1)
    if factors is not None:
        rows, image = factors.of_places(place, query.dtype)
        form = form.index_add(0, image, (rows * query[image]).sum(dim=1) ** 2)
    return form


def regression_loss(query: Tensor, gallery: Tensor) -> Tensor:
    """Mean squared distance of `(B, D)` query to gallery descriptors: 2 − 2·q·g for unit vectors, a scalar."""
    return (query - gallery).pow(2).sum(dim=1).mean()


def _log_one_plus_exp(exponent: Tensor) -> Tensor:
    """log(1 + e^x) for any x; torch's softplus is linear beyond 20 and loses the last digits of float64 there."""
    return torch.logaddexp(exponent, torch.zeros_like(exponent))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check(
    query: Tensor,
    gallery: Tensor,
    place: Tensor,
    centroids: Tensor,
    variances: Tensor,
    temperature: float,
    gamma: float,
    factors: LowRankFactors | None,
) -> None:
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
    if factors is not None and (
        factors.rows.ndim != 2 or factors.rows.shape[1] != dimension or factors.offsets.shape != (len(centroids) + 1,)
    ):
        raise TrainingError(
            f"shapes do not fit: factors {tuple(factors.rows.shape)} with offsets {tuple(factors.offsets.shape)}",
            expected=f"(R, {dimension}) with ({len(centroids) + 1},)",
        )
    if place.dtype != torch.int64:
        raise TrainingError(f"place is {place.dtype}", expected="int64")
    # Not on a GPU, where looking at the values would make the step wait.
    if place.device.type == "cpu" and batch > 0 and not (int(place.min()) >= 0 and int(place.max()) < len(centroids)):
        raise TrainingError(f"place indices reach from {int(place.min())} to {int(place.max())}", expected=f"0 to {len(centroids) - 1}")
    if temperature <= 0 or gamma < 0:
        raise TrainingError(f"temperature is {temperature}, gamma {gamma}", expected="temperature > 0 and gamma >= 0")
