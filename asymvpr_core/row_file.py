"""Large arrays on disk, written row by row and not through a memory map.

A map that is written to ends the process with SIGBUS, without a word, when the disk is full.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


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
            try:
                os.posix_fallocate(self._descriptor, 0, total)
            except OSError:
                os.close(self._descriptor)
                raise

    def write(self, row: int, values: np.ndarray) -> None:
        """Store one row, or several from `row` on, rounded to the file's type."""
        data = np.ascontiguousarray(values, dtype=self._dtype).data.cast("B") if np.size(values) else b""
        position = self._start + row * self._row_bytes
        while len(data) > 0:
            written = os.pwrite(self._descriptor, data, position)
            data, position = data[written:], position + written

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.flush()
        os.close(self._descriptor)

    def flush(self) -> None:
        """Wait until everything that was written is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        self.flush()
        os.close(self._descriptor)
