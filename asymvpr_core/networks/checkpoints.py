"""Weights from files: safe (no pickled code), strict (every tensor used or named as ignored)."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asymvpr_core.errors import NetworkError

_SHOWN = 8  # names in a message
_INFLATION_LIMIT = 16 << 20  # bytes
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes, the format's own


class MisfitError(NetworkError):
    """The names, shapes or types of a weights file are not the network's."""


@dataclass(frozen=True)
class LoadReport:
    """What was done with a weights file: tensors used, and those ignored with the reason.

    `random_aggregator`: the file holds none, and the network's aggregator has weights: it still has to be trained.
    """

    used: int
    ignored: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    random_aggregator: bool = False

    def lines(self) -> list[str]:
        """The report in words, one line a reason."""
        lines = [f"{self.used} tensors used", *self.notes]
        for reason in dict.fromkeys(self.ignored.values()):
            names = [name for name, why in self.ignored.items() if why == reason]
            lines.append(f"ignored {_some(names)}: {reason}")
        return lines


def read_state(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(flat state dict on the CPU, notes on what was unwrapped).

    Takes .safetensors, and files of torch.save, whatever device they were saved from. Unwraps
    `state_dict`, `model_state_dict` and `model` of training checkpoints (Lightning among them) and the
    "module." of a model in DistributedDataParallel.

    Raises:
        NetworkError: missing, truncated, or holding more than dense tensors (pickled code is never run).
    """
    path = Path(path)
    notes = []
    state: object = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            notes.append(f"unwrapped '{key}' of a training checkpoint")
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        held = sorted({type(v).__name__ for v in state.values()} - {"Tensor", "Parameter"}) if isinstance(state, Mapping) and state else []
        what = f"a {type(state).__name__}{' of ' + ', '.join(held) if held else ''}"
        raise NetworkError(f"weights file {path} holds {what}", expected="a flat dict of named tensors")
    flat = {str(name): tensor for name, tensor in state.items()}
    odd = [name for name, tensor in flat.items() if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized]
    if odd:
        found = f"weights file {path} holds tensors that are sparse, quantised or without numbers: {_some(odd)}"
        raise NetworkError(found, expected="dense tensors of floating-point numbers")
    if all(name.startswith("module.") for name in flat):
        flat = {name.removeprefix("module."): tensor for name, tensor in flat.items()}
        notes.append("removed 'module.' from all names")
    return flat, tuple(notes)


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: str, network: str = "this network", optional: str | None = None
) -> tuple[str, ...]:
    """Load `state` into `module`; every name and shape must fit. Gives notes on what was converted.

    Numbers of another floating type (float16, bfloat16) are converted to the module's.

    Args:
        source, network: what the error calls the file and the module.
        optional: regular expression of names that may be missing as long as all of them are.

    Raises:
        MisfitError: listing missing and unexpected names, differing shapes, and types that are not floating-point.
        NetworkError: naming a tensor that is not finite.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    if optional is not None:
        may_miss = {name for name in own if re.match(optional, name)}
        if may_miss and may_miss <= set(missing):
            missing = sorted(set(missing) - may_miss)
    unexpected = sorted(state.keys() - own.keys())
    shapes = [f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in own if n in state and state[n].shape != own[n].shape]
    types = [
        f"{n} {_type(state[n])} for {_type(own[n])}"
        for n in own
        if n in state and own[n].is_floating_point() and not state[n].is_floating_point()
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes, "wrong type": types}
    problems = [f"{what}: {_some(names)}" for what, names in found.items() if names]
    if problems:
        raise MisfitError(f"{source} does not fit {network}: {'; '.join(problems)}", remedy="give this network's own weights")
    for name, tensor in state.items():
        # float(): torch cannot tell for 8-bit floats
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise NetworkError(f"{source}: tensor {name} holds numbers that are not finite", remedy="get the file again")
    module.load_state_dict(dict(state), strict=optional is None)
    converted = sorted({_type(t) for n, t in state.items() if own[n].is_floating_point() and t.dtype != own[n].dtype})
    return (f"converted from {', '.join(converted)} to float32",) if converted else ()


def _is_safetensors(path: Path) -> bool:
    """By content: the file begins with the length of a JSON header, where torch's begin with a zip or pickle."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return False  # the reader says why
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_LIMIT


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise NetworkError(f"weights file {path} is damaged: {error}", remedy="get the file again") from error


def _read_torch(path: Path) -> object:
    _refuse_inflating(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on strange files: the error says it in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NetworkError(f"there is no weights file {path}", remedy="check the path") from error
    except IsADirectoryError as error:
        raise NetworkError(f"{path} is a folder", expected="a weights file") from error
    except PermissionError as error:
        raise NetworkError(f"weights file {path} cannot be read: {error.strerror}", remedy="check the permissions") from error
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if refused is not None:
            raise NetworkError(
                f"weights file {path} holds an object of {refused[1]} beside its tensors, and reading that would run code of the file",
                expected="tensors only",
                remedy="where you trust it, load it with torch and save its state dict: torch.save(model.state_dict(), FILE)",
            ) from error
        raise NetworkError(f"weights file {path} is damaged or no weights file", expected="a state dict saved by torch") from error
    except Exception as error:  # torch's readers fail in many ways on damaged bytes, AssertionError and struct.error among them
        if "TorchScript" in str(error):
            found = f"weights file {path} is a TorchScript archive, which holds code"
            raise NetworkError(found, expected="tensors only", remedy="save the state dict of the loaded module") from error
        raise NetworkError(
            f"weights file {path} is damaged or truncated", expected="a state dict saved by torch", remedy="get the file again"
        ) from error


def _refuse_inflating(path: Path) -> None:
    """Refuse an archive that would unpack to much more than it is: torch.save compresses nothing, TorchScript its code only."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # the format before torch 1.6, or damaged: the reader says which
    if unpacked > path.stat().st_size + _INFLATION_LIMIT:
        found = f"weights file {path} would unpack to {unpacked} bytes from {path.stat().st_size}"
        raise NetworkError(found, expected="an archive without compression, as torch.save writes it", remedy="get the file again")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
