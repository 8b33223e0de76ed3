"""`asymvpr gallery`: build a gallery, add images to one, look at one, check one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.gallery_append import append
from asymvpr_core.cli.gallery_summary import print_shortfall, print_summary
from asymvpr_core.cli.options import KINDS, Config, GalleryFolder, ImageTopic, PoseTopic, Trajectory, Weights, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import (
    THUMBNAIL_SIDE_PX,
    BenchmarkSettings,
    EngineSettings,
    GallerySettings,
    IndexSettings,
    SourceSettings,
)  # fmt: skip
from asymvpr_core.settings_files import make_settings

app = typer.Typer(help="Build a gallery, add images to one, look at one, check one.", no_args_is_help=True, rich_markup_mode=None)

app.command()(append)


@app.command()
def build(
    source: Annotated[
        Path,
        typer.Argument(
            help="folder of @…@.jpg images, csv, rosbag2, GSV-Cities, or a benchmark, whose database is taken",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
    out: Annotated[Path, out_option("the gallery")],
    network: Annotated[str | None, setting(GallerySettings, "network")] = None,
    image_topic: ImageTopic = None,
    pose_topic: PoseTopic = None,
    trajectory: Trajectory = None,
    layout: Annotated[str | None, setting(BenchmarkSettings, "layout", metavar="NAME")] = None,
    split: Annotated[str | None, setting(BenchmarkSettings, "split", metavar="NAME")] = None,
    version: Annotated[str | None, setting(BenchmarkSettings, "version", metavar="NAME")] = None,
    cities: Annotated[str | None, setting(SourceSettings, "cities", metavar="NAME,NAME,…")] = None,
    min_images_per_place: Annotated[int | None, setting(SourceSettings, "min_images_per_place")] = None,
    projection_from: Annotated[
        Path | None,
        typer.Option(
            help="gallery of the same network whose projection is re-used: a query model of that gallery then serves this one",
            metavar="GALLERY",
            show_default=False,
        ),
    ] = None,
    projection_dim: Annotated[int | None, setting(GallerySettings, "projection_dim", none_is="0", min=0, metavar="N")] = None,
    projection: Annotated[str | None, setting(GallerySettings, "projection")] = None,
    whitening: Annotated[float | None, setting(GallerySettings, "whitening")] = None,
    weights: Weights = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="leave out images that cannot be read instead of refusing the gallery")
    ] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="store small grey pictures of the keyframes, which geometric verification needs")
    ] = False,
    engine: Annotated[str | None, setting(EngineSettings, "engine")] = None,
    ray_address: Annotated[str | None, setting(EngineSettings, "address", "--ray-address")] = None,
    ray_workers: Annotated[int | None, setting(EngineSettings, "workers", "--ray-workers")] = None,
    batch_size: Annotated[int | None, setting(GallerySettings, "batch_size")] = None,
    threads: Annotated[int | None, setting(GallerySettings, "threads")] = None,
    index: Annotated[str | None, setting(IndexSettings, "kind", "--index", metavar=KINDS)] = None,
    config: Config = None,
) -> None:
    """Describe the images of SOURCE with the gallery network and write a gallery.

    Give the same command again after a kill: at most one chunk of images is described twice.

    \b
    Examples
      asymvpr gallery build images/database --out map
      asymvpr gallery build mapping_bag --pose-topic /odom --out map
      asymvpr gallery build site2_bag --trajectory slam.tum --projection-from map --out map2
      asymvpr gallery build images/database --engine ray --ray-address auto --out map
      asymvpr gallery build pitts30k --split test --out pitts30k_map
      asymvpr gallery build gsv_cities --cities London,OSL --out map
    """
    settings = make_settings(
        GallerySettings,
        config,
        network=network,
        projection_dim=projection_dim or None,
        projection=projection,
        whitening=whitening,
        batch_size=batch_size,
        threads=threads,
    )
    if projection_dim == 0:
        settings = settings.model_copy(update={"projection_dim": None})
    if thumbnails and not settings.thumbnail_side_px:
        settings = settings.model_copy(update={"thumbnail_side_px": THUMBNAIL_SIDE_PX})
    engine_settings = make_settings(EngineSettings, config, engine=engine, address=ray_address, workers=ray_workers)
    source_settings = make_settings(
        SourceSettings, config, image_topic=image_topic, pose_topic=pose_topic, trajectory_file=trajectory,
        cities=None if cities is None else tuple(cities.split(",")), min_images_per_place=min_images_per_place,
    )  # fmt: skip
    index_settings = make_settings(IndexSettings, config, kind=index)
    reading = make_settings(BenchmarkSettings, config, layout=layout, split=split, version=version, source=source_settings)

    from asymvpr_core.datasets.benchmark_source import open_database

    dataset = open_database(source, reading)  # before torch is imported: a wrong path answers at once

    from asymvpr_core.gallery.build import build_gallery

    build_gallery(
        dataset, settings, out, projection_from=projection_from, weights=weights, skip_unreadable=skip_unreadable,
        engine=engine_settings, index=index_settings, progress=terminal_progress(),
    )  # fmt: skip
    print_summary(out)
    if isinstance(settings.projection_dim, int) and projection_from is None:
        print_shortfall(out, settings.projection_dim)


@app.command()
def project(
    gallery: GalleryFolder,
    out: Annotated[Path, out_option("the smaller gallery")],
    dim: Annotated[int, typer.Option(min=1, help="dimension of the smaller descriptors", metavar="N")] = 512,
    projection: Annotated[str | None, setting(GallerySettings, "projection")] = None,
    whitening: Annotated[float | None, setting(GallerySettings, "whitening")] = None,
    projection_from: Annotated[
        Path | None,
        typer.Option(
            help="gallery made by this command whose projection is re-used: one query model then serves both",
            metavar="GALLERY",
            show_default=False,
        ),
    ] = None,
    index: Annotated[str | None, setting(IndexSettings, "kind", "--index", metavar=KINDS)] = None,
    config: Config = None,
) -> None:
    """Write a gallery of smaller descriptors, from the stored ones: no image is read again.

    The query model for it is exported with --projection-from, from a run that was trained against the large gallery.

    \b
    Examples
      asymvpr gallery project map --dim 512 --out map_512
      asymvpr export run --projection-from map_512 --out model_512
    """
    settings = make_settings(GallerySettings, config, projection=projection, whitening=whitening)
    index_settings = make_settings(IndexSettings, config, kind=index)

    from asymvpr_core.manifest import read_manifest

    read_manifest(gallery, "gallery")  # before torch is imported: a wrong path answers at once

    from asymvpr_core.gallery.project import project_gallery

    project_gallery(gallery, dim, settings, out, projection_from=projection_from, index=index_settings, progress=terminal_progress())
    print_summary(out)
    if projection_from is None:
        print_shortfall(out, dim)


@app.command()
def info(gallery: GalleryFolder) -> None:
    """Print what a gallery holds and what made it."""
    print_summary(gallery)


@app.command()
def verify(gallery: GalleryFolder) -> None:
    """Check every file of a gallery against its checksum, and that they fit together."""
    from asymvpr_core.gallery.store import Gallery
    from asymvpr_core.manifest import read_manifest, verify_files
    from asymvpr_core.retrieval.calibration import read_calibration
    from asymvpr_core.retrieval.gallery_index import open_index

    manifest = read_manifest(gallery, "gallery")
    verify_files(gallery, manifest)
    opened = Gallery.open(gallery, verify=False)
    open_index(opened)
    read_calibration(gallery)
    typer.echo(f"{gallery} is whole: {len(manifest.files)} files, {len(opened)} keyframes, pair {manifest.gallery_network.pair_id}")
