"""Training images: a gallery's own pictures, augmented, with descriptor and place of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.transforms import v2

from asymvpr_core.config import AugmentationSettings
from asymvpr_core.errors import AsymvprError, TrainingError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.preprocess import Preprocess


class GalleryImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Items (epoch, index) → image `(3, H, W)` float32, gallery descriptor `(D,)`, place () int64.

    The augmentation is drawn from (seed, epoch, index), so that a resumed run and any number of
    loading processes see the same pictures.
    """

    def __init__(
        self,
        gallery: Gallery,
        places: np.ndarray,
        preprocess: Preprocess,
        augmentation: AugmentationSettings | None = None,
        seed: int = 0,
    ):
        self.gallery, self.places, self.preprocess, self.seed = gallery, places, preprocess, seed
        self.augment = None if augmentation is None else _transform(augmentation, preprocess)

    def __len__(self) -> int:
        return len(self.gallery)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Give one item. Raises ImageError for a picture that cannot be read."""
        epoch, index = key
        image = self.gallery.read_image(index)
        if self.augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]))
                image = self.augment(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        descriptor = torch.from_numpy(np.array(self.gallery.descriptors[index], dtype=np.float32))
        return torch.from_numpy(self.preprocess(image)), descriptor, torch.tensor(self.places[index])


class ImageLoader(DataLoader[Any]):
    """Batches of a `GalleryImages`; an error in a loading process arrives as what it was.

    torch would raise it anew with the process's whole traceback as its message.

    Raises:
        ImageError: naming the picture that cannot be read.
        TrainingError: a loading process was killed, mostly for want of shared memory.
    """

    def __init__(self, images: GalleryImages, **options: Any):
        super().__init__(_Fetched(images), collate_fn=_collate, **options)

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in super().__iter__():
                if isinstance(batch, AsymvprError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                "a process that loads images was killed",
                remedy="free memory (shared memory in a container: --shm-size), or give --workers 0",
            ) from error


class _Fetched(Dataset[Any]):
    """Items of a `GalleryImages`, or the known error that one raised."""

    def __init__(self, images: GalleryImages):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor] | AsymvprError:
        try:
            return self._images[key]
        except AsymvprError as error:
            return error


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, AsymvprError)), None) or default_collate(items)


class EpochSampler(Sampler[Any]):
    """Yields (epoch, index) in an order drawn from (seed, epoch)."""

    def __init__(self, indices: np.ndarray, seed: int):
        self.indices, self.seed, self.epoch = indices, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.indices)
        yield from ((self.epoch, int(index)) for index in order)


def fixed_views(indices: np.ndarray, first_epoch: int, views: int = 1) -> list[tuple[int, int]]:
    """Keys (epoch, index) that are the same at every pass: each index once in each of `views` epochs."""
    return [(epoch, int(index)) for epoch in range(first_epoch, first_epoch + views) for index in indices]


def _transform(settings: AugmentationSettings, preprocess: Preprocess) -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomPerspective(settings.perspective, p=0.5 if settings.perspective > 0 else 0.0),
            v2.RandomResizedCrop(
                (preprocess.height, preprocess.width), scale=(settings.crop_scale_min, 1.0), ratio=(0.8, 1.25), antialias=True
            ),
            v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue),
        ]
    )
