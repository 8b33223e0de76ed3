"""The start of a training: the light network's features of the gallery's images, aligned with their descriptors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.progress import Progress
from asymvpr_core.resumable import save_piece
from asymvpr_core.training import hardware
from asymvpr_core.training.alignment import align
from asymvpr_core.training.data import GalleryImages, ImageLoader
from asymvpr_core.training.fit import TrainingImages
from asymvpr_core.training.samplers import fixed_views

# Epoch number of the augmentation apart from those of the fine-tuning.
_ALIGNMENT_EPOCH = 1_000_000


def align_network(
    network: QueryNetwork, images: TrainingImages, settings: TrainSettings, work: Path, progress: Progress
) -> dict[str, float]:
    """Set the network's last layer in closed form; returns what the run's manifest says of it.

    Features that a killed run left in `work` are used again.

    Raises:
        ImageError: naming an image that cannot be read.
        TrainingError: a network without a linear layer.
    """
    if not network.has_linear_head:
        raise TrainingError(
            f"{network.spec.name} has the gallery's {network.spec.dimension} dimensions itself and no linear layer to align",
            remedy="give --init random, or a gallery with a projection",
        )
    cache = work / "features.npy"
    if not cache.exists():
        features = _pooled_features(network, images, settings, progress)
        save_piece(cache, lambda file: np.save(file, features, allow_pickle=False))
    features = np.load(cache, allow_pickle=False)
    copies = len(features) // len(images.training)
    rows = np.tile(images.training, copies)
    alignment = align(features, np.asarray(images.gallery.descriptors[rows]), images.places[rows], seed=settings.seed, progress=progress)
    network.set_head(alignment.weight, alignment.bias)
    return {"ridge": alignment.ridge, "held_out_cosine": alignment.held_out_cosine, "copies": copies}


def _pooled_features(network: QueryNetwork, images: TrainingImages, settings: TrainSettings, progress: Progress) -> np.ndarray:
    """(copies·N, C): features of the training images as they are, then of augmented copies of them."""
    preprocess, device = network.spec.preprocess, hardware.device(settings)
    plain = GalleryImages(images.gallery, images.places, preprocess)
    augmented = GalleryImages(images.gallery, images.places, preprocess, settings.augmentation, settings.seed)
    network.eval().to(device)
    rows = []
    for copy in range(1 + settings.alignment_copies):
        loader = ImageLoader(
            plain if copy == 0 else augmented,
            batch_size=settings.batch_size,
            sampler=fixed_views(images.training, first_epoch=_ALIGNMENT_EPOCH + copy),
            num_workers=settings.workers,
        )
        what = "align" if copy == 0 else f"align, augmented copy {copy}"
        with torch.inference_mode():
            rows += [network.encoder(batch.to(device)).cpu().numpy() for batch, *_ in progress(loader, what, len(loader))]
    network.cpu()
    return np.concatenate(rows)
