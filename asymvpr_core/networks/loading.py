"""A named network with its weights, ready to describe images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from asymvpr_core.errors import NetworkError
from asymvpr_core.manifest import sha256_of
from asymvpr_core.networks.checkpoints import LoadReport, MisfitError, load_strictly, read_state
from asymvpr_core.networks.registry import known_networks, network_spec
from asymvpr_core.networks.spec import NetworkSpec
from asymvpr_core.networks.weights_files import require_weights


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights and what identifies them."""

    spec: NetworkSpec
    module: nn.Module
    weights_sha256: str
    report: LoadReport


def load_network(name: str, weights: Path | None = None, *, seed: int = 0) -> LoadedNetwork:
    """Build a named network with its weights, in evaluation mode on the CPU.

    Args:
        name: a name that `network_spec` understands.
        weights: a local weights file instead of the released one.
        seed: of an aggregator that the file does not hold (ImageNet weights of a query network).

    Raises:
        NetworkError: unknown name, weights missing, damaged or of another network.
    """
    spec = network_spec(name)
    path = Path(weights) if weights is not None else require_weights(spec)
    module = random_network(spec, seed)
    report = load_released(spec, module, path)
    return LoadedNetwork(spec, module.eval(), sha256_of(path), report)


def random_network(spec: NetworkSpec, seed: int) -> nn.Module:
    """The module of `spec` with random weights, the same for the same seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build()


def load_released(spec: NetworkSpec, module: nn.Module, path: Path) -> LoadReport:
    """Load a weights file of `spec` into its module; every tensor is used, or named as ignored with the reason.

    Raises:
        NetworkError: damaged, or of another network, which is named where it is a known one.
    """
    state, notes = read_state(path)
    converted, ignored = spec.convert(state, module)
    optional = r"aggregator\." if spec.weights.covers == "backbone" else None
    try:
        notes += load_strictly(module, converted, f"weights file {path}", spec.name, optional)
    except MisfitError as error:
        other = _owner(state, spec)
        if other is None:
            raise
        raise NetworkError(f"weights file {path} is of {other}", expected=f"weights of {spec.name}") from error
    has_none = optional is not None and not any(name.startswith("aggregator.") for name in converted)
    random_aggregator = has_none and has_aggregator_weights(module)
    if random_aggregator:
        notes += ("the file holds the backbone only: the aggregator starts random and has to be trained",)
    return LoadReport(len(converted), ignored, notes, random_aggregator)


def has_aggregator_weights(module: nn.Module) -> bool:
    """Whether the aggregator learns more than GeM's exponent."""
    return any(p.numel() > 1 for name, p in module.named_parameters() if name.startswith("aggregator."))


def _owner(state: Mapping[str, Tensor], wanted: NetworkSpec) -> str | None:
    """The known network that a file's names and shapes belong to, if there is one."""
    for spec in known_networks():
        if spec.name == wanted.name:
            continue
        module = _without_memory(spec.name)
        own = {name: tensor.shape for name, tensor in module.state_dict().items()}
        try:
            names = {name: tensor.shape for name, tensor in spec.convert(state, module)[0].items()}
        except (AttributeError, KeyError, IndexError, NetworkError):  # a converter that trips over a stranger's names
            continue
        if names == own or (spec.weights.covers == "backbone" and names and names == _backbone(own)):
            return spec.name
    return None


@functools.cache
def _without_memory(name: str) -> nn.Module:
    return network_spec(name).build_without_memory()


def _backbone(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    return {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
