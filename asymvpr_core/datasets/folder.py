"""Folders of images whose names carry the position, as VPR-datasets-downloader writes them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asymvpr_core.datasets.image_files import IMAGE_SUFFIXES, read_encoded_files, read_image_files
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord, Pose

NAME_PATTERN = "@utm_e@utm_n@zone@letter@lat@lon@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg"
_ZONE, _LETTER, _LAT, _LON, _HEADING = 3, 4, 5, 6, 9  # of name.split("@"), whose first part is empty


class FolderDataset:
    """All images below a folder, sorted by path; positions from the file names; satisfies `Dataset`.

    Names follow `NAME_PATTERN`; only the first two fields (UTM easting and northing, metres)
    must be filled, later ones may be missing. Heading is in degrees clockwise from north.
    Height and timestamp are not read: datasets disagree about their meaning. `map_frame` is
    "utm" followed by zone and letter where all names agree on them, "utm" otherwise.

    Raises:
        DatasetError: no such folder, no images in it, names that are not UTF-8, or without a position (the first five are listed).
    """

    layout = "folder"

    def __init__(self, path: Path):
        self.root = Path(path)
        if not self.root.is_dir():
            raise DatasetError(f"there is no folder {self.root}", expected="a folder of images", remedy="check the path")
        names = _image_names(self.root)
        if not names:
            raise DatasetError(f"folder {self.root} holds no images", expected=f"files named {NAME_PATTERN}", remedy="check the path")
        undecodable = [name for name in names if any("\ud800" <= character <= "\udfff" for character in name)]
        if undecodable:
            raise DatasetError(
                f"{len(undecodable)} of {len(names)} images in {self.root} have names that are not UTF-8, the first {undecodable[0]!a}",
                expected=f"names of the form {NAME_PATTERN}",
                remedy="rename them",
            )
        parsed = [(name, _parse(name)) for name in names]
        wrong = [name for name, record in parsed if record is None]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise DatasetError(
                f"{len(wrong)} of {len(names)} images in {self.root} carry no position in their names: {', '.join(wrong[:5])}{more}",
                expected=f"names of the form {NAME_PATTERN}",
                remedy="rename them, or list them with their positions in a csv and give that",
            )
        self.records = [record for _, record in parsed if record is not None]
        zones = {_zone(name) for name in names}
        self.map_frame = f"utm{zones.pop()}" if len(zones) == 1 else "utm"

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]:
        """As in `Dataset`. Raises ImageError for a file that cannot be read."""
        return read_encoded_files(self.root, self.records, indices)

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """As in `Dataset`. Raises ImageError for a file that cannot be decoded."""
        return read_image_files(self.root, self.records, indices)


def _image_names(root: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(names)


def _unreadable(error: OSError) -> None:
    raise DatasetError(f"folder {error.filename} cannot be read: {error.strerror}", remedy="check its permissions") from error


def _fields(name: str) -> list[str]:
    return name.rpartition("/")[2].split("@")


def _zone(name: str) -> str:
    fields = _fields(name)
    return (fields[_ZONE] + fields[_LETTER]).strip() if len(fields) > _LETTER + 1 else ""


def _parse(name: str) -> ImageRecord | None:
    fields = _fields(name)
    if len(fields) < 4 or fields[0]:
        return None
    # The last part is the suffix, or follows the last field where the name does not end in '@'.
    fields = [*fields[:-1], *[""] * 16]
    easting, northing = _number(fields[1]), _number(fields[2])
    if easting is None or northing is None:
        return None
    heading_deg, lat, lon = (_number(fields[i]) for i in (_HEADING, _LAT, _LON))
    if heading_deg is None:
        pose = Pose((easting, northing, 0.0))
    else:
        heading_deg %= 360.0
        pose = Pose.from_xy_yaw(easting, northing, math.radians(90.0 - heading_deg))
    lat_lon = (lat, lon) if lat is not None and lon is not None else None
    return ImageRecord(name=name, pose=pose, heading_deg=heading_deg, lat_lon_deg=lat_lon)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
