"""Closed-form alignment: ridge regression of the light network's features onto gallery descriptors.

Not in the paper. Costs seconds and no gradient, and is the start of every training: the light
backbone stays as it is, min ‖Z W + b − G‖² + λ‖W‖² gives the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asymvpr_core.errors import TrainingError
from asymvpr_core.progress import Progress, silent

RIDGES = tuple(10.0 ** (half / 2) for half in range(-6, 5))


@dataclass(frozen=True)
class Alignment:
    """G ≈ Z·weight + bias: `weight` (C, D), `bias` (D,) float32; `ridge` is the chosen λ and
    `held_out_cosine` the mean cosine to the gallery descriptors on held-out places.
    """

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    held_out_cosine: float


def align(
    features: np.ndarray,
    descriptors: np.ndarray,
    places: np.ndarray,
    *,
    folds: int = 5,
    ridges: tuple[float, ...] = RIDGES,
    seed: int = 0,
    progress: Progress = silent,
) -> Alignment:
    """Fit the last layer; λ by cross-validation over whole places.

    Folds hold whole places, since the neighbouring frames of one place would let λ shrink to
    nothing. One eigen-decomposition a fold serves every λ.

    Args:
        features: (N, C) float32, pooled and L2-normalised features of the light backbone.
        descriptors: (N, D), L2-normalised gallery descriptors of the same images.
        places: (N,) int64.

    Raises:
        TrainingError: fewer than two places, or lengths that differ.
    """
    if not len(features) == len(descriptors) == len(places):
        raise TrainingError(f"{len(features)} features, {len(descriptors)} descriptors, {len(places)} places", expected="equal numbers")
    unique = np.unique(places)
    if len(unique) < 2:
        raise TrainingError("the gallery has one place in all", expected="at least two", remedy="use smaller cells or a larger gallery")
    z, g = features.astype(np.float64), np.asarray(descriptors, dtype=np.float64)
    fold_of_place = np.random.default_rng(seed).permutation(len(unique)) % min(folds, len(unique))
    fold = fold_of_place[np.searchsorted(unique, places)]
    cosines = np.zeros(len(ridges))
    for k in progress(range(fold.max() + 1), "choose the ridge", int(fold.max()) + 1):
        train, test = fold != k, fold == k
        for i, (weight, bias) in enumerate(_solve(z[train], g[train], ridges)):
            predicted = z[test] @ weight + bias
            norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(g[test], axis=1)
            cosines[i] += ((predicted * g[test]).sum(axis=1) / np.maximum(norms, 1e-12)).sum()
    cosines /= len(z)
    best = int(np.argmax(cosines))
    weight, bias = _solve(z, g, (ridges[best],))[0]
    return Alignment(weight.astype(np.float32), bias.astype(np.float32), ridges[best], float(cosines[best]))


def _solve(z: np.ndarray, g: np.ndarray, ridges: tuple[float, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight, bias) for every λ, from one eigen-decomposition."""
    z_mean, g_mean = z.mean(axis=0), g.mean(axis=0)
    zc, gc = z - z_mean, g - g_mean
    if len(zc) >= zc.shape[1]:
        eigenvalues, vectors = np.linalg.eigh(zc.T @ zc)
        rotated = vectors.T @ (zc.T @ gc)
    else:  # fewer images than features: the Gram matrix is the smaller one and gives the same weights
        eigenvalues, left = np.linalg.eigh(zc @ zc.T)
        vectors, rotated = zc.T @ left, left.T @ gc
    weights = [vectors @ (rotated / (np.maximum(eigenvalues, 0.0) + ridge)[:, None]) for ridge in ridges]
    return [(weight, g_mean - z_mean @ weight) for weight in weights]
