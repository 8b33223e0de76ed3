"""What every dataset offers to the stages behind it, whatever its layout on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from asymvpr_core.datasets.image_files import read_encoded_files, read_image_files
from asymvpr_core.types import ImageRecord


class Dataset(Protocol):
    """Images with poses, in a fixed order.

    `records[i]` describes image i. `map_frame` names the frame of all poses ("utm31U", "map", …).
    `root` is the folder that record names are relative to, or the bag.
    `layout` says how it lies on disk ("folder", "csv", "bag", "gsv_cities", …); only a bag's images are no files.
    """

    root: Path
    layout: str
    map_frame: str
    records: list[ImageRecord]

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (index, encoded image file) in the order of `indices`, which must be ascending.

        Folders and csv give the file's bytes. Bags give the payload of a CompressedImage as it
        is, and a raw Image as PNG, reading the bag once from front to back.
        """
        ...

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, `(H, W, 3)` uint8 RGB) in the order of `indices`, which must be ascending."""
        ...


class FileDataset:
    """Images that are files below one folder; satisfies `Dataset`, whatever read the positions.

    `records[i].name` is the path of image i relative to `root`. `missing` are images that an index
    lists and that are not there; they are not among the records.
    """

    def __init__(self, root: Path, layout: str, map_frame: str, records: list[ImageRecord], missing: Sequence[str] = ()):
        self.root, self.layout, self.map_frame, self.records = Path(root), layout, map_frame, records
        self.missing = tuple(missing)

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]:
        """As in `Dataset`. Raises ImageError for a file that cannot be read."""
        return read_encoded_files(self.root, self.records, indices)

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """As in `Dataset`. Raises ImageError for a file that cannot be decoded."""
        return read_image_files(self.root, self.records, indices)
