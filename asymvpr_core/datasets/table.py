"""Images listed in a csv with their poses, or with latitude and longitude."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path, PurePosixPath

from asymvpr_core.datasets.dataset import FileDataset
from asymvpr_core.datasets.geographic import geographic_frame, place_records
from asymvpr_core.datasets.image_files import only_existing, stays_inside
from asymvpr_core.datasets.trajectory import checked_pose, parse_stamp
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord, Pose

POSE_COLUMNS = ("image", "x", "y", "z", "qx", "qy", "qz", "qw")
LAT_LON_COLUMNS = ("image", "lat", "lon")
_LAYOUTS = "image,x,y,z,qx,qy,qz,qw[,stamp,place_id] or image,lat,lon[,heading]"


class CsvDataset(FileDataset):
    """The images that a csv lists, in its order; satisfies `Dataset`.

    Columns: `image` is a path relative to the csv's folder. Either x, y, z [m] and the
    quaternion qx, qy, qz, qw of a pose in a map frame, with optional `stamp` [s]; or `lat`, `lon`
    [deg] with optional `heading` [deg, clockwise from north], which are projected to UTM, to one
    frame where they lie in several zones (see `UtmFrame`). Optional in both: `place_id` and
    `condition`. Other columns are ignored. `map_frame` is "map", or "utm<zone><letter>".

    Args:
        allow_missing: leave out images that are absent and list them in `missing`, instead of refusing.

    Raises:
        DatasetError: unreadable, columns missing, no rows, a field that is no finite number, an
            image that is listed twice, is absent, or lies outside the csv's folder.
    """

    def __init__(self, path: Path, allow_missing: bool = False):
        self.path = Path(path)
        root = self.path.parent
        rows = self._read_rows()
        if not rows:
            raise DatasetError(f"{self.path} lists no images", expected=f"rows of {_LAYOUTS}")
        records = [self._record(line, row) for line, row in rows]
        map_frame = "map"
        if "lat" in rows[0][1]:
            frame = geographic_frame(records)
            records, map_frame = place_records(records, frame), frame.name
        super().__init__(root, "csv", map_frame, records)
        self._check_images(allow_missing)

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

    def _record(self, line: int, row: dict[str, str]) -> ImageRecord:
        stamp_ns, place_id, condition = self._stamp(line, row), self._place_id(line, row), row.get("condition", "")
        name = self._image_name(line, row["image"])
        if "lat" not in row:
            x, y, z, qx, qy, qz, qw = (self._number(line, row, column) for column in POSE_COLUMNS[1:])
            pose = checked_pose(Pose((x, y, z), (qx, qy, qz, qw)), f"{self.path}, line {line}")
            return ImageRecord(name, pose, pose.heading_deg, stamp_ns, place_id=place_id, condition=condition)
        heading_deg = self._number(line, row, "heading") % 360.0 if row.get("heading") else None
        lat_lon = self._lat_lon(line, row)
        return ImageRecord(name, None, heading_deg, stamp_ns, lat_lon_deg=lat_lon, place_id=place_id, condition=condition)

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
            swapped = -80.0 <= lon <= 84.0 and -180.0 <= lat <= 180.0
            raise DatasetError(
                f"{self.path}, line {line}: latitude {lat:g}, longitude {lon:g}", expected="degrees within UTM: -80..84 and -180..180",
                remedy="the columns lat and lon look swapped: exchange their names" if swapped else None,
            )  # fmt: skip
        return lat, lon

    def _stamp(self, line: int, row: dict[str, str]) -> int | None:
        if not row.get("stamp"):
            return None
        try:
            return parse_stamp(row["stamp"])
        except ValueError as error:
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
        if not stays_inside(text):
            raise DatasetError(
                f"{self.path}, line {line}: image is '{text}'",
                expected=f"a path with '/' inside {self.path.parent}",
                remedy="move the csv above its images",
            )
        return PurePosixPath(text).as_posix()

    def _check_images(self, allow_missing: bool) -> None:
        names = [record.name for record in self.records]
        if len(set(names)) != len(names):
            twice = [name for name, count in Counter(names).items() if count > 1]
            raise DatasetError(f"{self.path} lists images twice: {', '.join(twice[:5])}", expected="each image once")
        self.records, missing = only_existing(self.root, self.records, str(self.path), allow_missing)
        self.missing = tuple(missing)
