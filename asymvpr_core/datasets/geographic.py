"""Records that know latitude and longitude: their positions in one UTM frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.utm import UtmFrame, UtmZone
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord, Pose


def geographic_frame(records: Sequence[ImageRecord]) -> UtmFrame:
    """The one UTM frame of records that all have `lat_lon_deg`."""
    zones = _zones(records)
    return UtmFrame.of(zones, _in_own_zones(records, zones))


def place_records(records: Sequence[ImageRecord], frame: UtmFrame) -> list[ImageRecord]:
    """The records with the pose that their latitude, longitude and heading mean in `frame`; height 0."""
    zones = _zones(records)
    xy_m = frame.place(zones, _in_own_zones(records, zones))
    return [replace(record, pose=_pose(record, x, y)) for record, (x, y) in zip(records, xy_m.tolist(), strict=True)]


def share_frame(database: Dataset, queries: Dataset) -> None:
    """Bring both sides of a comparison into one map frame, in place.

    Sides that name the same frame stay as they are, so do sides without any position. Otherwise
    both are projected anew from latitude and longitude.

    Raises:
        DatasetError: the frames differ and an image has no latitude and longitude.
    """
    sides = [side for side in (database, queries) if any(record.pose is not None for record in side.records)]
    names = {side.map_frame for side in sides}
    # "utm" alone is a UTM position whose zone is not said.
    if len(names) < 2 or ("utm" in names and all(name.startswith("utm") and "+" not in name for name in names)):
        return
    both = [*database.records, *queries.records]
    if not all(record.lat_lon_deg for record in both):
        raise DatasetError(
            f"the database has positions in frame '{database.map_frame}', the queries in frame '{queries.map_frame}'",
            expected="positions of both in one frame",
            remedy="give both in one map frame, or both with latitude and longitude",
        )
    frame = geographic_frame(both)
    for side in (database, queries):
        side.records, side.map_frame = place_records(side.records, frame), frame.name


def _zones(records: Sequence[ImageRecord]) -> list[UtmZone]:
    return [UtmZone.at(*record.lat_lon_deg) for record in records if record.lat_lon_deg]


def _in_own_zones(records: Sequence[ImageRecord], zones: Sequence[UtmZone]) -> np.ndarray:
    lat_lon = np.array([record.lat_lon_deg for record in records], dtype=np.float64).reshape(-1, 2)
    xy_m = np.empty_like(lat_lon)
    members: dict[UtmZone, list[int]] = {}
    for i, zone in enumerate(zones):
        members.setdefault(zone, []).append(i)
    for zone, rows in members.items():
        xy_m[rows] = np.stack(zone.project(lat_lon[rows, 0], lat_lon[rows, 1]), axis=1)  # type: ignore[arg-type]
    return xy_m


def _pose(record: ImageRecord, x: float, y: float) -> Pose:
    if record.heading_deg is None:
        return Pose((x, y, 0.0))
    return Pose.from_xy_yaw(x, y, math.radians(90.0 - record.heading_deg))
