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
    bank: Annotated[
        Path | None, typer.Option(help="folder of the gallery's memory bank; not given: computed here", metavar="DIR", show_default=False)
    ] = None,
    neighbours: Annotated[
        Path | None,
        typer.Option(
            help="folder of the gallery's neighbour lists, for csd, rop and d3still; not given: neighbours inside the batch",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    init: Annotated[str | None, setting(TrainSettings, "init")] = None,
    epochs: Annotated[int | None, setting(TrainSettings, "epochs")] = None,
    batch_size: Annotated[int | None, setting(TrainSettings, "batch_size")] = None,
    sampler: Annotated[str | None, setting(TrainSettings, "sampler")] = None,
    images_per_place: Annotated[int | None, setting(TrainSettings, "images_per_place")] = None,
    learning_rate: Annotated[float | None, setting(TrainSettings, "learning_rate")] = None,
    temperature: Annotated[float | None, setting(TrainSettings, "temperature")] = None,
    gamma: Annotated[float | None, setting(TrainSettings, "gamma")] = None,
    gamma_scale: Annotated[str | None, setting(TrainSettings, "gamma_scale")] = None,
    neighbours_k: Annotated[int | None, setting(TrainSettings, "neighbours_k")] = None,
    regression_weight: Annotated[float | None, setting(TrainSettings, "regression_weight")] = None,
    frozen_share: Annotated[float | None, setting(TrainSettings, "frozen_share")] = None,
    precision: Annotated[str | None, setting(TrainSettings, "precision")] = None,
    accumulate_batches: Annotated[int | None, setting(TrainSettings, "accumulate_batches")] = None,
    gradient_clip: Annotated[float | None, setting(TrainSettings, "gradient_clip")] = None,
    ema_decay: Annotated[float | None, setting(TrainSettings, "ema_decay")] = None,
    accelerator: Annotated[str | None, setting(TrainSettings, "accelerator")] = None,
    devices: Annotated[int | None, setting(TrainSettings, "devices")] = None,
    num_nodes: Annotated[int | None, setting(TrainSettings, "num_nodes")] = None,
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
      asymvpr train map --loss csd --neighbours neighbours --out csd_run
    """
    settings = make_settings(
        TrainSettings, config, recipe=recipe, query_network=query_network, loss=loss, init=init, epochs=epochs, batch_size=batch_size,
        sampler=sampler, images_per_place=images_per_place, learning_rate=learning_rate, temperature=temperature, gamma=gamma,
        gamma_scale=gamma_scale, neighbours_k=neighbours_k, regression_weight=regression_weight, frozen_share=frozen_share,
        precision=precision, accumulate_batches=accumulate_batches, gradient_clip=gradient_clip, ema_decay=ema_decay,
        accelerator=accelerator, devices=devices, num_nodes=num_nodes, seed=seed, workers=workers, threads=threads,
    )  # fmt: skip

    from asymvpr_core.manifest import read_manifest

    identity = read_manifest(gallery, "gallery").gallery_network  # before torch is imported: a wrong path answers at once

    from asymvpr_core.training.run import train as train_run

    train_run(gallery, settings, out, weights=weights, bank=bank, neighbours=neighbours, progress=terminal_progress())
    typer.echo(f"{out}: {settings.query_network} trained against {gallery} ({identity})")
    typer.echo(f"next: asymvpr export {out} --out MODEL")
