"""Galleries of given descriptors, without pictures and networks: for what reads descriptors and places only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asymvpr_core.gallery.store import DESCRIPTORS, KEYFRAMES, write_keyframes
from asymvpr_core.manifest import GalleryNetworkIdentity, new_folder, write_manifest
from asymvpr_core.types import Keyframe, Pose


def unit_rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """(count, dimension) float32 random rows of length 1."""
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_gallery(path: Path, descriptors: np.ndarray, places: np.ndarray) -> Path:
    """Write a gallery folder whose keyframes carry place ids."""
    identity = GalleryNetworkIdentity(
        name="given", weights_sha256="0" * 64, preprocess={}, projection_sha256=None, dimension=descriptors.shape[1]
    )
    keyframes = [Keyframe(name=f"{i:06d}.png", pose=Pose((float(i), 0.0, 0.0)), place_id=int(p)) for i, p in enumerate(places)]
    with new_folder(path) as folder:
        np.save(folder / DESCRIPTORS, descriptors)
        write_keyframes(folder / KEYFRAMES, keyframes)
        write_manifest(folder, "gallery", identity, inputs={"source": "none"}, details={"map_frame": "map", "images_in_gallery": False})
    return path
