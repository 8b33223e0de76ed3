"""Arrays on disk (.npy, .npz) from whomever: no pickled objects, and no memory for more than the file holds."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asymvpr_core.errors import ArtefactError

# Compressed members become so many bytes in all. Those of a query model's self-test are some megabytes; a bomb of ten
# megabytes would become ten gigabytes.
_MAX_INFLATED_BYTES = 256 << 20


def open_array(path: Path, remedy: str) -> np.ndarray:
    """An .npy file as a read-only memory map; an array without rows is read.

    Raises:
        ArtefactError: missing, no regular file, truncated, damaged, or with pickled objects.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ArtefactError(f"{path} is no regular file", expected="an .npy file", remedy=remedy)
        with open(path, "rb") as file:
            shape = _check_header(file, os.fstat(file.fileno()).st_size)
        array: np.ndarray = np.load(path, mmap_mode=None if 0 in shape else "r", allow_pickle=False)
    except ArtefactError:
        raise
    except Exception as error:  # numpy's reader of headers lets errors of Python's parser and tokenizer through
        raise _unreadable(path, error, remedy) from error
    return array


def load_arrays(path: Path, names: tuple[str, ...], remedy: str) -> tuple[np.ndarray, ...]:
    """Read the named arrays of an .npz file, in the order of `names`.

    Raises:
        ArtefactError: missing, no regular file, truncated, damaged, without one of the names, with pickled objects, or
            with arrays that are larger than what the file holds of them.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ArtefactError(f"{path} is no regular file", expected="an .npz file", remedy=remedy)
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive, remedy)
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(arrays[name] for name in names)
    except ArtefactError:
        raise
    except Exception as error:  # as in open_array; and those of zipfile and zlib
        raise _unreadable(path, error, remedy) from error


def _check_members(path: Path, archive: zipfile.ZipFile, remedy: str) -> None:
    """Refuse declared sizes that the file cannot hold, before anything is allocated for them."""
    size, inflated = path.stat().st_size, 0
    for member in archive.infolist():
        if member.compress_type == zipfile.ZIP_STORED:
            if member.file_size > size:
                raise ArtefactError(f"{path} declares {member.file_size} bytes for '{member.filename}' and has {size}", remedy=remedy)
        else:
            inflated += member.file_size
        if inflated > _MAX_INFLATED_BYTES:
            found = f"{path} would become {inflated} bytes"
            raise ArtefactError(found, expected=f"at most {_MAX_INFLATED_BYTES} where it is compressed", remedy=remedy)
        with archive.open(member) as file:
            _check_header(file, member.file_size)


def _check_header(file: BinaryIO | Any, size: int) -> tuple[int, ...]:
    """The shape that the header of an .npy file of `size` bytes declares. Raises ValueError where the file is too small for it."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    if dtype.itemsize == 0:  # numpy gives such elements a byte each when it allocates them
        raise ValueError(f"its elements are of type {dtype}, without any bytes")
    declared = math.prod(shape) * dtype.itemsize  # numpy's own product overflows
    if any(side < 0 for side in shape) or declared > size - file.tell():
        raise ValueError(f"its header declares an array of shape {shape}, {declared} bytes, and the file has {size}")
    return tuple(shape)


def _unreadable(path: Path, error: Exception, remedy: str) -> ArtefactError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ArtefactError(f"{path} cannot be read: {reason[:300]}", remedy=remedy)
