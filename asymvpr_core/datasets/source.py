"""Opens a dataset of any layout from its path."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.config import SourceSettings
from asymvpr_core.datasets.bag_dataset import BagDataset
from asymvpr_core.datasets.bags import is_bag
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.datasets.image_names import NAME_PATTERN
from asymvpr_core.datasets.table import CsvDataset
from asymvpr_core.errors import DatasetError
from asymvpr_core.progress import Progress, silent


def open_source(path: Path, settings: SourceSettings | None = None, progress: Progress = silent) -> Dataset:
    """The dataset at `path`: a rosbag2 (folder, .db3 or .mcap), a csv, or a folder of named images.

    Args:
        settings: topics, trajectory and keyframes of a bag; without meaning for the others.
        progress: reports the reading of a bag's stamps.

    Raises:
        DatasetError: nothing there, no known layout, or what the layout's class raises.
    """
    path = Path(path)
    _check_name(path)
    expected = f"a folder of images named {NAME_PATTERN}, a csv, or a rosbag2"
    try:
        if not path.exists():
            raise DatasetError(f"there is no {path}", expected=expected, remedy="check the path")
        if is_bag(path):
            return BagDataset(path, settings, progress)
        if path.is_dir():
            return FolderDataset(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}", remedy="check its permissions") from error
    if path.suffix.lower() == ".csv":
        return CsvDataset(path)
    raise DatasetError(f"{path} is of no known kind", expected=expected)


def _check_name(path: Path) -> None:
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"the path {str(path)!a} is not UTF-8", remedy="rename it") from error
