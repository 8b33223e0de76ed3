"""How large the implicit augmentation's exponent is for a bank, and the γ that makes it a wanted size.

The term that γ brings into L_asym+ is (γ/2τ²)·qᵀΣ_p q. qᵀΣ_p q shrinks with the dimension of the
descriptors: a within-place variance of v in all, divided evenly over D dimensions, makes it v/D. With the
paper's γ = 15 and τ = 0.05, chosen at 8448-D and 12288-D, and v = 0.3 the term is 0.11 at 8448-D, 3.5 at 256-D.
A low rank makes it larger again: the n images of a place span its covariance, and their own deviations lie
in it, which gives about v²/(n − 1).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from asymvpr_core.errors import MemoryBankError
from asymvpr_core.memory.bank import MemoryBank

GammaScale = Literal["paper", "relative"]


def mean_spread(bank: MemoryBank) -> float:
    """Mean of gᵀΣ_p g over the gallery images of all places that have two or more.

    A trained query descriptor is near its gallery descriptor, so this is what qᵀΣ_p q will be. Places
    with one image are left out: their exponent is 0 whatever γ. No descriptor is read: over the
    images of a place, with mean c and covariance C, the mean of gᵀ(diag(s) + UUᵀ)g is
    Σ_d s_d(c_d² + C_dd) + Σ_k (u_k·c)² + ‖u_k‖⁴, the last because u_k is an eigenvector of C.

    Raises:
        MemoryBankError: no place has two images.
    """
    several = np.flatnonzero(bank.counts >= 2)
    if len(several) == 0:
        raise MemoryBankError("no place has two images", expected="a place with a variance", remedy="use larger cells")
    total = 0.0
    for place in several:
        total += float(bank.counts[place]) * _spread(bank, int(place))
    return total / float(bank.counts[several].sum())


def _spread(bank: MemoryBank, place: int) -> float:
    centroid, variance = bank.centroids[place].astype(np.float64), bank.variances[place].astype(np.float64)
    if bank.factors is None or bank.factor_offsets is None:
        return float(variance @ (centroid**2 + variance))
    factors = bank.factors[bank.factor_offsets[place] : bank.factor_offsets[place + 1]].astype(np.float64)
    diagonal = variance + (factors**2).sum(axis=0)
    eigenvalues = (factors**2).sum(axis=1)
    return float(variance @ (centroid**2 + diagonal) + ((factors @ centroid) ** 2).sum() + (eigenvalues**2).sum())


def augmentation_exponent(spread: float, gamma: float, temperature: float) -> float:
    """(γ/2τ²)·`spread`: what the implicit augmentation adds on average to the exponent of every negative."""
    return gamma / (2 * temperature**2) * spread


def relative_gamma(bank: MemoryBank, strength: float, temperature: float) -> float:
    """The γ with which the exponent (γ/2τ²)·qᵀΣ_p q is `strength` on average: a definition that carries over.

    γ = 2τ²·strength / mean_spread(bank). With one strength, banks of any dimension and any temperature
    have every negative weighted by about the same e^strength. At 8448-D the paper's setting is a strength
    of the order of 0.1.

    Args:
        strength: ≥ 0; 0 is L_asym.
        temperature: τ > 0.

    Raises:
        MemoryBankError: a parameter out of its range, or no place with two different images.
    """
    if strength < 0 or temperature <= 0:
        raise MemoryBankError(f"strength is {strength}, temperature {temperature}", expected=">= 0 and > 0")
    spread = mean_spread(bank)
    if spread == 0:
        raise MemoryBankError("all images of every place have the same descriptor", expected="a place with a variance")
    return 2 * temperature**2 * strength / spread


def scaled_gamma(bank: MemoryBank, gamma: float, temperature: float, scale: GammaScale) -> float:
    """The γ of `asymmetric_loss` for a setting: "paper" takes `gamma` as it is, "relative" as the strength of `relative_gamma`.

    Raises:
        MemoryBankError: as `relative_gamma`, for "relative".
    """
    return gamma if scale == "paper" else relative_gamma(bank, gamma, temperature)
