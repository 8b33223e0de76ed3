"""Augmented views of the training images as the frozen stages see them, computed once and kept on disk.

With frozen stages a training step spends most of its time on what never changes. `cached_views` V
makes V augmented views of every image beforehand, runs them through the frozen stages, and lets
the steps start from there. They are float16: half the disk, and a rounding far below the augmentation.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.memory.origin import gallery_digest
from asymvpr_core.networks.frozen_prefix import FrozenPrefix
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.progress import Progress
from asymvpr_core.row_file import RowFile
from asymvpr_core.training import hardware
from asymvpr_core.training.data import GalleryImages, ImageLoader, Item
from asymvpr_core.training.fit import TrainingImages
from asymvpr_core.training.samplers import PLAIN_EPOCH, Key, fixed_views

# View v of an image, v = 1 … V, is augmented as in epoch _FIRST + v, apart from the epochs of all others.
_FIRST = PLAIN_EPOCH

_DTYPE = np.float16


class CachedViews(Dataset[Item]):
    """Items (epoch, index) like those of `GalleryImages`, with features of the frozen stages in the place of the image.

    In V epochs, one after the other, an image shows each of its V views once; with which it begins is
    drawn from (seed, index). The epoch `PLAIN_EPOCH` is the image as it is; `view_keys` name views.

    Args:
        views: (N, …) features: the plain image where it is there, then the V views.
        pictures: `GalleryImages` with the augmentation of the views, for their descriptors and places.
        seed: of the training, not of the views.
    """

    def __init__(self, prefix: FrozenPrefix, plain: np.ndarray | None, views: list[np.ndarray], pictures: GalleryImages, seed: int):
        self.prefix, self.pictures = prefix, pictures
        self._plain, self._views = plain, views
        self._first = np.random.default_rng(seed).integers(max(1, len(views)), size=len(pictures))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        if epoch == PLAIN_EPOCH and self._plain is not None:
            features = self._plain[index]
        else:
            features = self._views[self.view_of(epoch, index) - 1][index]
        descriptor, place = self.pictures.target(index)
        return torch.from_numpy(features.astype(np.float32)), descriptor, place, torch.tensor(index)

    def view_of(self, epoch: int, index: int) -> int:
        """Number of the view, 1 … V, that an image shows in an epoch."""
        if epoch > _FIRST:
            return epoch - _FIRST
        return int((self._first[index] + epoch) % len(self._views)) + 1

    def view_keys(self, indices: np.ndarray, first: int, views: int = 1) -> list[Key]:
        """Keys of the images' views `first`, `first` + 1, …, of which there are at most V; 0 is the image as it is.

        `pictures` gives the pictures of the same keys, but for those of view 0.
        """
        return fixed_views(indices, first_epoch=_FIRST + first, views=min(views, len(self._views) + 1 - first))


def cache_views(network: QueryNetwork, images: TrainingImages, settings: TrainSettings, folder: Path, progress: Progress) -> CachedViews:
    """The views of all images of the gallery; those that are in `folder` already are used again, also by other losses and seeds.

    A killed run goes on with the view that was not finished.

    Raises:
        ImageError: naming an image that cannot be read.
        NetworkError: no stage is frozen, or the stages do not follow one another.
        TrainingError: features that are not finite in float16.
        OSError: the disk is full.
    """
    prefix = FrozenPrefix(network, settings.frozen_share)
    preprocess = network.spec.preprocess
    network.eval()
    noise = torch.rand(1, 3, preprocess.height, preprocess.width, generator=torch.Generator().manual_seed(0))
    prefix.check(noise)
    plain = GalleryImages(images.gallery, images.places, preprocess)
    augmented = GalleryImages(images.gallery, images.places, preprocess, settings.augmentation, settings.resolved_view_seed)
    with torch.inference_mode():
        shape = tuple(prefix.features(noise).shape[1:])
    digest = _digest_of_views(network, images, settings)
    wants_plain = settings.init == "aligned" or settings.loss == "symmetric"
    wanted = settings.cached_views if settings.epochs > 0 else settings.alignment_copies
    kept = []
    for view in range(0 if wants_plain else 1, wanted + 1):
        path = folder / f"views_{digest}_{view}.npy"
        if not path.exists():
            partial = path.with_name(f".{path.name}.partial")
            partial.unlink(missing_ok=True)
            what = f"view {view} of {wanted}" if view > 0 else "images as they are"
            _write_view(partial, prefix, network, augmented if view > 0 else plain, _FIRST + view, shape, settings, what, progress)
            os.replace(partial, path)
        kept.append(np.load(path, mmap_mode="r", allow_pickle=False).reshape(len(plain), *shape))
    network.cpu()
    first = kept.pop(0) if wants_plain else None
    return CachedViews(prefix, first, kept, augmented, settings.seed)


def _write_view(
    path: Path, prefix: FrozenPrefix, network: QueryNetwork, pictures: GalleryImages, epoch: int, shape: tuple[int, ...],
    settings: TrainSettings, what: str, progress: Progress,
) -> None:  # fmt: skip
    device = hardware.device(settings)
    network.to(device)
    file, row = RowFile(path, (len(pictures), int(np.prod(shape))), _DTYPE), 0
    keys = fixed_views(np.arange(len(pictures)), first_epoch=epoch)
    loader = ImageLoader(pictures, batch_size=settings.batch_size, sampler=keys, num_workers=settings.workers)
    with torch.inference_mode():
        for batch, *_ in progress(loader, what, len(loader)):
            features = prefix.features(batch.to(device)).flatten(1).cpu().numpy().astype(_DTYPE)
            if not np.isfinite(features).all():
                raise TrainingError(
                    "features of the frozen stages are not finite in half precision", remedy="set cached_views to 0, or check the weights"
                )
            file.write(row, features)
            row += len(batch)
    file.close()


def _digest_of_views(network: QueryNetwork, images: TrainingImages, settings: TrainSettings) -> str:
    """Short name of everything that the features depend on; neither the loss nor the training's seed are among it."""
    weights = hashlib.sha256()
    for name, tensor in network.encoder.state_dict().items():
        weights.update(name.encode() + tensor.cpu().numpy().tobytes())
    values = {
        "gallery": gallery_digest(images.gallery), "network": network.spec.name, "weights": weights.hexdigest(),
        "preprocess": network.spec.preprocess.model_dump(mode="json"), "frozen": len(network.frozen_parts(settings.frozen_share)),
        "seed": settings.resolved_view_seed, "augmentation": settings.augmentation.model_dump(mode="json"), "dtype": np.dtype(_DTYPE).name,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
