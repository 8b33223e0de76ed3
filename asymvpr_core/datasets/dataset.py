"""What every dataset offers to the stages behind it, whatever its layout on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from asymvpr_core.types import ImageRecord


class Dataset(Protocol):
    """Images with poses, in a fixed order.

    `records[i]` describes image i. `map_frame` names the frame of all poses ("utm31U", "map", …).
    `root` is the folder that record names are relative to, or the bag.
    `layout` is "folder", "csv" or "bag".
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
