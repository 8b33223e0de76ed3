"""From a stored bank to the loss: the same numbers as from descriptors, whatever lies between."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from descriptor_gallery import make_gallery, unit_rows

from asymvpr_core.config import BankSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.memory.bank import build_memory_bank
from asymvpr_core.memory.store import StoredBank, build_bank
from asymvpr_core.training import bank_tensors as module
from asymvpr_core.training.bank_tensors import bank_tensors
from asymvpr_core.training.losses import asymmetric_loss

COUNT, DIMENSION, BATCH = 60, 16, 5


@pytest.mark.parametrize("rank", [0, 99])
@pytest.mark.parametrize(
    ("stored_dtype", "dtype", "tolerance"),
    [("float32", torch.float32, 1e-5), ("float16", torch.float16, 2e-3), ("float16", torch.bfloat16, 2e-2)],
)
def test_loss_of_a_stored_bank_is_the_loss_of_its_descriptors(tmp_path: Path, monkeypatch, stored_dtype, dtype, tolerance, rank):
    monkeypatch.setattr(module, "_BLOCK_BYTES", DIMENSION * 4 * 3)
    descriptors, places = unit_rows(COUNT, DIMENSION), np.arange(COUNT) % 9
    gallery = make_gallery(tmp_path / "gallery", descriptors, places)
    stored = StoredBank.open(build_bank(gallery, BankSettings(rank=rank, dtype=stored_dtype), tmp_path / "bank"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = bank_tensors(stored.bank, dtype)
    assert tensors.centroids.dtype == dtype and tensors.variances.dtype == torch.float32
    query = torch.from_numpy(unit_rows(BATCH, DIMENSION, seed=1))
    images = [3, 7, 30, 44, 59]
    gallery_rows, place = torch.from_numpy(descriptors[images]), torch.from_numpy(places[images])
    ours = asymmetric_loss(
        query, gallery_rows, place, tensors.centroids, tensors.variances, 0.1, 2.0, factors=tensors.factors, half_products=False
    )
    losses = []
    for q, g, p in zip(query.double().numpy(), gallery_rows.double().numpy(), places[images], strict=True):
        own = descriptors[places == p].astype(np.float64)
        covariance = np.cov(own.T, bias=True) if rank else np.diag(own.var(0))
        negatives = [q @ descriptors[places == j].astype(np.float64).mean(0) / 0.1 for j in range(9) if j != p]
        exponents = np.array(negatives) + 2.0 / (2 * 0.1**2) * (q @ covariance @ q)
        losses.append(np.log1p(np.exp(exponents - q @ g / 0.1).sum()))
    assert float(ours) == pytest.approx(float(np.mean(losses)), rel=tolerance)


def test_one_place_and_whole_numbers_are_refused():
    bank = build_memory_bank(unit_rows(4, 3), np.zeros(4, np.int64))
    with pytest.raises(TrainingError, match="one place in all"):
        bank_tensors(bank)
    with pytest.raises(TrainingError, match="dtype is torch.int64"):
        bank_tensors(build_memory_bank(unit_rows(4, 3), np.array([0, 0, 1, 1])), torch.int64)
