"""Networks in onnxruntime, on the CPU or through its CUDA and TensorRT providers."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from asymvpr_core.deploy.model_folder import EXPORT_AGAIN
from asymvpr_core.deploy.session import Port
from asymvpr_core.errors import DeployError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_REMEDIES = {
    "cuda": "install onnxruntime-gpu in place of onnxruntime (on a Jetson the wheel of its JetPack), or set provider to cpu",
    "tensorrt": "install onnxruntime-gpu and TensorRT (on a Jetson the onnxruntime-gpu wheel of its JetPack), or set provider to cpu",
}


@dataclass(frozen=True)
class OnnxRuntimeSession:
    """A network loaded by onnxruntime."""

    session: Any

    @staticmethod
    def open(path: Path, provider: str, precision: str, threads: int, cache: Path | None = None) -> OnnxRuntimeSession:
        """Load an ONNX file.

        Raises:
            DeployError: a provider that is not installed or does not start, bf16, or a file that onnxruntime refuses.
        """
        if precision == "bf16":
            raise DeployError(
                "onnxruntime has no inference precision bf16", expected="fp32, fp16 or int8", remedy="set runtime to openvino"
            )
        wanted = PROVIDERS[provider]
        installed = onnxruntime.get_available_providers()
        if wanted not in installed:
            known = ", ".join(name for name, long in PROVIDERS.items() if long in installed)
            raise DeployError(
                f"onnxruntime {onnxruntime.__version__} on this machine has no provider '{provider}'; it has {known}",
                remedy=_REMEDIES.get(provider),
            )
        _refuse_weights_elsewhere(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=provider_chain(provider, precision, cache))
            session.disable_fallback()  # after an error onnxruntime would go on with the CPU, and say so nowhere
        except Exception as error:  # onnxruntime raises its own family without a common base
            raise DeployError(f"{path} is refused by onnxruntime: {_one_line(error)}", remedy=EXPORT_AGAIN) from error
        started = session.get_providers()
        if wanted not in started:
            # A provider whose libraries are missing is left out with a line on the terminal only.
            raise DeployError(
                f"onnxruntime's provider '{provider}' does not start on this machine; {', '.join(started)} would have been used instead",
                remedy=_REMEDIES.get(provider),
            )
        return OnnxRuntimeSession(session)

    @property
    def version(self) -> str:
        """Name and version of the runtime."""
        return f"onnxruntime {onnxruntime.__version__}"

    @property
    def inputs(self) -> list[Port]:
        """The graph's inputs."""
        return [_port(node) for node in self.session.get_inputs()]

    @property
    def outputs(self) -> list[Port]:
        """The graph's outputs."""
        return [_port(node) for node in self.session.get_outputs()]

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """(B, D) float32 from inputs (B, …)."""
        result: np.ndarray = self.session.run(["descriptor"], {"image": inputs})[0]
        return result


def provider_chain(provider: str, precision: str, cache: Path | None) -> list[Any]:
    """What onnxruntime is given as providers: the wanted one, and those that take the operators it lacks.

    TensorRT leaves single operators to CUDA, and CUDA to the CPU; that is part of how they work and not the
    fallback of a whole session. TensorRT's engines depend on the GPU and take minutes to build: they go to `cache`.
    """
    cpu = PROVIDERS["cpu"]
    if provider == "cpu":
        return [cpu]
    if provider == "cuda":
        return [PROVIDERS["cuda"], cpu]
    options: dict[str, Any] = {"trt_fp16_enable": precision == "fp16", "trt_int8_enable": precision == "int8"}
    if cache is not None:
        options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache), "trt_timing_cache_enable": True}
    return [(PROVIDERS["tensorrt"], options), PROVIDERS["cuda"], cpu]


def _refuse_weights_elsewhere(path: Path) -> None:
    """Raise DeployError for an ONNX file that names other files for its weights: releases before 1.24 read them wherever they lie.

    Such a TensorProto has an entry of key "location" among its `external_data`: field 1 of 8 characters, then field 2.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return  # said by onnxruntime
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"\x0a\x08location\x12") >= 0:
            raise DeployError(
                f"{path} is refused by asymvpr: it names other files for its weights", expected="all weights in the file itself",
                remedy=EXPORT_AGAIN,
            )  # fmt: skip


def _port(node: Any) -> Port:
    return Port(node.name, tuple(side if isinstance(side, int) else -1 for side in node.shape))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
