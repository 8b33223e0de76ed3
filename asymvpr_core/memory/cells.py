"""From keyframes to places: the dataset's place ids, or cells of position and heading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asymvpr_core.config import CellSettings
from asymvpr_core.errors import MemoryBankError
from asymvpr_core.gallery.several import AnyGallery, galleries_of
from asymvpr_core.types import Keyframe


def assign_places(keyframes: Sequence[Keyframe], settings: CellSettings) -> np.ndarray:
    """Place of every keyframe: (N,) int64 indices 0 … M−1 without gaps, numbered in order of the cells.

    Place ids are used where all keyframes have one. Otherwise a place is a square cell of x and y
    and, where all headings are known, one of `heading_sectors` equal sectors; sector 0 is centred on
    north, so that a street's direction and its small deviations share a sector.

    Raises:
        MemoryBankError: no keyframes, or keyframes without place id and without position.
    """
    if not keyframes:
        raise MemoryBankError("there are no keyframes", expected="at least one", remedy="give a gallery with images")
    if all(k.place_id is not None for k in keyframes):
        keys = np.array([[k.place_id] for k in keyframes], dtype=np.int64)
    else:
        keys = _cells(keyframes, settings)
    _, places = np.unique(keys, axis=0, return_inverse=True)
    return places.reshape(-1).astype(np.int64)


def gallery_places(gallery: AnyGallery, settings: CellSettings) -> np.ndarray:
    """Place of every keyframe of a gallery, or of several: (N,) int64, those of each gallery behind those of the one before.

    A place id, or a cell, of one gallery is never that of another: their ids and map frames have nothing to do
    with each other.

    Raises:
        MemoryBankError: as `assign_places`.
    """
    places, first = [], 0
    for one in galleries_of(gallery):
        places.append(assign_places(one.keyframes, settings) + first)
        first = int(places[-1].max()) + 1
    return np.concatenate(places)


def _cells(keyframes: Sequence[Keyframe], settings: CellSettings) -> np.ndarray:
    without = [k.name for k in keyframes if k.pose is None]
    if without:
        raise MemoryBankError(
            f"{len(without)} keyframes have neither place id nor position, the first {without[0]}",
            remedy="give poses (csv, trajectory, pose topic) or place ids",
        )
    xy = np.array([k.pose.position[:2] for k in keyframes if k.pose is not None], dtype=np.float64)
    cells = np.floor(xy / settings.cell_size_m).astype(np.int64)
    sectors = np.zeros(len(keyframes), dtype=np.int64)
    if settings.heading_sectors > 1 and all(k.heading_deg is not None for k in keyframes):
        headings = np.array([k.heading_deg for k in keyframes], dtype=np.float64)
        width = 360.0 / settings.heading_sectors
        sectors = np.floor(((headings + width / 2) % 360.0) / width).astype(np.int64)
    return np.column_stack([cells, sectors])
