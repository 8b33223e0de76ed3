"""Networks without numbers: torch's meta device, where only shapes are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors and modules made in the block are on the meta device; networks run there without gradients."""
    with torch.device("meta"), torch.no_grad(), _PassBatchNormalisation():
        yield


class _PassBatchNormalisation(TorchFunctionMode):
    """Leaves batch normalisation out: it changes no shape and has no multiply-adds, and takes half of the time on the meta device."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is functional.batch_norm and args:
            return args[0]
        return function(*args, **(kwargs or {}))
