"""`asymvpr export`: a training run becomes the model that the robot runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.options import Config, out_option
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import ExportSettings
from asymvpr_core.settings_files import make_settings


def export(
    run: Annotated[Path, typer.Argument(help="folder of a training run", metavar="RUN", show_default=False)],
    out: Annotated[Path, out_option("the query model")],
    projection_from: Annotated[
        Path | None,
        typer.Option(
            help="gallery that 'asymvpr gallery project' made of the run's gallery: the model then gives that gallery's descriptors",
            metavar="GALLERY",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Export the query network of RUN to ONNX and compare it with the trained one on real images.

    \b
    Examples
      asymvpr export run --out model
      asymvpr export run --projection-from map_512 --out model_512
    """
    settings = make_settings(ExportSettings, config)

    from asymvpr_core.manifest import read_manifest

    read_manifest(run, "run")  # before torch is imported: a wrong path answers at once

    from asymvpr_core.deploy.export import export_model

    export_model(run, out, settings, projection_from=projection_from, progress=terminal_progress())
    manifest = read_manifest(out, "model")
    typer.echo(f"{out}: query model for galleries of ({manifest.gallery_network})")
