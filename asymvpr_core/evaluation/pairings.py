"""Every pairing of networks on one query set, side by side: asymmetric, symmetric heavy, symmetric light, any by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.bootstrap import COMPARISON_PROTOCOL, PairedComparison, compare, intervals
from asymvpr_core.evaluation.descriptor_cache import DescriptorCache
from asymvpr_core.evaluation.encoders import GalleryImages, Images, NamedEncoder, describe, name_models
from asymvpr_core.evaluation.pairings_report import write_pairings_report
from asymvpr_core.evaluation.predictions import Predictions, conditions_from_names
from asymvpr_core.evaluation.protocol import check_map_frames, gallery_identity, write_metrics
from asymvpr_core.evaluation.recall import METRICS, REPORT, ground_truth, predict, protocol_of, write_predictions
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
    references: Images
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
            f"two pairings are called '{twice[0]}'", expected="different names", remedy="rename one of the models' folders"
        )
    return found


def evaluate_pairings(
    queries: Dataset,
    pairings: Sequence[Pairing],
    settings: EvaluationSettings,
    out: Path,
    *,
    gallery: Gallery | None = None,
    database: Dataset | None = None,
    cache: DescriptorCache | None = None,
    conditions: Sequence[str] | None = None,
    progress: Progress = silent,
) -> PairingsResult:
    """Evaluate all pairings on one query set and write `metrics.json`, `predictions/*.csv` and `report.html` to `out`.

    Args:
        pairings: as `pairings_of` gives them.
        gallery: whose images and poses are the references, where no `database` is given.
        database: the reference images.
        cache: where descriptors are kept between calls; None: nowhere.
        conditions: the condition of each query; None: as the names say it.

    Raises:
        EvaluationError: neither gallery nor database, or as `evaluate_recall`.
        ArtefactError: `out` exists or cannot be written.
    """
    if database is None and gallery is None:
        raise EvaluationError("there are no reference images", expected="--gallery or --database", remedy="give one of them")
    references: Images = GalleryImages(gallery) if database is None and gallery is not None else database  # type: ignore[assignment]
    where = str(database.root) if database is not None else f"gallery {gallery.path if gallery else ''}"
    if database is None and gallery is not None:
        check_map_frames(gallery, queries.map_frame, str(queries.root))
    keyframes = references.records
    truth = ground_truth(queries, keyframes, settings, where)
    if conditions is None:
        conditions = conditions_from_names([record.name for record in queries.records])

    described: dict[tuple[str, int], np.ndarray] = {}

    def side(images: Images, encoder: NamedEncoder, what: str) -> np.ndarray:
        key = (what, id(encoder))
        if key not in described:
            described[key] = describe(images, encoder, cache, progress, what)
        return described[key]

    with new_folder(out) as folder:
        systems = []
        for pairing in pairings:
            if pairing.gallery_side is not None:
                gallery_descriptors = side(references, pairing.gallery_side, "gallery images")
            else:
                assert gallery is not None  # such pairings come from a gallery
                gallery_descriptors = gallery.descriptors
            query_descriptors = side(queries, pairing.query_side, "queries")
            systems.append(
                predict(pairing.name, gallery_descriptors, query_descriptors, queries.records, keyframes, truth, settings, conditions)
            )
        comparison = compare(systems, settings)
        metrics = {
            "protocol": {"task": "pairings", **protocol_of(settings), **COMPARISON_PROTOCOL},
            "systems": {
                predictions.name: {
                    "kind": pairing.kind,
                    "query_side": _side(pairing.query_side),
                    "gallery_side": _STORED if pairing.gallery_side is None else _side(pairing.gallery_side),
                    **statistics(predictions, settings.k),
                    "intervals": intervals(predictions, settings),
                    "by_condition": statistics_by_condition(predictions, settings.k),
                }
                for pairing, predictions in zip(pairings, systems, strict=True)
            },
            "comparison": [pair.as_json() for pair in comparison],
            "n_gallery": len(keyframes),
            "references": {"path": str(database.root if database is not None else gallery.path if gallery else "")},
            "gallery": None if gallery is None else gallery_identity(gallery),
            "queries": {"path": str(queries.root), "layout": queries.layout, "map_frame": queries.map_frame},
        }
        result = PairingsResult(metrics, tuple(systems), tuple(comparison), references, Path(out))
        write_metrics(folder / METRICS, metrics)
        (folder / "predictions").mkdir()
        for number, predictions in enumerate(systems, start=1):
            write_predictions(folder / "predictions" / f"{number}_{_slug(predictions.name)}.csv", predictions, keyframes, queries.records)
        write_pairings_report(folder / REPORT, result, queries, settings)
    return result


def _side(encoder: NamedEncoder) -> dict[str, Any]:
    return {"name": encoder.name, "dimension": encoder.encoder.dimension, **encoder.identity}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:80]
