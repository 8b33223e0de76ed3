"""L_asym and L_asym+ against naive double loops, and the properties that the closed form must have."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from asymvpr_core.errors import TrainingError
from asymvpr_core.training.losses import LowRankFactors, asymmetric_loss, covariance_form, explicit_asymmetric_loss, regression_loss

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


def test_gamma_zero_is_the_loss_without_augmentation(data):
    """L_asym by its own equation, without a variance in it."""
    ours = asymmetric_loss(**data, gamma=0.0)
    assert torch.equal(ours, asymmetric_loss(**(data | {"variances": torch.full_like(data["variances"], torch.nan)}), gamma=0.0))
    logits = data["query"] @ data["centroids"].T / 0.05
    logits[torch.arange(BATCH), data["place"]] = (data["query"] * data["gallery"]).sum(1) / 0.05  # g stands in for the own centroid
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, data["place"]), rtol=1e-12, atol=1e-12)


def test_gradcheck(data):
    fixed = {name: value for name, value in data.items() if name != "query"}
    assert torch.autograd.gradcheck(lambda query: asymmetric_loss(query, **fixed), data["query"])


def low_rank(data, ranks=(2, 0, 1, 3, 0, 2, 1)) -> LowRankFactors:
    """Factors of PLACES places, some of them without any."""
    generator = torch.Generator().manual_seed(9)
    rows = 0.05 * torch.randn(sum(ranks), DIMENSION, dtype=torch.float64, generator=generator)
    return LowRankFactors(rows, torch.tensor([0, *ranks]).cumsum(0))


@pytest.mark.parametrize("with_factors", [False, True])
def test_explicit_augmentation_lies_below_and_approaches_the_closed_form(data, with_factors):
    """Jensen's inequality: the mean over draws g̃ ~ N(g, γ·Σ_p) is below, and tight as γ → 0."""
    factors = low_rank(data) if with_factors else None
    gaps = []
    for gamma in (8.0, 1.0, 0.005):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            explicit = explicit_asymmetric_loss(**data, gamma=gamma, draws=5000, generator=generator, factors=factors)
            gaps.append(float(asymmetric_loss(**data, gamma=gamma, factors=factors) - explicit))
    assert all(gap > -1e-2 for gap in gaps)  # 5000 draws leave this much noise
    assert gaps[0] > gaps[1] > abs(gaps[2])
    assert abs(gaps[2]) < 1e-2


