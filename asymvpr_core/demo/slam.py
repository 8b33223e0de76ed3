"""What the loop closures are worth: the drive as odometry told it, and as the pose graph corrected it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.datasets.bags import Bag
from asymvpr_core.datasets.trajectory import Trajectory, read_tum
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.report import Column, Figure, Section, Table, number, percent
from asymvpr_core.evaluation.trajectory_error import ALIGNMENTS, TrajectoryError, absolute_trajectory_error
from asymvpr_core.evaluation.trajectory_plots import plot_errors, plot_trajectories

_ODOMETRY, _CORRECTED, _SUMMARY = "odometry.tum", "corrected.tum", "summary.json"
_CLOSURE, _ODOMETRY_TYPE = "loop_closure", "nav_msgs/msg/Odometry"


@dataclass(frozen=True)
class SlamResult:
    """Trajectory errors before and after the closures.

    Placed by the true start, as a robot that knows where it started: odometry; the corrected drive needs no
    placing once closures have tied it to the map. Besides, the shape alone: both after the best rigid alignment,
    None where the drive is one straight line.
    `closures` are (2, 2) [m] each, keyframe and true place of the frame.
    """

    odometry: TrajectoryError
    corrected: TrajectoryError
    odometry_shape: TrajectoryError | None
    corrected_shape: TrajectoryError | None
    counts: dict[str, int]
    closures: list[np.ndarray]

    @property
    def ratio(self) -> float | None:
        """Corrected error / odometry's error, RMSE; None where odometry has none."""
        return _share(self.corrected, self.odometry)

    @property
    def shape_ratio(self) -> float | None:
        """The same of the shapes."""
        return _share(self.corrected_shape, self.odometry_shape)

    def metrics(self) -> dict[str, Any]:
        """Everything, as it goes into a `metrics.json`."""
        return {
            "measure": "absolute trajectory error of positions, RMSE [m], by evo's APE at every stamp of odometry",
            "odometry": self.odometry.metrics(),
            "corrected": self.corrected.metrics(),
            "ratio": self.ratio,
            "odometry_shape": self.odometry_shape and self.odometry_shape.metrics(),
            "corrected_shape": self.corrected_shape and self.corrected_shape.metrics(),
            "shape_ratio": self.shape_ratio,
            "graph": self.counts,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """One row an alignment and trajectory: name, RMSE, median and largest error [m], share of odometry's RMSE [%]."""
        table = []
        for name, before, after in (("", self.odometry, self.corrected), (", shape only", self.odometry_shape, self.corrected_shape)):
            if before is None or after is None:
                continue
            for label, error in (("odometry", before), ("after loop closures", after)):
                numbers = (number(v) for v in (error.rmse_m, error.median_m, error.max_m))
                table.append((label + name, *numbers, percent(_share(error, before), 0)))
        return table


def _share(error: TrajectoryError | None, of: TrajectoryError | None) -> float | None:
    return error.rmse_m / of.rmse_m if error is not None and of is not None and of.rmse_m > 0 else None


COLUMNS = (
    Column("trajectory", numeric=False),
    Column("RMSE", "m"),
    Column("median", "m"),
    Column("largest", "m"),
    Column("of odometry's", "%"),
)


def odometry_topic(bag: Path, ground_truth_topic: str | None) -> str | None:
    """The bag's one nav_msgs/Odometry topic beside the ground truth; None where there is none, or several."""
    with Bag.open(bag) as opened:
        found = [t for t, kind in opened.topics.items() if kind == _ODOMETRY_TYPE and opened.message_counts[t] and t != ground_truth_topic]
    return found[0] if len(found) == 1 else None


def evaluate_slam(folder: Path, truth: Trajectory, closures: Iterable[tuple[int, Sequence[float]]] = ()) -> SlamResult:
    """Compare what the pose graph left in `folder` with the truth.

    Args:
        folder: holds odometry.tum, corrected.tum and summary.json.
        truth: true poses in the map.
        closures: (stamp of the frame [ns], x and y of its keyframe [m]).

    Raises:
        EvaluationError: the pose graph got no odometry, or was never tied to the map.
        DatasetError: a trajectory cannot be read.
    """
    try:
        summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the pose graph left no readable {folder / _SUMMARY}", remedy="read its log") from error
    if not (folder / _ODOMETRY).exists():
        raise EvaluationError("the pose graph received no odometry", remedy="check the topic and the log")
    odometry, corrected = read_tum(folder / _ODOMETRY), read_tum(folder / _CORRECTED)
    return compare_trajectories(
        odometry, corrected, truth, in_map=summary["counts"]["closures_to_map"] > 0, counts=summary["counts"], closures=closures
    )


def compare_trajectories(
    odometry: Trajectory,
    corrected: Trajectory,
    truth: Trajectory,
    *,
    in_map: bool,
    counts: dict[str, int],
    closures: Iterable[tuple[int, Sequence[float]]] = (),
) -> SlamResult:
    """Errors of both trajectories; without a closure to the map, the corrected one is placed by its start too."""
    places = [(truth.at(stamp, 1.0), keyframe) for stamp, keyframe in closures]
    return SlamResult(
        absolute_trajectory_error(truth, odometry, "start"),
        absolute_trajectory_error(truth, corrected, "none" if in_map else "start"),
        _shape_error(truth, odometry),
        _shape_error(truth, corrected),
        counts,
        [np.array([keyframe, place.position[:2]]) for place, keyframe in places if place is not None],
    )


def _shape_error(truth: Trajectory, estimate: Trajectory) -> TrajectoryError | None:
    try:
        return absolute_trajectory_error(truth, estimate, "rigid")
    except EvaluationError:  # one straight line, or a poses too few: the other measure stands
        return None


def recorded_closures(records: Iterable[dict[str, Any]]) -> list[tuple[int, tuple[float, float]]]:
    """(stamp of the frame [ns], x and y of its keyframe [m]) of every loop closure in a recording."""
    edges = [record["poses"] for record in records if record["topic"] == _CLOSURE]
    return [(query[0], (keyframe[1], keyframe[2])) for keyframe, query in edges]


def slam_section(result: SlamResult, outline: Sequence[np.ndarray] = ()) -> Section:
    """Both drives on the map, their errors along the way, and the table."""
    way_m = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(result.odometry.true_xy, axis=0), axis=1))])
    lines = [("odometry", result.odometry.xy), ("after loop closures", result.corrected.xy)]
    errors = [("odometry", way_m, result.odometry.errors_m), ("after loop closures", way_m, result.corrected.errors_m)]
    table = Table(
        tuple(result.rows()),
        COLUMNS,
        f"Absolute trajectory error (evo) over {len(result.odometry.errors_m)} poses and {result.odometry.length_m:.0f} m. "
        f"Odometry: {ALIGNMENTS[result.odometry.alignment]}; after loop closures: {ALIGNMENTS[result.corrected.alignment]}; "
        f"shape only: {ALIGNMENTS['rigid']}.",
    )
    return Section(
        "What the loop closures are worth",
        [
            Figure(
                plot_trajectories(result.odometry.true_xy, lines, result.closures, outline),
                "Map with the true drive, odometry and the corrected drive.",
                "A line leads from each frame that closed a loop to its keyframe.",
            ),
            Figure(
                plot_errors(errors), "Position error along the way, before and after.", "Distance to the true position at the same time."
            ),
            table,
        ],
        "While the node ran, examples/pose_graph_slam.py took the recorded odometry, which drifts as that of wheels does, and the node's "
        "loop closures, and optimised a pose graph with GTSAM.",
    )
