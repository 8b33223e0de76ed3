"""Reading the images of a dataset that are files below its root."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from asymvpr_core.image_decoding import decode_image, read_image_file
from asymvpr_core.types import ImageRecord

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def read_encoded_files(root: Path, records: Sequence[ImageRecord], indices: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Yield (index, bytes of the file) in the order of `indices`.

    Raises:
        ImageError: a file that is missing or cannot be read.
    """
    for index in indices:
        yield index, read_image_file(root / records[index].name)


def read_image_files(root: Path, records: Sequence[ImageRecord], indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, `(H, W, 3)` uint8 RGB) in the order of `indices`.

    Raises:
        ImageError: a file that is missing, truncated or no image.
    """
    for index, data in read_encoded_files(root, records, indices):
        yield index, decode_image(data, str(root / records[index].name))
