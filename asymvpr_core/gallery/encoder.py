"""The heavy side for single images: the gallery network and the gallery's own projection.

Has the interface of `deploy.runtime.QueryModel`, so that evaluation can put either on the query side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.store import PROJECTION, Gallery
from asymvpr_core.manifest import verify_files
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import LoadedNetwork, load_network
from asymvpr_core.networks.projection import Projection
from asymvpr_core.preprocess import Preprocess


@dataclass(frozen=True)
class GalleryEncoder:
    """Describes images as the gallery was described."""

    network: LoadedNetwork
    projection: Projection | None
    dimension: int

    @staticmethod
    def open(gallery: Gallery, threads: int, weights: Path | None = None) -> GalleryEncoder:
        """Load the network that made `gallery`, and its projection.

        Raises:
            NetworkError: weights missing or damaged.
            ArtefactError: other weights than the gallery's, or a damaged projection.
        """
        prepare_cpu(threads)
        identity = gallery.manifest.gallery_network
        network = load_network(identity.name, weights)
        if network.weights_sha256 != identity.weights_sha256:
            raise ArtefactError(
                f"the weights of {identity.name} have checksum {network.weights_sha256[:12]}",
                expected=f"{identity.weights_sha256[:12]}, with which {gallery.path} was built",
                remedy="give the gallery's own weights file with --weights",
            )
        projection = None
        if identity.projection_sha256 is not None:
            verify_files(gallery.path, gallery.manifest, [PROJECTION])
            projection = Projection.load(gallery.path / PROJECTION)
        return GalleryEncoder(network, projection, identity.dimension)

    @property
    def preprocess(self) -> Preprocess:
        """The network's image transform."""
        return self.network.spec.preprocess

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The network's input for one `(H, W, 3)` uint8 RGB image: `(3, H, W)` float32. Raises ImageError for another shape or type."""
        return self.preprocess(image)

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Describe one `(H, W, 3)` uint8 RGB image: `(D,)` float32, L2-normalised."""
        return self.encode_batch(self.prepare(image)[np.newaxis])[0]

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        """Describe images that `prepare` has made, `(B, 3, H, W)` float32: `(B, D)` float32, L2-normalised."""
        with torch.inference_mode():
            features = self.network.module(torch.from_numpy(inputs)).numpy()
        return features if self.projection is None else self.projection(features)
