"""Image names that carry the position, as VPR-datasets-downloader writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asymvpr_core.datasets.utm import UtmFrame, UtmZone
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord, Pose

NAME_PATTERN = "@utm_e@utm_n@zone@letter@lat@lon@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg"
_ZONE, _LETTER, _LAT, _LON, _HEADING, _NOTE = 3, 4, 5, 6, 9, 14  # of name.split("@"), whose first part is empty


@dataclass(frozen=True)
class NamedImage:
    """What a name says: `name` with its folders, easting and northing [m] in `zone`, which may be unknown.

    `zone_text` is what stands there for the zone, known or not; `condition` is the note ("night").
    """

    name: str
    xy_m: tuple[float, float]
    zone: UtmZone | None
    zone_text: str
    lat_lon_deg: tuple[float, float] | None
    heading_deg: float | None
    condition: str


def parse_name(name: str) -> NamedImage | None:
    """What the name of an image says, or None where it carries no finite easting and northing.

    Names follow `NAME_PATTERN`; only the first two fields must be filled, later ones may be missing.
    Height and timestamp are not read: datasets disagree about their meaning.
    """
    fields = name.rpartition("/")[2].split("@")
    if len(fields) < 4 or fields[0]:
        return None
    # The last part is the suffix, or follows the last field where the name does not end in '@'.
    fields = [*fields[:-1], *[""] * 16]
    easting, northing = _number(fields[1]), _number(fields[2])
    if easting is None or northing is None:
        return None
    heading_deg, lat, lon = (_number(fields[i]) for i in (_HEADING, _LAT, _LON))
    zone = UtmZone.parse(fields[_ZONE], fields[_LETTER])
    return NamedImage(
        name,
        (easting, northing),
        zone,
        (fields[_ZONE] + fields[_LETTER]).strip(),
        (lat, lon) if lat is not None and lon is not None else None,
        None if heading_deg is None else heading_deg % 360.0,
        fields[_NOTE].strip(),
    )


def frame_of(images: Sequence[NamedImage]) -> UtmFrame:
    """The one map frame of the images; "utm" where not all names agree on a zone and some name none.

    Raises:
        DatasetError: names of several zones beside names without one: nobody can say where those are.
    """
    zones = [image.zone for image in images if image.zone is not None]
    if len(zones) == len(images):
        return UtmFrame.of(zones, np.array([image.xy_m for image in images], dtype=np.float64).reshape(-1, 2))
    codes = {zone.epsg for zone in zones}
    if len(codes) > 1:
        without = [image.name for image in images if image.zone is None]
        raise DatasetError(
            f"the names lie in {len(codes)} UTM zones, and {len(without)} of {len(images)} name none, the first {without[0]}",
            expected="zone and letter in every name",
            remedy="add them, or give the positions in a csv with lat and lon",
        )
    texts = {image.zone_text for image in images}
    return UtmFrame(f"utm{texts.pop()}" if len(texts) == 1 else "utm", {})


def records_of(images: Sequence[NamedImage], frame: UtmFrame) -> list[ImageRecord]:
    """One record an image, in order, with its position in `frame`."""
    xy_m = np.array([image.xy_m for image in images], dtype=np.float64).reshape(-1, 2)
    if frame.targets:
        xy_m = frame.place([image.zone for image in images if image.zone is not None], xy_m)
    return [_record(image, x, y) for image, (x, y) in zip(images, xy_m.tolist(), strict=True)]


def _record(image: NamedImage, x: float, y: float) -> ImageRecord:
    heading = image.heading_deg
    pose = Pose((x, y, 0.0)) if heading is None else Pose.from_xy_yaw(x, y, math.radians(90.0 - heading))
    return ImageRecord(image.name, pose, heading, lat_lon_deg=image.lat_lon_deg, condition=image.condition)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
