"""What a named network is: how to build it, how its images are prepared, where its weights come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.shapes_only import shapes_only
from asymvpr_core.preprocess import Preprocess

# Names and tensors for a module, and the names of the file that it has no use for, each with the reason.
Conversion = tuple[dict[str, Tensor], dict[str, str]]
Converter = Callable[[Mapping[str, Tensor], nn.Module], Conversion]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a network come from, and what may be done with them.

    `covers` says what the file holds: the whole network, or the backbone only, in which case the
    aggregator starts random and has to be trained. `sha256` may be the first digits only, as some
    publishers put them into the file name. `size_bytes` and `sha256` are None where not published.
    """

    licence: str
    covers: Literal["network", "backbone"] = "network"
    package: tuple[str, str] | None = None  # (import name of a package on PyPI, file in it)
    address: str | None = None  # official https address of the file
    file_name: str | None = None  # in the cache; None: the address's last part
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def name_in_cache(self) -> str | None:
        """Name of the downloaded file; None where there is no address."""
        return None if self.address is None else self.file_name or self.address.rsplit("/", 1)[-1]


def as_released(state: Mapping[str, Tensor], module: nn.Module) -> Conversion:
    """The converter of a network that has the released names itself: nothing is renamed or ignored."""
    return dict(state), {}


def renamed(state: Mapping[str, Tensor], new_name: Callable[[str], str]) -> dict[str, Tensor]:
    """`state` with `new_name(name)` for every name.

    Raises:
        NetworkError: two tensors would get the same name, and one of them be lost.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if new_name(name) in result:
            twice = [other for other in state if new_name(other) == new_name(name)]
            raise NetworkError(f"the weights file holds one tensor twice, as {' and '.join(twice)}", remedy="get the file again")
        result[new_name(name)] = tensor
    return result


@dataclass(frozen=True)
class NetworkSpec:
    """One named network.

    `role` is what it is meant for; a name works on both sides, so that a light network can also be
    used symmetrically. `build` makes the module with random weights, which maps `(B, 3, H, W)`
    float32 images to `(B, dimension)` descriptors, L2-normalised. `convert` turns the released file's
    names into the module's. `projection_dim` is the default of the gallery's projection: None where
    the published numbers belong to the full descriptor.
    """

    name: str
    role: Literal["gallery", "query"]
    description: str
    build: Callable[[], nn.Module] = field(repr=False)
    dimension: int
    preprocess: Preprocess
    weights: WeightsSource
    convert: Converter = field(default=as_released, repr=False)
    projection_dim: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process looks the name up itself: how a network is built cannot be pickled."""
        return _of_name, (self.name,)

    def build_without_memory(self) -> nn.Module:
        """The module on torch's meta device: names, shapes and counts without numbers, in milliseconds."""
        with shapes_only():
            return self.build().eval()


def _of_name(name: str) -> NetworkSpec:
    from asymvpr_core.networks.registry import network_spec  # which imports this file

    return network_spec(name)


def squashed(size: int, mean: tuple[float, float, float] = IMAGENET_MEAN, std: tuple[float, float, float] = IMAGENET_STD) -> Preprocess:
    """Resize to a square by area averaging: the rule of the query networks, on training machine and robot."""
    return Preprocess(height=size, width=size, mean=mean, std=std)
