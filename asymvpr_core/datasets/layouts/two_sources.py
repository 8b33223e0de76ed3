"""Any two sources of images of your own: two folders, two csv, two bags."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.bag_dataset import BagDataset
from asymvpr_core.datasets.bags import is_bag
from asymvpr_core.datasets.benchmark import Benchmark, Layout, radius_rule, refuse_settings
from asymvpr_core.datasets.dataset import Dataset, FileDataset
from asymvpr_core.datasets.geographic import share_frame
from asymvpr_core.datasets.image_files import image_names
from asymvpr_core.datasets.layouts.pairs import listed_images
from asymvpr_core.datasets.layouts.vpr_folders import LAYOUT as VPR_FOLDERS
from asymvpr_core.datasets.table import CsvDataset
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord

NAME = "two_sources"
POSITIONS = "positions.csv"
_SIDES = ("database", "queries")


def open_two_sources(path: Path, settings: BenchmarkSettings) -> Benchmark:
    """`database` and `queries`: two rosbag2, two csv (`database.csv`, `queries.csv`), or two folders of images.

    Folders get their positions from `positions.csv` beside them, which lists `database/…` and
    `queries/…` (images that it does not list are left out). Without it there is no ground truth.
    """
    refuse_settings(settings, NAME, ("split", "version"), "it has one of each")
    if all((path / f"{side}.csv").is_file() for side in _SIDES):
        database, queries = (CsvDataset(path / f"{side}.csv", settings.allow_missing) for side in _SIDES)
        return pair(database, queries, settings, path.absolute().name)
    if any(is_bag(path / side) for side in _SIDES if (path / side).exists()):
        bags = [BagDataset(path / side, settings.source) for side in _SIDES]
        return pair(bags[0], bags[1], settings, path.absolute().name)
    if (path / POSITIONS).is_file():
        table = CsvDataset(path / POSITIONS, settings.allow_missing)
        return pair(_part(table, "database"), _part(table, "queries"), settings, path.absolute().name)
    refuse_settings(settings, NAME, ("radius_m", "max_yaw_deg"), f"{path} has no {POSITIONS}")
    plain = [FileDataset(path / side, NAME, "", [ImageRecord(name) for name in listed_images(path / side)]) for side in _SIDES]
    return Benchmark(path.absolute().name, NAME, plain[0], plain[1], None)


def pair(database: Dataset, queries: Dataset, settings: BenchmarkSettings, name: str) -> Benchmark:
    """The benchmark of any two datasets with positions: 25 m, or by the settings' radius and yaw limit.

    Raises:
        DatasetError: their positions are in different frames and cannot be brought into one.
    """
    share_frame(database, queries)
    return Benchmark(name, NAME, database, queries, radius_rule(settings))


def _part(table: CsvDataset, side: str) -> FileDataset:
    records = [record for record in table.records if record.name.startswith(f"{side}/")]
    missing = [name for name in table.missing if name.startswith(f"{side}/")]
    if not records:
        raise DatasetError(f"{table.path} lists no image of {side}/", expected=f"image names such as {side}/0001.jpg")
    return FileDataset(table.root, NAME, table.map_frame, records, missing)


def _recognises(path: Path) -> bool:
    if all((path / f"{side}.csv").is_file() for side in _SIDES):
        return True
    if not all((path / side).exists() for side in _SIDES) or VPR_FOLDERS.recognises(path):
        return False
    return any(is_bag(path / side) for side in _SIDES) or all(_has_images(path / side) for side in _SIDES)


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and bool(image_names(folder))


LAYOUT = Layout(NAME, "database and queries: two folders (and positions.csv), two csv, or two rosbag2", _recognises, open_two_sources)
