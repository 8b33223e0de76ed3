"""Small benchmarks with real image bytes in the public layouts."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from asymvpr_core.datasets.utm import UtmZone

_written = 0


def write_image(path: Path) -> Path:
    """An image that differs from all others, so that none is a duplicate."""
    global _written
    _written += 1
    picture = np.full((8, 12, 3), (_written % 256, _written // 256, 90), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # PNG whatever the suffix: exact colours, and the decoder looks at the bytes.
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return path


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def utm_name(lat: float, lon: float, *, heading: str = "", note: str = "", pano: str = "pano") -> str:
    zone = UtmZone.at(lat, lon)
    easting, northing = zone.project(lat, lon)
    return f"@{easting:.2f}@{northing:.2f}@{zone.number:02d}@{zone.letter}@{lat:.7f}@{lon:.7f}@{pano}@@{heading}@@@@@{note}@.jpg"


def line_name(northing: float, note: str = "", heading: str = "") -> str:
    """A name on a line, without zone."""
    return f"@0@{northing:07.1f}@@@@@frame@@{heading}@@@@@{note}@.jpg"


def vpr_folders(root: Path, split: str = "test", queries: str = "queries", database: str = "database") -> Path:
    """Database at 0, 10, …, 90 m; queries at 0 m (day), 47 m (night) and 1000 m (night)."""
    for northing in range(0, 100, 10):
        write_image(root / "images" / split / database / line_name(northing, heading="90"))
    for northing, note in ((0, "day"), (47, "night"), (1000, "night")):
        write_image(root / "images" / split / queries / line_name(northing, note, "270" if note == "night" else "90"))
    return root


def msls_city(root: Path, city: str, lat: float, lon: float, folder: str = "train_val") -> None:
    """A city of MSLS: 6 database images 10 m apart, the last a panorama, and 4 queries.

    Query 0 is at the first database image, 1 is left out of subtask `all`, 2 is a panorama,
    3 is 500 m away.
    """
    zone = UtmZone.at(lat, lon)
    east, north = zone.project(lat, lon)
    sides = {
        "database": [(10.0 * i, i == 5, True) for i in range(6)],
        "query": [(0.0, False, True), (21.0, False, False), (20.0, True, True), (500.0, False, True)],
    }
    for side, rows in sides.items():
        keys = [f"{city}-{side}-{i}" for i in range(len(rows))]
        for key in keys:
            write_image(root / folder / city / side / "images" / f"{key}.jpg")
        at = root / folder / city / side
        geo = [zone.lat_lon(np.array([[east, north + metres]]))[0] for metres, _, _ in rows]
        write_rows(at / "subtask_index.csv", ["", "key", "all", "s2w"], [(i, keys[i], rows[i][2], False) for i in range(len(rows))])
        if folder == "train_val":
            write_rows(
                at / "raw.csv",
                ["", "key", "lon", "lat", "ca", "captured_at", "pano"],
                [(i, keys[i], geo[i][1], geo[i][0], 400.0 + i, "2019-01-01", rows[i][1]) for i in range(len(rows))],
            )
            write_rows(
                at / "postprocessed.csv",
                ["", "key", "easting", "northing", "unique_cluster", "control_panel", "night", "view_direction"],
                [(i, keys[i], east, north + rows[i][0], i, False, i == 3, "Forward") for i in range(len(rows))],
            )


def msls(root: Path) -> Path:
    msls_city(root, "cph", 55.67, 12.57)
    msls_city(root, "sf", 37.77, -122.42)
    msls_city(root, "zurich", 47.37, 8.54)
    return root


def gsv_cities(root: Path) -> Path:
    """London: place 7 with 4 images, place 8 with 3; OSL: place 7 with 5 images; Atlantis, unknown to the authors: place 1 with 4."""
    columns = ["place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid"]
    for city, lat, lon, places in (
        ("London", 51.5, -0.125, {7: 4, 8: 3}),
        ("OSL", 59.91, 10.75, {7: 5}),
        ("Atlantis", 36.0, -6.5, {1: 4}),
    ):
        rows = []
        for place, count in places.items():
            for i in range(count):
                row = (place, 2010 + i, 1 + i, 9 * i, city, repr(lat + 0.01 * place), lon, f"pano_{place}_{i}")
                rows.append(row)
                name = f"{city}_{place:07d}_{2010 + i:04d}_{1 + i:02d}_{9 * i:03d}_{lat + 0.01 * place}_{lon}_pano_{place}_{i}.jpg"
                write_image(root / "Images" / city / name)
        write_rows(root / "Dataframes" / f"{city}.csv", columns, rows)
    return root


def seasons(root: Path, frames: int) -> Path:
    for season in ("summer", "winter"):
        for i in range(frames):
            write_image(root / season / f"images-{i + 202:05d}.png")
    return root


def numbered(folder: Path, count: int, suffix: str = ".jpg") -> None:
    for i in range(count):
        write_image(folder / f"{i:04d}{suffix}")