def test_explicit_augmentation_is_the_mean_over_its_draws(data):
    data["query"].requires_grad_(False)
    ours = explicit_asymmetric_loss(**data, gamma=2.0, draws=3, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    values = []
    for _ in range(3):
        noise = torch.randn(BATCH, DIMENSION, dtype=torch.float64, generator=generator)
        drawn = data | {"gallery": data["gallery"] + (2.0 * data["variances"][data["place"]]).sqrt() * noise}
        values.append(naive(**drawn, gamma=0.0))
    torch.testing.assert_close(ours, sum(values) / 3, rtol=1e-12, atol=0)
    again = explicit_asymmetric_loss(**data, gamma=2.0, draws=3, generator=torch.Generator().manual_seed(4))
    other = explicit_asymmetric_loss(**data, gamma=2.0, draws=3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(ours, again) and not torch.equal(ours, other)
    torch.testing.assert_close(explicit_asymmetric_loss(**data, gamma=0.0, draws=2), asymmetric_loss(**data, gamma=0.0))


def test_draws_have_the_covariance_of_the_place(data):
    """With one place and no negatives' weight in it, the spread of q·g̃ is γ·qᵀΣ_p q."""
    factors = low_rank(data)
    q, p = data["query"].detach(), data["place"]
    own, image = factors.of_places(p, torch.float64)
    for b in range(BATCH):
        matrix = torch.diag(data["variances"][p[b]]) + own[image == b].T @ own[image == b]
        expected = q[b] @ matrix @ q[b]
        torch.testing.assert_close(covariance_form(q, p, data["variances"], factors)[b], expected, rtol=1e-12, atol=0)


def test_low_rank_of_rank_zero_is_the_diagonal(data):
    empty = LowRankFactors(torch.zeros(0, DIMENSION, dtype=torch.float64), torch.zeros(PLACES + 1, dtype=torch.int64))
    assert torch.equal(asymmetric_loss(**data, factors=empty), asymmetric_loss(**data))


def test_low_rank_gradcheck_and_closed_form(data):
    factors = low_rank(data)
    fixed = {name: value for name, value in data.items() if name != "query"}
    assert torch.autograd.gradcheck(lambda query: asymmetric_loss(query, **fixed, factors=factors), data["query"])
    # The same through a naive loop, whose covariance is diagonal: put the whole exponent into one variance.
    form = covariance_form(data["query"], data["place"], data["variances"], factors)
    losses = []
    for b in range(BATCH):
        one = {"query": data["query"][b : b + 1], "gallery": data["gallery"][b : b + 1], "place": data["place"][b : b + 1]}
        variances = (form[b] / data["query"][b].pow(2).sum()) * torch.ones_like(data["variances"])
        losses.append(naive(**one, centroids=data["centroids"], variances=variances))
    torch.testing.assert_close(asymmetric_loss(**data, factors=factors), sum(losses) / BATCH, rtol=1e-10, atol=1e-12)


def test_a_place_with_one_image_behaves_as_without_augmentation(data):
    data["variances"][3] = 0  # of the images 1 and 2
    images = slice(1, 3)
    single = data | {name: data[name][images] for name in ("query", "gallery", "place")}
    assert torch.equal(asymmetric_loss(**single, gamma=15.0), asymmetric_loss(**single, gamma=0.0))
    assert asymmetric_loss(**data, gamma=15.0) > asymmetric_loss(**data, gamma=0.0)


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
    loss = asymmetric_loss(**half, half_products=False)
    rounded = single | {"centroids": half["centroids"].float(), "variances": half["variances"].float()}
    torch.testing.assert_close(loss, asymmetric_loss(**rounded), rtol=1e-6, atol=1e-6)  # only the storage is rounded
    torch.testing.assert_close(loss, asymmetric_loss(**single), rtol=tolerance, atol=tolerance)
    gradient = torch.autograd.grad(loss, single["query"])[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(asymmetric_loss(**rounded), single["query"])[0], rtol=1e-5, atol=1e-5)


def test_mixed_precision_outside_does_not_reach_the_products(data):
    single = {n: v.detach().float() if v.is_floating_point() else v for n, v in data.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(asymmetric_loss(**single), asymmetric_loss(**single))
        inside = asymmetric_loss(**single)
    assert torch.equal(inside, asymmetric_loss(**single))


def test_one_place_in_all_has_no_negatives(data):
    loss = asymmetric_loss(
        data["query"], data["gallery"], torch.zeros(BATCH, dtype=torch.int64), data["centroids"][:1], data["variances"][:1]
    )
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, data["query"])[0], torch.zeros(BATCH, DIMENSION, dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [
        {"gallery": torch.zeros(BATCH, DIMENSION + 1, dtype=torch.float64)},
        {"place": torch.zeros(BATCH, dtype=torch.int32)},
        {"place": torch.zeros(BATCH - 1, dtype=torch.int64)},
        {"variances": torch.zeros(PLACES - 1, DIMENSION, dtype=torch.float64)},
        {"temperature": 0.0},
        {"gamma": -1.0},
        {"place": torch.tensor([0, 3, 3, PLACES, 1])},
        {"place": torch.tensor([0, 3, 3, -1, 1])},
        {"factors": LowRankFactors(torch.zeros(2, DIMENSION + 1), torch.zeros(PLACES + 1, dtype=torch.int64))},
        {"factors": LowRankFactors(torch.zeros(2, DIMENSION), torch.zeros(PLACES, dtype=torch.int64))},
        {"centroids": torch.zeros(PLACES, DIMENSION, dtype=torch.float64, requires_grad=True)},
    ],
)
def test_what_does_not_fit_is_refused(data, change):
    with pytest.raises(TrainingError, match="expected"):
        asymmetric_loss(**(data | change))
    with pytest.raises(TrainingError, match="expected"):
        explicit_asymmetric_loss(**(data | change))


def test_at_least_one_draw_is_needed(data):
    with pytest.raises(TrainingError, match="draws is 0"):
        explicit_asymmetric_loss(**data, draws=0)


def test_regression_is_two_minus_two_cosines(data):
    cosines = (data["query"] * data["gallery"]).sum(1)
    torch.testing.assert_close(regression_loss(data["query"], data["gallery"]), (2 - 2 * cosines).mean())
