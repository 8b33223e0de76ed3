"""Opens a dataset of any layout from its path."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.config import SourceSettings
from asymvpr_core.datasets.bag_dataset import BagDataset
from asymvpr_core.datasets.bags import is_bag
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.datasets.gsv_cities import GsvCitiesDataset, is_gsv_cities
from asymvpr_core.datasets.image_names import NAME_PATTERN
from asymvpr_core.datasets.table import CsvDataset
from asymvpr_core.errors import DatasetError
from asymvpr_core.progress import Progress, silent

SOURCE_LAYOUTS = {
    "bag": "a rosbag2: its folder, .db3 or .mcap",
    "csv": "image,x,y,z,qx,qy,qz,qw or image,lat,lon",
    "folder": "images whose @…@.jpg names carry the position",
    "gsv_cities": "Dataframes/{City}.csv and Images/{City}/, with place ids",
}


def open_source(
    path: Path,
    settings: SourceSettings | None = None,
    progress: Progress = silent,
    *,
    layout: str | None = None,
    allow_missing: bool = False,
) -> Dataset:
    """The dataset at `path`: a rosbag2 (folder, .db3 or .mcap), a csv, GSV-Cities, or a folder of named images.

    Args:
        settings: topics, trajectory and keyframes of a bag, cities of GSV-Cities; without meaning for the others.
        progress: reports the reading of a bag's stamps.
        layout: one of `SOURCE_LAYOUTS`; None: recognised.
        allow_missing: leave out images that a csv or GSV-Cities lists and that are absent, instead of refusing.

    Raises:
        DatasetError: nothing there, no known layout, or what the layout's class raises.
    """
    path, settings = Path(path), settings or SourceSettings()
    check_path_name(path)
    try:
        layout = layout or _recognised(path)
        if layout == "bag":
            return BagDataset(path, settings, progress)
        if layout == "gsv_cities":
            return GsvCitiesDataset(path, settings.cities, settings.min_images_per_place, allow_missing)
        if layout == "folder":
            return FolderDataset(path)
        if layout == "csv":
            return CsvDataset(path, allow_missing)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}", remedy="check its permissions") from error
    raise DatasetError(f"there is no layout '{layout}' of single sets", expected=f"one of {', '.join(SOURCE_LAYOUTS)}")


def _recognised(path: Path) -> str:
    expected = f"a folder of images named {NAME_PATTERN}, a csv, GSV-Cities, or a rosbag2"
    if not path.exists():
        raise DatasetError(f"there is no {path}", expected=expected, remedy="check the path")
    if is_bag(path):
        return "bag"
    if is_gsv_cities(path):
        return "gsv_cities"
    if path.is_dir():
        return "folder"
    if path.suffix.lower() == ".csv":
        return "csv"
    raise DatasetError(f"{path} is of no known kind", expected=expected)


def check_path_name(path: Path) -> None:
    """Refuse a path that no manifest or report could hold.

    Raises:
        DatasetError: it is not UTF-8.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"the path {str(path)!a} is not UTF-8", remedy="rename it") from error
