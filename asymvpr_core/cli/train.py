"""`asymvpr train`: a light query network against a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.options import Config, Weights, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import TrainSettings, make_settings


def train(
    gallery: Annotated[Path, typer.Argument(help="folder of the gallery to train against", metavar="GALLERY", show_default=False)],
    out: Annotated[Path, out_option("the training run")],
    query_network: Annotated[str | None, setting(TrainSettings, "query_network")] = None,
    loss: Annotated[str | None, setting(TrainSettings, "loss")] = None,
    init: Annotated[str | None, setting(TrainSettings, "init")] = None,
    epochs: Annotated[int | None, setting(TrainSettings, "epochs")] = None,
    batch_size: Annotated[int | None, setting(TrainSettings, "batch_size")] = None,
    learning_rate: Annotated[float | None, setting(TrainSettings, "learning_rate")] = None,
    temperature: Annotated[float | None, setting(TrainSettings, "temperature")] = None,
    gamma: Annotated[float | None, setting(TrainSettings, "gamma")] = None,
    seed: Annotated[int | None, setting(TrainSettings, "seed")] = None,
    workers: Annotated[int | None, setting(TrainSettings, "workers")] = None,
    threads: Annotated[int | None, setting(TrainSettings, "threads")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="named settings beneath --config and flags: small_site for some hundred to a few thousand images", metavar="NAME"
        ),
    ] = None,
    weights: Weights = None,
    config: Config = None,
) -> None:
    """Train a light query network on the images and descriptors of GALLERY.

    The gallery network itself is not needed. Give the same command again after a kill: training
    continues from the last finished epoch.

    \b
    Examples
      asymvpr train map --query-network efficientnet_lite0_gem --loss asym+ --out run
      asymvpr train map --recipe small_site --out run
      asymvpr train map --epochs 0 --out aligned_only
    """
    settings = make_settings(
        TrainSettings,
        config,
        recipe=recipe,
        query_network=query_network,
        loss=loss,
        init=init,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        temperature=temperature,
        gamma=gamma,
        seed=seed,
        workers=workers,
        threads=threads,
    )

    from asymvpr_core.manifest import read_manifest

    identity = read_manifest(gallery, "gallery").gallery_network  # before torch is imported: a wrong path answers at once

    from asymvpr_core.training.run import train as train_run

    train_run(gallery, settings, out, weights=weights, progress=terminal_progress())
    typer.echo(f"{out}: {settings.query_network} trained against {gallery} ({identity})")
    typer.echo(f"next: asymvpr export {out} --out MODEL")
