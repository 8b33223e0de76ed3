"""Images listed in a csv with their poses, or with latitude and longitude."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from decimal import InvalidOperation
from pathlib import Path, PurePosixPath

import numpy as np

from asymvpr_core.datasets.image_files import read_encoded_files, read_image_files
from asymvpr_core.datasets.trajectory import checked_pose, parse_stamp
from asymvpr_core.datasets.utm import UtmZone
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord, Pose

POSE_COLUMNS = ("image", "x", "y", "z", "qx", "qy", "qz", "qw")
LAT_LON_COLUMNS = ("image", "lat", "lon")
_LAYOUTS = "image,x,y,z,qx,qy,qz,qw[,stamp,place_id] or image,lat,lon[,heading]"


class CsvDataset:
    """The images that a csv lists, in its order; satisfies `Dataset`.

    Columns: `image` is a path relative to the csv's folder. Either x, y, z [m] and the
    quaternion qx, qy, qz, qw of a pose in a map frame, with optional `stamp` [s] and `place_id`;
    or `lat`, `lon` [deg] with optional `heading` [deg, clockwise from north], which are projected
    to the UTM zone of the first row. Other columns are ignored. `map_frame` is "map", or
    "utm<zone><letter>".

    Raises:
        DatasetError: unreadable, columns missing, no rows, a field that is no finite number, an
            image that is listed twice, is absent, or lies outside the csv's folder.
    """

    layout = "csv"

    def __init__(self, path: Path):
        self.path = Path(path)
        self.root = self.path.parent
        rows = self._read_rows()
        if not rows:
            raise DatasetError(f"{self.path} lists no images", expected=f"rows of {_LAYOUTS}")
        self.map_frame = "map"
        zone = None
        if "lat" in rows[0][1]:
            zone = UtmZone.at(*self._lat_lon(*rows[0]))
            self.map_frame = f"utm{zone.name}"
        self.records = [self._record(line, row, zone) for line, row in rows]
        self._check_images()

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]:
        """As in `Dataset`. Raises ImageError for a file that cannot be read."""
        return read_encoded_files(self.root, self.records, indices)

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """As in `Dataset`. Raises ImageError for a file that cannot be decoded."""
        return read_image_files(self.root, self.records, indices)

    def _read_rows(self) -> list[tuple[int, dict[str, str]]]:
        rows = []
        try:
            with open(self.path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
                reader = csv.reader(file)
                columns = [name.strip() for name in next(reader, [])]
                self._check_columns(columns)
                for fields in reader:
                    if not any(field.strip() for field in fields):
                        continue
                    if len(fields) != len(columns):
                        raise DatasetError(
                            f"{self.path}, line {reader.line_num} has {len(fields)} fields", expected=f"{len(columns)} as in the first line"
                        )
                    rows.append((reader.line_num, {name: value.strip() for name, value in zip(columns, fields, strict=True)}))
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be read: {error.strerror}", remedy="check the path") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"{self.path} is no csv: {error}", expected=_LAYOUTS) from error
        return rows

    def _check_columns(self, columns: list[str]) -> None:
        if len(set(columns)) != len(columns):
            raise DatasetError(f"{self.path} has a column twice: {', '.join(columns)}", expected=_LAYOUTS)
        wanted = LAT_LON_COLUMNS if {"lat", "lon"} & set(columns) else POSE_COLUMNS
        missing = [name for name in wanted if name not in columns]
        if missing:
            found = f"{self.path} lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}"
            raise DatasetError(found, expected=_LAYOUTS)

    def _record(self, line: int, row: dict[str, str], zone: UtmZone | None) -> ImageRecord:
        stamp_ns, place_id = self._stamp(line, row), self._place_id(line, row)
        name = self._image_name(line, row["image"])
        if zone is None:
            x, y, z, qx, qy, qz, qw = (self._number(line, row, column) for column in POSE_COLUMNS[1:])
            pose = checked_pose(Pose((x, y, z), (qx, qy, qz, qw)), f"{self.path}, line {line}")
            return ImageRecord(name=name, pose=pose, heading_deg=pose.heading_deg, stamp_ns=stamp_ns, place_id=place_id)
        lat, lon = self._lat_lon(line, row)
        x, y = zone.project(lat, lon)
        heading_deg = self._number(line, row, "heading") % 360.0 if row.get("heading") else None
        pose = Pose((x, y, 0.0)) if heading_deg is None else Pose.from_xy_yaw(x, y, math.radians(90.0 - heading_deg))
        return ImageRecord(name=name, pose=pose, heading_deg=heading_deg, stamp_ns=stamp_ns, lat_lon_deg=(lat, lon), place_id=place_id)

    def _number(self, line: int, row: dict[str, str], column: str) -> float:
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DatasetError(f"{self.path}, line {line}: {column} is '{row[column]}'", expected="a finite number")
        return value

    def _lat_lon(self, line: int, row: dict[str, str]) -> tuple[float, float]:
        lat, lon = self._number(line, row, "lat"), self._number(line, row, "lon")
        if not (-80.0 <= lat <= 84.0 and -180.0 <= lon <= 180.0):
            raise DatasetError(
                f"{self.path}, line {line}: latitude {lat:g}, longitude {lon:g}", expected="degrees within UTM: -80..84 and -180..180"
            )
        return lat, lon

    def _stamp(self, line: int, row: dict[str, str]) -> int | None:
        if not row.get("stamp"):
            return None
        try:
            return parse_stamp(row["stamp"])
        except (ValueError, OverflowError, InvalidOperation) as error:
            raise DatasetError(f"{self.path}, line {line}: stamp is '{row['stamp']}'", expected="seconds, with decimals") from error

    def _place_id(self, line: int, row: dict[str, str]) -> int | None:
        if not row.get("place_id"):
            return None
        try:
            place_id = int(row["place_id"])
        except ValueError:
            place_id = 2**63
        if abs(place_id) >= 2**63:
            raise DatasetError(f"{self.path}, line {line}: place_id is '{row['place_id']}'", expected="a whole number of 64 bits")
        return place_id

    def _image_name(self, line: int, text: str) -> str:
        name = PurePosixPath(text)
        if not text or name.is_absolute() or ".." in name.parts or "\\" in text or "\0" in text:
            raise DatasetError(
                f"{self.path}, line {line}: image is '{text}'",
                expected=f"a path with '/' inside {self.root}",
                remedy="move the csv above its images",
            )
        return name.as_posix()

    def _check_images(self) -> None:
        names = [record.name for record in self.records]
        if len(set(names)) != len(names):
            twice = [name for name, count in Counter(names).items() if count > 1]
            raise DatasetError(f"{self.path} lists images twice: {', '.join(twice[:5])}", expected="each image once")
        absent = [name for name in names if not (self.root / name).is_file()]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise DatasetError(
                f"{len(absent)} of {len(names)} images of {self.path} are absent: {', '.join(absent[:5])}{more}",
                expected=f"them below {self.root}",
                remedy="correct the paths or copy the images",
            )
