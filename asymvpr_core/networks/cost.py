"""What a network costs: parameters and multiply-adds, counted without computing anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.shapes_only import shapes_only
from asymvpr_core.networks.spec import NetworkSpec

# Products of two activations; some published counts leave those of the transformer's blocks out.
_ATTENTION = ("bmm", "baddbmm", "scaled_dot_product", "_flash_attention", "_efficient_attention")


@dataclass(frozen=True)
class NetworkCost:
    """Parameters, multiply-adds of one image, and how many of those are products of two activations (q·kᵀ, the weighted sum)."""

    parameters: int
    macs: int
    attention_macs: int


def network_cost(spec: NetworkSpec) -> NetworkCost:
    """The cost of a network at its own input size.

    Raises:
        NetworkError: a network of the user's own that looks at the values of its tensors, which are not there.
    """
    module = spec.build_without_memory()
    try:
        with shapes_only(), FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, 3, spec.preprocess.height, spec.preprocess.width))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise NetworkError(f"the multiply-adds of {spec.name} cannot be counted without computing: {error}") from error
    total = attention = 0
    for operation, flops in counter.get_flop_counts().get("Global", {}).items():
        total += flops // 2
        if any(part in str(operation) for part in _ATTENTION):
            attention += flops // 2
    return NetworkCost(sum(p.numel() for p in module.parameters()), total, attention)
