"""`asymvpr align` and `asymvpr train`: a light query network against a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymvpr_core.cli.options import Config, Weights, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import ComparisonSettings, EvaluationSettings, SourceSettings, TrainSettings
from asymvpr_core.settings_files import make_settings

if TYPE_CHECKING:
    from asymvpr_core.manifest import GalleryNetworkIdentity

GalleryFolders = Annotated[
    list[Path],
    typer.Argument(
        help="folder of the gallery to train against, or of several of one pair to train against together", metavar="GALLERY…",
        show_default=False,
    ),
]  # fmt: skip


def train(
    galleries: GalleryFolders,
    out: Annotated[Path, out_option("the training run, or with --compare the comparison")],
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
    cached_views: Annotated[int | None, setting(TrainSettings, "cached_views")] = None,
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
    compare: Annotated[
        str | None,
        typer.Option(
            help="train each of these losses with each seed and evaluate it; aligned is the start alone, LOSS:random has a random one",
            metavar="LOSS,LOSS,…",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[str | None, setting(ComparisonSettings, "seeds", metavar="N,N,…")] = None,
    database: Annotated[
        Path | None,
        typer.Option(help="with --compare: gallery to search, of the same pair; not given: GALLERY", metavar="DIR", show_default=False),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="with --compare: images that are searched", metavar="SOURCE", show_default=False)
    ] = None,
    radius_m: Annotated[float | None, setting(EvaluationSettings, "radius_m")] = None,
    weights: Weights = None,
    config: Config = None,
) -> None:
    """Train a light query network on the images and descriptors of GALLERY.

    The gallery network itself is not needed. Give the same command again after a kill: training
    continues from the last finished epoch. Of several galleries, which must be of one pair, all
    images are trained on; places of different galleries are different places.

    \b
    Examples
      asymvpr train map --query-network efficientnet_lite0_gem --loss asym+ --out run
      asymvpr train map --recipe small_site --out run
      asymvpr train map_north map_south --out run
      asymvpr train map --loss csd --neighbours neighbours --out csd_run
      asymvpr train map --compare aligned,asym+,csd --queries images/queries --out losses
    """
    if compare is None and (seeds or database or queries):
        raise typer.BadParameter("--seeds, --database and --queries belong to --compare", param_hint="'--compare'")
    if compare is not None and queries is None:
        raise typer.BadParameter("--compare needs --queries", param_hint="'--queries'")
    if compare is not None and len(galleries) > 1:
        raise typer.BadParameter(f"--compare takes one gallery, not {len(galleries)}", param_hint="'GALLERY'")
    settings = make_settings(
        TrainSettings, config, recipe=recipe, query_network=query_network, loss=loss, init=init, epochs=epochs, batch_size=batch_size,
        sampler=sampler, images_per_place=images_per_place, learning_rate=learning_rate, temperature=temperature, gamma=gamma,
        gamma_scale=gamma_scale, neighbours_k=neighbours_k, regression_weight=regression_weight, frozen_share=frozen_share,
        cached_views=cached_views, precision=precision, accumulate_batches=accumulate_batches, gradient_clip=gradient_clip,
        ema_decay=ema_decay, accelerator=accelerator, devices=devices, num_nodes=num_nodes, seed=seed, workers=workers, threads=threads,
    )  # fmt: skip

    identity = _pair_of(galleries)

    if compare is not None:
        comparison = make_settings(ComparisonSettings, config, seeds=_parse_seeds(seeds))
        evaluation = make_settings(EvaluationSettings, config, radius_m=radius_m)
        source = make_settings(SourceSettings, config)
        _compare(galleries[0], compare, settings, comparison, database, queries, source, evaluation, out, bank, neighbours, weights)
        return

    from asymvpr_core.memory.origin import named
    from asymvpr_core.training.hardware import rank
    from asymvpr_core.training.run import train as train_run

    train_run(galleries, settings, out, weights=weights, bank=bank, neighbours=neighbours, progress=terminal_progress())
    if rank() > 0:  # of several processes one speaks
        return
    typer.echo(f"{out}: {settings.query_network} trained against {named(galleries)} ({identity})")
    typer.echo(f"next: asymvpr export {out} --out MODEL")


def align(
    galleries: GalleryFolders,
    query_network: Annotated[str, typer.Option("--query-network", help="name of the query network", metavar="NAME", show_default=False)],
    out: Annotated[Path, out_option("the training run")],
    alignment_copies: Annotated[int | None, setting(TrainSettings, "alignment_copies")] = None,
    batch_size: Annotated[int | None, setting(TrainSettings, "batch_size")] = None,
    accelerator: Annotated[str | None, setting(TrainSettings, "accelerator")] = None,
    seed: Annotated[int | None, setting(TrainSettings, "seed")] = None,
    workers: Annotated[int | None, setting(TrainSettings, "workers")] = None,
    threads: Annotated[int | None, setting(TrainSettings, "threads")] = None,
    weights: Weights = None,
    config: Config = None,
) -> None:
    """Fit the last layer of a light network to the descriptors of GALLERY in closed form, without gradient steps.

    The same as 'asymvpr train --epochs 0': every training starts from this.

    \b
    Examples
      asymvpr align map --query-network efficientnet_lite0_gem --out aligned
    """
    settings = make_settings(
        TrainSettings, config, query_network=query_network, alignment_copies=alignment_copies, batch_size=batch_size,
        accelerator=accelerator, seed=seed, workers=workers, threads=threads, epochs=0, init="aligned",
    )  # fmt: skip

    identity = _pair_of(galleries)

    from asymvpr_core.manifest import read_manifest
    from asymvpr_core.memory.origin import named
    from asymvpr_core.training.run import train as train_run

    train_run(galleries, settings, out, weights=weights, progress=terminal_progress())
    found = read_manifest(out, "run").details["alignment"]
    typer.echo(f"{out}: {settings.query_network} aligned with {named(galleries)} ({identity})")
    typer.echo(f"ridge {found['ridge']:.3g}, cosine to the gallery descriptors of held-out places {found['held_out_cosine']:.3f}")
    typer.echo(f"next: asymvpr export {out} --out MODEL")


def _pair_of(galleries: list[Path]) -> GalleryNetworkIdentity:
    """The pair of the first gallery, read before torch is imported: a wrong path answers at once."""
    from asymvpr_core.manifest import read_manifest

    return [read_manifest(gallery, "gallery").gallery_network for gallery in galleries][0]


def _parse_seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no list of whole numbers such as 0,1,2", param_hint="'--seeds'") from None


def _compare(
    gallery: Path, names: str, settings: TrainSettings, comparison: ComparisonSettings, database: Path | None, queries: Path | None,
    source: SourceSettings, evaluation: EvaluationSettings, out: Path, bank: Path | None, neighbours: Path | None, weights: Path | None,
) -> None:  # fmt: skip
    from asymvpr_core.datasets.source import open_source
    from asymvpr_core.evaluation.loss_comparison import compare_losses
    from asymvpr_core.evaluation.loss_comparison_report import MARKDOWN
    from asymvpr_core.gallery.store import Gallery

    compare_losses(
        gallery, names.split(","), settings, comparison, Gallery.open(database or gallery), open_source(Path(queries or ""), source),
        evaluation, out, bank=bank, neighbours=neighbours, weights=weights, progress=terminal_progress(),
    )  # fmt: skip
    typer.echo((out / MARKDOWN).read_text(encoding="utf-8"))
