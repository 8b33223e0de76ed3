"""What a recorded run leaves beside its report: one csv row a frame, and the accepted poses as a TUM trajectory."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.datasets.trajectory import Trajectory, write_tum
from asymvpr_core.evaluation.outcomes import FrameOutcome
from asymvpr_core.retrieval.joint import PriorGallery


def write_matches(path: Path, frames: Sequence[FrameOutcome], gallery: PriorGallery) -> None:
    """Every frame, what was said of it and what was true."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([
            "stamp_ns", "image", "x", "y", "heading_deg", "outcome", "accepted", "n_positives", "keyframe_index", "keyframe_image",
            "keyframe_x", "keyframe_y", "score", "position_error_m", "heading_error_deg", "latency_ms", "reason",
        ])  # fmt: skip
        for frame in frames:
            record, judged = frame.record, frame.judged
            assert record.pose is not None  # checked before the run
            keyframe: list[Any] = [""] * 5
            if judged is not None and judged.pose is not None:
                x, y = judged.pose.position[:2]
                name = gallery.keyframes[judged.keyframe_index].name
                keyframe = [judged.keyframe_index, name, f"{x:.4f}", f"{y:.4f}", f"{judged.score:.6f}"]
            writer.writerow([
                frame.result.stamp_ns, record.name, f"{record.pose.position[0]:.4f}", f"{record.pose.position[1]:.4f}",
                "" if record.heading_deg is None else f"{record.heading_deg:.3f}",
                frame.outcome.value, int(frame.result.accepted), len(frame.positives), *keyframe,
                _number(frame.position_error_m), _number(frame.heading_error_deg), f"{frame.latency_ms:.3f}", frame.result.reason,
            ])  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""


def write_trajectory(path: Path, frames: Sequence[FrameOutcome]) -> None:
    """The accepted match poses at the frames' stamps; only a comment where nothing was accepted."""
    matched = [(frame.result.stamp_ns, frame.result.match.pose) for frame in frames if frame.result.match is not None]
    poses = {stamp_ns: pose for stamp_ns, pose in matched if pose is not None}
    if not poses:
        path.write_text("# timestamp[s] x y z qx qy qz qw (no match was accepted)\n", encoding="utf-8")
        return
    write_tum(path, Trajectory(list(poses), list(poses.values()), name="accepted matches"))
