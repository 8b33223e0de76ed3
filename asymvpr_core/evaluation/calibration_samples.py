"""Where a calibration's samples come from: a run with ground truth, or the gallery alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.evaluation.calibration_fit import Samples, stretches_along
from asymvpr_core.progress import Progress, silent
from asymvpr_core.types import ImageRecord

NO_STAMP = -1


@dataclass(frozen=True)
class Placed:
    """Images with descriptor, place and time, as arrays.

    `descriptors` (N, D) float32, L2-normalised; `xy` (N, 2) [m]; `heading_deg` (N,), NaN where unknown; `stamps_ns` (N,) int64,
    `NO_STAMP` where unknown.
    """

    descriptors: np.ndarray
    xy: np.ndarray
    heading_deg: np.ndarray
    stamps_ns: np.ndarray

    @staticmethod
    def of(records: Sequence[ImageRecord], descriptors: np.ndarray) -> Placed:
        """Records whose poses were checked before."""
        return Placed(
            np.asarray(descriptors, dtype=np.float32),
            np.array([record.pose.position[:2] for record in records if record.pose is not None], dtype=np.float64).reshape(-1, 2),
            np.array([np.nan if record.heading_deg is None else record.heading_deg for record in records]),
            np.array([NO_STAMP if record.stamp_ns is None else record.stamp_ns for record in records], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.xy)

    def part(self, rows: np.ndarray) -> Placed:
        """The images of these row numbers."""
        return Placed(self.descriptors[rows], self.xy[rows], self.heading_deg[rows], self.stamps_ns[rows])


class _Questions:
    """Asks a gallery for the best candidate of one query after another and collects the answers as samples."""

    def __init__(self, gallery: Placed, evaluation: EvaluationSettings):
        self.gallery, self.evaluation = gallery, evaluation
        self.rows: list[tuple[float, bool, float, float, float]] = []
        self.stretches: list[int] = []

    def distances_m(self, query: Placed, row: int) -> np.ndarray:
        """(N,) horizontal metres from the query to every keyframe."""
        return np.hypot(*(self.gallery.xy - query.xy[row]).T)

    def right(self, query: Placed, row: int, distances_m: np.ndarray) -> np.ndarray:
        """(N,) bool: which keyframes are correct matches of the query."""
        right = distances_m <= self.evaluation.radius_m
        if self.evaluation.max_yaw_deg is not None:
            right &= np.abs(_yaw_errors_deg(query.heading_deg[row], self.gallery.heading_deg)) <= self.evaluation.max_yaw_deg
        return right

    def ask(self, query: Placed, row: int, excluded: np.ndarray, stretch: int) -> None:
        """Add the best candidate that is not `excluded` (N,) bool and does not lie in the ignored ring; nothing where none is left.

        `stretch` is the number of the stretch of way that the query stands for.
        """
        distances_m = self.distances_m(query, row)
        outer_m = self.evaluation.radius_m + self.evaluation.ignore_ring_m
        allowed = np.flatnonzero(~excluded & ((distances_m <= self.evaluation.radius_m) | (distances_m > outer_m)))
        if len(allowed) == 0:
            return
        scores = self.gallery.descriptors[allowed] @ query.descriptors[row]
        best = int(allowed[np.argmax(scores)])
        right = bool(self.right(query, row, distances_m)[best])
        dx, dy = self.gallery.xy[best] - query.xy[row]
        yaw = float(_yaw_errors_deg(query.heading_deg[row], self.gallery.heading_deg[best]))
        self.rows.append((float(scores.max()), right, float(dx), float(dy), yaw))
        self.stretches.append(stretch)

    def samples(self, basis: Literal["run", "gallery"]) -> Samples:
        columns = np.array(self.rows, dtype=np.float64).reshape(-1, 5)
        stretches = np.array(self.stretches, dtype=np.int64)
        return Samples(columns[:, 0], columns[:, 1].astype(bool), columns[:, 2:4], columns[:, 4], basis, stretches)


def describe_run(dataset: Dataset, model: QueryModel, progress: Progress = silent) -> Placed:
    """The images of a run, described one by one as the robot does; their poses must have been checked."""
    total = len(dataset.records)
    images = progress(dataset.read_images(list(range(total))), "describing frames", total)
    return Placed.of(dataset.records, np.array([model.encode(image) for _, image in images], dtype=np.float32))


def samples_of_run(run: Placed, gallery: Placed, evaluation: EvaluationSettings, exclude_time_s: float, stretch_m: float = 0.0) -> Samples:
    """Every frame of a labelled run against the prior gallery: its best candidate, right or not.

    Args:
        stretch_m: as `stretches_along`; pictures in no order of time are each by themselves.
    """
    questions, stretches = _Questions(gallery, evaluation), stretches_along(run.xy, stretch_m if (run.stamps_ns != NO_STAMP).all() else 0)
    for row in range(len(run)):
        questions.ask(run, row, _close_in_time(run, row, gallery, exclude_time_s), int(stretches[row]))
    return questions.samples("run")


def samples_of_session(
    run: Placed, evaluation: EvaluationSettings, exclude_time_s: float, keyframes: np.ndarray, stretch_m: float = 0.0
) -> Samples:
    """Every frame of a labelled run against its own keyframes (row numbers) of more than `exclude_time_s` before: light against light."""
    session, stretches = run.part(keyframes), stretches_along(run.xy, stretch_m)
    questions, window_ns = _Questions(session, evaluation), round(exclude_time_s * 1e9)
    for row in range(len(run)):
        questions.ask(run, row, session.stamps_ns > run.stamps_ns[row] - window_ns, int(stretches[row]))
    return questions.samples("run")


def samples_of_gallery(
    plain: Placed,
    views: Sequence[Placed],
    gallery: Placed,
    evaluation: EvaluationSettings,
    exclude_time_s: float,
    impostor_distance_m: float,
    stretch_m: float = 0.0,
) -> Samples:
    """Revisits and impostors made of the keyframes themselves, as many of the one as of the other.

    A keyframe that was passed again, more than `exclude_time_s` apart, is asked for as it was taken, with its own pass near it
    left out: a revisit that was recorded. Every other one is asked for in its augmented `views`, with itself left out where
    neighbours remain that are right too. Each query is asked once more of the keyframes beyond `impostor_distance_m` alone: a
    robot where the map is not.

    Args:
        plain: the keyframes' pictures described by the query network.
        views: augmented pictures of the same keyframes, described by it too.
        gallery: what is searched, rows as in `plain`: the stored descriptors, or `plain` itself for the session.
    """
    questions, stretches = _Questions(gallery, evaluation), stretches_along(plain.xy, stretch_m)
    for row in range(len(plain)):
        distances_m = questions.distances_m(plain, row)
        right = questions.right(plain, row, distances_m)
        same_pass = _close_in_time(plain, row, gallery, exclude_time_s)
        itself = np.arange(len(gallery)) == row
        if plain.stamps_ns[row] != NO_STAMP and (right & ~same_pass & ~itself).any():
            queries: Sequence[Placed] = [plain]
            left_out = itself | (same_pass & (distances_m <= impostor_distance_m))
        else:
            queries, left_out = views, itself & bool((right & ~itself).any())
        for query in queries:
            # A place and its absence are two witnesses; its views are one.
            questions.ask(query, row, left_out, 2 * int(stretches[row]))
            questions.ask(query, row, distances_m <= impostor_distance_m, 2 * int(stretches[row]) + 1)
    return questions.samples("gallery")


def _close_in_time(query: Placed, row: int, gallery: Placed, exclude_time_s: float) -> np.ndarray:
    """(N,) bool: keyframes that the matcher leaves out as the recent past or near future; those without stamp stay, as there."""
    if query.stamps_ns[row] == NO_STAMP:
        return np.zeros(len(gallery), dtype=bool)
    apart_ns = np.abs(gallery.stamps_ns - query.stamps_ns[row])
    return (gallery.stamps_ns != NO_STAMP) & (apart_ns < round(exclude_time_s * 1e9))


def _yaw_errors_deg(query_deg: float, gallery_deg: np.ndarray) -> np.ndarray:
    """Signed difference of heading, in [-180, 180); NaN where one is unknown."""
    return (gallery_deg - query_deg + 180.0) % 360.0 - 180.0
