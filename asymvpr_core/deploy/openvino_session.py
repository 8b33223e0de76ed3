"""Networks in OpenVINO on the CPU: an IR, or an ONNX file that it converts while loading. The package is optional."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.deploy.model_folder import EXPORT_AGAIN
from asymvpr_core.deploy.session import Port
from asymvpr_core.errors import DeployError

_INSTALL = "install it with 'pip install openvino', or set runtime to onnxruntime"


@dataclass(frozen=True)
class OpenVinoSession:
    """A network compiled by OpenVINO, and the one request that runs it."""

    compiled: Any
    request: Any

    @staticmethod
    def open(path: Path, precision: str, threads: int) -> OpenVinoSession:
        """Load an IR or an ONNX file for inference in `precision`.

        Raises:
            DeployError: OpenVINO is not installed or does not start, refuses the file, or cannot compute in bf16 here.
        """
        reason = why_no_openvino()
        if reason is not None:
            raise DeployError(reason, remedy=_INSTALL)
        if precision == "bf16" and not computes_bf16():
            raise DeployError(
                "this machine's CPU does not compute in bf16, and OpenVINO would use fp32 instead",
                expected="a CPU with AVX-512 BF16 or AMX", remedy="set precision to fp32 or int8",
            )  # fmt: skip
        import openvino

        settings = {
            # Always said: on ARM OpenVINO's own default is fp16, and bf16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            compiled = _core().compile_model(_core().read_model(path), "CPU", settings)
            return OpenVinoSession(compiled, compiled.create_infer_request())
        except (RuntimeError, TypeError, ValueError) as error:
            found = f"{path} is refused by OpenVINO {openvino.__version__}: {' '.join(str(error).split())}"
            raise DeployError(found, remedy=f"{EXPORT_AGAIN}, or set runtime to onnxruntime") from error

    @property
    def version(self) -> str:
        """Name and version of the runtime."""
        return f"openvino {openvino_version()}"

    @property
    def inputs(self) -> list[Port]:
        """The graph's inputs."""
        return [_port(port) for port in self.compiled.inputs]

    @property
    def outputs(self) -> list[Port]:
        """The graph's outputs."""
        return [_port(port) for port in self.compiled.outputs]

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """(B, D) float32 from inputs (B, …)."""
        results = self.request.infer({0: inputs}, share_inputs=True, share_outputs=True)
        return np.array(results[0])  # the request's own memory, which the next frame overwrites


@functools.cache
def why_no_openvino() -> str | None:
    """Why OpenVINO cannot be used here; None where it can."""
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        return "OpenVINO is not installed" if missing else f"OpenVINO does not start: {error}"
    try:
        return None if "CPU" in _core().available_devices else "OpenVINO finds no CPU device"
    except RuntimeError as error:
        return f"OpenVINO does not start: {' '.join(str(error).split())}"


def openvino_version() -> str:
    """The installed version, or "" where there is none."""
    if why_no_openvino() is not None:
        return ""
    import openvino

    return str(openvino.__version__).partition("-")[0]


@functools.cache
def computes_bf16() -> bool:
    """Whether this machine's CPU computes in bf16; elsewhere OpenVINO takes the hint and computes in fp32."""
    return why_no_openvino() is None and "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _port(port: Any) -> Port:
    sides = (side.get_length() if side.is_static else -1 for side in port.partial_shape)
    return Port(str(port.any_name), tuple(sides))
