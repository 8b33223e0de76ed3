"""Which gallery an artefact was computed from, and whether another one is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import Manifest


def gallery_digest(gallery: Gallery) -> str:
    """`Gallery.digest`."""
    return gallery.digest


def origin(gallery: Gallery) -> dict[str, Any]:
    """The `inputs` of a manifest of what was computed from the gallery."""
    return {"gallery": str(gallery.path.resolve()), "gallery_digest": gallery_digest(gallery)}


def check_origin(manifest: Manifest, path: Path, gallery: Gallery, command: str) -> None:
    """Refuse a gallery whose descriptors or keyframes are not those that `path` was computed from.

    Raises:
        ArtefactError: naming both, and `command` as what makes the right one.
    """
    if manifest.inputs.get("gallery_digest") != gallery_digest(gallery):
        raise ArtefactError(
            f"{path} was computed from gallery {manifest.inputs.get('gallery', 'unknown')}, "
            f"whose descriptors or keyframes are not those of {gallery.path}",
            remedy=f"make it anew with '{command}'",
        )


def open_array(path: Path, remedy: str) -> np.ndarray:
    """An .npy file as a read-only memory map; an array without rows is read.

    Raises:
        ArtefactError: missing, truncated or damaged.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read_header(file)
        array: np.ndarray = np.load(path, mmap_mode=None if 0 in shape else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:  # EOFError: an empty file
        raise ArtefactError(f"{path} cannot be read: {error}", remedy=remedy) from error
    return array
