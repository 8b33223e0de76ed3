"""Training images: a gallery's own pictures, augmented, with descriptor, place and index of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from asymvpr_core.config import AugmentationSettings
from asymvpr_core.errors import AsymvprError, TrainingError
from asymvpr_core.gallery.several import AnyGallery
from asymvpr_core.preprocess import Preprocess

_CROP_RATIOS = (0.8, 1.25)

Item = tuple[Tensor, Tensor, Tensor, Tensor]


class GalleryImages(Dataset[Item]):
    """Items (epoch, index) → image `(3, H, W)` float32, gallery descriptor `(D,)`, place () int64, gallery index () int64.

    The augmentation is drawn from (seed, epoch, index), so that a resumed run and any number of
    loading processes see the same pictures.
    """

    def __init__(
        self,
        gallery: AnyGallery,
        places: np.ndarray,
        preprocess: Preprocess,
        augmentation: AugmentationSettings | None = None,
        seed: int = 0,
    ):
        self.gallery, self.places, self.preprocess, self.seed = gallery, places, preprocess, seed
        self.augment = None if augmentation is None else _transform(augmentation, preprocess)
        self.crop_scale_min = 1.0 if augmentation is None else augmentation.crop_scale_min

    def __len__(self) -> int:
        return len(self.gallery)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Give one item. Raises ImageError for a picture that cannot be read."""
        _, index = key
        image = self.picture(key)
        return torch.from_numpy(self.preprocess(image)), *self.target(index), torch.tensor(index)

    def target(self, index: int) -> tuple[Tensor, Tensor]:
        """Gallery descriptor `(D,)` float32 and place () int64 of an image."""
        return torch.from_numpy(np.array(self.gallery.descriptors[index], dtype=np.float32)), torch.tensor(self.places[index])

    def picture(self, key: tuple[int, int]) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the picture of one item, augmented. Raises ImageError for a picture that cannot be read."""
        epoch, index = key
        image = self.gallery.read_image(index)
        if self.augment is None:
            return image
        image = _shrink(image, self.preprocess, self.crop_scale_min)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]))
            return np.ascontiguousarray(self.augment(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy())


class ImageLoader(DataLoader[Any]):
    """Batches of a `GalleryImages`, or of what has the same items; an error in a loading process arrives as what it was.

    torch would raise it anew with the process's whole traceback as its message.

    Raises:
        ImageError: naming the picture that cannot be read.
        TrainingError: a loading process was killed, mostly for want of shared memory.
    """

    def __init__(self, images: Dataset[Item], **options: Any):
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
    """Items of `images`, or the known error that one raised."""

    def __init__(self, images: Dataset[Item]):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> Item | AsymvprError:
        try:
            return self._images[key]
        except AsymvprError as error:
            return error


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, AsymvprError)), None) or default_collate(items)


def _shrink(image: np.ndarray, preprocess: Preprocess, crop_scale_min: float) -> np.ndarray:
    """The picture, no larger than its smallest crop needs it: perspective and crop of a large one cost most of the loading."""
    needed = max(preprocess.height, preprocess.width) / math.sqrt(crop_scale_min * _CROP_RATIOS[0])
    height, width = image.shape[:2]
    factor = needed / min(height, width)
    if factor >= 1.0:
        return image
    return cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)


def _transform(settings: AugmentationSettings, preprocess: Preprocess) -> v2.Transform:
    operations = settings.rand_augment_ops
    return v2.Compose(
        [
            v2.RandomPerspective(settings.perspective, p=0.5 if settings.perspective > 0 else 0.0),
            v2.RandomResizedCrop(
                (preprocess.height, preprocess.width), scale=(settings.crop_scale_min, 1.0), ratio=_CROP_RATIOS, antialias=True
            ),
            v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue),
            *([v2.RandAugment(operations, settings.rand_augment_magnitude)] if operations > 0 else []),
        ]
    )
