"""`asymvpr evaluate`: how well places of a gallery are found, in a set of images or along a bag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asymvpr_core.cli.options import Config, ImageTopic, PoseTopic, Trajectory, Weights, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings, make_settings

app = typer.Typer(help="Measure how well places of a gallery are found.", no_args_is_help=True, rich_markup_mode=None)

GalleryOption = Annotated[Path, typer.Option("--gallery", help="folder of the gallery", metavar="DIR", show_default=False)]
Radius = Annotated[float | None, setting(EvaluationSettings, "radius_m")]
MaxYaw = Annotated[float | None, setting(EvaluationSettings, "max_yaw_deg")]
K = Annotated[str | None, setting(EvaluationSettings, "k", metavar="N,N,…")]
Threads = Annotated[int | None, setting(RuntimeSettings, "threads")]
_NOT_NUMBERS = ("protocol", "gallery", "encoder", "queries", "source")  # parts of metrics.json that say what was compared


@app.command()
def recall(
    gallery: GalleryOption,
    queries: Annotated[Path, typer.Option(help="folder of @…@.jpg images, csv file, or rosbag2", metavar="SOURCE", show_default=False)],
    out: Annotated[Path, out_option("the result: metrics.json, predictions.csv, report.html")],
    model: Annotated[Path | None, typer.Option(help="query model that describes the queries", metavar="DIR", show_default=False)] = None,
    network: Annotated[
        str | None,
        typer.Option(help="instead of --model: the gallery's own network describes the queries too", metavar="NAME", show_default=False),
    ] = None,
    radius_m: Radius = None,
    max_yaw_deg: MaxYaw = None,
    k: K = None,
    image_topic: ImageTopic = None,
    pose_topic: PoseTopic = None,
    trajectory: Trajectory = None,
    weights: Weights = None,
    threads: Threads = None,
    config: Config = None,
) -> None:
    """Recall@K of the queries against a gallery; queries without a positive are counted apart.

    \b
    Examples
      asymvpr evaluate recall --gallery map --queries images/queries --model model \\
          --radius-m 25 --k 1,5,10 --out report
      asymvpr evaluate recall --gallery map --queries images/queries \\
          --network efficientnet_lite2_gem --out upper_bound
    """
    if (model is None) == (network is None):
        raise typer.BadParameter("give one of --model and --network", param_hint="'--model' / '--network'")
    settings = make_settings(EvaluationSettings, config, radius_m=radius_m, max_yaw_deg=max_yaw_deg, k=_parse_k(k))
    source = make_settings(SourceSettings, config, image_topic=image_topic, pose_topic=pose_topic, trajectory_file=trajectory)
    runtime = make_settings(RuntimeSettings, config, threads=threads)

    from asymvpr_core.datasets.source import open_source
    from asymvpr_core.deploy.runtime import QueryModel
    from asymvpr_core.evaluation.recall import evaluate_recall
    from asymvpr_core.gallery.store import Gallery

    opened = Gallery.open(gallery)
    encoder = QueryModel.open(model, runtime) if model is not None else _gallery_encoder(opened, str(network), weights, runtime)
    evaluate_recall(opened, open_source(queries, source), encoder, settings, out, progress=terminal_progress())
    _print_metrics(out)


@app.command()
def bag(
    bag: Annotated[Path, typer.Argument(help="rosbag2 of the live run", metavar="BAG", show_default=False)],
    gallery: GalleryOption,
    model: Annotated[Path, typer.Option(help="folder of the query model", metavar="DIR", show_default=False)],
    ground_truth: Annotated[
        str, typer.Option(help="pose topic of the bag, or TUM file, in the gallery's frame", metavar="TOPIC|FILE", show_default=False)
    ],
    out: Annotated[Path, out_option("the result: metrics.json, matches.csv, TUM trajectory, report.html")],
    image_topic: ImageTopic = None,
    radius_m: Radius = None,
    max_yaw_deg: MaxYaw = None,
    k: K = None,
    score_threshold: Annotated[float | None, setting(MatcherSettings, "score_threshold")] = None,
    exclude_time_s: Annotated[float | None, setting(MatcherSettings, "exclude_time_s")] = None,
    threads: Threads = None,
    config: Config = None,
) -> None:
    """Run every frame of BAG through the matcher of the live node and compare with ground truth.

    \b
    Example
      asymvpr evaluate bag live_bag --gallery map --model model \\
          --ground-truth /ground_truth/pose --out report
    """
    source = make_settings(SourceSettings, config, image_topic=image_topic, **_ground_truth(ground_truth))
    evaluation = make_settings(EvaluationSettings, config, radius_m=radius_m, max_yaw_deg=max_yaw_deg, k=_parse_k(k))
    matcher = make_settings(MatcherSettings, config, score_threshold=score_threshold, exclude_time_s=exclude_time_s)
    runtime = make_settings(RuntimeSettings, config, threads=threads)

    from asymvpr_core.evaluation.bag import evaluate_bag

    evaluate_bag(
        bag, gallery, model, source=source, evaluation=evaluation, matcher=matcher, runtime=runtime, out=out, progress=terminal_progress()
    )
    _print_metrics(out)


def _parse_k(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no list of whole numbers such as 1,5,10", param_hint="'--k'") from None


def _ground_truth(text: str) -> dict[str, Any]:
    """The source setting that a topic or a file means: a file is what exists as one or looks like one."""
    path = Path(text)
    if path.is_file():
        return {"trajectory_file": path}
    if path.suffix in (".txt", ".tum", ".csv") or not text.startswith("/"):
        raise typer.BadParameter(f"there is no file {text}; a topic begins with '/'", param_hint="'--ground-truth'")
    return {"pose_topic": text}


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
    return GalleryEncoder.open(gallery, runtime.threads, weights)


def _print_metrics(out: Path) -> None:
    """The numbers of metrics.json as a table, below the rule by which they were counted."""
    import json

    from rich.console import Console
    from rich.table import Table

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    table = Table(show_header=False)
    for name, value in metrics.items():
        if name == "recall_at_k":
            value = {f"recall@{k}": recall for k, recall in value.items()}
        elif isinstance(value, dict) and name not in _NOT_NUMBERS:
            value = {f"{name} {part}": number for part, number in value.items()}
        elif not isinstance(value, dict):
            value = {name: value}
        else:
            continue
        for label, number in value.items():
            if isinstance(number, int | float):
                table.add_row(label, f"{number:.4g}" if isinstance(number, float) else str(number))
    console = Console(highlight=False)
    console.print(f"correct match: {metrics['protocol']['correct_match']}", markup=False)
    console.print(table)
    console.print(f"report: {out / 'report.html'}", markup=False)
