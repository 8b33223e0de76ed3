"""A linear projection of descriptors, stored with the gallery: PCA with optional whitening, or random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.arrays import load_arrays
from asymvpr_core.config import ProjectionSettings
from asymvpr_core.errors import ArtefactError, GalleryError

_BLOCK = 4096  # rows that are projected at a time, so that a memory-mapped gallery is never in memory as a whole


@dataclass(frozen=True)
class Projection:
    """x → L2((x − mean) · matrix): `mean` (C,) and `matrix` (C, D), float32."""

    mean: np.ndarray
    matrix: np.ndarray

    @property
    def dimension(self) -> int:
        """Dimension D of the projected descriptors."""
        return int(self.matrix.shape[1])

    @property
    def sha256(self) -> str:
        """Digest of the numbers; the file's own checksum also covers the time stamps of its container."""
        return hashlib.sha256(self.mean.tobytes() + self.matrix.tobytes()).hexdigest()

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Project `(N, C)` float32 features to `(N, D)` float32, L2-normalised."""
        projected = (features - self.mean) @ self.matrix
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        return (projected / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)

    def blocks(self, features: np.ndarray) -> Iterator[np.ndarray]:
        """Project (N, C) features, memory-mapped perhaps, block by block of rows."""
        for start in range(0, len(features), _BLOCK):
            yield self(np.asarray(features[start : start + _BLOCK], dtype=np.float32))

    def save(self, path: Path) -> None:
        """Write as .npz without pickled objects."""
        np.savez(path, mean=self.mean, matrix=self.matrix)

    @staticmethod
    def load(path: Path) -> Projection:
        """Read what `save` wrote. Raises ArtefactError when it is damaged."""
        projection = Projection(*load_arrays(path, ("mean", "matrix"), "rebuild with 'asymvpr gallery build'"))
        if projection.mean.ndim != 1 or projection.matrix.ndim != 2 or len(projection.mean) != len(projection.matrix):
            raise ArtefactError(f"projection {path} has shapes {projection.mean.shape}, {projection.matrix.shape}", expected="(C,), (C, D)")
        return projection


class ProjectedNetwork(nn.Module):
    """A network and the gallery's projection behind it, as one: `(B, 3, H, W)` to `(B, D)`, L2-normalised."""

    def __init__(self, network: nn.Module, projection: Projection):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.from_numpy(projection.mean))
        self.register_buffer("matrix", torch.from_numpy(projection.matrix))

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize((self.network(images) - self.mean) @ self.matrix, dim=-1)


def make_projection(features: np.ndarray, settings: ProjectionSettings, dimension: int) -> Projection:
    """The projection that `settings` ask for, of (N, C) features to at most `dimension` dimensions.

    Raises:
        GalleryError: too few images, features without variation, or, for a random projection, more
            dimensions than the features have.
    """
    if settings.projection == "random":
        return random_projection(features.shape[1], dimension, settings.projection_seed)
    return fit_projection(_sample(features, settings), dimension, settings.whitening)


def random_projection(channels: int, dimension: int, seed: int) -> Projection:
    """A random orthogonal projection: needs no images, and keeps cosines up to an error of about 1/√dimension.

    (Johnson & Lindenstrauss, 1984; orthogonal rows as in Choromanski et al., NeurIPS 2017.)

    Raises:
        GalleryError: more dimensions than channels.
    """
    if dimension > channels:
        raise GalleryError(f"a random projection to {dimension} dimensions", expected=f"at most the network's {channels}")
    gaussian = np.random.default_rng(seed).standard_normal((channels, dimension))
    matrix, triangle = np.linalg.qr(gaussian)
    matrix *= np.sign(np.diag(triangle))  # makes the result one of the uniformly distributed ones
    return Projection(np.zeros(channels, np.float32), matrix.astype(np.float32))


def _sample(features: np.ndarray, settings: ProjectionSettings) -> np.ndarray:
    """All features, or `projection_images` of them where there are more, as float32."""
    if len(features) <= settings.projection_images:
        return np.asarray(features, dtype=np.float32)
    rows = np.sort(np.random.default_rng(settings.projection_seed).choice(len(features), settings.projection_images, replace=False))
    return np.asarray(features[rows], dtype=np.float32)


def fit_projection(features: np.ndarray, dimension: int, whitening: float) -> Projection:
    """Fit PCA on `(N, C)` features: the leading directions, each divided by its deviation^whitening.

    whitening 0 is plain PCA, 1 full whitening (Jégou & Chum, "Negative Evidences and Co-occurences
    in Image Retrieval", ECCV 2012), 0.5 the compromise that a few hundred images support. The rank of
    N centred features is at most N − 1, so that a small gallery gives fewer dimensions than asked for.

    Raises:
        GalleryError: fewer than two images, or features without any variation.
    """
    if len(features) < 2:
        raise GalleryError(f"a projection cannot be fitted on {len(features)} image(s)", expected="at least 2", remedy="use more images")
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features.astype(np.float64) - mean
    # The smaller of covariance and Gram matrix: with D = 8448 and few images the Gram matrix takes seconds.
    if len(centred) > centred.shape[1]:
        variances, directions = np.linalg.eigh(centred.T @ centred)
    else:
        variances, left = np.linalg.eigh(centred @ centred.T)
        directions = centred.T @ left / np.sqrt(np.maximum(variances, np.finfo(np.float64).tiny))
    order = np.argsort(variances)[::-1]
    # Directions below this share of the largest variance are rounding noise, which whitening would blow up.
    rank = int((variances > variances.max() * 1e-10).sum())
    order = order[: min(dimension, rank, len(features) - 1)]
    if len(order) == 0 or variances.max() <= 0:
        raise GalleryError("all images have the same features", expected="images of different places", remedy="check the source")
    directions = directions[:, order]
    # The sign of an eigenvector is arbitrary; fixing it makes two builds equal.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(order))])
    deviations = np.sqrt(variances[order] / (len(features) - 1))
    scale = (deviations / deviations.mean()) ** -whitening
    return Projection(mean.astype(np.float32), (directions * scale).astype(np.float32))
