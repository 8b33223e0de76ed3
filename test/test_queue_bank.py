"""The queue of recent gallery descriptors, against a plain list."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from asymvpr_core.errors import TrainingError
from asymvpr_core.training.queue import QueueBank

DIMENSION = 6


def batch(seed: int, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(size, DIMENSION, generator=generator), dim=1), torch.randint(0, 4, (size,), generator=generator)


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (2, 5, 1, 4), (20,), (3, 8, 9)])
def test_the_queue_holds_the_newest(sizes):
    queue = QueueBank(8, DIMENSION)
    plain: list[tuple[list[float], int]] = []
    for seed, size in enumerate(sizes):
        descriptors, places = batch(seed, size)
        queue.push(descriptors, places)
        plain = (plain + list(zip(descriptors.tolist(), places.tolist(), strict=True)))[-8:]
        held = list(zip(queue.descriptors[: len(queue)].tolist(), queue.places[: len(queue)].tolist(), strict=True))
        assert sorted(held) == sorted(plain)


def test_the_loss_is_over_the_queue_without_the_own_place():
    queue = QueueBank(8, DIMENSION)
    query, place = batch(10)
    gallery, _ = batch(11)
    query.requires_grad_()
    assert float(queue.loss(query, gallery, place).detach()) == 0  # empty: no negatives
    queue.push(*batch(0, 5))
    losses = []
    for b in range(3):
        positive = query[b] @ gallery[b] / 0.1
        others = queue.descriptors[:5][queue.places[:5] != place[b]]
        losses.append(torch.logsumexp(torch.cat([positive[None], others @ query[b] / 0.1]), 0) - positive)
    expected = sum(losses) / 3
    ours = queue.loss(query, gallery, place, 0.1)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, query)[0], torch.autograd.grad(expected, query)[0])


def test_a_push_between_loss_and_backward_is_no_silent_mistake():
    queue = QueueBank(8, DIMENSION)
    queue.push(*batch(0, 5))
    query, place = batch(10)
    loss = queue.loss(query.requires_grad_(), batch(11)[0], place)
    queue.push(*batch(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_checkpoint_keeps_the_queue():
    queue, again = QueueBank(4, DIMENSION, torch.bfloat16), QueueBank(4, DIMENSION, torch.bfloat16)
    queue.push(*batch(0, 6))
    again.load_state_dict(queue.state_dict())
    for each in (queue, again):
        each.push(*batch(1, 1))
    assert torch.equal(queue.descriptors, again.descriptors) and torch.equal(queue.places, again.places)


def test_what_does_not_fit_is_refused():
    queue = QueueBank(4, DIMENSION)
    descriptors, places = batch(0)
    for call in (
        lambda: QueueBank(0, DIMENSION),
        lambda: queue.push(descriptors[:, :3], places),
        lambda: queue.push(descriptors, places[:1]),
        lambda: queue.loss(descriptors, descriptors[:2], places),
        lambda: queue.loss(descriptors, descriptors, places, 0.0),
    ):
        with pytest.raises(TrainingError, match="expected"):
            call()
