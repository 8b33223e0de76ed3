"""Closed-form alignment: ridge regression of the light network's features onto gallery descriptors.

Not in the paper. Costs seconds and no gradient, and is the start of every training: the light
backbone stays as it is, min ‖Z W + b − G‖² + λ‖W‖² gives the last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from asymvpr_core.errors import TrainingError
from asymvpr_core.memory.rows import Rows, read_rows, take_rows
from asymvpr_core.progress import Progress, silent

# Rows read at a time: 1024 predictions of 12288 dimensions are 100 MB in float64.
_BLOCK_ROWS = 1024

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
    descriptors: Rows,
    places: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    folds: int = 5,
    ridges: tuple[float, ...] = RIDGES,
    scored_rows: int = 16384,
    seed: int = 0,
    progress: Progress = silent,
) -> Alignment:
    """Fit the last layer; λ by cross-validation over whole places.

    Folds hold whole places, since the neighbouring frames of one place would let λ shrink to
    nothing. One eigen-decomposition a fold serves every λ.

    Memory does not grow with N: features and descriptors, which may be memory maps, are read once a
    block at a time into float64 sums ZᵀZ (C, C) and ZᵀG (C, D) for each fold, and a second time where
    the held-out cosines are taken. Only with N < C everything is in memory, and the N x N Gram matrix solved.

    Args:
        features: (N, C) float32, pooled and L2-normalised features of the light backbone.
        descriptors: (N, D), L2-normalised gallery descriptors of the same images; with `rows`, of a whole gallery.
        places: (N,) int64.
        rows: (N,) int64 row of `descriptors` of every feature; None: row i belongs to feature i.
        scored_rows: the held-out cosine of every λ is taken over at most so many features, drawn at
            random: each costs C·D operations for each λ.

    Raises:
        TrainingError: fewer than two places, lengths that differ, or numbers that are not finite.
    """
    if rows is None and len(descriptors) == len(features):
        rows = np.arange(len(features))
    if rows is None or not len(features) == len(rows) == len(places):
        raise TrainingError(f"{len(features)} features, {len(descriptors)} descriptors, {len(places)} places", expected="equal numbers")
    unique = np.unique(places)
    if len(unique) < 2:
        raise TrainingError("the gallery has one place in all", expected="at least two", remedy="use smaller cells or a larger gallery")
    rng = np.random.default_rng(seed)
    fold_of_place = rng.permutation(len(unique)) % min(folds, len(unique))
    fold = fold_of_place[np.searchsorted(unique, places)]
    scored = np.arange(len(features))
    if len(scored) > scored_rows:
        scored = np.sort(rng.choice(len(features), scored_rows, replace=False))
    pairs = _Pairs(features, descriptors, rows)
    solve = _solvers_in_memory(pairs, fold) if len(features) < features.shape[1] else _streaming_solvers(pairs, fold, progress)
    cosines = np.zeros(len(ridges))
    for k in progress(range(int(fold.max()) + 1), "choose the ridge", int(fold.max()) + 1):
        system = solve(k)
        for z, g in pairs.blocks(scored[fold[scored] == k]):
            rotated = (z - system.z_mean) @ system.vectors
            for i, ridge in enumerate(ridges):
                predicted = (rotated / (system.eigenvalues + ridge)) @ system.rotated + system.g_mean
                norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(g, axis=1)
                cosines[i] += ((predicted * g).sum(axis=1) / np.maximum(norms, 1e-12)).sum()
    cosines /= len(scored)
    best = int(np.argmax(cosines))
    weight, bias = solve(None).solution(ridges[best])
    return Alignment(weight.astype(np.float32), bias.astype(np.float32), ridges[best], float(cosines[best]))


@dataclass(frozen=True)
class _Pairs:
    """Features and the descriptors that belong to them, read a block at a time as float64."""

    features: np.ndarray
    descriptors: Rows
    rows: np.ndarray

    def blocks(self, chosen: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(z, g) of the features with the ascending indices `chosen`; None: of all."""
        count = len(self.features) if chosen is None else len(chosen)
        for start in range(0, count, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, count)
            z = read_rows(self.features, start, stop) if chosen is None else take_rows(self.features, chosen[start:stop])
            rows = self.rows[start:stop] if chosen is None else self.rows[chosen[start:stop]]
            yield np.asarray(z, dtype=np.float64), np.asarray(take_rows(self.descriptors, rows), dtype=np.float64)


