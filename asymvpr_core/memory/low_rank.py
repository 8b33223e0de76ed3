"""Low-rank-plus-diagonal covariance of every place: Σ = diag(s) + U Uᵀ, beyond the paper's diagonal.

U holds the leading eigenvectors of the covariance, each scaled by the root of its eigenvalue, and
s = diag(Σ) − diag(U Uᵀ) ≥ 0 the rest of the variances, so that qᵀΣq = Σ_d s_d q_d² + ‖Uᵀq‖² stays a
closed form. n images have a covariance of rank n − 1 at most, so a place stores min(r, n − 1) columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asymvpr_core.errors import MemoryBankError
from asymvpr_core.memory.moments import Moments, not_finite
from asymvpr_core.memory.rows import Rows, take_rows
from asymvpr_core.progress import Progress, silent


def factor_offsets(counts: np.ndarray, rank: int) -> np.ndarray:
    """(M + 1,) int64: the factors of place p are rows offsets[p] … offsets[p + 1] of all factors."""
    return np.concatenate([[0], np.cumsum(np.minimum(rank, counts - 1))]).astype(np.int64)


def place_factors(rows: np.ndarray, rank: int) -> tuple[Moments, np.ndarray]:
    """Moments of (n, D) rows, and their min(rank, n − 1) leading factors (·, D) float64, the largest first.

    Directions without variance (images described identically) give rows of zeros.
    """
    moments = Moments.of(rows)
    count = min(rank, len(rows) - 1)
    if count == 0:
        return moments, np.zeros((0, rows.shape[1]))
    deviations = (rows.astype(np.float64) - moments.mean) / np.sqrt(len(rows))
    if len(rows) <= rows.shape[1]:  # the smaller of the two Gram matrices has the same eigenvalues
        eigenvalues, vectors = np.linalg.eigh(deviations @ deviations.T)
        factors = vectors[:, ::-1][:, :count].T @ deviations
    else:
        eigenvalues, vectors = np.linalg.eigh(deviations.T @ deviations)
        factors = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0)))[:, ::-1][:, :count].T
        factors = np.concatenate([factors, np.zeros((count - len(factors), rows.shape[1]))])
    return moments, factors


def low_rank_moments(
    descriptors: Rows,
    places: np.ndarray,
    rank: int,
    emit: Callable[[int, Moments, np.ndarray], None],
    *,
    memory_bytes: int = 2 << 30,
    first_place: int = 0,
    progress: Progress = silent,
) -> None:
    """Hand moments and factors of every place from `first_place` on to `emit`, in the order of the places.

    All images of a place are needed at once, so they are read place by place: every descriptor once, in
    sequence where the gallery is in the order of its places. Memory: one place.

    Args:
        descriptors: (N, D) float16 or float32, may be a memory map.
        places: (N,) int64, checked by `check_places`.
        rank: r ≥ 1.
        memory_bytes: what the images of one place may take as float64, twice.

    Raises:
        MemoryBankError: a place with more images than fit, or the first descriptor that is not finite.
    """
    counts = np.bincount(places)
    fits = memory_bytes // (16 * descriptors.shape[1])
    if counts.max() > fits:
        raise MemoryBankError(
            f"place {int(counts.argmax())} has {counts.max()} images of {descriptors.shape[1]}-D descriptors",
            expected=f"at most {fits} in {memory_bytes / 1e9:.3g} GB",
            remedy="use smaller cells, more memory, or rank 0",
        )
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(counts)
    remaining = range(first_place, len(counts))
    for place in progress(remaining, f"place statistics of rank {rank}", len(counts), first_place):
        rows = take_rows(descriptors, order[ends[place] - counts[place] : ends[place]])
        if not np.isfinite(rows).all():
            raise not_finite(descriptors)
        emit(place, *place_factors(rows, rank))
