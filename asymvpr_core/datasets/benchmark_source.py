"""Opens a benchmark of any layout from its folder; the list of the layouts."""

from __future__ import annotations

import importlib
from pathlib import Path

from asymvpr_core.config import BenchmarkSettings, SourceSettings
from asymvpr_core.datasets.benchmark import Benchmark, Layout, refuse_settings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.layouts import amstertime, msls, nordland, sped, two_sources, vpr_folders
from asymvpr_core.datasets.source import SOURCE_LAYOUTS, check_path_name, open_source
from asymvpr_core.errors import DatasetError
from asymvpr_core.progress import Progress, silent

_LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (vpr_folders.LAYOUT, msls.LAYOUT, nordland.LAYOUT, amstertime.LAYOUT, sped.LAYOUT, two_sources.LAYOUT)
}


def known_layouts() -> list[Layout]:
    """All layouts, in the order in which they were registered."""
    return list(_LAYOUTS.values())


def register_layout(layout: Layout) -> None:
    """Make a layout known by its name, and let its folders be recognised.

    Raises:
        DatasetError: another layout has that name.
    """
    if _LAYOUTS.get(layout.name, layout) is not layout:
        raise DatasetError(f"there is a layout '{layout.name}' already: {_LAYOUTS[layout.name].summary}", remedy="choose another name")
    _LAYOUTS[layout.name] = layout


def open_benchmark(path: Path, settings: BenchmarkSettings | None = None) -> Benchmark:
    """The benchmark in the folder `path`, read by the layout that the settings name or by the only one that recognises it.

    `settings.layout` may also be "package.module:ATTRIBUTE", a `Layout` of your own, which is then registered.

    Raises:
        DatasetError: nothing there, no layout or several recognise it, or what the layout raises.
    """
    path, settings = Path(path), settings or BenchmarkSettings()
    check_path_name(path)
    if not path.is_dir():
        raise DatasetError(f"there is no folder {path}", expected="the folder of a benchmark", remedy="check the path")
    try:
        layout = _chosen(settings.layout) if settings.layout else _recognised(path)
        return layout.open(path, settings)
    except OSError as error:
        raise DatasetError(f"{error.filename or path} cannot be read: {error.strerror}", remedy="check its permissions") from error


def open_pair(
    database: Path,
    queries: Path,
    settings: BenchmarkSettings | None = None,
    source: SourceSettings | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """The benchmark of any two sources that `open_source` reads; 25 m, or by the settings' radius and yaw limit.

    Raises:
        DatasetError: what `open_source` raises, or positions in different frames.
    """
    sides = [open_source(path, source, progress) for path in (database, queries)]
    return two_sources.pair(sides[0], sides[1], settings or BenchmarkSettings(), Path(queries).absolute().name)


def open_database(path: Path, settings: BenchmarkSettings | None = None, progress: Progress = silent) -> Dataset:
    """The images that a gallery is built from: the database of a benchmark, or all images of a source.

    What is a benchmark is read as one, so that no queries get into the gallery.

    Args:
        settings: `layout` may name one of a benchmark or one of `SOURCE_LAYOUTS`; `source` is that of a source.

    Raises:
        DatasetError: what `open_benchmark` or `open_source` raises, or a split or version of what has none.
    """
    settings = settings or BenchmarkSettings()
    one_set = settings.layout in SOURCE_LAYOUTS if settings.layout else not recognised_layouts(path)
    if not one_set:
        return open_benchmark(path, settings).database
    refuse_settings(settings, settings.layout or "of one set of images", ("split", "version"), "only benchmarks have them")
    return open_source(path, settings.source, progress, layout=settings.layout, allow_missing=settings.allow_missing)


def recognised_layouts(path: Path) -> list[Layout]:
    """The layouts that recognise a folder."""
    return [layout for layout in _LAYOUTS.values() if layout.recognises(Path(path))]


def _recognised(path: Path) -> Layout:
    found = recognised_layouts(path)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(layout.name for layout in found)
        raise DatasetError(f"{path} could be read by the layouts {names}", remedy="choose one with --layout")
    known = "; ".join(f"{layout.name}: {layout.summary}" for layout in _LAYOUTS.values())
    raise DatasetError(f"no layout recognises {path}", expected=f"one of {known}", remedy="check the path, or name one with --layout")


def _chosen(name: str) -> Layout:
    if name in _LAYOUTS:
        return _LAYOUTS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        remedy = f"known layouts: {', '.join(_LAYOUTS)}; one of your own is package.module:ATTRIBUTE"
        raise DatasetError(f"there is no layout '{name}'", remedy=remedy)
    try:
        layout = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DatasetError(f"layout {name} cannot be imported: {error}", remedy="check the name, and PYTHONPATH") from error
    if not isinstance(layout, Layout):
        raise DatasetError(f"{name} is a {type(layout).__name__}", expected="a Layout")
    register_layout(layout)
    return layout
