"""What an evaluation is judged by: a benchmark with its rule, or a gallery's images and a radius in the place of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.datasets.benchmark import Benchmark
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.dataset_report import describe_benchmark
from asymvpr_core.datasets.geographic import share_frame
from asymvpr_core.datasets.match_rules import WithinRadius
from asymvpr_core.datasets.positives import Positives
from asymvpr_core.errors import ImageError
from asymvpr_core.evaluation.protocol import check_map_frames, check_poses
from asymvpr_core.evaluation.retrieval_metrics import PROTOCOL, no_positives
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.types import ImageRecord

NOT_JUDGED = "nothing was judged: there is no ground truth, so the answers are predictions only"


class GalleryImages:
    """The pictures of a gallery as a `Dataset`, so that other encoders can describe them and rules judge them."""

    layout = "gallery"

    def __init__(self, gallery: Gallery):
        self.gallery, self.root = gallery, gallery.path
        self.map_frame, self.records = gallery.map_frame, list(gallery.keyframes)

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (index, bytes of the file). Raises ImageError where the picture is gone or damaged."""
        for index in indices:
            try:
                yield index, self.gallery.read_encoded(index)
            except ImageError as error:
                raise ImageError(f"of gallery {self.gallery.path}, {error.found}", remedy="give the images with --database") from error

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, `(H, W, 3)` uint8 RGB). Raises ImageError where the picture is gone."""
        for index, data in self.read_encoded(indices):
            yield index, decode_image(data, str(self.gallery.image_path(index)))


def gallery_benchmark(gallery: Gallery, queries: Dataset, settings: EvaluationSettings) -> Benchmark:
    """The benchmark of a gallery's images and any queries, by the radius and yaw limit of the settings.

    Frames of different UTM zones become one where all images have latitude and longitude, as in `open_pair`;
    `queries` is changed then.

    Raises:
        EvaluationError: no images on a side, positions or headings missing, or positions in different frames.
    """
    images = GalleryImages(gallery)
    check_poses(queries.records, str(queries.root), settings.max_yaw_deg)
    check_poses(images.records, f"gallery {gallery.path}", settings.max_yaw_deg)
    if all(record.lat_lon_deg for record in (*images.records, *queries.records)):
        share_frame(images, queries)
    else:
        check_map_frames(gallery, queries.map_frame, str(queries.root))
    rule = WithinRadius(settings.radius_m, settings.max_yaw_deg, image="gallery image")
    return Benchmark(Path(queries.root).absolute().name, "gallery", images, queries, rule)


def holds_database(gallery: Gallery, database: Dataset) -> bool:
    """Whether the gallery was built from exactly these images, in this order: its stored descriptors are theirs."""
    if any(part.source == "" or Path(part.source) != Path(database.root).resolve() for part in gallery.parts):
        return False
    return [keyframe.name for keyframe in gallery.keyframes] == [record.name for record in database.records]


def positives_of(benchmark: Benchmark) -> Positives | None:
    """The correct database images of every query; None where the benchmark has no ground truth.

    Raises:
        EvaluationError: no query has a correct match.
        DatasetError: an image lacks what the rule needs.
    """
    if benchmark.rule is None:
        return None
    positives = benchmark.positives
    if not positives.total:
        hints = [text for text in warnings_of(benchmark) if "swapped" in text]
        raise no_positives(len(positives), hints[0] if hints else None)
    return positives


def warnings_of(benchmark: Benchmark, largest_k: int = 0) -> list[str]:
    """What makes the numbers of an evaluation mean less than they seem to, a sentence each."""
    warnings = list(describe_benchmark(benchmark, compare_files=False).warnings)
    count = len(benchmark.database.records)
    if largest_k > count:
        warnings.append(f"K = {largest_k} is larger than the {count} images that are searched: it counts all of them")
    return warnings


def protocol_of(settings: EvaluationSettings, benchmark: Benchmark) -> dict[str, Any]:
    """The rules and settings that every number of an evaluation of images rests on."""
    rule = benchmark.rule
    ranking = {"k": list(settings.k), "similarity": "cosine, exact search"}
    if rule is None:
        return {"correct_match": benchmark.rule_text, "judged": NOT_JUDGED, **ranking}
    return {
        "correct_match": benchmark.rule_text,
        "radius_m": rule.radius_m if isinstance(rule, WithinRadius) else None,
        "max_yaw_deg": rule.max_yaw_deg if isinstance(rule, WithinRadius) else None,
        **ranking,
        "confidence_percent": 100 * settings.confidence,
        "intervals": f"percentile bootstrap over queries, {settings.bootstrap_resamples} resamples, {100 * settings.confidence:g} %, "
        f"seed {settings.seed}; queries with and without a correct match drawn separately",
        **PROTOCOL,
    }


def has_positions(benchmark: Benchmark) -> bool:
    """Whether every image of both sides lies somewhere, so that a map can be drawn."""
    return all(record.pose is not None for side in (benchmark.database, benchmark.queries) for record in side.records)


def positions_m(records: list[ImageRecord]) -> np.ndarray:
    """(N, 3) float64 positions [m]; NaN where one is unknown."""
    return np.array([record.pose.position if record.pose else (np.nan,) * 3 for record in records], dtype=np.float64).reshape(-1, 3)
