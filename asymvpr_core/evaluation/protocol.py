"""What every evaluation states and checks before it counts: rule of a correct match, frames, identities."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core import __version__
from asymvpr_core.config import EvaluationSettings
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError
from asymvpr_core.manifest import write_text_atomically
from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.types import ImageRecord, angle_difference_deg


def correct_match_rule(settings: EvaluationSettings, match: str = "gallery image", query: str = "the query") -> str:
    """The rule in words, for metrics and reports."""
    rule = f"{match} within {settings.radius_m:g} m (horizontal distance) of {query}"
    return rule if settings.max_yaw_deg is None else f"{rule} and within {settings.max_yaw_deg:g} deg of its heading"


def check_map_frames(gallery: PriorGallery, frame: str, what: str) -> None:
    """Refuse to compare positions of different frames; "utm" is any UTM zone, an empty name is unknown and trusted.

    Raises:
        EvaluationError: naming both frames.
    """
    names = {gallery.map_frame, frame}
    if len(names) == 1 or "" in names or ("utm" in names and all(name.startswith("utm") for name in names)):
        return
    raise EvaluationError(
        f"{what} has poses in frame '{frame}'", expected=f"'{gallery.map_frame}', the frame of gallery {gallery.path}",
        remedy="give ground truth in the gallery's frame",
    )  # fmt: skip


def check_poses(records: list[ImageRecord], what: str, max_yaw_deg: float | None) -> None:
    """Refuse records without what the rule of a correct match needs.

    Raises:
        EvaluationError: no records, or records without position, or without heading where it is tested.
    """
    if not records:
        raise EvaluationError(f"{what} holds no images with ground truth", remedy="check the source and its poses")
    without = sum(record.pose is None for record in records)
    if without:
        raise EvaluationError(
            f"{without} of {len(records)} images of {what} have no position", expected="a position for each",
            remedy="give a benchmark that goes without positions to 'asymvpr evaluate pairs --benchmark'",
        )  # fmt: skip
    if max_yaw_deg is not None:
        without = sum(record.heading_deg is None for record in records)
        if without:
            raise EvaluationError(
                f"{without} of {len(records)} images of {what} have no heading", expected="a heading for each where yaw is tested",
                remedy="evaluate without a yaw limit",
            )  # fmt: skip


def horizontal_distance_m(a: ImageRecord, b: ImageRecord) -> float:
    """Distance of the two positions in the x-y plane, in metres; NaN where one is unknown."""
    if a.pose is None or b.pose is None:
        return float("nan")
    return float(np.hypot(a.pose.position[0] - b.pose.position[0], a.pose.position[1] - b.pose.position[1]))


def heading_difference_deg(a: ImageRecord, b: ImageRecord) -> float:
    """Absolute difference of the two headings, in [0, 180] degrees; NaN where one is unknown."""
    if a.heading_deg is None or b.heading_deg is None:
        return float("nan")
    return abs(angle_difference_deg(a.heading_deg, b.heading_deg))


def gallery_identity(gallery: PriorGallery) -> dict[str, Any]:
    """What names a gallery in metrics: path, network, pair, dimension, size, frame."""
    network = gallery.gallery_network
    return {
        "path": str(gallery.path),
        "network": network.name,
        "pair_id": network.pair_id,
        "dimension": network.dimension,
        "n_keyframes": len(gallery),
        "map_frame": gallery.map_frame,
    }


def encoder_identity(encoder: object, gallery: PriorGallery) -> dict[str, Any]:
    """What names the query side: a query model with its checksum, or else the gallery's own network."""
    if isinstance(encoder, QueryModel):
        manifest = encoder.manifest
        checksums = {name: entry.sha256 for name, entry in manifest.files.items()}
        name = manifest.details.get("query_network") or manifest.settings.get("query_network") or Path(encoder.path).name
        pair_id = manifest.gallery_network.pair_id
        return {"kind": "query model", "name": name, "path": str(encoder.path), "pair_id": pair_id, "sha256": checksums}
    network = gallery.gallery_network
    return {"kind": "gallery network", "name": network.name, "pair_id": network.pair_id}


def percentiles(values: np.ndarray, *percents: int) -> dict[str, float | None]:
    """{"p50": …} of the finite values; None where there is none."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return {f"p{percent}": float(np.percentile(finite, percent)) if len(finite) else None for percent in percents}


def median(values: np.ndarray) -> float | None:
    """Median of the finite values; None where there is none."""
    return percentiles(values, 50)["p50"]


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write metrics as JSON with date and version; numbers that are not finite are an error, not "NaN"."""
    stamped = {**metrics, "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "asymvpr_version": __version__}
    write_text_atomically(path, json.dumps(stamped, indent=2, allow_nan=False) + "\n")
