"""Absolute trajectory error of an estimated trajectory, computed by evo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from asymvpr_core.datasets.trajectory import Trajectory
from asymvpr_core.errors import EvaluationError
from asymvpr_core.types import Pose

Alignment = Literal["none", "start", "rigid"]
ALIGNMENTS: dict[Alignment, str] = {
    "none": "poses as they are, in the frame of the ground truth",
    "start": "moved so that the first pose is the true one",
    "rigid": "moved by the rotation and translation that fit best (Umeyama, without scale)",
}


@dataclass(frozen=True)
class TrajectoryError:
    """How far an estimate is from the truth at the same stamps.

    `errors_m` (N,) are the distances; `xy` and `true_xy` (N, 2) [m] both trajectories, the estimate after `alignment`.
    """

    alignment: Alignment
    rmse_m: float
    mean_m: float
    median_m: float
    max_m: float
    length_m: float
    errors_m: np.ndarray = field(repr=False, compare=False)
    xy: np.ndarray = field(repr=False, compare=False)
    true_xy: np.ndarray = field(repr=False, compare=False)

    def metrics(self) -> dict[str, Any]:
        """The numbers, as they go into a `metrics.json`."""
        return {
            "alignment": self.alignment,
            "rmse_m": self.rmse_m,
            "mean_m": self.mean_m,
            "median_m": self.median_m,
            "max_m": self.max_m,
            "length_m": self.length_m,
            "n_poses": len(self.errors_m),
        }


def absolute_trajectory_error(truth: Trajectory, estimate: Trajectory, alignment: Alignment, *, max_gap_s: float = 1.0) -> TrajectoryError:
    """Absolute trajectory error of the positions, over the poses of `estimate` that have a true pose at their stamp.

    It is evo's absolute pose error in translation (`evo_ape`; Sturm et al., IROS 2012): the distances between true and
    estimated position at equal stamps, the true one interpolated, after the estimate was aligned as a whole.

    Args:
        truth: poses in the frame that counts.
        alignment: see `ALIGNMENTS`; evo's flags are none, `--align_origin` and `--align`.
        max_gap_s: true poses farther apart are not interpolated between.

    Raises:
        EvaluationError: evo is not installed, the two have too few stamps in common, or for "rigid" all
            positions lie on one line.
    """
    try:
        from evo.core.geometry import GeometryException
        from evo.core.metrics import APE, PoseRelation
        from evo.core.trajectory import PoseTrajectory3D
    except ImportError as error:
        raise EvaluationError(
            "evo is not installed, which computes trajectory errors", remedy="pip install 'asymvpr_ros[report]'"
        ) from error
    stamps, poses = estimate.stamps_ns.tolist(), estimate.poses
    pairs = [(stamp, true, pose) for stamp, pose in zip(stamps, poses, strict=True) if (true := truth.at(stamp, max_gap_s)) is not None]
    needed = 3 if alignment == "rigid" else 1
    if len(pairs) < needed:
        raise EvaluationError(
            f"{len(pairs)} poses of {estimate.name} ({estimate.span_text}) have a true pose in {truth.name} ({truth.span_text})",
            expected=f"at least {needed}",
            remedy="compare trajectories of one recording",
        )
    seconds = np.array([(stamp - pairs[0][0]) * 1e-9 for stamp, _, _ in pairs])

    def as_evo(chosen: list[Pose]) -> Any:
        positions = np.array([pose.position for pose in chosen])
        wxyz = np.array([(pose.quaternion[3], *pose.quaternion[:3]) for pose in chosen])
        return PoseTrajectory3D(positions, wxyz, seconds)

    reference, ours = as_evo([true for _, true, _ in pairs]), as_evo([pose for _, _, pose in pairs])
    try:
        if alignment == "start":
            ours.align_origin(reference)
        elif alignment == "rigid":
            ours.align(reference)
    except GeometryException as error:
        raise EvaluationError(
            f"{estimate.name} cannot be aligned with {truth.name}: all positions lie on one line", remedy="align at the start instead"
        ) from error
    ape = APE(PoseRelation.translation_part)
    ape.process_data((reference, ours))
    statistics = ape.get_all_statistics()
    return TrajectoryError(
        alignment,
        rmse_m=float(statistics["rmse"]),
        mean_m=float(statistics["mean"]),
        median_m=float(statistics["median"]),
        max_m=float(statistics["max"]),
        length_m=float(reference.path_length),
        errors_m=np.asarray(ape.error),
        xy=ours.positions_xyz[:, :2].copy(),
        true_xy=reference.positions_xyz[:, :2].copy(),
    )
