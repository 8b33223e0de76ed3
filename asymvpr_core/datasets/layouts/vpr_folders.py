"""Folders of VPR-datasets-downloader: Pitts30k, Pitts250k, Tokyo 24/7, SF-XL, St Lucia, SVOX and others."""

from __future__ import annotations

import os
from pathlib import Path

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark import Benchmark, Layout, PublishedCounts, radius_rule
from asymvpr_core.datasets.folder import FolderDataset, read_named_images
from asymvpr_core.datasets.image_files import IMAGE_SUFFIXES
from asymvpr_core.datasets.image_names import frame_of, parse_name
from asymvpr_core.errors import DatasetError

NAME = "vpr_folders"
_SPLITS = ("test", "val", "train")
_DATABASES = ("database", "gallery")  # SVOX says gallery
_PUBLISHED = {
    ("pitts30k", "test"): PublishedCounts(queries=6816, database=10000),
    ("tokyo247", "test"): PublishedCounts(queries=315, database=75984),
}


def open_vpr_folders(path: Path, settings: BenchmarkSettings) -> Benchmark:
    """`images/{train,val,test}/{database,queries}` of images named @easting@northing@…@.jpg; 25 m.

    `path` is the dataset's folder, its `images`, or one split. A split with several query folders
    (`queries_night`, `queries_v1`) needs one named as version: "night", "v1".
    """
    splits = _splits(path)
    split = settings.split or next((name for name in (*_SPLITS, "") if name in splits), None)
    if split is None or split not in splits:
        found = ", ".join(name for name in splits if name) or "none"
        expected = f"{' or '.join(_DATABASES)} and queries in {path} or in its images/{{{','.join(_SPLITS)}}}"
        raise DatasetError(f"{path} has no split '{split or 'test'}'; it has {found}", expected=expected)
    folder = splits[split]
    queries, version = _query_folder(folder, settings.version)
    sides = [read_named_images(side) for side in (_database(folder), queries)]
    frame = frame_of([*sides[0], *sides[1]])
    name = _name(path)
    return Benchmark(
        name,
        NAME,
        FolderDataset(_database(folder), sides[0], frame),
        FolderDataset(queries, sides[1], frame),
        radius_rule(settings),
        version,
        split,
        _PUBLISHED.get(("".join(filter(str.isalnum, name.lower())), split)) if not version else None,
    )


def _splits(path: Path) -> dict[str, Path]:
    """The folders with database and queries, by split; "" for `path` itself where its name is none."""
    if _is_split(path):
        return {path.name if path.name in _SPLITS else "": path}
    found: dict[str, Path] = {}
    for root in (path, path / "images", path / "processed"):  # SF-XL says processed
        found |= {name: root / name for name in _SPLITS if _is_split(root / name)}
    return found


def _is_split(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in _DATABASES) and bool(_query_folders(folder))


def _database(folder: Path) -> Path:
    return next(folder / name for name in _DATABASES if (folder / name).is_dir())


def _query_folders(folder: Path) -> dict[str, Path]:
    """Query folders by version; "" for plain `queries`."""
    return {child.name[len("queries") :].lstrip("_"): child for child in sorted(folder.glob("queries*")) if child.is_dir()}


def _query_folder(folder: Path, version: str | None) -> tuple[Path, str]:
    found = _query_folders(folder)
    if version is None and (len(found) == 1 or "" in found):
        version = next(iter(found)) if len(found) == 1 else ""
    if version is None or version not in found:
        asked = "" if version is None else f", none of version '{version}'"
        raise DatasetError(
            f"{folder} has the query folders {', '.join(child.name for child in found.values())}{asked}",
            remedy=f"name one with --version: {', '.join(name or 'queries' for name in found)}",
        )
    return found[version], version


def _name(path: Path) -> str:
    parts = [part for part in path.absolute().parts if part not in ("images", "processed", *_SPLITS)]
    return parts[-1]


def _recognises(path: Path) -> bool:
    splits = _splits(path)
    return bool(splits) and _first_name_has_position(_database(next(iter(splits.values()))))


def _first_name_has_position(folder: Path) -> bool:
    for _, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        images = (name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
        if (first := next(images, None)) is not None:
            return parse_name(first) is not None
    return False


LAYOUT = Layout(NAME, "images/{train,val,test}/{database,queries} of @…@.jpg names", _recognises, open_vpr_folders)
