"""`asymvpr gallery append`: more images for a finished gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.gallery_summary import print_summary
from asymvpr_core.cli.options import KINDS, Config, GalleryFolder, ImageTopic, PoseTopic, Trajectory, Weights
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import IndexSettings, SourceSettings
from asymvpr_core.settings_files import make_settings


def append(
    gallery: GalleryFolder,
    source: Annotated[
        Path,
        typer.Argument(help="folder of @…@.jpg images, csv or rosbag2 in the gallery's map frame", metavar="SOURCE", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="new folder for the larger gallery; not given: in the place of the old one", metavar="DIR", show_default=False
        ),
    ] = None,
    image_topic: ImageTopic = None,
    pose_topic: PoseTopic = None,
    trajectory: Trajectory = None,
    weights: Weights = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="leave out images that cannot be read instead of refusing the gallery")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="images per forward pass; not given: as it was built", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of the forward pass; not given: as it was built", show_default=False)
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            "--index", help="build an index of this kind anew instead of extending the one there is", metavar=KINDS, show_default=False
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Describe the images of SOURCE that GALLERY does not hold, and put them behind its keyframes.

    The gallery stays readable as it was until the larger one takes its place in one step. Give the same command again
    after a kill: at most one chunk of images is described twice. Query models keep serving it; a bank, neighbour
    lists and a calibration have to be made anew, and are refused until then. The search index is extended without training.

    \b
    Examples
      asymvpr gallery append map images/database
      asymvpr gallery append map second_drive_bag --trajectory slam.tum
      asymvpr gallery append map second_drive_bag --out larger_map
    """
    source_settings = make_settings(SourceSettings, config, image_topic=image_topic, pose_topic=pose_topic, trajectory_file=trajectory)
    index_settings = None if index is None else make_settings(IndexSettings, config, kind=index)

    from asymvpr_core.datasets.source import open_source
    from asymvpr_core.manifest import read_manifest

    count = int(read_manifest(gallery, "gallery").details.get("keyframes", 0))
    dataset = open_source(source, source_settings, terminal_progress())  # before torch is imported: a wrong path answers at once

    from asymvpr_core.gallery.append import append_to_gallery

    written = append_to_gallery(
        gallery, dataset, out=out, weights=weights, skip_unreadable=skip_unreadable, batch_size=batch_size, threads=threads,
        index=index_settings, progress=terminal_progress(),
    )  # fmt: skip
    print_summary(written)
    now = int(read_manifest(written, "gallery").details["keyframes"])
    typer.echo(f"appended     {now - count} keyframes")
