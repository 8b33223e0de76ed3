"""A memory bank as tensors, in the precision that the training wants and without a copy beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asymvpr_core.errors import TrainingError
from asymvpr_core.memory.bank import MemoryBank
from asymvpr_core.training.losses import LowRankFactors

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class BankTensors:
    """What `asymmetric_loss` needs of a bank: `centroids` (M, D) and `factors` in the wanted precision,
    `variances` (M, D) float32, None for a bank without low-rank covariances.
    """

    centroids: Tensor
    variances: Tensor
    factors: LowRankFactors | None


def bank_tensors(bank: MemoryBank, dtype: torch.dtype = torch.float32, *, device: torch.device | str = "cpu") -> BankTensors:
    """The bank's arrays as tensors of `dtype` on `device`, read block by block where they are memory maps.

    Args:
        dtype: of centroids and factors. torch.bfloat16 halves the memory and is the fastest; the
            loss sums in float32 whatever it is.

    Raises:
        TrainingError: one place in all, which has no negatives, or a dtype that is not floating point.
    """
    if len(bank.counts) < 2:
        raise TrainingError("the bank has one place in all", expected="at least two", remedy="use smaller cells or a larger gallery")
    if not dtype.is_floating_point:
        raise TrainingError(f"dtype is {dtype}", expected="a floating-point type")
    factors = None
    if bank.factors is not None and bank.factor_offsets is not None:
        offsets = torch.from_numpy(np.array(bank.factor_offsets)).to(device)
        factors = LowRankFactors(_tensor(bank.factors, dtype, device), offsets)
    return BankTensors(_tensor(bank.centroids, dtype, device), _tensor(bank.variances, torch.float32, device), factors)


def _tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    tensor = torch.empty(array.shape, dtype=dtype, device=device)
    rows = max(1, _BLOCK_BYTES // max(1, array.shape[1] * 4))
    for start in range(0, len(array), rows):
        block = np.array(array[start : start + rows])  # a copy: torch warns of a map that it may not write to
        tensor[start : start + len(block)] = torch.from_numpy(block).to(device)
    return tensor
