"""A query network cut in two: the first stages, which training leaves as they are, and the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.query import QueryNetwork

# Above the rounding of float32 over some hundred layers, far below what a part that is left out changes.
_TOLERANCE = 1e-3


class FrozenPrefix:
    """Turns images into the output of a network's frozen stages, and that output into descriptors: the same as the whole network.

    The stages have to follow one another, as those of CNNs do: the rest runs with the frozen parts replaced by
    identities, so that it trains the network's own parameters. Where the whole encoder is frozen, the
    features are what the last layer takes.

    Args:
        share: as in `QueryNetwork.freeze`, which has to be called apart from this.

    Raises:
        NetworkError: with this share no stage is frozen, or the network does not say its stages.
    """

    def __init__(self, network: QueryNetwork, share: float):
        self._network = network
        parts = network.frozen_parts(share)
        if not parts:
            raise NetworkError(
                f"with a share of {share:g} no stage of {network.spec.name} is frozen", expected="frozen stages whose output can be kept",
                remedy="set cached_views to 0, or a larger frozen_share",
            )  # fmt: skip
        self._whole = network.encoder in parts
        backbone: nn.Module = network.encoder.backbone  # type: ignore[assignment]
        stages: list[nn.Module] = backbone.stages  # type: ignore[assignment]
        self._last = backbone if backbone in parts else stages[round(share * len(stages)) - 1]
        singles = [part for part in parts if part not in (backbone, network.encoder)]
        # A stage that is a list of modules is no module of the network: its elements are.
        replaced = {id(child) for part in singles for child in (part.children() if isinstance(part, nn.ModuleList) else [part])}
        self._slots = [
            (parent, name, child) for parent in backbone.modules() for name, child in parent.named_children() if id(child) in replaced
        ]

    def features(self, images: Tensor) -> Tensor:
        """Output of the frozen part, (B, …) float32, of `(B, 3, H, W)` images."""
        if self._whole:
            return self._network.pooled(images)
        caught: list[Tensor] = []
        handle = self._last.register_forward_hook(lambda module, given, output: caught.append(output))
        try:
            self._network.encoder.backbone(images)  # type: ignore[operator]
        finally:
            handle.remove()
        output = caught[0] if caught else None
        if isinstance(output, tuple):  # a backbone also gives its token
            output = output[0]
        if not isinstance(output, Tensor):
            raise self._not_sequential()
        return output

    def describe(self, features: Tensor) -> Tensor:
        """`(B, D)` descriptors, L2-normalised; gradients reach the parameters behind the frozen part."""
        if self._whole:
            return functional.normalize(self._network.head(features), dim=-1)
        with self._rest():
            result: Tensor = self._network(features)
        return result

    def pooled(self, features: Tensor) -> Tensor:
        """What the linear last layer takes, (B, C)."""
        if self._whole:
            return features
        with self._rest():
            return self._network.pooled(features)

    def check(self, images: Tensor) -> None:
        """Describe `images` both ways. Raises NetworkError where the stages do not follow one another."""
        with torch.inference_mode():
            whole = self._network(images)
            try:
                parts = self.describe(self.features(images))
            except (RuntimeError, IndexError, ValueError) as error:
                raise self._not_sequential() from error
        if parts.shape != whole.shape or not torch.allclose(parts, whole, atol=_TOLERANCE):
            raise self._not_sequential()

    def _not_sequential(self) -> NetworkError:
        return NetworkError(
            f"the stages of {self._network.spec.name} do not simply follow one another",
            expected="stages of which each takes the one before", remedy="set cached_views to 0",
        )  # fmt: skip

    @contextmanager
    def _rest(self) -> Iterator[None]:
        """The network without its frozen parts, as long as this lasts."""
        identity = nn.Identity()
        for parent, name, _ in self._slots:
            setattr(parent, name, identity)
        try:
            yield
        finally:
            for parent, name, child in self._slots:
                setattr(parent, name, child)
