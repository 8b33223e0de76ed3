"""A recorded run, described once: whatever matcher is tried on it afterwards needs no network any more."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.trajectory import Trajectory
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError
from asymvpr_core.progress import Progress, silent
from asymvpr_core.types import Pose


@dataclass(frozen=True)
class EncodedRun:
    """The frames of a run with their descriptors, in order of time.

    `descriptors` (F, D) float32; `encode_ms` (F,), what pre-processing and network took; `odometry` has a pose or None for each frame.
    """

    dataset: Dataset
    model: QueryModel
    stamps_ns: list[int]
    descriptors: np.ndarray
    encode_ms: np.ndarray
    odometry: list[Pose | None]

    def __len__(self) -> int:
        return len(self.stamps_ns)


def encode_run(dataset: Dataset, model: QueryModel, odometry: Trajectory | None = None, progress: Progress = silent) -> EncodedRun:
    """Describe every frame as the robot does: one by one, since batches would change the last bits.

    Args:
        odometry: poses in a frame of their own, which the matcher gets beside the image; interpolated to the image's stamp.

    Raises:
        EvaluationError: images without stamp, or out of order.
        ImageError, BagError: as the dataset's reader.
    """
    stamps_ns = run_stamps(dataset)
    total, descriptors, encode_ms = len(stamps_ns), [], []
    images = dataset.read_images(list(range(total)))
    for _, image in progress(images, f"describing frames with {Path(model.path).name}", total=total):
        begin = time.perf_counter()
        descriptors.append(model.encode(image))
        encode_ms.append((time.perf_counter() - begin) * 1e3)
    poses = [None if odometry is None else odometry.at(stamp, _MAX_ODOMETRY_GAP_S) for stamp in stamps_ns]
    return EncodedRun(dataset, model, stamps_ns, np.array(descriptors, dtype=np.float32), np.array(encode_ms), poses)


_MAX_ODOMETRY_GAP_S = 0.5


def run_stamps(dataset: Dataset) -> list[int]:
    """Stamps of all images. Raises EvaluationError where one is missing or goes back."""
    stamps = [record.stamp_ns for record in dataset.records if record.stamp_ns is not None]
    if len(stamps) != len(dataset.records):
        raise EvaluationError(f"{len(dataset.records) - len(stamps)} images of {dataset.root} have no stamp", expected="a stamp for each")
    if any(later < earlier for earlier, later in zip(stamps, stamps[1:], strict=False)):
        raise EvaluationError(f"images of {dataset.root} are not in order of time", expected="stamps that do not go back")
    return stamps


def would_drop(stamps_ns: list[int], latency_ms: np.ndarray) -> int:
    """How many frames a one-slot worker would never see, if the run came in live: while one is in work, the newest waits alone.

    Args:
        stamps_ns: when the frames arrive, ascending.
        latency_ms: (F,) what each takes.
    """
    dropped, free_ns, waiting = 0, -(2**62), None
    for index, stamp_ns in enumerate(stamps_ns):
        if waiting is not None and free_ns <= stamp_ns:  # the waiting frame started when the worker became free
            free_ns, waiting = free_ns + round(latency_ms[waiting] * 1e6), None
        if free_ns > stamp_ns:
            dropped += waiting is not None
            waiting = index
        else:
            free_ns = stamp_ns + round(latency_ms[index] * 1e6)
    return dropped
