"""The negatives over a large bank: any block size gives what a dense product gives, and no large temporary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from asymvpr_core.errors import TrainingError
from asymvpr_core.training import bank_log_sum_exp as module
from asymvpr_core.training.bank_log_sum_exp import bank_log_sum_exp
from asymvpr_core.training.losses import asymmetric_loss

BATCH, ROWS, DIMENSION = 6, 700, 16


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Query, bank and own rows; every query has some near rows, as trained networks have."""
    generator = torch.Generator().manual_seed(2)
    query = normalize(torch.randn(BATCH, DIMENSION, generator=generator, dtype=torch.float64), dim=1)
    bank = 0.8 * normalize(
        torch.randn(ROWS, DIMENSION, generator=generator, dtype=torch.float64) + 3 * query[torch.arange(ROWS) % 40 % 6], dim=1
    )
    return query.requires_grad_(), bank, torch.tensor([0, 63, 64, 699, 5, 5])


def dense(query: Tensor, bank: Tensor, own: Tensor, temperature: float = 0.05) -> Tensor:
    logits = query @ bank.T / temperature
    return torch.logsumexp(logits.scatter(1, own[:, None], -torch.inf), dim=1)


@pytest.mark.parametrize("kept_logits_bytes", [0, 1 << 30])
@pytest.mark.parametrize("block_bytes", [1, 100 * DIMENSION * 4, 1 << 30])
def test_blocks_of_any_size_give_the_dense_value_and_gradient(data, monkeypatch, block_bytes, kept_logits_bytes):
    query, bank, own = data
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    ours = bank_log_sum_exp(query, bank, own, 0.05, kept_logits_bytes=kept_logits_bytes)
    theirs = dense(query, bank, own)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    weight = torch.arange(1.0, BATCH + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad((weight * value).sum(), query)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kept_logits_bytes", [0, 1 << 30])
def test_gradcheck(data, monkeypatch, kept_logits_bytes):
    query, bank, own = data
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    assert torch.autograd.gradcheck(lambda q: bank_log_sum_exp(q, bank[:130], own % 130, 0.1, kept_logits_bytes=kept_logits_bytes), query)


def test_rows_of_the_own_place_are_left_out(data):
    query, bank, _ = data
    places = torch.arange(ROWS) % 9
    own = torch.tensor([0, 8, 3, 9, 1, 1])  # place 9 has no rows
    ours = bank_log_sum_exp(query, bank, own, 0.05, bank_places=places)
    for b in range(BATCH):
        others = bank[places != own[b]]
        torch.testing.assert_close(ours[b], torch.logsumexp(others @ query[b] / 0.05, 0), rtol=1e-12, atol=0)
    torch.testing.assert_close(bank_log_sum_exp(query, bank, None, 0.05), torch.logsumexp(query @ bank.T / 0.05, 1))


def test_nothing_to_sum_is_minus_infinity_with_no_gradient(data):
    query, bank, _ = data
    for rows, own in ((bank[:1], torch.zeros(BATCH, dtype=torch.int64)), (bank[:0], None)):
        value = bank_log_sum_exp(query, rows, own, 0.05)
        assert (value == -torch.inf).all()
        gradient = torch.autograd.grad(torch.exp(value).sum(), query)[0]
        assert torch.equal(gradient, torch.zeros_like(query))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half_products", [False, True])
def test_a_half_precision_bank_equals_its_float32_copy(data, dtype, half_products):
    """Without half products to float32 accuracy; with them the logits that count are corrected."""
    query, bank, own = data[0].detach().float().requires_grad_(), data[1].to(dtype), data[2]
    ours = bank_log_sum_exp(query, bank, own, 0.05, half_products=half_products)
    theirs = dense(query, bank.float(), own)
    exact = not half_products or dtype == torch.float16
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if exact else 5e-3)
    gradients = [torch.autograd.grad(value.sum(), query)[0] for value in (ours, theirs)]
    difference = torch.linalg.vector_norm(gradients[0] - gradients[1]) / torch.linalg.vector_norm(gradients[1])
    assert difference < (1e-5 if exact else 1e-2)


def test_correcting_the_largest_logits_is_what_makes_half_products_good_enough(data, monkeypatch):
    """Near rows dominate the sum, and a bfloat16 product of 0.8/τ is off by up to 0.03."""
    query, bank, own = data[0].detach().float(), data[1].bfloat16(), data[2]
    near = normalize(query[torch.arange(60) % BATCH] + 0.02, dim=1).bfloat16()
    bank[100:160] = near
    exact = bank_log_sum_exp(query, bank, own, 0.05, half_products=False)
    corrected = (bank_log_sum_exp(query, bank, own, 0.05) - exact).abs().max()
    monkeypatch.setattr(module, "_REFINED", 0)
    rounded = (bank_log_sum_exp(query, bank, own, 0.05) - exact).abs().max()
    assert corrected < 1e-4 < 1e-3 < rounded


def test_products_that_are_stored_in_float32_need_no_correction(data, monkeypatch):
    """The path of a GPU, with a stand-in for the product that a CPU does not have."""
    query, bank, own = data[0].detach().float().requires_grad_(), data[1].bfloat16(), data[2]
    calls = []

    def wide_product(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        calls.append((a.dtype, b.dtype))
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr(module, "_stores_float32", lambda device: True)
    monkeypatch.setattr(torch, "mm", wide_product)
    ours = bank_log_sum_exp(query, bank, own, 0.05)
    theirs = dense(query.bfloat16().float(), bank.float(), own)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), query)[0] for value in (ours, theirs)]
    assert torch.linalg.vector_norm(gradients[0] - gradients[1]) < 5e-3 * torch.linalg.vector_norm(gradients[1])
    assert len(calls) == 2 and set(calls) == {(torch.bfloat16, torch.bfloat16)}


def test_excluded_rows_stay_excluded_when_largest_logits_are_corrected(data):
    query, bank, own = data[0].detach().float(), data[1].bfloat16(), data[2]
    bank[own] = 0.99 * query.bfloat16()  # would be by far the largest
    torch.testing.assert_close(bank_log_sum_exp(query, bank, own, 0.05), dense(query, bank.float(), own), rtol=0, atol=5e-3)


def test_a_trainable_bank_is_refused(data):
    with pytest.raises(TrainingError, match="requires a gradient"):
        bank_log_sum_exp(data[0], data[1].requires_grad_(), data[2], 0.05)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation makes."""

    def __init__(self, bank: Tensor):
        super().__init__()
        self.elements, self._bank = 0, bank.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != self._bank:
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("half_products", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_temporary_of_the_banks_size_forward_or_backward(dtype, half_products):
    batch, rows, dimension = 4, 4000, 512
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(rows, dimension, generator=generator).to(dtype)
    query = normalize(torch.randn(batch, dimension, generator=generator), dim=1).requires_grad_()
    variances = torch.rand(rows, dimension, generator=generator) * 1e-4
    place = torch.tensor([0, 1, 2, 3999])
    blocks = module._BLOCK_BYTES
    try:
        module._BLOCK_BYTES = 1 << 18
        with LargestTensor(bank) as largest:
            asymmetric_loss(query, query.detach(), place, bank, variances, half_products=half_products).backward()
    finally:
        module._BLOCK_BYTES = blocks
    assert batch * rows <= largest.elements < rows * dimension // 8
