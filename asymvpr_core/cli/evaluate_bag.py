"""`asymvpr evaluate bag`: what the robot would have published along recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.evaluation_tables import print_metrics
from asymvpr_core.cli.options import Config, ImageTopic, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.cli.run_options import ground_truth_source, numbers_of
from asymvpr_core.config import EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings
from asymvpr_core.settings_files import make_settings

GalleryOption = Annotated[Path, typer.Option("--gallery", help="folder of the gallery", metavar="DIR", show_default=False)]
Radius = Annotated[float | None, setting(EvaluationSettings, "radius_m")]
MaxYaw = Annotated[float | None, setting(EvaluationSettings, "max_yaw_deg")]
K = Annotated[str | None, setting(EvaluationSettings, "k", metavar="N,N,…")]
Threads = Annotated[int | None, setting(RuntimeSettings, "threads")]


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
    source = make_settings(SourceSettings, config, image_topic=image_topic, **ground_truth_source(ground_truth))
    evaluation = make_settings(EvaluationSettings, config, radius_m=radius_m, max_yaw_deg=max_yaw_deg, k=numbers_of(k))
    matcher = make_settings(MatcherSettings, config, score_threshold=score_threshold, exclude_time_s=exclude_time_s)
    runtime = make_settings(RuntimeSettings, config, threads=threads)

    from asymvpr_core.evaluation.bag import evaluate_bag

    evaluate_bag(
        bag, gallery, model, source=source, evaluation=evaluation, matcher=matcher, runtime=runtime, out=out, progress=terminal_progress()
    )
    print_metrics(out)
