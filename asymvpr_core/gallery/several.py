"""Several galleries of one pair, read as one: the rows of the first, then those of the second, and so on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.store import DESCRIPTORS, KEYFRAMES, Gallery
from asymvpr_core.manifest import GalleryNetworkIdentity
from asymvpr_core.types import Keyframe


class StackedRows:
    """Rows of several (N_i, D) arrays one after another, as one (N, D) array that is never put together in memory.

    Takes what reading rows needs: an index, a slice with step 1, or an array of indices. What comes back is a
    numpy array of `dtype`, the widest type among the parts.
    """

    ndim = 2

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self.dtype = np.result_type(*(part.dtype for part in parts))
        self.shape = (int(self.starts[-1]), int(parts[0].shape[1]))
        self.itemsize = self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows in memory, where a caller cannot do with less."""
        return np.asarray(self[0 : len(self)], dtype=dtype)

    def __getitem__(self, rows: int | np.integer | slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self.read(start, stop, lambda part, first, last: part[first:last])
        chosen = np.atleast_1d(np.asarray(rows))
        if not ((chosen >= 0) & (chosen < len(self))).all():
            raise IndexError(f"row {rows} of {len(self)}")
        found = np.empty((*chosen.shape, self.shape[1]), self.dtype)
        owner = np.searchsorted(self.starts, chosen, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            found[mine] = self.parts[number][chosen[mine] - self.starts[number]]
        return found if np.ndim(rows) else found[0]

    def read(self, start: int, stop: int, read_part: Callable[[np.ndarray, int, int], np.ndarray]) -> np.ndarray:
        """Rows `start` to `stop`, of each part those that `read_part(part, first, last)` gives."""
        pieces = []
        for part, offset in zip(self.parts, self.starts, strict=False):  # one more start than parts: the end
            first, last = max(start - int(offset), 0), min(stop - int(offset), len(part))
            if first < last:
                pieces.append(read_part(part, first, last).astype(self.dtype, copy=False))
        return np.concatenate(pieces) if pieces else np.empty((0, self.shape[1]), self.dtype)


@dataclass(frozen=True)
class GallerySet:
    """Two galleries or more, all of one pair: what a training reads of a `Gallery`, of all of them in their order."""

    galleries: tuple[Gallery, ...]

    def __len__(self) -> int:
        return sum(len(gallery) for gallery in self.galleries)

    @property
    def gallery_network(self) -> GalleryNetworkIdentity:
        """The pair of all of them."""
        return self.galleries[0].gallery_network

    @cached_property
    def descriptors(self) -> StackedRows:
        """(N, D), L2-normalised, memory-mapped."""
        return StackedRows([gallery.descriptors for gallery in self.galleries])

    @cached_property
    def keyframes(self) -> list[Keyframe]:
        """Of all galleries; poses of different galleries are in frames of their own."""
        return [keyframe for gallery in self.galleries for keyframe in gallery.keyframes]

    def image_path(self, index: int) -> Path:
        """Path of the picture of keyframe `index`."""
        gallery, row = self._locate(index)
        return gallery.image_path(row)

    def read_image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB picture of keyframe `index`. Raises ImageError when it cannot be read."""
        gallery, row = self._locate(index)
        return gallery.read_image(row)

    def _locate(self, index: int) -> tuple[Gallery, int]:
        starts = self.descriptors.starts
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return self.galleries[number], int(index - starts[number])

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the galleries itself, as with `Gallery`."""
        return GallerySet, (self.galleries,)


# What a training, a bank and neighbour lists are made from.
AnyGallery = Gallery | GallerySet


def galleries_of(gallery: AnyGallery) -> tuple[Gallery, ...]:
    """The galleries of a set, or the one gallery."""
    return gallery.galleries if isinstance(gallery, GallerySet) else (gallery,)


def check_one_pair(galleries: Sequence[Gallery]) -> None:
    """Raise ArtefactError for the first gallery that is of another pair than the one given first."""
    first = galleries[0]
    for gallery in galleries:
        if gallery.gallery_network.pair_id != first.gallery_network.pair_id:
            raise ArtefactError(
                f"gallery {gallery.path} was made by ({gallery.gallery_network}), {first.path} by ({first.gallery_network})",
                expected="galleries of one pair", remedy=f"build {gallery.path} with --projection-from {first.path}",
            )  # fmt: skip


def open_galleries(paths: Path | Sequence[Path], *, verify: bool = True) -> AnyGallery:
    """One gallery as a `Gallery`, several as a `GallerySet` in the order given; `verify` as in `Gallery.open`.

    Raises:
        ArtefactError: a gallery that is damaged, given twice, or of another pair than the first; or none at all.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    if not several:
        raise ArtefactError("no gallery is given", expected="at least one")
    galleries = [Gallery.open(Path(path), verify=verify) for path in several]
    check_one_pair(galleries)
    seen: dict[tuple[str, str], Gallery] = {}
    for gallery in galleries:
        content = (gallery.manifest.files[DESCRIPTORS].sha256, gallery.manifest.files[KEYFRAMES].sha256)
        if content in seen:
            # Each place would be a negative of itself.
            raise ArtefactError(
                f"{gallery.path} holds the images of {seen[content].path}", expected="galleries of different images", remedy="give it once"
            )
        seen[content] = gallery
    return galleries[0] if len(galleries) == 1 else GallerySet(tuple(galleries))
