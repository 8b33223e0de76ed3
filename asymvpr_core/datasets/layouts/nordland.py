"""Nordland: one railway line in summer and in winter, aligned frame by frame; three rules are in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark import Benchmark, Layout, PublishedCounts, refuse_settings
from asymvpr_core.datasets.dataset import FileDataset
from asymvpr_core.datasets.layouts.pairs import count_images, listed_images
from asymvpr_core.datasets.match_rules import FrameWindow
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord

NAME = "nordland"
CLEAN_NAMES = "cleanImageNames.txt"  # of 35 768 frames the 27 592 outside stations and tunnels
_FRAMES = 27592
_SEASONS = ("summer", "winter")

# Frames that count as the same place, and every how manieth frame is a query.
PATCH_NETVLAD, DOWNLOADER, STAR = "patch_netvlad", "downloader", "star"
_RULES = {STAR: (1, 10), PATCH_NETVLAD: (7, 1), DOWNLOADER: (10, 1)}


def open_nordland(path: Path, settings: BenchmarkSettings) -> Benchmark:
    """`summer/` and `winter/`, or `ref/` and `query/` of VPR-Bench; a match is a frame nearby in the sorted names.

    Versions: "star" (Nordland*: every tenth frame is a query, 10i - 1 to 10i + 1 are correct),
    "patch_netvlad" (7 frames either way: radius 10 with unit steps along both axes) and "downloader"
    (10 frames either way: steps of 25 / 10.5 m, 25 m). Summer is the database. VPR-Bench's folders
    hold the queries of "star" already. Where `cleanImageNames.txt` lies beside the seasons, only the
    frames that it lists are read.
    """
    version = LAYOUT.version(settings)
    half_width, step = _RULES[version]
    refuse_settings(settings, NAME, ("split", "radius_m", "max_yaw_deg"), f"version {version} counts frames")
    if (path / "ref").is_dir():
        database, queries = listed_images(path / "ref"), listed_images(path / "query")
        if version != STAR:
            raise DatasetError(f"{path} has the folders ref and query of VPR-Bench", expected=f"summer and winter for version {version}")
        if len(queries) != -(-len(database) // step):
            raise DatasetError(
                f"{path} holds {len(queries)} queries and {len(database)} references", expected=f"{-(-len(database) // step)} queries"
            )
        roots = path / "ref", path / "query"
    else:
        roots = path / "summer", path / "winter"
        database, queries = (_clean(listed_images(root), path) for root in roots)
        if len(database) != len(queries):
            raise DatasetError(
                f"{path} holds {len(database)} frames of summer and {len(queries)} of winter", expected="the same frames of both",
                remedy=f"put {CLEAN_NAMES} of the dataset beside the two folders, or complete them",
            )  # fmt: skip
        queries = queries[::step]
    database_side, query_side = (_side(root, names) for root, names in zip(roots, (database, queries), strict=True))
    rule = FrameWindow(half_width, step * np.arange(len(queries)), np.arange(len(database)))
    return Benchmark(NAME, NAME, database_side, query_side, rule, version, published=PublishedCounts(-(-_FRAMES // step), _FRAMES))


def _side(root: Path, names: list[str]) -> FileDataset:
    season = root.name if root.name in _SEASONS else ""
    return FileDataset(root, NAME, "", [ImageRecord(name, condition=season) for name in names])


def _clean(names: list[str], path: Path) -> list[str]:
    listed = path / CLEAN_NAMES
    if not listed.is_file():
        return names
    kept = set(listed.read_text(encoding="utf-8").split())
    found = [name for name in names if name in kept]
    if not found:
        raise DatasetError(f"{listed} lists none of the images beside it", expected=f"names such as {names[0]}")
    return found


def _recognises(path: Path) -> bool:
    if (path / "summer").is_dir() and (path / "winter").is_dir():
        return True
    references = count_images(path / "ref")
    return references > 1 and count_images(path / "query") == -(-references // 10)


LAYOUT = Layout(
    NAME, "summer/ and winter/ of aligned frames, or ref/ and query/ with every tenth", _recognises, open_nordland, tuple(_RULES)
)
