"""The geographical memory bank: mean and diagonal variance of the gallery descriptors of every place.

Source: Kim, Cho, Yoon, "Towards Test-time Efficient Visual Place Recognition via Asymmetric Query
Processing", AAAI 2026, arXiv 2512.13055. One pass over the stored descriptors, no k-NN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asymvpr_core.arrays import load_arrays
from asymvpr_core.errors import MemoryBankError


@dataclass(frozen=True)
class MemoryBank:
    """Place statistics: `centroids` (M, D) float32, a plain mean, not re-normalised;
    `variances` (M, D) float32, the diagonal of the population covariance, zero for a place with
    one image; `counts` (M,) int64; `places` (N,) int64, the place of every gallery keyframe.
    """

    centroids: np.ndarray
    variances: np.ndarray
    counts: np.ndarray
    places: np.ndarray

    def save(self, path: Path) -> None:
        """Write as .npz without pickled objects."""
        np.savez(path, centroids=self.centroids, variances=self.variances, counts=self.counts, places=self.places)

    @staticmethod
    def load(path: Path) -> MemoryBank:
        """Read what `save` wrote. Raises ArtefactError when it is damaged."""
        return MemoryBank(*load_arrays(path, ("centroids", "variances", "counts", "places"), "train again with 'asymvpr train'"))


def build_memory_bank(descriptors: np.ndarray, places: np.ndarray, chunk_size: int = 4096) -> MemoryBank:
    """Mean and variance of every place in one sequential pass.

    Chunks are merged in float64 by Chan's update, so that neither chunk size nor order changes the
    result beyond float64 rounding; peak memory is three (M, D) float64 arrays and one chunk, whatever N.

    Args:
        descriptors: (N, D) float16 or float32, may be a memory map.
        places: (N,) int64 in 0 … M−1, every place with at least one image.

    Raises:
        MemoryBankError: lengths differ, a place without images, or descriptors that are not finite.
    """
    if descriptors.ndim != 2 or places.shape != (len(descriptors),):
        raise MemoryBankError(f"descriptors have shape {descriptors.shape}, places {places.shape}", expected="(N, D) and (N,)")
    if len(places) == 0 or places.min() < 0:
        raise MemoryBankError("there are no descriptors, or a negative place index", expected="N >= 1 and places in 0 … M−1")
    totals = np.bincount(places)
    if (totals == 0).any():
        raise MemoryBankError(f"place {int(np.argmin(totals))} has no images", expected="place indices without gaps")
    shape = (len(totals), descriptors.shape[1])
    counts = np.zeros(len(totals), dtype=np.int64)
    means, squares = np.zeros(shape), np.zeros(shape)  # squares: sum of squared deviations from the mean
    for start in range(0, len(descriptors), chunk_size):
        chunk = np.asarray(descriptors[start : start + chunk_size], dtype=np.float64)
        if not np.isfinite(chunk).all():
            row = start + int(np.argmin(np.isfinite(chunk).all(axis=1)))
            raise MemoryBankError(f"descriptor {row} is not finite", remedy="build the gallery again")
        _merge(counts, means, squares, chunk, places[start : start + chunk_size])
    variances = squares / counts[:, None]
    return MemoryBank(means.astype(np.float32), variances.astype(np.float32), counts, places)


def _merge(counts: np.ndarray, means: np.ndarray, squares: np.ndarray, chunk: np.ndarray, places: np.ndarray) -> None:
    """Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983, for all places of a chunk."""
    order = np.argsort(places, kind="stable")
    present, first = np.unique(places[order], return_index=True)
    rows = chunk[order]
    n_new = np.diff(np.append(first, len(rows)))
    mean_new = np.add.reduceat(rows, first, axis=0) / n_new[:, None]
    deviations = rows - np.repeat(mean_new, n_new, axis=0)
    squares_new = np.add.reduceat(deviations**2, first, axis=0)
    n_old = counts[present]
    delta = mean_new - means[present]
    share = (n_new / (n_old + n_new))[:, None]
    squares[present] += squares_new + delta**2 * share * n_old[:, None]
    means[present] += delta * share
    counts[present] = n_old + n_new
