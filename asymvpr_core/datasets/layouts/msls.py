"""Mapillary Street-Level Sequences (MSLS): cities of car and bicycle pictures over years."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark import DEFAULT_RADIUS_M, Benchmark, Layout, PublishedCounts
from asymvpr_core.datasets.dataset import FileDataset
from asymvpr_core.datasets.image_files import only_existing
from asymvpr_core.datasets.image_names import NamedImage, frame_of, records_of
from asymvpr_core.datasets.match_rules import WithinRadius
from asymvpr_core.datasets.utm import UtmZone
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord

NAME = "msls"
VAL_CITIES = ("cph", "sf")
TEST_CITIES = ("miami", "athens", "buenosaires", "stockholm", "bengaluru", "kampala")
OFFICIAL, ALL_QUERIES = "740", "11k"
_PUBLISHED = {OFFICIAL: PublishedCounts(queries=740, database=18871)}


def open_msls(path: Path, settings: BenchmarkSettings) -> Benchmark:
    """`train_val/{city}/{database,query}/{images/, raw.csv, postprocessed.csv, subtask_index.csv}`; 25 m.

    Panoramas are left out. Split "val" (the default) is Copenhagen and San Francisco; "train" all
    other cities of train_val; "test" those of `test/`, whose positions are not public: predictions only.

    Versions of val: "740" keeps the images of subtask `all` and matches within a city, as the
    authors' code does; "11k" keeps every query that is no panorama and pools the cities, as
    VPR-datasets-downloader does. Their recalls differ by many points.
    """
    split, version = settings.split or "val", LAYOUT.version(settings)
    if split not in ("train", "val", "test"):
        raise DatasetError(f"layout {NAME} has no split '{split}'", expected="train, val or test")
    root = _root(path, "test" if split == "test" else "train_val")
    cities = _cities(root, split)
    subtask = "all" if split == "test" or (split == "val" and version == OFFICIAL) else None
    sides = [[row for city in cities for row in _read_city(root, city, side, split != "test", subtask)] for side in ("database", "query")]
    database, queries = _datasets(root, sides, settings.allow_missing)
    rule = None
    if split != "test":
        groups = tuple([record.name.partition("/")[0] for record in side.records] for side in (queries, database))
        radius_m = settings.radius_m or DEFAULT_RADIUS_M
        rule = WithinRadius(radius_m, settings.max_yaw_deg, (groups[0], groups[1]) if version == OFFICIAL else None, "city")
    named = version if split == "val" else ""
    return Benchmark(NAME, NAME, database, queries, rule, named, split, _PUBLISHED.get(named))


@dataclass(frozen=True)
class _Row:
    """An image of a city: its name below the root, and what the tables say; no position in the test cities."""

    name: str
    placed: NamedImage | None


def _root(path: Path, folder: str) -> Path:
    for root in (path / folder, path):
        if root.name == folder and root.is_dir():
            return root
    raise DatasetError(
        f"{path} has no folder {folder}", expected="the folder that train_val and test of MSLS lie in", remedy="check the path"
    )


def _cities(root: Path, split: str) -> list[str]:
    there = sorted(city.name for city in root.iterdir() if (city / "query").is_dir() and (city / "database").is_dir())
    if split == "val":
        absent = [city for city in VAL_CITIES if city not in there]
        if absent:
            raise DatasetError(
                f"{root} lacks the cities {', '.join(absent)}; it has {', '.join(there) or 'none'}", expected="both cities of val",
                remedy="unpack them, or ask for --split train",
            )  # fmt: skip
        return list(VAL_CITIES)
    cities = [city for city in there if city not in VAL_CITIES] if split == "train" else [city for city in there if city in TEST_CITIES]
    if not cities:
        raise DatasetError(f"{root} has no city of split {split}; it has {', '.join(there) or 'none'}", remedy="unpack them")
    return cities


def _read_city(root: Path, city: str, side: str, has_positions: bool, subtask: str | None) -> list[_Row]:
    folder = root / city / side
    tables = {}
    if subtask is not None:
        tables["subtask_index"] = _read_table(folder / "subtask_index.csv", ("key", subtask))
    if has_positions:
        tables["raw"] = _read_table(folder / "raw.csv", ("key", "lon", "lat", "ca", "pano"))
        tables["postprocessed"] = _read_table(folder / "postprocessed.csv", ("key", "easting", "northing", "night", "view_direction"))
    first, *others = tables
    keys = [row["key"] for row in tables[first]]
    for name in others:
        if [row["key"] for row in tables[name]] != keys:
            raise DatasetError(f"{folder / name}.csv lists other images than {first}.csv", expected="the same keys in the same order")
    rows = []
    for i, key in enumerate(keys):
        if subtask is not None and not _is_true(tables["subtask_index"][i][subtask]):
            continue
        name = f"{city}/{side}/images/{key}.jpg"
        if has_positions:
            raw = tables["raw"][i]
            if not _is_true(raw["pano"]):
                rows.append(_Row(name, _placed(name, city, raw, tables["postprocessed"][i], f"{folder}, key {key}")))
        else:
            rows.append(_Row(name, None))
    return rows


def _placed(name: str, city: str, raw: dict[str, str], processed: dict[str, str], where: str) -> NamedImage:
    try:
        xy_m = float(processed["easting"]), float(processed["northing"])
        lat_lon = float(raw["lat"]), float(raw["lon"])
        heading_deg = float(raw["ca"]) % 360.0 if raw["ca"] else None
    except ValueError:
        xy_m = lat_lon = (np.nan, np.nan)
        heading_deg = None
    if not np.isfinite([*xy_m, *lat_lon]).all():
        found = {column: processed.get(column, raw.get(column)) for column in ("easting", "northing", "lat", "lon", "ca")}
        raise DatasetError(f"{where}: {found}", expected="finite numbers", remedy="unpack metadata.zip again")
    light = "night" if _is_true(processed["night"]) else "day"
    # The words of VPR-datasets-downloader, so that the two versions can be compared condition by condition.
    condition = f"{light}_{processed['view_direction'].lower()}_{city}"
    zone = UtmZone.at(*lat_lon)
    return NamedImage(name, xy_m, zone, zone.name, lat_lon, heading_deg, condition)


def _datasets(root: Path, sides: list[list[_Row]], allow_missing: bool) -> list[FileDataset]:
    placed = [row.placed for side in sides for row in side if row.placed is not None]
    frame = frame_of(placed)
    datasets = []
    for rows in sides:
        of_side = [row.placed for row in rows if row.placed is not None]
        records = records_of(of_side, frame) if of_side else [ImageRecord(row.name) for row in rows]
        there, missing = only_existing(root, records, f"the tables of {root}", allow_missing)
        datasets.append(FileDataset(root, NAME, frame.name if placed else "", there, missing))
    return datasets


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(reader.fieldnames or ()) or 'none'}",
                    expected="a table of MSLS", remedy="unpack metadata.zip of MSLS again",
                )  # fmt: skip
            return [{column: row[column] or "" for column in columns} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(f"{path} cannot be read: {reason}", remedy="unpack metadata.zip of MSLS beside the images") from error


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "1.0")


def _recognises(path: Path) -> bool:
    roots = [path / "train_val", path / "test", path]
    return any(next(root.glob("*/query/subtask_index.csv"), None) or next(root.glob("*/query/raw.csv"), None) for root in roots)


LAYOUT = Layout(
    NAME, "train_val/{city}/{database,query}/{images/,raw.csv,postprocessed.csv}", _recognises, open_msls, (OFFICIAL, ALL_QUERIES)
)
