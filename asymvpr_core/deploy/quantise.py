"""int8 by static quantisation: QDQ graphs, which onnxruntime, OpenVINO and TensorRT all run.

Ranges come from pictures of the gallery. How much of a network can go to int8 without leaving its
descriptors differs from network to network, so that several schemes are tried in turn.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Scheme:
    """Which layers stay in float: the `first` and the `last` ones that have weights, with what lies around them."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """For the manifest."""
        return f"all but the first {self.first} and the last {self.last} layers" if self.first or self.last else "all layers"

    def excluded(self, model: onnx.ModelProto) -> list[str]:
        """Names of the nodes that stay in float."""
        names = [node.name for node in model.graph.node]
        weighted = [index for index, node in enumerate(model.graph.node) if node.op_type in _WEIGHTED]
        if self.first + self.last >= len(weighted):
            return names
        # Up to the next layer: between a convolution and its activation, the range is far wider than behind it.
        begin = weighted[self.first] if self.first else 0
        end = weighted[-self.last] if self.last else len(names)
        return names[:begin] + names[end:]


# From the fastest to the most careful one. The first layers see the picture itself and carry its fine differences:
# with 18 of EfficientNet-Lite0's 50 in float, the smallest cosine on street pictures rises from 0.985 to 0.996.
SCHEMES = (Scheme(0, 0), Scheme(1, 1), Scheme(6, 1), Scheme(12, 2), Scheme(18, 2), Scheme(24, 3))


class QuantisationInput:
    """An ONNX file made ready for quantisation: shapes inferred, constants folded. Use as a context; it lies in a temporary folder."""

    def __init__(self, source: Path):
        self._source = source
        self._folder = tempfile.TemporaryDirectory(prefix="asymvpr_int8_")
        self.path = Path(self._folder.name) / "prepared.onnx"

    def __enter__(self) -> QuantisationInput:
        # The symbolic inference is for graphs with open shapes, and needs sympy.
        quant_pre_process(self._source, self.path, skip_symbolic_shape=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def write(self, path: Path, pictures: np.ndarray, scheme: Scheme) -> None:
        """Write the int8 variant by `scheme`, with the ranges that `pictures` (N, H, W, 3) give."""
        root = logging.getLogger()
        level = root.level
        try:
            root.setLevel(logging.ERROR)  # onnxruntime's quantiser speaks through the root logger
            quantize_static(
                self.path, path, _Pictures(pictures), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8, per_channel=True, nodes_to_exclude=scheme.excluded(onnx.load(self.path)),
            )  # fmt: skip
        finally:
            root.setLevel(level)


class _Pictures(CalibrationDataReader):
    def __init__(self, pictures: np.ndarray):
        self._inputs: Iterator[dict[str, Any]] = ({"image": one[np.newaxis]} for one in pictures)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)
