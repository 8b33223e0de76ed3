"""The baseline losses: fixed values and gradients of reference implementations, naive loops, limits, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from asymvpr_core.errors import TrainingError
from asymvpr_core.training import ranking
from asymvpr_core.training.baselines import aml_loss, feature_regression_loss, pkt_loss, raml_loss, rkd_loss, symmetric_loss
from asymvpr_core.training.ranking import csd_loss, d3still_loss, in_batch_neighbours, neighbour_similarities, rop_loss

Loss = Callable[[Tensor, Tensor], Tensor]
# Values and gradients with respect to the student, 24 x 32, neighbours inside the batch.
FIXTURE = torch.load(Path(__file__).parent / "data" / "asymmetric_losses.pt", weights_only=True)["small"]


def of_unit_vectors(loss: Loss) -> Loss:
    return lambda query, gallery: loss(normalize(query, dim=1), normalize(gallery, dim=1))


def of_neighbours(k: int, loss: Loss) -> Loss:
    def whole(query: Tensor, gallery: Tensor) -> Tensor:
        query, gallery = normalize(query, dim=1), normalize(gallery, dim=1)
        return loss(*neighbour_similarities(query, gallery, gallery, in_batch_neighbours(gallery, k)))

    return whole


REFERENCES: dict[str, Loss] = {
    "csd_k16_tq1_tg.01": of_neighbours(16, csd_loss),
    "csd_kB_tq1_tg.01": of_neighbours(24, csd_loss),
    "d3_k10_a100_b5_g1": of_neighbours(10, d3still_loss),
    "d3_k10_a50_b2_g1": of_neighbours(10, lambda u, s: d3still_loss(u, s, alpha=50, beta=2, gamma=1)),
    "d3_fd_only_a1": of_neighbours(10, lambda u, s: d3still_loss(u, s, alpha=1, beta=0, gamma=0)),
    "d3_hard_only_b1": of_neighbours(10, lambda u, s: d3still_loss(u, s, alpha=0, beta=1, gamma=0)),
    "d3_easy_only_g1": of_neighbours(10, lambda u, s: d3still_loss(u, s, alpha=0, beta=0, gamma=1)),
    "raml_l1.7482_l2.6778": of_unit_vectors(raml_loss),
    "raml_as_run_l1=l2=.7482": of_unit_vectors(lambda q, g: raml_loss(q, g, symmetric_weight=0.7482)),
    "raml_regression_only": of_unit_vectors(lambda q, g: raml_loss(q, g, asymmetric_weight=0, symmetric_weight=0)),
    "rop_k16_t.1_w.2": of_neighbours(16, rop_loss),
    "rkd": rkd_loss,
    "pkt": pkt_loss,
    "fitnet_mse": feature_regression_loss,
}


def test_every_setting_of_the_fixture_is_compared():
    assert set(REFERENCES) == set(FIXTURE["results"]) and len(REFERENCES) == 14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_gradient_equal_the_reference(name: str, dtype: torch.dtype):
    query = FIXTURE["student"].clone().to(dtype).requires_grad_()
    loss = REFERENCES[name](query, FIXTURE["teacher"].clone().to(dtype))
    value, gradient = FIXTURE["results"][name]
    assert loss.item() == pytest.approx(float(value), rel=1e-5)
    ours = torch.autograd.grad(loss, query)[0].double()
    assert torch.linalg.vector_norm(ours - gradient.double()) < 1e-5 * torch.linalg.vector_norm(gradient.double())


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    query, gallery = (normalize(torch.randn(6, 8, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    return query.requires_grad_(), gallery, torch.tensor([0, 1, 0, 2, 1, 3])


def test_d3still_equals_its_definition_pair_by_pair(batch):
    query, gallery, _ = batch
    u, s = neighbour_similarities(query.detach(), gallery, gallery, in_batch_neighbours(gallery, 5))
    alpha, beta, gamma = 100.0, 5.0, 1.0
    expected = alpha * math.sqrt(sum((1 - float(s[b, 0])) ** 2 for b in range(6))) / 6
    for b in range(6):
        squares = {"hard": 0.0, "easy": 0.0}
        for a in range(1, 5):
            for c in range(1, 5):
                delta_u, delta_s = float(u[b, a] - u[b, c]), float(s[b, a] - s[b, c])
                ratio = 1.0 if delta_u == 0 else delta_s / delta_u
                error = (delta_s - delta_u) / (0.1 + abs(delta_u))
                if ratio != 0:
                    squares["hard" if ratio < 0 else "easy"] += error**2
        expected += (beta * math.sqrt(squares["hard"]) + gamma * math.sqrt(squares["easy"])) / 4 / 6
    assert float(d3still_loss(u, s)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "loss", [raml_loss, aml_loss, of_neighbours(4, csd_loss), of_neighbours(4, d3still_loss), of_neighbours(4, rop_loss), pkt_loss]
)
def test_gradients_are_those_of_finite_differences(batch, loss):
    query, gallery, _ = batch
    assert torch.autograd.gradcheck(lambda q: loss(q, gallery), query)


def test_identical_descriptors_cost_nothing_and_have_a_gradient(batch):
    _, gallery, place = batch
    query = gallery.clone().requires_grad_()
    for loss in (raml_loss, aml_loss, feature_regression_loss, rkd_loss, pkt_loss, of_neighbours(4, d3still_loss)):
        value = loss(query, gallery)
        assert float(value) == pytest.approx(0, abs=1e-5)
        assert torch.isfinite(torch.autograd.grad(value, query)[0]).all()
    assert torch.isfinite(torch.autograd.grad(aml_loss(query, gallery, place, contrastive_weight=1.0), query)[0]).all()


def test_aml_contrast_equals_a_loop_over_pairs(batch):
    query, gallery, place = batch
    positives, negatives = [], []
    for i in range(6):
        for j in range(6):
            distance = float((query[i] - gallery[j]).norm())
            if place[i] == place[j]:
                positives.append(distance**2 / 2)
            else:
                negatives.append(max(0.0, 1.2 - distance) ** 2 / 2)
    assert sum(negatives) > 0
    regression = sum(float((query[i] - gallery[i]).norm()) for i in range(6)) / 6
    expected = regression + 0.5 * (sum(positives) / len(positives) + sum(negatives) / len(negatives))
    assert float(aml_loss(query, gallery, place, contrastive_weight=0.5, margin=1.2)) == pytest.approx(expected, rel=1e-10)
    one_place = aml_loss(query, gallery, torch.zeros(6, dtype=torch.int64), contrastive_weight=0.5)
    assert torch.isfinite(one_place)


def test_symmetric_loss_equals_its_equation_on_mined_pairs(batch):
    query, _, place = batch
    similarities = (query @ query.T).detach()
    expected = 0.0
    for i in range(6):
        positives = [j for j in range(6) if j != i and place[j] == place[i]]
        negatives = [j for j in range(6) if place[j] != place[i]]
        if not positives:
            continue
        hardest_positive = min(float(similarities[i, j]) for j in positives)
        hardest_negative = max(float(similarities[i, j]) for j in negatives)
        kept_positives = [j for j in positives if similarities[i, j] - 0.1 < hardest_negative]
        kept_negatives = [j for j in negatives if similarities[i, j] + 0.1 > hardest_positive]
        expected += math.log(1 + sum(math.exp(-similarities[i, j]) for j in kept_positives)) / 6
        expected += math.log(1 + sum(math.exp(50 * similarities[i, j]) for j in kept_negatives)) / 50 / 6
    assert expected > 0
    assert float(symmetric_loss(query, place)) == pytest.approx(expected, rel=1e-6)


def test_in_batch_lists_begin_with_the_image_itself_and_descend():
    gallery = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), dim=1)
    lists = in_batch_neighbours(gallery, 4)
    assert lists[:, 0].tolist() == [0, 1, 2, 3]  # also before an exact copy
    assert lists[0].tolist() == [0, 1, 2, 3] and lists[3].tolist()[:2] == [3, 2]


def test_similarities_in_parts_equal_those_at_once(batch, monkeypatch):
    query, gallery, _ = batch
    descriptors = normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
    neighbours = torch.randint(0, 20, (6, 7), generator=torch.Generator().manual_seed(2))
    at_once = neighbour_similarities(query, gallery, descriptors, neighbours)
    monkeypatch.setattr(ranking, "_GATHERED_BYTES", 7 * 8 * 8 * 2)  # two images at a time
    u, s = neighbour_similarities(query, gallery, descriptors, neighbours)
    for b in range(6):
        for j in range(7):
            assert float(s[b, j]) == pytest.approx(float(query[b] @ descriptors[neighbours[b, j]]), rel=1e-12)
    assert torch.equal(u, at_once[0])
    gradients = [torch.autograd.grad(part.pow(2).sum(), query)[0] for part in (s, at_once[1])]
    torch.testing.assert_close(*gradients)
    assert not u.requires_grad


@pytest.mark.parametrize(
    "call",
    [
        lambda q, g, p: aml_loss(q, g, contrastive_weight=1.0),
        lambda q, g, p: aml_loss(q, g, p, contrastive_weight=-1.0),
        lambda q, g, p: aml_loss(q, g, p, margin=0.0),
        lambda q, g, p: raml_loss(q, g[:3]),
        lambda q, g, p: raml_loss(q, g, symmetric_weight=-0.1),
        lambda q, g, p: rkd_loss(q[:1], g[:1]),
        lambda q, g, p: rkd_loss(q, g, angle_weight=-1),
        lambda q, g, p: pkt_loss(q, g[:, :4]),
        lambda q, g, p: feature_regression_loss(q[0], g[0]),
        lambda q, g, p: symmetric_loss(q, p[:2]),
        lambda q, g, p: symmetric_loss(q, p, beta=0.0),
        lambda q, g, p: in_batch_neighbours(g, 7),
        lambda q, g, p: in_batch_neighbours(g, 0),
        lambda q, g, p: neighbour_similarities(q, g, g, torch.zeros(6, 0, dtype=torch.int64)),
        lambda q, g, p: neighbour_similarities(q, g, g[:, :5], torch.zeros(6, 2, dtype=torch.int64)),
        lambda q, g, p: csd_loss(q @ g.T, (q @ g.T)[:, :3]),
        lambda q, g, p: csd_loss(q @ g.T, q @ g.T, query_temperature=0),
        lambda q, g, p: csd_loss((q @ g.T)[:, :0], (q @ g.T)[:, :0]),
        lambda q, g, p: rop_loss(q @ g.T, q @ g.T, temperature=0),
        lambda q, g, p: d3still_loss((q @ g.T)[:, :1], (q @ g.T)[:, :1]),
        lambda q, g, p: d3still_loss(q @ g.T, q @ g.T, beta=-1),
    ],
)
def test_what_does_not_fit_is_refused(batch, call):
    with pytest.raises(TrainingError, match="expected"):
        call(*batch)
