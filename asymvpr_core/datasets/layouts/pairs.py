"""What the benchmarks share whose images come in pairs, without positions."""

from __future__ import annotations

import os
from pathlib import Path

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark import Benchmark, PublishedCounts, refuse_settings
from asymvpr_core.datasets.dataset import FileDataset
from asymvpr_core.datasets.image_files import IMAGE_SUFFIXES, image_names
from asymvpr_core.datasets.match_rules import SamePlace
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord


def open_pairs(path: Path, settings: BenchmarkSettings, layout: str, database: str, queries: str, published: PublishedCounts) -> Benchmark:
    """The benchmark of two folders whose images belong together by name, whatever their suffix.

    Images without a partner stay: a query without one is reported as a query without positives.

    Raises:
        DatasetError: a folder is missing or empty, or holds a name twice.
    """
    refuse_settings(settings, layout, ("split", "version", "radius_m", "max_yaw_deg"), "a query matches its pair")
    stems: dict[str, int] = {}
    database_side, query_side = (_side(path / folder, layout, stems) for folder in (database, queries))
    return Benchmark(layout, layout, database_side, query_side, SamePlace("the query's pair, which has its name"), published=published)


def listed_images(folder: Path) -> list[str]:
    """Sorted names of the images in a folder.

    Raises:
        DatasetError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}", expected="a folder of images", remedy="check the path")
    names = image_names(folder)
    if not names:
        raise DatasetError(f"folder {folder} holds no images", expected="files .jpg, .jpeg or .png", remedy="check the path")
    return names


def count_images(folder: Path) -> int:
    """Number of images directly in a folder; 0 where it is none."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".") for entry in entries)
    except OSError:
        return 0


def _side(folder: Path, layout: str, stems: dict[str, int]) -> FileDataset:
    names = listed_images(folder)
    ids = [stems.setdefault(name.rpartition(".")[0], len(stems)) for name in names]
    if len(set(ids)) != len(ids):
        twice = sorted({name.rpartition(".")[0] for name, place in zip(names, ids, strict=True) if ids.count(place) > 1})
        raise DatasetError(f"folder {folder} holds {', '.join(twice[:5])} with more than one suffix", expected="each name once")
    return FileDataset(folder, layout, "", [ImageRecord(name, place_id=place) for name, place in zip(names, ids, strict=True)])