@dataclass(frozen=True)
class _System:
    """The centred normal equations, rotated so that a ridge is one division: `vectors` (C, r), `eigenvalues` (r,), `rotated` (r, D)."""

    z_mean: np.ndarray
    g_mean: np.ndarray
    vectors: np.ndarray
    eigenvalues: np.ndarray
    rotated: np.ndarray

    def solution(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight (C, D) and bias (D,) for one λ."""
        weight = self.vectors @ (self.rotated / (self.eigenvalues + ridge)[:, None])
        return weight, self.g_mean - self.z_mean @ weight


Solver = Callable[[int | None], _System]  # of what is left without one fold; None: of everything


def _solvers_in_memory(pairs: _Pairs, fold: np.ndarray) -> Solver:
    blocks = list(pairs.blocks())
    z, g = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    _check_finite(z, g)

    def solve(k: int | None) -> _System:
        left = fold != k if k is not None else np.ones(len(z), dtype=bool)
        z_mean, g_mean = z[left].mean(axis=0), g[left].mean(axis=0)
        zc, gc = z[left] - z_mean, g[left] - g_mean
        # Fewer images than features: the Gram matrix is the smaller one and gives the same weights.
        eigenvalues, left_vectors = np.linalg.eigh(zc @ zc.T)
        return _System(z_mean, g_mean, zc.T @ left_vectors, np.maximum(eigenvalues, 0.0), left_vectors.T @ gc)

    return solve


@dataclass
class _Sums:
    """Sums over one fold of features and descriptors, both shifted by about their means so that centring loses no digits."""

    count: int
    z: np.ndarray
    g: np.ndarray
    zz: np.ndarray
    zg: np.ndarray

    @staticmethod
    def empty(channels: int, dimension: int) -> _Sums:
        return _Sums(0, np.zeros(channels), np.zeros(dimension), np.zeros((channels, channels)), np.zeros((channels, dimension)))

    def add(self, z: np.ndarray, g: np.ndarray) -> None:
        self.count += len(z)
        self.z += z.sum(axis=0)
        self.g += g.sum(axis=0)
        self.zz += z.T @ z
        self.zg += z.T @ g

    def combined(self, other: _Sums, sign: int) -> _Sums:
        """These sums and (sign 1), or without (sign −1), the other's."""
        values = (getattr(self, name) + sign * getattr(other, name) for name in ("count", "z", "g", "zz", "zg"))
        return _Sums(*values)


def _streaming_solvers(pairs: _Pairs, fold: np.ndarray, progress: Progress) -> Solver:
    z, g = next(pairs.blocks())
    z_shift, g_shift = z.mean(axis=0), g.mean(axis=0)
    sums = [_Sums.empty(z.shape[1], g.shape[1]) for _ in range(int(fold.max()) + 1)]
    total_blocks = -(-len(fold) // _BLOCK_ROWS)
    for number, (z, g) in enumerate(progress(pairs.blocks(), "normal equations", total_blocks)):
        _check_finite(z, g)
        folds = fold[number * _BLOCK_ROWS : number * _BLOCK_ROWS + len(z)]
        for k in np.unique(folds):
            sums[k].add(z[folds == k] - z_shift, g[folds == k] - g_shift)
    everything = _Sums.empty(z.shape[1], g.shape[1])
    for part in sums:
        everything = everything.combined(part, 1)

    def solve(k: int | None) -> _System:
        left = everything if k is None else everything.combined(sums[k], -1)
        z_mean, g_mean = left.z / left.count, left.g / left.count
        eigenvalues, vectors = np.linalg.eigh(left.zz - left.count * np.outer(z_mean, z_mean))
        rotated = vectors.T @ (left.zg - left.count * np.outer(z_mean, g_mean))
        return _System(z_mean + z_shift, g_mean + g_shift, vectors, np.maximum(eigenvalues, 0.0), rotated)

    return solve


def _check_finite(z: np.ndarray, g: np.ndarray) -> None:
    for what, values in (("features of the light network", z), ("gallery descriptors", g)):
        if not np.isfinite(values).all():
            raise TrainingError(f"the {what} hold numbers that are not finite", expected="numbers", remedy="check weights and gallery")
