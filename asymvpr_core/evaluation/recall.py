"""Recall@K of a query set against a gallery, whatever describes the queries."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import EvaluationSettings, MatcherSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.bootstrap import COMPARISON_PROTOCOL, PairedComparison, check_names, compare, intervals
from asymvpr_core.evaluation.descriptor_cache import DescriptorCache
from asymvpr_core.evaluation.encoders import Encoder, NamedEncoder, describe
from asymvpr_core.evaluation.ground_truth import gallery_benchmark, positives_of, protocol_of, warnings_of
from asymvpr_core.evaluation.loop_closure import PrecisionRecall
from asymvpr_core.evaluation.predictions import Predictions, conditions_of
from asymvpr_core.evaluation.protocol import (
    encoder_identity,
    gallery_identity,
    heading_difference_deg,
    horizontal_distance_m,
    write_metrics,
)
from asymvpr_core.evaluation.recall_report import write_recall_report
from asymvpr_core.evaluation.retrieval_metrics import statistics, statistics_by_condition, sweep_of
from asymvpr_core.evaluation.sequence import SequenceResult, evaluate_sequence
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import check_pair, new_folder
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.exact_search import search_exactly
from asymvpr_core.types import ImageRecord

METRICS, PREDICTIONS, REPORT = "metrics.json", "predictions.csv", "report.html"
_FEWEST_ANSWERS = 5  # kept for the report's boards, however small the largest K


@dataclass(frozen=True)
class RecallResult:
    """One evaluated system: its protocol, its numbers, and the arrays that they were counted from.

    `metrics` is what `metrics.json` holds, `protocol` a part of it. `sequence` is there where the matcher
    ran over the queries; `compared` and `comparison` where other models answered the same queries.
    """

    metrics: dict[str, Any]
    predictions: Predictions
    sweep: PrecisionRecall
    out: Path
    sequence: SequenceResult | None = None
    compared: tuple[Predictions, ...] = ()
    comparison: tuple[PairedComparison, ...] = ()

    @property
    def protocol(self) -> dict[str, Any]:
        """What each number of `metrics` means."""
        return dict(self.metrics["protocol"])

    @property
    def scores(self) -> np.ndarray:
        """(Q, K) float32, best first."""
        return self.predictions.scores

    @property
    def indices(self) -> np.ndarray:
        """(Q, K) int64, gallery indices."""
        return self.predictions.indices

    @property
    def positives(self) -> Sequence[np.ndarray]:
        """The correct gallery indices of each query."""
        return self.predictions.ground_truth

    @property
    def distances_m(self) -> np.ndarray:
        """(Q,) distance to the best match."""
        return self.predictions.distances_m

    @property
    def correct(self) -> np.ndarray:
        """(Q,) bool: the best match is correct."""
        return self.predictions.correct


def evaluate_recall(
    gallery: Gallery,
    queries: Dataset,
    encoder: Encoder | NamedEncoder,
    settings: EvaluationSettings,
    out: Path,
    progress: Progress = silent,
    *,
    compare_with: Sequence[NamedEncoder] = (),
    sequence: MatcherSettings | None = None,
    cache: DescriptorCache | None = None,
    conditions: Sequence[str] | None = None,
) -> RecallResult:
    """Describe all queries, search them in the gallery, and write `metrics.json`, `predictions.csv`, `report.html` to `out`.

    Recall@K is counted over the queries that have a correct match. Average precision and recall at
    full precision are counted over all queries: a confident answer to a query without a correct
    match is a false match there.

    Args:
        compare_with: other encoders of the same pair, which answer the same queries.
        sequence: the queries are consecutive frames; what the matcher accepts of them is counted too.
        cache: where descriptors of the queries are kept; None: nowhere.
        conditions: the condition of each query; None: as the records say it.

    Raises:
        EvaluationError: no queries, missing positions, frames that differ, or no query with a correct match.
        ArtefactError: a query model is of another pair, or `out` exists or cannot be written.
        RetrievalError: descriptors of another dimension than the gallery's.
    """
    first = encoder if isinstance(encoder, NamedEncoder) else _named(encoder, gallery)
    encoders = (first, *compare_with)
    for each in encoders:
        if isinstance(each.encoder, QueryModel):
            check_pair(gallery.manifest, each.encoder.manifest, gallery.path, each.encoder.path)
    check_names([each.name for each in encoders])
    benchmark = gallery_benchmark(gallery, queries, settings)
    truth, keyframes = positives_of(benchmark), benchmark.database.records
    if conditions is None:
        conditions = conditions_of(queries.records)

    with new_folder(out) as folder:
        answers, descriptors = [], np.empty(0, np.float32)
        for each in encoders:
            described = describe(queries, each, cache, progress, scratch=folder, memory_gb=settings.descriptor_memory_gb)
            descriptors = described if each is first else descriptors
            answers.append(predict(each.name, gallery.descriptors, described, queries.records, keyframes, truth, settings, conditions))
        predictions = answers[0]
        run = None
        if sequence is not None:
            run = evaluate_sequence(gallery, queries.records, descriptors, list(predictions.ground_truth), sequence)
        comparison = compare(answers, settings)
        metrics = {
            "protocol": {"task": "recall", **protocol_of(settings, benchmark), **(COMPARISON_PROTOCOL if comparison else {})},
            "warnings": warnings_of(benchmark, max(settings.k)),
            **statistics(predictions, settings.k),
            "n_gallery": len(gallery),
            "intervals": intervals(predictions, settings),
            "by_condition": statistics_by_condition(predictions, settings.k),
            **({} if run is None else {"sequence": run.statistics}),
            **({} if not comparison else {
                "compared": {p.name: {**statistics(p, settings.k), "intervals": intervals(p, settings)} for p in answers[1:]},
                "comparison": [pair.as_json() for pair in comparison],
            }),
            "gallery": gallery_identity(gallery),
            "encoder": encoder_identity(first.encoder, gallery) | {"name": first.name},
            "queries": {"path": str(queries.root), "layout": queries.layout, "map_frame": queries.map_frame},
        }  # fmt: skip
        result = RecallResult(metrics, predictions, sweep_of(predictions), Path(out), run, tuple(answers[1:]), tuple(comparison))
        write_metrics(folder / METRICS, metrics)
        write_predictions(folder / PREDICTIONS, predictions, keyframes, queries.records)
        write_recall_report(folder / REPORT, result, benchmark, settings)
    return result


def _named(encoder: Encoder, gallery: Gallery) -> NamedEncoder:
    """An encoder by the name that metrics give it."""
    name = str(encoder_identity(encoder, gallery)["name"])
    if isinstance(encoder, QueryModel):
        return NamedEncoder.of_model(encoder, name)
    return NamedEncoder(name, encoder, {"kind": "gallery network", **gallery.manifest.gallery_network.model_dump(mode="json")})


def predict(
    name: str,
    gallery_descriptors: np.ndarray,
    query_descriptors: np.ndarray,
    queries: Sequence[ImageRecord],
    keyframes: Sequence[ImageRecord],
    positives: Sequence[np.ndarray] | None,
    settings: EvaluationSettings,
    conditions: Sequence[str] | None = None,
) -> Predictions:
    """Search every query among the gallery's descriptors, exactly, and measure how far its best match lies.

    Raises:
        RetrievalError: dimensions that differ, an empty gallery, or a descriptor that is not finite.
    """
    if not len(query_descriptors):
        raise EvaluationError(f"{name} was given no queries", expected="at least one", remedy="check the query set")
    scores, indices = search_exactly(gallery_descriptors, query_descriptors, max(*settings.k, _FEWEST_ANSWERS))
    best = [keyframes[i] for i in indices[:, 0]]
    distances_m = np.array([horizontal_distance_m(q, g) for q, g in zip(queries, best, strict=True)])
    return Predictions(name, scores, indices, positives, distances_m, conditions)


def write_predictions(path: Path, predictions: Predictions, keyframes: Sequence[ImageRecord], queries: Sequence[ImageRecord]) -> None:
    """Write one row for each query and rank; fields that nobody knows stay empty, so do all judgements without ground truth."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = "query_index,query_image,n_positives,rank,gallery_index,gallery_image,score,distance_m,heading_error_deg,correct"
        writer.writerow(columns.split(","))
        for i, query in enumerate(queries):
            n_positives = len(predictions.ground_truth[i]) if predictions.judged else ""
            for rank, (score, index) in enumerate(zip(predictions.scores[i], predictions.indices[i], strict=True)):
                keyframe = keyframes[index]
                distance, heading = horizontal_distance_m(query, keyframe), heading_difference_deg(query, keyframe)
                writer.writerow([
                    i, query.name, n_positives, rank + 1, index, keyframe.name, f"{score:.6f}",
                    "" if np.isnan(distance) else f"{distance:.3f}", "" if np.isnan(heading) else f"{heading:.2f}",
                    int(predictions.hits[i, rank]) if predictions.judged else "",
                ])  # fmt: skip
