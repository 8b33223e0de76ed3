"""In which order images are trained on: any images, or several of each place; divided over the processes of a training.

The samplers ask for their process's number when they are iterated: spawned processes get theirs only then.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import distributed
from torch.utils.data import Sampler

from asymvpr_core.errors import TrainingError

Key = tuple[int, int]  # (epoch, gallery index)

# Epoch number of the image as it is, without augmentation, where one set of images has both.
PLAIN_EPOCH = 3_000_000


class EpochSampler(Sampler[Key]):
    """Yields (epoch, index) in an order drawn from (seed, epoch); of several processes, each gets its share.

    All processes get equally many: up to `world_size` − 1 images of an epoch, other ones each time, are left out.
    """

    def __init__(self, indices: np.ndarray, seed: int, world_size: int = 1):
        self.indices, self.seed, self.epoch, self.world_size = indices, seed, 0, world_size

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices) // self.world_size

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.indices)
        own = order[_rank() :: self.world_size][: len(self)]
        yield from ((self.epoch, int(index)) for index in own)


class PlaceBatchSampler(Sampler[list[Key]]):
    """Yields batches of P places with up to K images each, as losses over pairs need them, drawn from (seed, epoch).

    The images of a place are dealt out in groups of K, the last one smaller; a group of one image has
    no pair and is left out, and so are places with one image. P = `batch_size` // K groups make a batch,
    in which a place with more than K images may come twice.

    Args:
        indices: (N,) gallery indices to train on.
        places: place of every gallery image.

    Raises:
        TrainingError: no place with two images, or too few groups for one batch of every process.
    """

    def __init__(self, indices: np.ndarray, places: np.ndarray, batch_size: int, images_per_place: int, seed: int, world_size: int = 1):
        self.seed, self.epoch, self.world_size = seed, 0, world_size
        self._k = images_per_place
        self._groups_per_batch = max(1, batch_size // images_per_place)
        order = np.argsort(places[indices], kind="stable")
        members = np.split(indices[order], np.unique(places[indices][order], return_index=True)[1][1:])
        self._members = [place for place in members if len(place) >= 2]
        self._groups = sum(len(place) // self._k + (len(place) % self._k >= 2) for place in self._members)
        if not self._groups:
            raise TrainingError(
                "no place has two images to train on", expected="pairs of one place, of which the loss is made", remedy="use larger cells"
            )
        if self._groups < world_size:
            raise TrainingError(f"{self._groups} groups of images for {world_size} processes", expected="at least one each")

    @property
    def sampler(self) -> PlaceBatchSampler:
        """What Lightning looks for `set_epoch` on."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        own = self._groups // self.world_size
        return max(1, own // self._groups_per_batch)

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        groups = []
        for members in self._members:
            shuffled = rng.permutation(members)
            parts = [shuffled[start : start + self._k] for start in range(0, len(shuffled), self._k)]
            groups += [part for part in parts if len(part) >= 2]
        order = rng.permutation(len(groups))[_rank() :: self.world_size]
        for batch in range(len(self)):
            chosen = order[batch * self._groups_per_batch : (batch + 1) * self._groups_per_batch]
            yield [(self.epoch, int(index)) for group in chosen for index in groups[group]]


class ShareSampler(Sampler[Key]):
    """Yields this process's share of fixed keys, each key in exactly one process."""

    def __init__(self, keys: list[Key], world_size: int = 1):
        self.keys, self.world_size = keys, world_size

    def __len__(self) -> int:
        return len(self.keys[_rank() :: self.world_size])

    def __iter__(self) -> Iterator[Key]:
        yield from self.keys[_rank() :: self.world_size]


def _rank() -> int:
    """Number of this process in the training; 0 where there is one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def fixed_views(indices: np.ndarray, first_epoch: int, views: int = 1) -> list[Key]:
    """Keys (epoch, index) that are the same at every pass: each index once in each of `views` epochs."""
    return [(epoch, int(index)) for epoch in range(first_epoch, first_epoch + views) for index in indices]
