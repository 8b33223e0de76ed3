"""Rows of large arrays on disk, read without mapping them into memory.

A memory map counts as the process's memory for as long as its pages lie in the page cache. Written are
such arrays with `asymvpr_core.row_file`.
"""

from __future__ import annotations

import mmap

import numpy as np

from asymvpr_core.errors import MemoryBankError
from asymvpr_core.gallery.several import StackedRows

# What is read a block of rows at a time: an array, mostly a memory map, or several one after another.
Rows = np.ndarray | StackedRows


def read_rows(descriptors: Rows, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` in their own type; of a memory-mapped file as a copy that is freed after use.

    Raises:
        MemoryBankError: the file has become shorter than its header says.
    """
    stop = min(stop, len(descriptors))
    if isinstance(descriptors, StackedRows):
        return descriptors.read(start, stop, read_rows)
    file_name, owner = getattr(descriptors, "filename", None), _owner(descriptors)
    # A slice of a map carries the offset of the whole: only a whole map may be read as a file.
    if file_name is None or not isinstance(owner, mmap.mmap) or not descriptors.flags.c_contiguous:
        return np.asarray(descriptors[start:stop])
    row = descriptors[0].size if len(descriptors) > 0 else 0
    offset = int(getattr(descriptors, "offset", 0)) + start * row * descriptors.itemsize
    values = np.fromfile(file_name, dtype=descriptors.dtype, count=(stop - start) * row, offset=offset)
    if values.size != (stop - start) * row:
        raise MemoryBankError(f"{file_name} ends before row {stop}", remedy="build the gallery again")
    return values.reshape(stop - start, *descriptors.shape[1:])


def take_rows(descriptors: Rows, indices: np.ndarray) -> np.ndarray:
    """The rows at `indices`, neighbouring ones in one read, without mapping them into memory.

    Raises:
        MemoryBankError: as `read_rows`.
    """
    if len(indices) == 0:
        return read_rows(descriptors, 0, 0)
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    return np.concatenate([read_rows(descriptors, int(run[0]), int(run[-1]) + 1) for run in runs])


def _owner(array: np.ndarray) -> object:
    return array.base
