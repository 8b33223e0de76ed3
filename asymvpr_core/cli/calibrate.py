"""`asymvpr calibrate`: what the scores of a gallery mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.options import Config, ImageTopic, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.cli.run_options import ground_truth_source
from asymvpr_core.config import CalibrationSettings, EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings
from asymvpr_core.settings_files import make_settings


def calibrate(
    gallery: Annotated[Path, typer.Argument(help="folder of the gallery", metavar="GALLERY", show_default=False)],
    model: Annotated[Path, typer.Option(help="folder of the query model", metavar="DIR", show_default=False)],
    run: Annotated[
        Path | None,
        typer.Option(
            help="labelled run: rosbag2, folder of @…@.jpg images, or csv; not given: the gallery's own pictures",
            metavar="SOURCE",
            show_default=False,
        ),
    ] = None,
    ground_truth: Annotated[
        str | None,
        typer.Option(
            help="pose topic of the run's bag, or TUM file, in the gallery's frame; not given: the only pose topic",
            metavar="TOPIC|FILE",
            show_default=False,
        ),
    ] = None,
    odometry_topic: Annotated[
        str | None, typer.Option(help="topic of the run's odometry, which the matcher may use", metavar="TOPIC", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder that becomes the report; must not exist yet", metavar="DIR", show_default=False)
    ] = None,
    target_precision: Annotated[float | None, setting(CalibrationSettings, "target_precision")] = None,
    confidence: Annotated[float | None, setting(CalibrationSettings, "confidence")] = None,
    radius_m: Annotated[float | None, setting(EvaluationSettings, "radius_m")] = None,
    max_yaw_deg: Annotated[float | None, setting(EvaluationSettings, "max_yaw_deg")] = None,
    ignore_ring_m: Annotated[float | None, setting(EvaluationSettings, "ignore_ring_m")] = None,
    impostor_distance_m: Annotated[float | None, setting(CalibrationSettings, "impostor_distance_m", none_is="not given")] = None,
    views: Annotated[int | None, setting(CalibrationSettings, "views")] = None,
    sequence: Annotated[str | None, setting(MatcherSettings, "sequence")] = None,
    exclude_time_s: Annotated[float | None, setting(MatcherSettings, "exclude_time_s")] = None,
    image_topic: ImageTopic = None,
    threads: Annotated[int | None, setting(RuntimeSettings, "threads")] = None,
    seed: Annotated[int | None, setting(CalibrationSettings, "seed")] = None,
    config: Config = None,
) -> None:
    """Find out what the scores of GALLERY mean for a query model, and write calibration.json into it.

    The robot can then be asked for a precision, target_precision, instead of a threshold. With --run the scores of
    a run with ground truth are counted; without it, revisits and impostors are made of the gallery's own pictures.

    \b
    Examples
      asymvpr calibrate map --model model --run live_bag --ground-truth /ground_truth/pose --out calibration
      asymvpr calibrate map --model model --run images/queries --target-precision 0.95
      asymvpr calibrate map --model model
    """
    settings = make_settings(
        CalibrationSettings, config, target_precision=target_precision, confidence=confidence, views=views,
        impostor_distance_m=impostor_distance_m, seed=seed,
    )  # fmt: skip
    evaluation = make_settings(EvaluationSettings, config, radius_m=radius_m, max_yaw_deg=max_yaw_deg, ignore_ring_m=ignore_ring_m)
    matcher = make_settings(MatcherSettings, config, sequence=sequence, exclude_time_s=exclude_time_s)
    runtime = make_settings(RuntimeSettings, config, threads=threads)
    if run is None and (ground_truth is not None or odometry_topic is not None):
        flag = "--odometry-topic" if ground_truth is None else "--ground-truth"
        raise typer.BadParameter("means nothing without --run", param_hint=f"'{flag}'")
    truth = {} if ground_truth is None else ground_truth_source(ground_truth)
    source = make_settings(SourceSettings, config, image_topic=image_topic, **truth).model_copy(update={"keyframes": None})

    from asymvpr_core.datasets.source import open_source

    # Before the heavy imports: a wrong path answers at once.
    dataset = None if run is None else open_source(run, source, terminal_progress())

    from asymvpr_core.evaluation.calibrate import REPORT
    from asymvpr_core.evaluation.calibrate import calibrate as run_stage

    result = run_stage(
        gallery, model, run=dataset, odometry_topic=odometry_topic, out=out, settings=settings, evaluation=evaluation, matcher=matcher,
        runtime=runtime, progress=terminal_progress(),
    )  # fmt: skip
    for line in result.calibration.summary():
        typer.echo(line)
    for reason in result.missing.values():
        typer.echo(f"note: {reason}")
    tried = {f"{search}, single frames": found.splits for search, found in result.held_out.items()}
    if result.held_out_agreed:
        tried["prior, with agreement"] = result.held_out_agreed
    for name, splits in tried.items():
        parts = ", ".join("–" if split.precision is None else f"{100 * split.precision:.2f} % of {split.accepted}" for split in splits)
        typer.echo(f"{name}: precision on held-out thirds {parts}")
    if out is not None:
        typer.echo(f"report       {out / REPORT}")
