"""`asymvpr bank`: place statistics of a gallery, a look at them, and exact neighbour lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.options import Config, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import BankSettings, CellSettings, NeighbourSettings, TrainSettings
from asymvpr_core.settings_files import make_settings

app = typer.Typer(help="Place statistics of a gallery, and its exact neighbour lists.", no_args_is_help=True, rich_markup_mode=None)

GalleryFolders = Annotated[
    list[Path], typer.Argument(help="folder of a gallery; several of one pair are taken as one", metavar="GALLERY…", show_default=False)
]


@app.command()
def build(
    galleries: GalleryFolders,
    out: Annotated[Path, out_option("the bank")],
    rank: Annotated[int | None, setting(BankSettings, "rank")] = None,
    dtype: Annotated[str | None, setting(BankSettings, "dtype")] = None,
    memory_gb: Annotated[float | None, setting(BankSettings, "memory_gb")] = None,
    cell_size_m: Annotated[float | None, setting(CellSettings, "cell_size_m")] = None,
    heading_sectors: Annotated[int | None, setting(CellSettings, "heading_sectors")] = None,
    config: Config = None,
) -> None:
    """Compute mean and covariance of the descriptors of every place of GALLERY and write a memory bank.

    Places are the dataset's place ids, or cells of position and heading. Descriptors are read once
    and memory stays within its budget. Places of different galleries are different places. Give the
    same command again after a kill: it continues.

    \b
    Examples
      asymvpr bank build map --out bank
      asymvpr bank build map --cell-size-m 10 --dtype float16 --out bank
      asymvpr bank build map --rank 4 --out bank_rank4
      asymvpr bank build map_north map_south --out bank
    """
    settings = make_settings(BankSettings, config, rank=rank, dtype=dtype, memory_gb=memory_gb)
    cells = settings.cells.model_dump()
    cells |= {name: value for name, value in {"cell_size_m": cell_size_m, "heading_sectors": heading_sectors}.items() if value is not None}
    settings = settings.model_copy(update={"cells": make_settings(CellSettings, **cells)})

    from asymvpr_core.memory.store import build_bank

    build_bank(galleries, settings, out, progress=terminal_progress())
    _print_summary(out)


@app.command()
def info(bank: Annotated[Path, typer.Argument(help="folder of a bank", metavar="DIR", show_default=False)]) -> None:
    """Print what a bank holds, what made it, and how strong the paper's γ is with it."""
    _print_summary(bank)


@app.command()
def neighbours(
    galleries: GalleryFolders,
    out: Annotated[Path, out_option("the neighbour lists")],
    k: Annotated[int | None, setting(NeighbourSettings, "k")] = None,
    chunk_size: Annotated[int | None, setting(NeighbourSettings, "chunk_size")] = None,
    memory_gb: Annotated[float | None, setting(NeighbourSettings, "memory_gb")] = None,
    threads: Annotated[int | None, setting(NeighbourSettings, "threads")] = None,
    config: Config = None,
) -> None:
    """Find the k nearest gallery images of every gallery image, exactly, for the losses CSD, ROP and D3still.

    The time grows with the square of the number of images. Give the same command again after a
    kill: it continues with the next piece.

    \b
    Examples
      asymvpr bank neighbours map --k 10 --out neighbours
    """
    settings = make_settings(NeighbourSettings, config, k=k, chunk_size=chunk_size, memory_gb=memory_gb, threads=threads)

    from asymvpr_core.memory.neighbours import build_neighbours
    from asymvpr_core.memory.origin import named

    build_neighbours(galleries, settings, out, progress=terminal_progress())
    typer.echo(f"{out}: the {settings.k} nearest of every image of {named(galleries)}, itself first")


def _print_summary(path: Path) -> None:
    from asymvpr_core.memory.origin import named, origin_paths
    from asymvpr_core.memory.spread import augmentation_exponent
    from asymvpr_core.memory.store import StoredBank

    stored = StoredBank.open(path, verify=False)
    bank, manifest, spread = stored.bank, stored.manifest, stored.mean_spread
    temperature = TrainSettings.model_fields["temperature"].default
    gamma, _ = TrainSettings(gamma_scale="paper").resolved_gamma
    size = "none: no place has two images" if spread is None else f"{spread:.3g}, mean over the images of places with several"
    exponent = 0.0 if spread is None else augmentation_exponent(spread, gamma, temperature)
    rows = {
        "bank": path,
        "places": f"{len(bank.counts)}, {int((bank.counts == 1).sum())} of them with one image",
        "images": f"{len(bank.places)}, at most {int(bank.counts.max())} a place",
        "centroids": f"{bank.centroids.shape[1]}-D {bank.centroids.dtype}",
        "covariance": "diagonal" if bank.factors is None else f"diagonal + rank {manifest.settings['rank']}, {len(bank.factors)} factors",
        "spread": size,
        "exponent": f"{exponent:.3g} with gamma {gamma:g}, temperature {temperature:g}",
        "pair": manifest.gallery_network.pair_id,
        "gallery": named(origin_paths(manifest)),
        "size": f"{sum(entry.bytes for entry in manifest.files.values()) / 1e6:.1f} MB in {len(manifest.files)} files",
        "created": f"{manifest.created} by asymvpr {manifest.asymvpr_version}",
    }
    for name, value in rows.items():
        typer.echo(f"{name:12} {value}")
