"""The geographical memory bank: mean and covariance of the gallery descriptors of every place.

Source: Kim, Cho, Yoon, "Towards Test-time Efficient Visual Place Recognition via Asymmetric Query
Processing", AAAI 2026, arXiv 2512.13055. One pass over the stored descriptors, no k-NN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asymvpr_core.arrays import load_arrays
from asymvpr_core.memory.low_rank import factor_offsets, low_rank_moments
from asymvpr_core.memory.moments import Moments, check_places, stream_moments
from asymvpr_core.memory.rows import Rows

_REQUIRED, _FACTORS = ("centroids", "variances", "counts", "places"), ("factors", "factor_offsets")


@dataclass(frozen=True)
class MemoryBank:
    """Place statistics: `centroids` (M, D), a plain mean, not re-normalised; `variances` (M, D), the
    diagonal of the population covariance, zero for a place with one image; `counts` (M,) int64;
    `places` (N,) int64, the place of every gallery keyframe.

    With low-rank covariances, Σ_p = diag(variances[p]) + UᵀU with U = `factors[o[p]:o[p + 1]]`, (R, D) and
    o = `factor_offsets`, (M + 1,) int64; `variances` then holds what the factors leave of the diagonal.
    Floating-point arrays are float32, or float16 where a stored bank has it; they may be memory maps.
    """

    centroids: np.ndarray
    variances: np.ndarray
    counts: np.ndarray
    places: np.ndarray
    factors: np.ndarray | None = None
    factor_offsets: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write as .npz without pickled objects."""
        names = _REQUIRED if self.factors is None else _REQUIRED + _FACTORS
        np.savez(path, **{name: getattr(self, name) for name in names})

    @staticmethod
    def load(path: Path) -> MemoryBank:
        """Read what `save` wrote. Raises ArtefactError when it is damaged."""
        remedy = "train again with 'asymvpr train'"
        bank = MemoryBank(*load_arrays(path, _REQUIRED, remedy))
        with np.load(path, allow_pickle=False) as arrays:
            if "factors" not in arrays:
                return bank
        return MemoryBank(*load_arrays(path, _REQUIRED + _FACTORS, remedy))


def build_memory_bank(
    descriptors: Rows, places: np.ndarray, chunk_size: int | None = None, *, rank: int = 0, memory_bytes: int = 2 << 30
) -> MemoryBank:
    """Statistics of every place in one pass, in memory; `asymvpr_core.memory.store.build_bank` writes them to disk instead.

    Accumulated in float64, so that neither chunk size nor order changes the result beyond float64 rounding.
    Memory beside the result: see `stream_moments` and, for a rank, `low_rank_moments`; constant in N.

    Args:
        descriptors: (N, D) float16 or float32, may be a memory map.
        places: (N,) int64 in 0 … M−1, every place with at least one image.
        chunk_size: rows read at a time; None: 64 MB.
        rank: of the low-rank part of the covariances; 0: the paper's diagonal.
        memory_bytes: budget of the accumulators.

    Raises:
        MemoryBankError: lengths differ, a place without images, descriptors that are not finite, or
            a place too large for the budget.
    """
    counts = check_places(descriptors, places)
    shape = (len(counts), descriptors.shape[1])
    centroids, variances = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def emit(place: int, moments: Moments) -> None:
        centroids[place], variances[place] = moments.mean, moments.variance

    if rank == 0:
        stream_moments(descriptors, places, emit, chunk_size=chunk_size, memory_bytes=memory_bytes)
        return MemoryBank(centroids, variances, counts, places)
    offsets = factor_offsets(counts, rank)
    factors = np.empty((offsets[-1], shape[1]), np.float32)

    def emit_factors(place: int, moments: Moments, own: np.ndarray) -> None:
        stored = own.astype(np.float32)
        factors[offsets[place] : offsets[place + 1]] = stored
        centroids[place], variances[place] = moments.mean, remaining_variance(moments, stored)

    low_rank_moments(descriptors, places, rank, emit_factors, memory_bytes=memory_bytes)
    return MemoryBank(centroids, variances, counts, places, factors, offsets)


def remaining_variance(moments: Moments, factors: np.ndarray) -> np.ndarray:
    """(D,) what (r, D) factors, as stored, leave of the diagonal: the variances stay exact whatever the rank."""
    return np.maximum(moments.variance - np.square(factors, dtype=np.float64).sum(axis=0), 0.0)
