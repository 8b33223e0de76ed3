"""Which runtimes there are, what each can do on this machine, and a model's files loaded by one of them."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from asymvpr_core.deploy.model_folder import EXPORT_AGAIN, ModelFolder, RuntimeName, Variant
from asymvpr_core.deploy.onnxruntime_session import OnnxRuntimeSession
from asymvpr_core.deploy.openvino_session import OpenVinoSession, computes_bf16, why_no_openvino
from asymvpr_core.deploy.session import Choice, Session
from asymvpr_core.errors import DeployError


def open_session(folder: ModelFolder, choice: Choice, cache: Path | None = None) -> Session:
    """Load what `choice` names, after a test of its checksum.

    Args:
        cache: folder where a runtime may keep what it compiled (TensorRT's engines, which take minutes to build).

    Raises:
        ArtefactError: a damaged file.
        DeployError: no such variant, a runtime or provider that is not there, a file that it refuses, or
            a network that does not fit its manifest.
    """
    variant = folder.variant(choice.runtime, choice.precision)
    path = folder.verify(variant)
    session: Session
    if choice.runtime == "openvino":
        session = OpenVinoSession.open(path, choice.precision, choice.threads)
    else:
        session = OnnxRuntimeSession.open(path, choice.provider, choice.precision, choice.threads, cache)
    _check_fit(folder, variant, session)
    _return_freed_memory()
    return session


def why_not(runtime: RuntimeName) -> str | None:
    """Why `runtime` cannot be used on this machine; None where it can."""
    return why_no_openvino() if runtime == "openvino" else None


def precisions_of(runtime: RuntimeName, provider: str) -> tuple[str, ...]:
    """The precisions of which something can be gained here, for the measurement of `runtime: auto`.

    fp16 is not among a CPU's: onnxruntime and OpenVINO convert it to fp32 there.
    """
    if runtime == "openvino":
        return ("fp32", "bf16", "int8") if computes_bf16() else ("fp32", "int8")
    return ("fp32", "int8") if provider == "cpu" else ("fp32", "fp16", "int8")


def _return_freed_memory() -> None:
    """Give back what loading needed besides the network itself: glibc would keep it, a network's weights once more."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none, and gives back by itself
            libc.malloc_trim(0)


def _check_fit(folder: ModelFolder, variant: Variant, session: Session) -> None:
    """Refuse a network whose input or output is not what the manifest says."""
    found = [(port.name, list(port.shape[1:])) for port in (*session.inputs, *session.outputs)]
    expected = [("image", list(folder.input_shape)), ("descriptor", [folder.dimension])]
    if found != expected:
        raise DeployError(
            f"{folder.path / variant.file} has input and output {found}", expected=f"{expected} by its manifest", remedy=EXPORT_AGAIN
        )
