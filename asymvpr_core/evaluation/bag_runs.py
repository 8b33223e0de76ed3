"""Several recorded runs, models and ways of agreement side by side: every bag is described once a model, then matched in every way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asymvpr_core.config import EvaluationSettings, MatcherSettings, RuntimeSettings, SourceSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.bag import METRICS, REPORT, BagResult, check_run, encode, match_run, open_run, prior_of, write_result
from asymvpr_core.evaluation.bag_runs_report import write_runs_report
from asymvpr_core.evaluation.protocol import write_metrics
from asymvpr_core.manifest import new_folder
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.recogniser import PlaceRecogniser


@dataclass(frozen=True)
class RunSource:
    """A bag and where its ground truth and odometry come from."""

    bag: Path
    source: SourceSettings
    odometry_topic: str | None = None


@dataclass(frozen=True)
class NamedRun:
    """One bag, one model, one way of matching; `folder` is its name below the result's."""

    bag: str
    model: str
    way: str
    result: BagResult

    @property
    def folder(self) -> str:
        return "_".join((self.bag, self.model, self.way)).replace("/", "-").replace(" ", "")


def evaluate_bags(
    bags: Sequence[RunSource],
    gallery_path: Path | Sequence[Path],
    model_paths: Sequence[Path],
    matchers: dict[str, MatcherSettings],
    *,
    out: Path,
    evaluation: EvaluationSettings | None = None,
    runtime: RuntimeSettings | None = None,
    progress: Progress = silent,
) -> list[NamedRun]:
    """Match every bag with every model in every way, and write one comparison and a folder for each run to `out`.

    Args:
        matchers: settings of each way of matching, by its name.

    Raises:
        EvaluationError: a bag or model is given twice, or as `evaluate_bag`.
        BagError, DatasetError, ArtefactError, SettingsError: as `evaluate_bag`.
    """
    evaluation = evaluation or EvaluationSettings()
    names = _names([source.bag for source in bags], "bag")
    models = _names(model_paths, "query model")
    datasets = [open_run(source.bag, source.source) for source in bags]
    runs: list[NamedRun] = []
    with new_folder(out) as folder:
        for model_name, model_path in zip(models, model_paths, strict=True):
            first = next(iter(matchers.values()))
            recogniser = PlaceRecogniser.open(gallery_path, model_path, first, runtime)
            for settings in matchers.values():
                recogniser.check_settings(settings)  # a setting that contradicts another is told before the work
            for name, source, dataset in zip(names, bags, datasets, strict=True):
                runs += _runs_of_bag(name, model_name, dataset, source, recogniser, matchers, evaluation, out, progress)
        for run in runs:
            where = folder / run.folder
            where.mkdir()
            write_result(where, run.result)
        write_metrics(folder / METRICS, _comparison(runs, evaluation))
        write_runs_report(folder / REPORT, runs)
    return runs


def _runs_of_bag(
    name: str, model_name: str, dataset: Dataset, source: RunSource, recogniser: PlaceRecogniser, matchers: dict[str, MatcherSettings],
    evaluation: EvaluationSettings, out: Path, progress: Progress,
) -> list[NamedRun]:  # fmt: skip
    check_run(dataset, prior_of(recogniser)[0], evaluation)
    encoded = encode(dataset, recogniser, source.odometry_topic, progress)
    runs = []
    for way, settings in progress(list(matchers.items()), f"matching {name} with {model_name}", total=len(matchers)):
        recogniser.change_settings(settings)
        run = NamedRun(name, model_name, way, match_run(encoded, recogniser, evaluation, out))
        runs.append(run)
    return runs


def _names(paths: Sequence[Path], what: str) -> list[str]:
    """The shortest ends of the paths that tell them apart. Raises EvaluationError where one is given twice."""
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise EvaluationError(f"the {what} {twice} is given twice", remedy="name each once")
    length, names = 1, [path.name for path in resolved]
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(path.parts[-length:]) for path in resolved]
    return names


def _comparison(runs: Sequence[NamedRun], evaluation: EvaluationSettings) -> dict[str, Any]:
    """Contents of the comparison's `metrics.json`: every run's numbers by the name of its folder."""
    protocol = {**runs[0].result.metrics["protocol"], "task": "bags"}
    del protocol["matcher"]
    return json.loads(
        json.dumps({
            "protocol": protocol,
            "runs": {run.folder: {"bag": run.bag, "model": run.model, "way": run.way, **run.result.metrics} for run in runs},
            "settings": evaluation.model_dump(mode="json"),
        })
    )  # fmt: skip
