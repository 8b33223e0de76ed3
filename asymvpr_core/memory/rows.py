"""Rows of large arrays on disk, read and written without mapping them into memory.

A memory map counts as the process's memory for as long as its pages lie in the page cache, and a
map that is written to ends the process with SIGBUS when the disk is full.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

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


class RowFile:
    """An .npy matrix whose rows are written in any order; its space is taken at once, so that a full disk shows early.

    Args:
        path: created, or opened again where a file of the same shape and type is there.
        shape: (rows, columns).
        dtype: of the stored numbers.

    Raises:
        OSError: disk full or no permission.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype | type):
        self.path, self._dtype = path, np.dtype(dtype)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        if not path.exists():
            with open(path, "wb") as file:
                np.lib.format.write_array_header_2_0(file, header)
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_2_0(file)
            self._start, self._row_bytes = file.tell(), shape[1] * self._dtype.itemsize
        self._descriptor = os.open(path, os.O_RDWR)
        total = self._start + shape[0] * self._row_bytes
        if total > self._start:
            os.posix_fallocate(self._descriptor, 0, total)

    def write(self, row: int, values: np.ndarray) -> None:
        """Store one row, or several from `row` on, rounded to the file's type."""
        data = np.ascontiguousarray(values, dtype=self._dtype).data.cast("B") if np.size(values) else b""
        position = self._start + row * self._row_bytes
        while len(data) > 0:
            written = os.pwrite(self._descriptor, data, position)
            data, position = data[written:], position + written

    def flush(self) -> None:
        """Wait until everything that was written is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        self.flush()
        os.close(self._descriptor)
