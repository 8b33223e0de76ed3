"""The start of a training: the light network's features of the gallery's images, aligned with their descriptors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.memory.origin import gallery_digest
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.progress import Progress
from asymvpr_core.row_file import RowFile
from asymvpr_core.training import hardware
from asymvpr_core.training.alignment import align
from asymvpr_core.training.cached_views import CachedViews
from asymvpr_core.training.data import GalleryImages, ImageLoader, Item
from asymvpr_core.training.fit import TrainingImages
from asymvpr_core.training.samplers import fixed_views

# Epoch number of the augmentation apart from those of the fine-tuning.
_ALIGNMENT_EPOCH = 1_000_000


def align_network(
    network: QueryNetwork, images: TrainingImages, settings: TrainSettings, folder: Path, progress: Progress,
    views: CachedViews | None = None,
) -> dict[str, float]:  # fmt: skip
    """Set the network's last layer in closed form; returns what the run's manifest says of it.

    Features that a killed run, or another run with the same start, left in `folder` are used again. With `views`, the
    augmented copies are the first of those.

    Raises:
        ImageError: naming an image that cannot be read.
        TrainingError: a network without a linear layer.
    """
    if not network.has_linear_head:
        raise TrainingError(
            f"{network.spec.name} has the gallery's {network.spec.dimension} dimensions itself and no features to align",
            expected="a backbone and an aggregator",
            remedy="give --init random, or a gallery with a projection",
        )
    cache = folder / f"features_{_digest_of_start(network, images, settings, views)}.npy"
    copies = 1 + settings.alignment_copies
    if not cache.exists():
        partial = cache.with_name(f".{cache.name}.partial")
        partial.unlink(missing_ok=True)
        _write_features(partial, network, images, settings, progress, views)
        os.replace(partial, cache)
    features = np.load(cache, mmap_mode="r", allow_pickle=False)
    rows = np.tile(images.training, copies)
    alignment = align(features, images.gallery.descriptors, images.places[rows], rows=rows, seed=settings.seed, progress=progress)
    network.set_head(alignment.weight, alignment.bias)
    return {"ridge": alignment.ridge, "held_out_cosine": alignment.held_out_cosine, "copies": copies}


def _digest_of_start(network: QueryNetwork, images: TrainingImages, settings: TrainSettings, views: CachedViews | None) -> str:
    """Short name of everything that the features depend on."""
    values = {
        "gallery": gallery_digest(images.gallery), "network": network.spec.name, "channels": network.head_channels,
        "settings": settings.model_dump(mode="json", include={"alignment_copies", "augmentation", "batch_size"}),
        "seed": settings.seed if views is None else settings.resolved_view_seed,
        "training": hashlib.sha256(images.training.tobytes()).hexdigest(),
        "views": None if views is None else settings.frozen_share,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _write_features(
    path: Path, network: QueryNetwork, images: TrainingImages, settings: TrainSettings, progress: Progress, views: CachedViews | None
) -> None:
    """(copies·N, C): features of the training images as they are, then of augmented copies of them."""
    preprocess, device = network.spec.preprocess, hardware.device(settings)
    if views is None:
        plain: Dataset[Item] = GalleryImages(images.gallery, images.places, preprocess)
        augmented: Dataset[Item] = GalleryImages(images.gallery, images.places, preprocess, settings.augmentation, settings.seed)
        keys = [fixed_views(images.training, first_epoch=_ALIGNMENT_EPOCH + copy) for copy in range(1 + settings.alignment_copies)]
        pooled: Callable[[Tensor], Tensor] = network.pooled
        workers = settings.workers
    else:
        plain = augmented = views
        keys = [views.view_keys(images.training, copy) for copy in range(1 + settings.alignment_copies)]
        pooled, workers = views.prefix.pooled, 0
    network.eval().to(device)
    file, row = RowFile(path, (len(keys) * len(images.training), network.head_channels), np.float32), 0
    for copy, sampler in enumerate(keys):
        loader = ImageLoader(
            plain if copy == 0 else augmented,
            batch_size=settings.batch_size,
            sampler=sampler,
            num_workers=workers,
        )
        what = "align" if copy == 0 else f"align, augmented copy {copy}"
        with torch.inference_mode():
            for batch, *_ in progress(loader, what, len(loader)):
                file.write(row, pooled(batch.to(device)).cpu().numpy())
                row += len(batch)
    file.close()
    network.cpu()
