"""From a torch network to the ONNX and OpenVINO files that the robot runs, pre-processing included."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from asymvpr_core.errors import DeployError
from asymvpr_core.preprocess import Preprocess

# Numbers that leave the range of fp16 before they are normalised: GeM's powers, sums of squares, exponentials of the transport.
_KEPT_IN_FP32 = (
    "Clip", "Div", "Exp", "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "Pow", "ReduceL2", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reciprocal", "Resize", "Softmax", "Sqrt",
)  # fmt: skip


class FoldedNetwork(nn.Module):
    """A network behind its normalisation: the resized picture `(1, H, W, 3)`, 0 to 255, to `(1, D)`.

    The resize itself stays outside: area averaging has no operator in ONNX, the ones that exist are slower than
    OpenCV's, and a second rule would part the robot from its gallery (docs/runtimes.md).
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.network = network
        scale, offset = preprocess.scale_and_offset
        self.register_buffer("scale", torch.from_numpy(scale).view(1, 3, 1, 1))
        self.register_buffer("offset", torch.from_numpy(offset).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        described: Tensor = self.network(image.permute(0, 3, 1, 2).to(torch.float32) * self.scale - self.offset)
        return described


def write_onnx(network: nn.Module, preprocess: Preprocess, path: Path, opset: int) -> None:
    """Write `network` with its normalisation as an ONNX file with input `image` (1, H, W, 3) and output `descriptor` (1, D).

    Raises:
        DeployError: an operator that ONNX does not have at this opset, or code that cannot be made a graph.
    """
    dtype = torch.uint8 if preprocess.resize_dtype == "uint8" else torch.float32
    example = torch.zeros(1, preprocess.height, preprocess.width, 3, dtype=dtype)
    try:
        with _quiet("torch.onnx", "onnxscript"):
            torch.onnx.export(
                FoldedNetwork(network, preprocess).eval(), (example,), path, input_names=["image"], output_names=["descriptor"],
                opset_version=opset, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        onnx.checker.check_model(str(path))
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
        raise _unsupported(error, opset) from error


def write_fp16(source: Path, path: Path) -> None:
    """Write the fp16 variant of an ONNX file, with the same inputs and outputs.

    Operators whose numbers leave the range of fp16 stay fp32.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights below 6e-8, which become 0: parity says whether that matters
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_IN_FP32])
    onnx.save(model, path)


def write_ir(source: Path, path: Path, *, fp16: bool) -> None:
    """Write an ONNX file as an OpenVINO IR: `path` (.xml) and its weights (.bin); with `fp16`, the weights are stored in half.

    Raises:
        DeployError: OpenVINO has no such operator.
    """
    import openvino

    try:
        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=fp16)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DeployError(
            f"OpenVINO {openvino.__version__} cannot convert {source.name}: {' '.join(str(error).split())}",
            remedy="leave --format openvino out, or install another release of OpenVINO",
        ) from error


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Without the exporter's warnings of its own internals."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in loggers:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _unsupported(error: Exception, opset: int) -> DeployError:
    """The error that names the operator, where torch's own messages, of which one causes the next, do."""
    cause: BaseException | None = error
    messages = []
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(messages)
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if missing is not None:
        return DeployError(
            f"the network uses the operator '{missing[1]}', which ONNX at opset {opset} does not have",
            remedy="replace it in the network by operators that ONNX has, or set a higher opset",
        )
    reason = " ".join((messages[-1].strip().splitlines() or ["?"])[0].split())
    return DeployError(
        f"the network cannot be exported to ONNX: {reason}",
        expected="a network whose graph does not depend on the numbers in the picture",
        remedy="see torch.export's rules for what a forward() may do",
    )
