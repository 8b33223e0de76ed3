"""The negatives of a contrast over a large bank: a log-sum-exp in blocks that keeps nothing of the bank's size.

log Σ_j e^{q·c_j/τ} over 67 000 centroids of 8448 dimensions reads 1.1 GB in bfloat16. Autograd would
keep a float32 copy of the bank for the backward pass; here the bank is only ever read, a block at a
time, and the largest temporaries are the (B, M) logits and one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asymvpr_core.errors import TrainingError

# One block of a half-precision bank as float32: small enough that the conversion stays in the cache,
# where it costs nothing beside the product (8 blocks of 512 rows were as fast as float32 itself).
_BLOCK_BYTES = 16 << 20

# The backward pass needs the weights of the softmax. Up to this size the (B, M) logits are kept for it;
# beyond, each block's product is computed again. (64, 67 000) float32 is 17 MB.
_KEPT_LOGITS_BYTES = 64 << 20

# On a CPU a bfloat16 product is accumulated in float32 but stored in bfloat16, which rounds a logit
# of 16 by up to 0.03. These many of the largest are computed again from the float32 query.
_REFINED = 32


def bank_log_sum_exp(
    query: Tensor,
    bank: Tensor,
    excluded: Tensor | None,
    temperature: float,
    *,
    bank_places: Tensor | None = None,
    half_products: bool = True,
    kept_logits_bytes: int = _KEPT_LOGITS_BYTES,
) -> Tensor:
    """log Σ_j e^{q·c_j/τ} over the rows of the bank that are not excluded, (B,) in float32 or the query's wider type.

    −∞ where nothing is left to sum over. Gradients flow into `query` only, once: the weights of the
    softmax times the rows, block by block. `bank` is read in its own precision and never copied.

    Args:
        query: (B, D) floating point.
        bank: (M, D) float32, float64, bfloat16 or float16; must not require a gradient.
        excluded: (B,) int64 or None. Without `bank_places`, the one row that each query leaves out;
            with them, the place whose rows each query leaves out.
        temperature: τ > 0.
        bank_places: (M,) int64 place of every row of the bank, or None: row j is place j.
        half_products: multiply a bfloat16 bank in bfloat16, which is faster: with results in float32
            where torch has that (CUDA), with rounded results whose largest are corrected afterwards on
            a CPU. Off, and for float16: every block is converted to float32 first, so that only the
            storage of the bank is rounded.
        kept_logits_bytes: logits up to this size are kept for the backward pass; larger ones are
            computed again there, and without `half_products` on a CPU.

    Raises:
        TrainingError: a bank that requires a gradient.
    """
    if bank.requires_grad:
        raise TrainingError("the bank requires a gradient", expected="a constant bank", remedy="give bank.detach()")
    result: Tensor = _BankLogSumExp.apply(query, bank, excluded, bank_places, temperature, half_products, kept_logits_bytes)
    return result


class _BankLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        bank: Tensor,
        excluded: Tensor | None,
        bank_places: Tensor | None,
        temperature: float,
        half_products: bool,
        kept_logits_bytes: int,
    ) -> Tensor:
        # Mixed precision must not reach in here: it would round the float32 products to half precision.
        with torch.autocast(query.device.type, enabled=False):
            wide = query.detach().to(torch.promote_types(query.dtype, torch.float32))
            fits = wide.element_size() * len(bank) * len(wide) <= kept_logits_bytes
            products = _Products(wide, bank, excluded, bank_places, temperature, half_products, correctable=fits)
            keep = fits and ctx.needs_input_grad[0]
            if keep or products.rounded:
                logits = products.all_logits()
                result = torch.logsumexp(logits, dim=0)
            else:
                result = torch.full((len(wide),), -torch.inf, dtype=wide.dtype, device=wide.device)
                for rows in products.blocks():
                    result = torch.logaddexp(result, torch.logsumexp(products.logits(rows), dim=0))
        ctx.save_for_backward(query, bank, excluded, bank_places, result, logits if keep else None)
        ctx.options = temperature, half_products, keep
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, bank, excluded, bank_places, result, logits = ctx.saved_tensors
        temperature, half_products, kept = ctx.options
        with torch.autocast(query.device.type, enabled=False):
            products = _Products(query.to(result.dtype), bank, excluded, bank_places, temperature, half_products, correctable=kept)
            # Where nothing is summed, e^{−∞ − (−∞)} would be NaN instead of no weight.
            finite = torch.where(torch.isfinite(result), result, torch.zeros_like(result))
            total = torch.zeros_like(query, dtype=result.dtype)
            for rows in products.blocks():
                block = products.logits(rows) if logits is None else logits[rows]
                weights = torch.exp(block - finite)
                total += products.weighted_sum(weights, rows)
            total *= (gradient / temperature)[:, None]
        return total.to(query.dtype), None, None, None, None, None, None


@lru_cache
def _stores_float32(device_type: str) -> bool:
    """Whether the product of two bfloat16 matrices can be had in float32: on CUDA in newer versions of torch."""
    try:
        matrix = torch.zeros(16, 16, dtype=torch.bfloat16, device=device_type)
        return torch.mm(matrix, matrix, out_dtype=torch.float32).dtype == torch.float32
    except (TypeError, RuntimeError):
        return False


class _Products:
    """The products of one batch with the bank, block by block; logits are (rows, B), the faster orientation."""

    def __init__(
        self,
        query: Tensor,
        bank: Tensor,
        excluded: Tensor | None,
        bank_places: Tensor | None,
        temperature: float,
        half_products: bool,
        correctable: bool,
    ):
        self._query, self._bank, self._temperature = query, bank, temperature
        self._excluded, self._bank_places = excluded, bank_places
        half = half_products and bank.dtype == torch.bfloat16 and query.dtype == torch.float32
        wide = half and _stores_float32(query.device.type)
        self.rounded = half and not wide and correctable and query.device.type == "cpu"
        self._half_query = query.to(bank.dtype) if wide or self.rounded else None

    def blocks(self) -> Iterator[slice]:
        # A half-precision product needs no conversion, and larger blocks cost fewer calls.
        row_bytes = self._bank.shape[1] * 4 // (16 if self._half_query is not None else 1)
        size = max(64, _BLOCK_BYTES // max(row_bytes, 1))
        for start in range(0, len(self._bank), size):
            yield slice(start, min(start + size, len(self._bank)))

    def logits(self, rows: slice) -> Tensor:
        """(rows, B) q·c_j/τ, −∞ where excluded."""
        block = self._bank[rows]
        if self._half_query is None:
            products = block.to(self._query.dtype) @ self._query.T
        elif self.rounded:
            products = (block @ self._half_query.T).to(self._query.dtype)
        else:
            products = torch.mm(block, self._half_query.T, out_dtype=torch.float32)
        return self._exclude(products.div_(self._temperature), rows)

    def weighted_sum(self, weights: Tensor, rows: slice) -> Tensor:
        """(B, D) Σ_j w_j c_j over one block, from (rows, B) weights."""
        block = self._bank[rows]
        if self._half_query is None:
            return weights.T @ block.to(self._query.dtype)
        if self.rounded:
            return (weights.to(block.dtype).T @ block).to(self._query.dtype)
        return torch.mm(weights.to(block.dtype).T, block, out_dtype=torch.float32)

    def all_logits(self) -> Tensor:
        """(M, B) logits of the whole bank, the largest corrected where the products were rounded."""
        logits = torch.empty(len(self._bank), len(self._query), dtype=self._query.dtype, device=self._query.device)
        for rows in self.blocks():
            logits[rows] = self.logits(rows)
        if self.rounded:
            self._refine(logits)
        return logits

    def _refine(self, logits: Tensor) -> None:
        """Compute the largest logits of every query again, from the float32 query."""
        count = min(_REFINED, len(logits))
        largest = logits.T.contiguous().topk(count, dim=1, sorted=False).indices  # (B, count)
        for b, indices in enumerate(largest):
            exact = self._bank[indices].to(self._query.dtype) @ self._query[b] / self._temperature
            logits[indices, b] = torch.where(torch.isinf(logits[indices, b]), logits[indices, b], exact)

    def _exclude(self, logits: Tensor, rows: slice) -> Tensor:
        if self._excluded is None:
            return logits
        if self._bank_places is not None:
            return logits.masked_fill_(self._bank_places[rows, None] == self._excluded[None, :], -torch.inf)
        row = self._excluded - rows.start
        inside = (row >= 0) & (row < len(logits))
        where = row.clamp(0, len(logits) - 1), torch.arange(len(row), device=row.device)
        logits[where] = logits[where].masked_fill(inside, -torch.inf)
        return logits
