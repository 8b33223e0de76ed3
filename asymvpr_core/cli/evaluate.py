"""`asymvpr evaluate`: how well places of a gallery are found, in a set of images or along a bag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asymvpr_core.cli.evaluation_tables import print_metrics, print_pairings
from asymvpr_core.cli.options import Config, ImageTopic, PoseTopic, Trajectory, Weights, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.cli.run_options import numbers_of
from asymvpr_core.config import BenchmarkSettings, EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings
from asymvpr_core.settings_files import make_settings

app = typer.Typer(help="Measure how well places of a gallery are found.", no_args_is_help=True, rich_markup_mode=None)

GalleryOption = Annotated[Path, typer.Option("--gallery", help="folder of the gallery", metavar="DIR", show_default=False)]
Radius = Annotated[float | None, setting(EvaluationSettings, "radius_m")]
MaxYaw = Annotated[float | None, setting(EvaluationSettings, "max_yaw_deg")]
K = Annotated[str | None, setting(EvaluationSettings, "k", metavar="N,N,…")]
Threads = Annotated[int | None, setting(RuntimeSettings, "threads")]
Resamples = Annotated[int | None, setting(EvaluationSettings, "bootstrap_resamples")]
Seed = Annotated[int | None, setting(EvaluationSettings, "seed")]
BoardsOption = Annotated[int | None, setting(EvaluationSettings, "boards")]
OnlyWrong = Annotated[bool, typer.Option("--only-wrong", help="show prediction boards of wrong best matches only")]
Queries = Annotated[Path, typer.Option(help="folder of @…@.jpg images, csv file, or rosbag2", metavar="SOURCE", show_default=False)]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="folder that keeps descriptors (default: ~/.cache/asymvpr/descriptors)", metavar="DIR", show_default=False
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="compute every descriptor and keep none")]


@app.command()
def recall(
    gallery: GalleryOption,
    queries: Queries,
    out: Annotated[Path, out_option("the result: metrics.json, predictions.csv, report.html")],
    model: Annotated[Path | None, typer.Option(help="query model that describes the queries", metavar="DIR", show_default=False)] = None,
    network: Annotated[
        str | None,
        typer.Option(help="instead of --model: the gallery's own network describes the queries too", metavar="NAME", show_default=False),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="another query model of the same gallery; may be given several times", metavar="DIR", show_default=False),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(
            help="the queries are consecutive frames: run the robot's matcher over them too", metavar="off|vote|bayes", show_default=False
        ),
    ] = None,
    score_threshold: Annotated[float | None, setting(MatcherSettings, "score_threshold")] = None,
    agreement_radius_m: Annotated[float | None, setting(MatcherSettings, "agreement_radius_m")] = None,
    radius_m: Radius = None,
    max_yaw_deg: MaxYaw = None,
    k: K = None,
    bootstrap_resamples: Resamples = None,
    seed: Seed = None,
    boards: BoardsOption = None,
    only_wrong: OnlyWrong = False,
    image_topic: ImageTopic = None,
    pose_topic: PoseTopic = None,
    trajectory: Trajectory = None,
    weights: Weights = None,
    threads: Threads = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    config: Config = None,
) -> None:
    """Recall@K of the queries against a gallery; queries without a positive are counted apart.

    \b
    Examples
      asymvpr evaluate recall --gallery map --queries images/queries --model model \\
          --radius-m 25 --k 1,5,10 --out report
      asymvpr evaluate recall --gallery map --queries images/queries \\
          --network efficientnet_lite2_gem --out upper_bound
      asymvpr evaluate recall --gallery map --queries images/queries --model model \\
          --compare other_model --sequence vote --agreement-radius-m 45 --out report
    """
    if (model is None) == (network is None):
        raise typer.BadParameter("give one of --model and --network", param_hint="'--model' / '--network'")
    settings = make_settings(
        EvaluationSettings, config, radius_m=radius_m, max_yaw_deg=max_yaw_deg, k=numbers_of(k),
        bootstrap_resamples=bootstrap_resamples, seed=seed, boards=boards, only_wrong=only_wrong or None,
    )  # fmt: skip
    source = make_settings(SourceSettings, config, image_topic=image_topic, pose_topic=pose_topic, trajectory_file=trajectory)
    runtime = make_settings(RuntimeSettings, config, threads=threads)
    matcher = make_settings(
        MatcherSettings, config, sequence=sequence, score_threshold=score_threshold, agreement_radius_m=agreement_radius_m
    )

    from asymvpr_core.datasets.source import open_source
    from asymvpr_core.deploy.runtime import QueryModel
    from asymvpr_core.evaluation.encoders import name_models
    from asymvpr_core.evaluation.recall import evaluate_recall
    from asymvpr_core.gallery.store import Gallery

    opened = Gallery.open(gallery)
    encoder: Any = QueryModel.open(model, runtime) if model is not None else _gallery_encoder(opened, str(network), weights, runtime)
    others = [QueryModel.open(path, runtime) for path in compare or []]
    compared = name_models([encoder, *others] if model is not None else others)
    if others and model is not None:
        encoder = compared.pop(0)  # beside others a model goes by its folder's name
    evaluate_recall(
        opened, open_source(queries, source), encoder, settings, out, progress=terminal_progress(),
        compare_with=compared if others else [],
        sequence=None if sequence is None else matcher, cache=_cache(cache, no_cache, settings),
    )  # fmt: skip
    print_metrics(out)


@app.command()
def pairs(
    out: Annotated[Path, out_option("the result: metrics.json, predictions/, report.html")],
    benchmark: Annotated[
        Path | None,
        typer.Option(help="folder of a benchmark: its database, queries and rule of a correct match", metavar="PATH", show_default=False),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="instead of --benchmark: folder of @…@.jpg images, csv file, or rosbag2", metavar="SOURCE", show_default=False),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="gallery whose network, projection and images are used", metavar="DIR", show_default=False)
    ] = None,
    database: Annotated[
        Path | None, typer.Option(help="reference images instead of the gallery's own", metavar="SOURCE", show_default=False)
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="query model of the gallery; may be given several times", metavar="DIR", show_default=False)
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="a network on both sides, without projection, with a weights file where it is not the installed one; "
            "may be given several times",
            metavar="NAME[=FILE]",
            show_default=False,
        ),
    ] = None,
    no_heavy: Annotated[
        bool, typer.Option("--no-heavy", help="leave the gallery's network on both sides out: its weights are not needed then")
    ] = False,
    layout: Annotated[str | None, setting(BenchmarkSettings, "layout", metavar="NAME")] = None,
    split: Annotated[str | None, setting(BenchmarkSettings, "split", metavar="NAME")] = None,
    version: Annotated[str | None, setting(BenchmarkSettings, "version", metavar="NAME")] = None,
    radius_m: Radius = None,
    max_yaw_deg: MaxYaw = None,
    k: K = None,
    bootstrap_resamples: Resamples = None,
    seed: Seed = None,
    boards: BoardsOption = None,
    only_wrong: OnlyWrong = False,
    weights: Weights = None,
    threads: Threads = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    config: Config = None,
) -> None:
    """Every pairing of networks on the same queries, compared: asymmetric, heavy on both sides, light on both sides.

    \b
    Each --model is evaluated against the gallery and on both sides, the gallery's network on both
    sides, and each --network on both sides as it is. --weights is the gallery network's.
    With --benchmark its authors' rule counts, unless --radius-m replaces it.
    \b
    Examples
      asymvpr evaluate pairs --gallery map --queries images/queries --model model --out pairs
      asymvpr evaluate pairs --database images/database --queries images/queries \\
          --network efficientnet_lite0_gem --network efficientnet_lite2_gem --out networks
      asymvpr evaluate pairs --benchmark pitts30k --network efficientnet_lite2_gem \\
          --network cosplace_resnet18_512=cosplace.pth --out pitts30k_pairs
    """
    if (benchmark is None) == (queries is None):
        raise typer.BadParameter("give one of --benchmark and --queries", param_hint="'--benchmark' / '--queries'")
    _only_with("--benchmark", benchmark, layout=layout, split=split, version=version)
    settings = make_settings(
        EvaluationSettings, config, radius_m=radius_m, max_yaw_deg=max_yaw_deg, k=numbers_of(k),
        bootstrap_resamples=bootstrap_resamples, seed=seed, boards=boards, only_wrong=only_wrong or None,
    )  # fmt: skip
    source, runtime = make_settings(SourceSettings, config), make_settings(RuntimeSettings, config, threads=threads)
    rules = make_settings(
        BenchmarkSettings, config, layout=layout, split=split, version=version, radius_m=radius_m, max_yaw_deg=max_yaw_deg, source=source
    )

    from asymvpr_core.datasets.benchmark_source import open_benchmark, open_pair
    from asymvpr_core.datasets.source import open_source
    from asymvpr_core.deploy.runtime import QueryModel
    from asymvpr_core.evaluation.ground_truth import gallery_benchmark, holds_database
    from asymvpr_core.evaluation.pairings import evaluate_pairings, pairings_of
    from asymvpr_core.gallery.store import Gallery

    # All that is read from disk comes before the networks: a wrong path answers at once.
    opened = None if gallery is None else Gallery.open(gallery)
    if benchmark is not None:
        judged_by = open_benchmark(benchmark, rules)
        if database is not None:
            raise typer.BadParameter("a benchmark has a database of its own", param_hint="'--benchmark' / '--database'")
    elif database is not None:
        limits = {"radius_m": settings.radius_m, "max_yaw_deg": settings.max_yaw_deg}
        judged_by = open_pair(database, Path(str(queries)), rules.model_copy(update=limits), source, terminal_progress())
    elif opened is not None:
        judged_by = gallery_benchmark(opened, open_source(Path(str(queries)), source), settings)
    else:
        raise typer.BadParameter("give --benchmark, --gallery or --database", param_hint="'--benchmark' / '--gallery' / '--database'")
    use_stored = opened is not None and (judged_by.layout == "gallery" or holds_database(opened, judged_by.database))
    models = [QueryModel.open(path, runtime) for path in model or []]

    from asymvpr_core.evaluation.encoders import NamedEncoder

    heavy = None if opened is None or no_heavy else NamedEncoder.of_gallery(opened, runtime.fixed_threads, weights)
    networks = [NamedEncoder.of_network(name, runtime.fixed_threads, file) for name, file in map(_network_and_file, network or [])]
    chosen = pairings_of(opened, models, networks, heavy, use_stored=use_stored)
    evaluate_pairings(
        judged_by, chosen, settings, out, gallery=opened, cache=_cache(cache, no_cache, settings), progress=terminal_progress()
    )
    print_pairings(out)


def _only_with(flag: str, given: object, **others: object) -> None:
    """Refuse flags that mean nothing without `flag`, instead of ignoring them."""
    useless = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    if given is None and useless:
        raise typer.BadParameter(f"{', '.join(useless)} means nothing without {flag}", param_hint=f"'{useless[0]}'")


def _network_and_file(text: str) -> tuple[str, Path | None]:
    """Name and weights file of --network NAME[=FILE]."""
    name, equals, file = text.partition("=")
    if equals and not (name and file):
        raise typer.BadParameter(f"'{text}' is not of the form NAME or NAME=FILE", param_hint="'--network'")
    return name, Path(file) if equals else None


def _cache(folder: Path | None, off: bool, settings: EvaluationSettings) -> Any:
    if off and folder is not None:
        raise typer.BadParameter("give one of --cache and --no-cache", param_hint="'--cache' / '--no-cache'")
    from asymvpr_core.evaluation.descriptor_cache import DescriptorCache, default_cache_folder

    return None if off else DescriptorCache(folder or default_cache_folder(), round(settings.cache_limit_gb * 1e9))


def _gallery_encoder(gallery: Any, network: str, weights: Path | None, runtime: RuntimeSettings) -> Any:
    from asymvpr_core.errors import EvaluationError
    from asymvpr_core.gallery.encoder import GalleryEncoder
    from asymvpr_core.networks.registry import network_spec

    name = network_spec(network).name
    if name != gallery.manifest.gallery_network.name:
        raise EvaluationError(
            f"gallery {gallery.path} was made by {gallery.manifest.gallery_network.name}",
            expected=f"{name}, which --network names",
            remedy="name the gallery's own network, or build a gallery with the other one",
        )
    return GalleryEncoder.open(gallery, runtime.fixed_threads, weights)
