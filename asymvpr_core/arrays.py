"""Named arrays on disk (.npz) without pickled objects."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from asymvpr_core.errors import ArtefactError


def load_arrays(path: Path, names: tuple[str, ...], remedy: str) -> tuple[np.ndarray, ...]:
    """Read the named arrays of an .npz file, in the order of `names`.

    Raises:
        ArtefactError: missing, truncated, damaged, or without one of the names.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(arrays[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtefactError(f"{path} cannot be read: {error}", remedy=remedy) from error
