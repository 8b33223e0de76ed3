"""L_asym and L_asym+ against naive double loops, and the properties that the closed form must have."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from asymvpr_core.errors import TrainingError
from asymvpr_core.training.losses import asymmetric_loss, regression_loss

BATCH, PLACES, DIMENSION = 5, 7, 12


@pytest.fixture
def data() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        "query": normalize(torch.randn(BATCH, DIMENSION, dtype=torch.float64), dim=1).requires_grad_(),
        "gallery": normalize(torch.randn(BATCH, DIMENSION, dtype=torch.float64), dim=1),
        "place": torch.tensor([0, 3, 3, 6, 1]),
        "centroids": torch.randn(PLACES, DIMENSION, dtype=torch.float64) * 0.3,
        "variances": torch.rand(PLACES, DIMENSION, dtype=torch.float64) * 0.01,
    }


def naive(query, gallery, place, centroids, variances, temperature=0.05, gamma=15.0):
    losses = []
    for b in range(len(query)):
        spread = sum(variances[place[b], d] * query[b, d] ** 2 for d in range(query.shape[1]))
        numerator = torch.exp((query[b] * gallery[b]).sum() / temperature)
        denominator = numerator
        for j in range(len(centroids)):
            if j != place[b]:
                denominator = denominator + torch.exp((query[b] * centroids[j]).sum() / temperature + gamma / (2 * temperature**2) * spread)
        losses.append(-torch.log(numerator / denominator))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 15.0])
@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_value_and_gradient_equal_the_naive_double_loop(data, gamma, temperature):
    ours = asymmetric_loss(**data, temperature=temperature, gamma=gamma)
    theirs = naive(**data, temperature=temperature, gamma=gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradient = torch.autograd.grad(ours, data["query"])[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, data["query"])[0], rtol=1e-10, atol=1e-12)


def test_gradcheck(data):
    fixed = {name: value for name, value in data.items() if name != "query"}
    assert torch.autograd.gradcheck(lambda query: asymmetric_loss(query, **fixed), data["query"])


def test_explicit_augmentation_lies_below_and_approaches_the_closed_form(data):
    """Jensen's inequality: a Monte-Carlo mean over g̃ ~ N(g, γ·diag(s_p)) is below, and tight as γ → 0."""
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for gamma in (8.0, 1.0, 0.005):
        deviation = (gamma * data["variances"][data["place"]]).sqrt()
        draws = torch.randn(20_000, BATCH, DIMENSION, dtype=torch.float64, generator=generator)
        q = data["query"].detach()
        augmented = ((data["gallery"] + deviation * draws) * q).sum(-1) / 0.05  # (draws, B)
        negatives = (q @ data["centroids"].T / 0.05).scatter(1, data["place"][:, None], -math.inf)
        explicit = torch.log1p(torch.exp(torch.logsumexp(negatives, 1) - augmented)).mean()
        implicit = asymmetric_loss(q, *(data[n] for n in ("gallery", "place", "centroids", "variances")), gamma=gamma)
        gaps.append(float(implicit - explicit))
    assert all(gap > -5e-3 for gap in gaps)  # 20 000 draws leave this much noise
    assert gaps[0] > gaps[1] > abs(gaps[2])
    assert abs(gaps[2]) < 1e-2


def test_a_place_with_one_image_behaves_as_without_augmentation(data):
    data["variances"][:] = 0
    assert torch.equal(asymmetric_loss(**data, gamma=15.0), asymmetric_loss(**data, gamma=0.0))


def test_renumbering_the_places_changes_nothing(data):
    order = torch.randperm(PLACES, generator=torch.Generator().manual_seed(1))
    renumbered = data | {
        "centroids": data["centroids"][order],
        "variances": data["variances"][order],
        "place": torch.argsort(order)[data["place"]],
    }
    torch.testing.assert_close(asymmetric_loss(**renumbered), asymmetric_loss(**data))


def test_exponents_in_the_hundreds_stay_finite(data):
    data["variances"] *= 100  # (γ/2τ²)·qᵀΣq of some thousand
    loss = asymmetric_loss(**data, temperature=0.01)
    loss.backward()
    assert torch.isfinite(loss) and loss > 100
    assert torch.isfinite(data["query"].grad).all()


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_bank_is_summed_in_float32(data, dtype, tolerance):
    single = {n: v.detach().float() if v.is_floating_point() else v for n, v in data.items()}
    single["query"].requires_grad_()
    half = single | {"centroids": single["centroids"].to(dtype), "variances": single["variances"].to(dtype)}
    loss = asymmetric_loss(**half)
    rounded = single | {"centroids": half["centroids"].float(), "variances": half["variances"].float()}
    torch.testing.assert_close(loss, asymmetric_loss(**rounded), rtol=1e-6, atol=1e-6)  # only the storage is rounded
    torch.testing.assert_close(loss, asymmetric_loss(**single), rtol=tolerance, atol=tolerance)
    gradient = torch.autograd.grad(loss, single["query"])[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(asymmetric_loss(**rounded), single["query"])[0], rtol=1e-5, atol=1e-5)


def test_one_place_in_all_has_no_negatives(data):
    loss = asymmetric_loss(
        data["query"], data["gallery"], torch.zeros(BATCH, dtype=torch.int64), data["centroids"][:1], data["variances"][:1]
    )
    assert loss == 0


@pytest.mark.parametrize(
    "change",
    [
        {"gallery": torch.zeros(BATCH, DIMENSION + 1, dtype=torch.float64)},
        {"place": torch.zeros(BATCH, dtype=torch.int32)},
        {"place": torch.zeros(BATCH - 1, dtype=torch.int64)},
        {"variances": torch.zeros(PLACES - 1, DIMENSION, dtype=torch.float64)},
        {"temperature": 0.0},
        {"gamma": -1.0},
    ],
)
def test_what_does_not_fit_is_refused(data, change):
    with pytest.raises(TrainingError, match="expected"):
        asymmetric_loss(**(data | change))


def test_regression_is_two_minus_two_cosines(data):
    cosines = (data["query"] * data["gallery"]).sum(1)
    torch.testing.assert_close(regression_loss(data["query"], data["gallery"]), (2 - 2 * cosines).mean())
