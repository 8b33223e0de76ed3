"""`asymvpr evaluate bag`: what the robot would have published along recorded runs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, get_args

import typer

from asymvpr_core.cli.evaluation_tables import print_metrics, print_runs
from asymvpr_core.cli.options import Config, ImageTopic, out_option, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.cli.run_options import ground_truth_source, numbers_of
from asymvpr_core.config import EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings
from asymvpr_core.settings_files import make_settings


def bag(
    bag: Annotated[list[Path], typer.Argument(help="rosbag2 of the live run; may be several", metavar="BAG…", show_default=False)],
    gallery: Annotated[
        list[Path],
        typer.Option(
            "--gallery", help="folder of the gallery; several of one map frame are searched as one", metavar="DIR", show_default=False
        ),
    ],
    model: Annotated[
        list[Path], typer.Option(help="folder of the query model; may be given several times", metavar="DIR", show_default=False)
    ],
    ground_truth: Annotated[
        list[str],
        typer.Option(
            help="pose topic of the bag, or TUM file, in the gallery's frame; once for all bags, or once for each in their order",
            metavar="TOPIC|FILE",
            show_default=False,
        ),
    ],
    out: Annotated[Path, out_option("the result: metrics.json, matches.csv, TUM trajectory, report.html")],
    image_topic: ImageTopic = None,
    odometry_topic: Annotated[
        str | None,
        typer.Option(
            help="topic of the robot's odometry, which the matcher may use; not given: it has none", metavar="TOPIC", show_default=False
        ),
    ] = None,
    sequence: Annotated[str | None, setting(MatcherSettings, "sequence", metavar="off|vote|bayes,…")] = None,
    geometric_verification: Annotated[str | None, setting(MatcherSettings, "geometric_verification", metavar="off|fundamental,…")] = None,
    radius_m: Annotated[float | None, setting(EvaluationSettings, "radius_m")] = None,
    max_yaw_deg: Annotated[float | None, setting(EvaluationSettings, "max_yaw_deg")] = None,
    ignore_ring_m: Annotated[float | None, setting(EvaluationSettings, "ignore_ring_m")] = None,
    k: Annotated[str | None, setting(EvaluationSettings, "k", metavar="N,N,…")] = None,
    score_threshold: Annotated[float | None, setting(MatcherSettings, "score_threshold")] = None,
    target_precision: Annotated[float | None, setting(MatcherSettings, "target_precision")] = None,
    exclude_time_s: Annotated[float | None, setting(MatcherSettings, "exclude_time_s")] = None,
    agreement_radius_m: Annotated[float | None, setting(MatcherSettings, "agreement_radius_m")] = None,
    threads: Annotated[int | None, setting(RuntimeSettings, "threads")] = None,
    config: Config = None,
) -> None:
    """Run every frame of the bags through the matcher of the live node and compare with ground truth.

    With several bags, models or ways of matching, all of them are compared in one report. Every bag is described once a model.

    \b
    Examples
      asymvpr evaluate bag live_bag --gallery map --model model \\
          --ground-truth /ground_truth/pose --out report
      asymvpr evaluate bag monday tuesday --gallery map --model model --model other_model \\
          --ground-truth monday.tum --ground-truth tuesday.tum --odometry-topic /odom \\
          --sequence off,vote,bayes --out compared
      asymvpr evaluate bag live_bag --gallery ground_floor --gallery first_floor --model model \\
          --ground-truth /ground_truth/pose --out report
    """
    if len(ground_truth) not in (1, len(bag)):
        raise typer.BadParameter(f"{len(ground_truth)} for {len(bag)} bags; give one, or one for each", param_hint="'--ground-truth'")
    ways = {
        _way(steps): make_settings(
            MatcherSettings, config, score_threshold=score_threshold, target_precision=target_precision, exclude_time_s=exclude_time_s,
            agreement_radius_m=agreement_radius_m, **steps,
        )
        for steps in _combinations(sequence=sequence, geometric_verification=geometric_verification)
    }  # fmt: skip
    evaluation = make_settings(
        EvaluationSettings, config, radius_m=radius_m, max_yaw_deg=max_yaw_deg, ignore_ring_m=ignore_ring_m, k=numbers_of(k)
    )
    runtime = make_settings(RuntimeSettings, config, threads=threads)
    truths = ground_truth * len(bag) if len(ground_truth) == 1 else ground_truth
    sources = [make_settings(SourceSettings, config, image_topic=image_topic, **ground_truth_source(truth)) for truth in truths]

    if len(bag) == len(model) == len(ways) == 1:
        from asymvpr_core.evaluation.bag import evaluate_bag

        evaluate_bag(
            bag[0], gallery, model[0], source=sources[0], evaluation=evaluation, matcher=next(iter(ways.values())), runtime=runtime,
            odometry_topic=odometry_topic, out=out, progress=terminal_progress(),
        )  # fmt: skip
        print_metrics(out)
        return

    from asymvpr_core.evaluation.bag_runs import RunSource, evaluate_bags

    runs = [RunSource(path, source, odometry_topic) for path, source in zip(bag, sources, strict=True)]
    evaluate_bags(runs, gallery, model, ways, evaluation=evaluation, runtime=runtime, out=out, progress=terminal_progress())
    print_runs(out)


def _combinations(**lists: str | None) -> list[dict[str, str]]:
    """Every combination of the comma-separated choices that are given; one without any where none is."""
    given = {name: text.split(",") for name, text in lists.items() if text is not None}
    for name, values in given.items():
        known = get_args(MatcherSettings.model_fields[name].annotation)
        unknown = [value for value in values if value not in known]
        if unknown or len(set(values)) < len(values):
            wrong = f"'{unknown[0]}' is none of {', '.join(known)}" if unknown else "a choice is named twice"
            raise typer.BadParameter(wrong, param_hint=f"'--{name.replace('_', '-')}'")
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def _way(steps: dict[str, str]) -> str:
    """Name of a way of matching: "vote", "vote + fundamental"; verification that is off goes unnamed."""
    named = [value for name, value in steps.items() if name == "sequence" or value != "off"]
    return " + ".join(named) or "default"
