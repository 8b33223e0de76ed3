"""Positions that parse and yet cannot be meant: swapped columns, UTM and degrees that disagree."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.utm import UtmZone
from asymvpr_core.types import ImageRecord

_FAR_DEG = 1.0  # some 100 km: no benchmark of one city is as large
_MAX_NAME_ERROR_M = 100.0  # names round degrees to five decimals, a metre


def implausible_positions(dataset: Dataset) -> list[str]:
    """What looks wrong in the positions of one side, a sentence each."""
    known = [record for record in dataset.records if record.lat_lon_deg]
    if not known:
        return []
    return [text for text in (_swapped_rows(known), _names_disagree(known, dataset.map_frame)) if text]


def implausible_sides(database: Dataset, queries: Dataset) -> list[str]:
    """What looks wrong between the two sides of a benchmark."""
    sides = [np.array([r.lat_lon_deg for r in side.records if r.lat_lon_deg]) for side in (database, queries)]
    if not all(len(side) for side in sides):
        return []
    there, here = (np.median(side, axis=0) for side in sides)
    if _near(here, there).all() or not _near(here[::-1], there).all():
        return []
    return ["the queries lie far from the database, and among it with latitude and longitude swapped: exchange the columns of one side"]


def _near(a_deg: np.ndarray, b_deg: np.ndarray) -> np.ndarray:
    difference = np.abs(a_deg - b_deg)
    return np.minimum(difference, 360.0 - difference) <= _FAR_DEG  # across the date line


def _swapped_rows(known: Sequence[ImageRecord]) -> str | None:
    lat_lon = np.array([record.lat_lon_deg for record in known])
    middle = np.median(lat_lon, axis=0)
    suspect = ~_near(lat_lon, middle).all(axis=1) & _near(lat_lon[:, ::-1], middle).all(axis=1)
    if not suspect.any():
        return None
    first = known[int(np.argmax(suspect))].name
    return (
        f"{int(suspect.sum())} images lie far from the others, and among them with latitude and longitude swapped; "
        f"the first is {first}: exchange the two there"
    )


def _names_disagree(known: Sequence[ImageRecord], map_frame: str) -> str | None:
    match = re.fullmatch(r"utm(\d+)([A-Z])", map_frame)  # one area: positions are as the names give them
    zone = UtmZone.parse(*match.groups()) if match else None
    placed = [record for record in known if record.pose is not None]
    if zone is None or not placed:
        return None
    xy = np.array([record.pose.position[:2] for record in placed if record.pose])
    lat_lon = np.array([record.lat_lon_deg for record in placed])
    error_m = _median_error_m(zone, lat_lon, xy)
    if error_m <= _MAX_NAME_ERROR_M:
        return None
    if _median_error_m(zone, lat_lon[:, ::-1], xy) <= _MAX_NAME_ERROR_M:
        return "latitude and longitude are swapped in the names; positions come from easting and northing and are not affected"
    distance = f"{error_m / 1000:.1f} km apart" if np.isfinite(error_m) else "of no relation"
    return (
        f"easting and northing of the names and their latitude and longitude are {distance} (median); "
        "positions come from easting and northing: check their order, zone and letter"
    )


def _median_error_m(zone: UtmZone, lat_lon_deg: np.ndarray, xy_m: np.ndarray) -> float:
    projected: np.ndarray = np.stack(zone.project(lat_lon_deg[:, 0], lat_lon_deg[:, 1]), axis=1)  # type: ignore[arg-type]
    error_m = np.hypot(*(projected - xy_m).T)
    return float(np.median(np.where(np.isfinite(error_m), error_m, np.inf)))
