"""One network file, loaded by one runtime: image in, descriptor out. What all runtimes have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from asymvpr_core.deploy.model_folder import RuntimeName


@dataclass(frozen=True)
class Choice:
    """How a model is run: everything that decides on its speed and its descriptors.

    `provider` is onnxruntime's: "cpu", "cuda" or "tensorrt"; OpenVINO runs on the CPU.
    `precision` is that of the computation: bf16 has no file of its own.
    """

    runtime: RuntimeName
    provider: str
    precision: str
    threads: int

    def __str__(self) -> str:
        return f"{self.runtime} ({self.provider}), {self.precision}, {self.threads} thread{'' if self.threads == 1 else 's'}"


@dataclass(frozen=True)
class Port:
    """Name and shape of an input or output; -1 where the graph leaves a side open."""

    name: str
    shape: tuple[int, ...]


class Session(Protocol):
    """A loaded network."""

    @property
    def version(self) -> str:
        """Name and version of the runtime."""
        ...

    @property
    def inputs(self) -> list[Port]: ...

    @property
    def outputs(self) -> list[Port]: ...

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """(B, D) float32 from inputs (B, …), where B is 1 unless the graph leaves it open; the result is the caller's own."""
        ...


def cosines(descriptors: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(N,) float64 cosines of corresponding rows; NaN where a row is not finite."""
    first, second = descriptors.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    result: np.ndarray = (first * second).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return result
