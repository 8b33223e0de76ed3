"""`asymvpr model`: what an exported query model holds, and what runs it fastest on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymvpr_core.cli.options import Config, setting
from asymvpr_core.config import RuntimeSettings
from asymvpr_core.settings_files import make_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asymvpr_core.deploy.model_folder import ModelFolder
    from asymvpr_core.deploy.report import Measured

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[Path, typer.Argument(help="folder of a query model", metavar="MODEL", show_default=False)]
_WIDTH = 150  # characters of the table where it goes to a file or a pipe


@app.callback()
def _model() -> None:
    """Say what a query model holds; measure what runs it fastest here."""


@app.command()
def info(model: Model) -> None:
    """Print variants, parity with the trained network, and what was measured on this and other machines.

    \b
    Example
      asymvpr model info model
    """
    from asymvpr_core.deploy.model_folder import ModelFolder
    from asymvpr_core.deploy.tuning import best_of, remembered
    from asymvpr_core.manifest import verify_files

    folder = ModelFolder.open(model)
    verify_files(model, folder.manifest)
    manifest, preprocess = folder.manifest, folder.preprocess
    made_with = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    normalised = "" if folder.folded else ", normalised (format version 1)"
    rows = {
        "network": manifest.details.get("query_network", "unknown"),
        "for galleries of": str(manifest.gallery_network),
        "input": f"{preprocess.width} x {preprocess.height}, {folder.input_dtype}{normalised}",
        "opset": str(manifest.details.get("opset", "unknown")),
        "exported with": f"asymvpr {manifest.asymvpr_version}, {made_with}",
        "variants": ", ".join(
            f"{v.file} ({v.precision}, {sum(manifest.files[name].bytes for name in v.files) / 1e6:.1f} MB)" for v in folder.variants
        ),
    }
    for label, value in rows.items():
        typer.echo(f"{label:17} {value}")
    print_parity(folder)
    for key, measured in remembered(folder).items():
        typer.echo(f"\nmeasurement {key}: {best_of(measured).choice}")
        _print_measured(measured)


@app.command()
def tune(
    model: Model,
    provider: Annotated[str | None, setting(RuntimeSettings, "provider")] = None,
    precision: Annotated[str | None, setting(RuntimeSettings, "precision")] = None,
    threads: Annotated[int | None, setting(RuntimeSettings, "threads")] = None,
    config: Config = None,
) -> None:
    """Measure every runtime, precision and thread count on this machine, and remember the result for `runtime: auto`.

    The robot's own start measures too, when nothing is remembered: this command does it beforehand, and again.

    \b
    Example
      asymvpr model tune model
    """
    settings = make_settings(RuntimeSettings, config, runtime="auto", provider=provider, precision=precision, threads=threads)

    from asymvpr_core.deploy.model_folder import ModelFolder
    from asymvpr_core.deploy.report import Notes
    from asymvpr_core.deploy.tuning import tune as measure

    folder, notes = ModelFolder.open(model), Notes()
    best, measured, remembered_in = measure(folder, settings, notes, again=True)
    _print_measured(measured)
    for note in notes.lines:
        typer.echo(note)
    typer.echo(f"{model}: {best.choice}, {best.latency_ms:.1f} ms" + (f"; remembered in {remembered_in}" if remembered_in else ""))


def print_parity(folder: ModelFolder) -> None:
    """Print how near each variant comes to the trained network, as a table."""
    if not folder.parity:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "in", "precision", "cosine min", "mean", "needed", "Recall@1", "torch", "", box=box.SIMPLE_HEAD)
    for row in folder.parity:
        recall = ["" if share is None else f"{100 * share:.1f} %" for share in (row.recall_at_1, row.torch_recall_at_1)]
        verdict = "forced" if row.forced else "" if row.holds else "below: not used by auto"
        table.add_row(
            row.file, row.runtime, row.precision, f"{row.min_cosine:.6f}", f"{row.mean_cosine:.6f}", str(row.tolerance), *recall, verdict
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(table)
    source = {"gallery": "images of the gallery", "noise": "noise: the gallery's images could not be read"}
    typer.echo(f"cosine to the trained network on {folder.parity[0].images} {source[folder.manifest.details['parity_source']]}")


def _print_measured(measured: Sequence[Measured]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("runtime", "provider", "precision", "threads", "ms", "cosine", box=box.SIMPLE_HEAD)
    for row in measured:
        choice = row.choice
        cosine = "" if row.cosine is None else f"{row.cosine:.6f}"
        table.add_row(choice.runtime, choice.provider, choice.precision, str(choice.threads), f"{row.latency_ms:.1f}", cosine)
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(table)
