"""Training images: a gallery's own pictures, augmented, with descriptor and place of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from asymvpr_core.config import AugmentationSettings
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
        epoch, index = key
        image = self.gallery.read_image(index)
        if self.augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]))
                image = self.augment(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        descriptor = torch.from_numpy(np.array(self.gallery.descriptors[index], dtype=np.float32))
        return torch.from_numpy(self.preprocess(image)), descriptor, torch.tensor(self.places[index])


class EpochSampler(Sampler[Any]):
    """Yields (epoch, index) in an order drawn from (seed, epoch), or ascending without shuffle."""

    def __init__(self, indices: np.ndarray, seed: int, shuffle: bool = True):
        self.indices, self.seed, self.shuffle, self.epoch = indices, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = self.indices
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.indices)
        yield from ((self.epoch, int(index)) for index in order)


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
