"""`asymvpr dataset`: what a dataset or benchmark holds, and which layouts are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.options import Config, ImageTopic, PoseTopic, Trajectory, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import BenchmarkSettings, SourceSettings
from asymvpr_core.settings_files import make_settings

app = typer.Typer(help="Look at a dataset or benchmark before it is used.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(help="folder of a benchmark, or a source of images: folder, csv, rosbag2", metavar="PATH", show_default=False)
    ],
    layout: Annotated[str | None, setting(BenchmarkSettings, "layout", metavar="NAME")] = None,
    split: Annotated[str | None, setting(BenchmarkSettings, "split", metavar="NAME")] = None,
    version: Annotated[str | None, setting(BenchmarkSettings, "version", metavar="NAME")] = None,
    radius_m: Annotated[float | None, setting(BenchmarkSettings, "radius_m")] = None,
    max_yaw_deg: Annotated[float | None, setting(BenchmarkSettings, "max_yaw_deg")] = None,
    image_topic: ImageTopic = None,
    pose_topic: PoseTopic = None,
    trajectory: Trajectory = None,
    skip_files: Annotated[bool, typer.Option("--skip-files", help="do not read files to find duplicates")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
    config: Config = None,
) -> None:
    """Print counts, area, conditions, ground truth, and what is wrong: files missing or twice, queries without a match.

    \b
    Examples
      asymvpr dataset info pitts30k
      asymvpr dataset info mapillary_sls --version 11k
      asymvpr dataset info mapping_bag --pose-topic /odom --json
    """
    source = make_settings(SourceSettings, config, image_topic=image_topic, pose_topic=pose_topic, trajectory_file=trajectory)
    settings = make_settings(
        BenchmarkSettings,
        config,
        layout=layout,
        split=split,
        version=version,
        radius_m=radius_m,
        max_yaw_deg=max_yaw_deg,
        allow_missing=True,
        source=source,
    )

    from asymvpr_core.datasets.benchmark_source import open_benchmark, recognised_layouts
    from asymvpr_core.datasets.dataset_report import describe_benchmark, describe_dataset
    from asymvpr_core.datasets.source import SOURCE_LAYOUTS, open_source

    progress = terminal_progress()
    one_set = settings.layout in SOURCE_LAYOUTS if settings.layout else not recognised_layouts(path)
    if not one_set:
        report = describe_benchmark(open_benchmark(path, settings), not skip_files, progress)
    else:
        report = describe_dataset(open_source(path, source, progress, layout=settings.layout, allow_missing=True), not skip_files, progress)
    typer.echo(json.dumps(report.as_json(), indent=2) if as_json else "\n".join(report.lines()))


@app.command()
def layouts(as_json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False) -> None:
    """List the layouts of benchmarks with their versions, and those of single sets of images."""
    from asymvpr_core.datasets.benchmark_source import known_layouts
    from asymvpr_core.datasets.source import SOURCE_LAYOUTS

    listed = [{"layout": layout.name, "reads": layout.summary, "versions": list(layout.versions)} for layout in known_layouts()]
    listed += [{"layout": name, "reads": f"one set of images: {summary}", "versions": []} for name, summary in SOURCE_LAYOUTS.items()]
    if as_json:
        typer.echo(json.dumps(listed, indent=2))
        return
    for row in listed:
        versions = f" (versions: {', '.join(row['versions'])})" if row["versions"] else ""
        typer.echo(f"{row['layout']:12} {row['reads']}{versions}")
