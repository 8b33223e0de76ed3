"""Every pairing of networks on one query set, side by side: asymmetric, symmetric heavy, symmetric light, any by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.datasets.benchmark import Benchmark
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.bootstrap import COMPARISON_PROTOCOL, PairedComparison, compare, intervals
from asymvpr_core.evaluation.descriptor_cache import DescriptorCache
from asymvpr_core.evaluation.encoders import Images, NamedEncoder, describe, name_models
from asymvpr_core.evaluation.ground_truth import positives_of, protocol_of, warnings_of
from asymvpr_core.evaluation.pairings_report import write_pairings_report
from asymvpr_core.evaluation.predictions import Predictions, conditions_of
from asymvpr_core.evaluation.protocol import gallery_identity, percentiles, write_metrics
from asymvpr_core.evaluation.recall import METRICS, REPORT, predict, write_predictions
from asymvpr_core.evaluation.retrieval_metrics import statistics, statistics_by_condition
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair, new_folder
from asymvpr_core.progress import Progress, silent

Kind = Literal["asymmetric", "symmetric"]
_STORED = "stored"  # the gallery side is what the gallery's build has written


@dataclass(frozen=True)
class Pairing:
    """Who describes the queries and who the gallery; a gallery side of None: the descriptors that the gallery holds."""

    name: str
    kind: Kind
    query_side: NamedEncoder
    gallery_side: NamedEncoder | None


@dataclass(frozen=True)
class PairingsResult:
    """All pairings on the same queries: `metrics` as in `metrics.json`, the arrays of each, and their comparison."""

    metrics: dict[str, Any]
    systems: tuple[Predictions, ...]
    comparison: tuple[PairedComparison, ...]
    benchmark: Benchmark
    out: Path


def pairings_of(
    gallery: Gallery | None,
    models: Sequence[QueryModel],
    networks: Sequence[NamedEncoder],
    heavy: NamedEncoder | None,
    *,
    use_stored: bool,
) -> list[Pairing]:
    """Asymmetric for every model, heavy on both sides, light on both sides for every model, every network on both sides.

    Args:
        heavy: the gallery's own network; None: without the symmetric heavy pairing.
        use_stored: the gallery side of the gallery's network is read from the gallery, not described again.

    Raises:
        EvaluationError: nothing to pair, something given twice, or models without a gallery.
        ArtefactError: a model of another pair than the gallery's.
    """
    if models and gallery is None:
        raise EvaluationError("query models are given without a gallery", expected="--gallery, the gallery that they were trained for")
    for model in models:
        if gallery is not None:
            check_pair(gallery.manifest, model.manifest, gallery.path, model.path)
    light = name_models(models)
    found: list[Pairing] = []
    if gallery is not None and not use_stored and heavy is None:
        raise EvaluationError(
            "other reference images than the gallery's are given without the gallery's network", expected="the network, to describe them",
            remedy="leave --no-heavy or --database out",
        )  # fmt: skip
    if gallery is not None:
        side = None if use_stored else heavy
        name = gallery.manifest.gallery_network.name
        found += [Pairing(f"{encoder.name} on {name}", "asymmetric", encoder, side) for encoder in light]
        if heavy is not None:
            found.append(Pairing(f"{name}, both sides", "symmetric", heavy, side))
    found += [Pairing(f"{encoder.name}, both sides", "symmetric", encoder, encoder) for encoder in light]
    found += [Pairing(f"{encoder.name} without projection, both sides", "symmetric", encoder, encoder) for encoder in networks]
    if not found:
        raise EvaluationError("there is nothing to evaluate", expected="--gallery, --model or --network", remedy="give at least one")
    names = [pairing.name for pairing in found]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise EvaluationError(
            f"two pairings are called '{twice[0]}'", expected="different names", remedy="give each once, or rename a folder or weights file"
        )
    return found


def evaluate_pairings(
    benchmark: Benchmark,
    pairings: Sequence[Pairing],
    settings: EvaluationSettings,
    out: Path,
    *,
    gallery: Gallery | None = None,
    cache: DescriptorCache | None = None,
    conditions: Sequence[str] | None = None,
    progress: Progress = silent,
) -> PairingsResult:
    """Evaluate all pairings on one benchmark and write `metrics.json`, `predictions/*.csv` and `report.html` to `out`.

    Where the benchmark has no ground truth nothing is judged: `metrics.json` then says so and holds no metric.

    Args:
        benchmark: as `open_benchmark`, `open_pair` or `gallery_benchmark` gives it.
        pairings: as `pairings_of` gives them.
        gallery: whose stored descriptors are those of the benchmark's database, where a pairing uses them.
        cache: where descriptors are kept between calls; None: nowhere.
        conditions: the condition of each query; None: as the records say it.

    Raises:
        EvaluationError: no query has a correct match, or a pairing of stored descriptors without the gallery.
        DatasetError: an image lacks what the benchmark's rule needs.
        ArtefactError: `out` exists or cannot be written.
    """
    truth = positives_of(benchmark)
    queries, database = benchmark.queries, benchmark.database
    if conditions is None:
        conditions = conditions_of(queries.records)
    with new_folder(out) as folder:
        systems = [
            predict(pairing.name, *sides, queries.records, database.records, truth, settings, conditions)
            for pairing, sides in _described(benchmark, pairings, settings, gallery, cache, progress, folder)
        ]
        comparison = compare(systems, settings) if benchmark.rule is not None else []
        metrics = {
            "protocol": {"task": "pairings", **protocol_of(settings, benchmark), **(COMPARISON_PROTOCOL if comparison else {})},
            "warnings": warnings_of(benchmark, max(settings.k)),
            "systems": {
                predictions.name: {
                    "kind": pairing.kind,
                    "query_side": _side(pairing.query_side),
                    "gallery_side": _STORED if pairing.gallery_side is None else _side(pairing.gallery_side),
                    **_metrics(predictions, settings),
                }
                for pairing, predictions in zip(pairings, systems, strict=True)
            },
            "comparison": [pair.as_json() for pair in comparison],
            "n_gallery": len(database.records),
            "benchmark": {"title": benchmark.title, "layout": benchmark.layout, "split": benchmark.split, "version": benchmark.version},
            "references": {"path": str(database.root), "layout": database.layout, "map_frame": database.map_frame},
            "gallery": None if gallery is None else gallery_identity(gallery),
            "queries": {"path": str(queries.root), "layout": queries.layout, "map_frame": queries.map_frame},
        }
        result = PairingsResult(metrics, tuple(systems), tuple(comparison), benchmark, Path(out))
        write_metrics(folder / METRICS, metrics)
        (folder / "predictions").mkdir()
        for number, predictions in enumerate(systems, start=1):
            path = folder / "predictions" / f"{number}_{_slug(predictions.name)}.csv"
            write_predictions(path, predictions, database.records, queries.records)
        write_pairings_report(folder / REPORT, result, settings)
    return result


def _described(
    benchmark: Benchmark, pairings: Sequence[Pairing], settings: EvaluationSettings, gallery: Gallery | None,
    cache: DescriptorCache | None, progress: Progress, scratch: Path,
) -> Iterator[tuple[Pairing, tuple[np.ndarray, np.ndarray]]]:  # fmt: skip
    """Yield each pairing with its (gallery, query) descriptors; what no later pairing needs is let go."""
    sides: dict[str, Images] = {"gallery images": benchmark.database, "queries": benchmark.queries}
    needed = [[("gallery images", p.gallery_side), ("queries", p.query_side)] for p in pairings]
    kept: dict[tuple[str, int], np.ndarray] = {}
    for number, pairing in enumerate(pairings):
        found = []
        for what, encoder in needed[number]:
            if encoder is None:
                if gallery is None:
                    raise EvaluationError(f"{pairing.name} needs the stored descriptors of a gallery", expected="--gallery")
                found.append(gallery.descriptors)
                continue
            if (what, id(encoder)) not in kept:
                kept[what, id(encoder)] = describe(
                    sides[what], encoder, cache, progress, what, scratch=scratch, memory_gb=settings.descriptor_memory_gb
                )
            found.append(kept[what, id(encoder)])
        yield pairing, (found[0], found[1])
        later = {(what, id(encoder)) for after in needed[number + 1 :] for what, encoder in after}
        kept = {key: descriptors for key, descriptors in kept.items() if key in later}


def _metrics(predictions: Predictions, settings: EvaluationSettings) -> dict[str, Any]:
    """What is known of one system's answers: every metric, or, without ground truth, how high their scores are."""
    if not predictions.judged:
        return {"n_queries": len(predictions), "best_score": percentiles(predictions.scores[:, 0], 5, 50, 95)}
    return {
        **statistics(predictions, settings.k),
        "intervals": intervals(predictions, settings),
        "by_condition": statistics_by_condition(predictions, settings.k),
    }


def _side(encoder: NamedEncoder) -> dict[str, Any]:
    return {"name": encoder.name, "dimension": encoder.encoder.dimension, **encoder.identity}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:80]
