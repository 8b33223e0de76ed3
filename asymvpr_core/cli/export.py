"""`asymvpr export`: a training run becomes the model that the robot runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.options import Config, out_option, setting
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
    precision: Annotated[str | None, setting(ExportSettings, "precisions", "--precision", metavar="fp32,fp16,int8")] = None,
    format_: Annotated[str | None, setting(ExportSettings, "formats", "--format", metavar="onnx,openvino")] = None,
    force: Annotated[bool | None, setting(ExportSettings, "force", "--force")] = None,
    config: Config = None,
) -> None:
    """Export the query network of RUN for the robot and compare it with the trained one on real images.

    \b
    Examples
      asymvpr export run --out model
      asymvpr export run --precision fp32,int8 --format onnx,openvino --out model
      asymvpr export run --projection-from map_512 --out model_512
    """
    settings = make_settings(ExportSettings, config, precisions=_list(precision), formats=_list(format_), force=force)

    from asymvpr_core.manifest import read_manifest

    read_manifest(run, "run")  # before torch is imported: a wrong path answers at once

    from asymvpr_core.deploy.export import export_model

    export_model(run, out, settings, projection_from=projection_from, progress=terminal_progress())
    from asymvpr_core.cli.model import print_parity
    from asymvpr_core.deploy.model_folder import ModelFolder

    folder = ModelFolder.open(out)
    typer.echo(f"{out}: query model for galleries of ({folder.manifest.gallery_network})")
    print_parity(folder)


def _list(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))
