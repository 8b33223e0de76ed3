"""What a training minimises, made of settings, bank and lists; and the order in which it sees images."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from descriptor_gallery import make_gallery, unit_rows

from asymvpr_core.config import NeighbourSettings, TrainSettings
from asymvpr_core.errors import ArtefactError, TrainingError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.memory.bank import build_memory_bank
from asymvpr_core.memory.neighbours import build_neighbours
from asymvpr_core.memory.spread import augmentation_exponent, mean_spread
from asymvpr_core.training import losses, ranking
from asymvpr_core.training.baselines import aml_loss, raml_loss, symmetric_loss
from asymvpr_core.training.objective import make_objective
from asymvpr_core.training.queue import QueueBank
from asymvpr_core.training.samplers import EpochSampler, PlaceBatchSampler, ShareSampler, fixed_views

D, BATCH = 12, 8
PLACES = np.repeat(np.arange(5), 4)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    rows = np.repeat(unit_rows(5, D), 4, axis=0) + 0.2 * unit_rows(20, D, seed=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Gallery.open(make_gallery(tmp_path_factory.mktemp("objective") / "gallery", rows.astype(np.float32), PLACES))


@pytest.fixture(scope="module")
def bank(gallery):
    return build_memory_bank(gallery.descriptors, PLACES)


@pytest.fixture
def batch(gallery):
    index = torch.tensor([0, 1, 4, 5, 9, 13, 18, 19])
    query = torch.from_numpy(unit_rows(BATCH, D, seed=2)).requires_grad_()
    return query, torch.from_numpy(np.array(gallery.descriptors[index.numpy()])), torch.from_numpy(PLACES[index.numpy()]), index


def expected(settings, query, gallery, place, index, bank):
    """The loss by its own function, with every parameter spelt out."""
    c, v = torch.from_numpy(bank.centroids), torch.from_numpy(bank.variances)
    u, s = ranking.neighbour_similarities(query, gallery, gallery, ranking.in_batch_neighbours(gallery, 6))
    torch.manual_seed(7)
    match settings.loss:
        case "asym":
            return losses.asymmetric_loss(query, gallery, place, c, v, 0.1, 0.0)
        case "asym+":
            return losses.asymmetric_loss(query, gallery, place, c, v, 0.1, 2.0)
        case "explicit":
            return losses.explicit_asymmetric_loss(query, gallery, place, c, v, 0.1, 2.0, draws=3)
        case "queue":
            queue = QueueBank(6, D)
            queue.push(gallery.flip(0), place.flip(0))
            return queue.loss(query, gallery, place, 0.1)
        case "regression":
            return losses.regression_loss(query, gallery)
        case "aml":
            return aml_loss(query, gallery, place, contrastive_weight=0.5, margin=0.9)
        case "raml":
            return raml_loss(query, gallery, asymmetric_weight=0.1, symmetric_weight=0.2)
        case "csd":
            return ranking.csd_loss(u, s, query_temperature=0.3, gallery_temperature=0.2)
        case "rop":
            return ranking.rop_loss(u, s, temperature=0.4)
        case "d3still":
            return ranking.d3still_loss(u, s, alpha=50, beta=2, gamma=0.5)
        case "symmetric":
            return symmetric_loss(query, place, alpha=2, beta=40, epsilon=0.2)


@pytest.mark.parametrize("loss", ["asym+", "asym", "explicit", "queue", "regression", "aml", "raml", "csd", "rop", "d3still", "symmetric"])
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_every_loss_is_its_function_with_the_parameters_of_the_settings(loss, weight, gallery, bank, batch):
    settings = TrainSettings(
        loss=loss, temperature=0.1, gamma=2.0, draws=3, queue_capacity=6, neighbours_k=6, regression_weight=weight,
        baselines={
            "aml_contrastive_weight": 0.5, "aml_margin": 0.9, "raml_asymmetric_weight": 0.1, "raml_symmetric_weight": 0.2,
            "csd_query_temperature": 0.3, "csd_gallery_temperature": 0.2, "rop_temperature": 0.4, "d3still_alpha": 50, "d3still_beta": 2,
            "d3still_gamma": 0.5, "symmetric_alpha": 2, "symmetric_beta": 40, "symmetric_epsilon": 0.2,
        },
    )  # fmt: skip
    objective = make_objective(settings, gallery, bank)
    query, own, place, _ = batch
    if loss == "queue":
        assert objective(*batch).item() == pytest.approx(weight * losses.regression_loss(query, own).item())  # empty at first
        objective.after_backward(own.flip(0), place.flip(0))
        assert "queue.descriptors" in objective.state_dict()  # a resumed training has the same negatives
    reference = expected(settings, *batch, bank)
    if loss not in ("regression", "symmetric"):
        reference = reference + weight * losses.regression_loss(query, own)
    torch.manual_seed(7)
    value = objective(*batch)
    torch.testing.assert_close(value, reference)
    (gradient,) = torch.autograd.grad(value, query)
    (reference_gradient,) = torch.autograd.grad(reference, query)
    torch.testing.assert_close(gradient, reference_gradient)
    assert gradient.abs().sum() > 0


def test_lists_of_the_whole_gallery_are_looked_up_by_index(gallery, bank, batch, tmp_path):
    lists = build_neighbours(gallery.path, NeighbourSettings(k=7), tmp_path / "lists")
    objective = make_objective(TrainSettings(loss="csd", neighbours_k=5), gallery, bank, lists)
    query, own, _, index = batch
    similarities = np.asarray(gallery.descriptors) @ np.asarray(gallery.descriptors).T
    naive = []
    for b, i in enumerate(index.tolist()):
        nearest = np.argsort(-similarities[i], kind="stable")[:5]
        u = torch.from_numpy(similarities[i, nearest].copy())
        s = torch.from_numpy(np.array(gallery.descriptors[nearest])) @ query[b]
        p, log_q = torch.softmax(u / 0.01, dim=0), torch.log_softmax(s, dim=0)
        naive.append((p * (torch.log(p) - log_q)).nansum())
    assert objective(*batch).item() == pytest.approx(float(torch.stack(naive).mean().detach()), rel=1e-4)


def test_lists_that_do_not_fit_are_refused(gallery, bank, tmp_path):
    lists = build_neighbours(gallery.path, NeighbourSettings(k=4), tmp_path / "lists")
    with pytest.raises(TrainingError, match=r"hold 4 neighbours.*neighbours_k = 10; make them with 'asymvpr bank neighbours --k 10'"):
        make_objective(TrainSettings(loss="csd"), gallery, bank, lists)
    with pytest.raises(TrainingError, match="given for the loss asym; expected csd, rop, d3still"):
        make_objective(TrainSettings(loss="asym"), gallery, bank, lists)
    other = Gallery.open(make_gallery(tmp_path / "other", unit_rows(20, D, seed=5), PLACES))
    with pytest.raises(ArtefactError, match="was computed from gallery"):
        make_objective(TrainSettings(loss="csd", neighbours_k=4), other, bank, lists)
    with pytest.raises(TrainingError, match="12-D centroids; expected the gallery's 5-D"):
        make_objective(TrainSettings(), Gallery.open(make_gallery(tmp_path / "small", unit_rows(20, 5), PLACES)), bank)


def test_gamma_carries_over_by_default_and_is_the_papers_where_it_is_given(gallery, bank):
    default = make_objective(TrainSettings(), gallery, bank)
    assert augmentation_exponent(mean_spread(bank), default.gamma, 0.05) == pytest.approx(0.1)
    assert make_objective(TrainSettings(gamma=15), gallery, bank).gamma == 15
    assert make_objective(TrainSettings(gamma_scale="paper"), gallery, bank).gamma == 15
    stronger = make_objective(TrainSettings(gamma=0.2, gamma_scale="relative"), gallery, bank)
    assert stronger.gamma == pytest.approx(2 * default.gamma)
    assert make_objective(TrainSettings(loss="asym"), gallery, bank).gamma == 0


def test_without_a_place_of_two_images_gamma_has_no_effect_and_no_scale(gallery, caplog):
    alone = build_memory_bank(gallery.descriptors, np.arange(20))
    assert make_objective(TrainSettings(), gallery, alone).gamma == 0
    assert "no place has two images" in caplog.text


def test_a_low_rank_bank_reaches_the_loss(gallery, batch):
    ranked = build_memory_bank(gallery.descriptors, PLACES, rank=2)
    value = make_objective(TrainSettings(gamma=2.0), gallery, ranked)(*batch)
    query, _, place, _ = batch
    c, v = torch.from_numpy(ranked.centroids), torch.from_numpy(ranked.variances)
    factors = losses.LowRankFactors(torch.from_numpy(ranked.factors), torch.from_numpy(ranked.factor_offsets))
    torch.testing.assert_close(value, losses.asymmetric_loss(query, batch[1], place, c, v, 0.05, 2.0, factors=factors))
    assert value.item() != pytest.approx(losses.asymmetric_loss(query, batch[1], place, c, v, 0.05, 2.0).item())


def test_a_gallery_goes_to_another_process_without_its_descriptors(gallery):
    assert len(pickle.dumps(gallery)) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(gallery)).descriptors, gallery.descriptors)


def with_rank(monkeypatch, rank):
    monkeypatch.setattr("asymvpr_core.training.samplers._rank", lambda: rank)


def test_several_processes_share_an_epoch(monkeypatch):
    seen = []
    for rank in range(3):
        with_rank(monkeypatch, rank)
        sampler = EpochSampler(np.arange(10, 21), seed=0, world_size=3)
        sampler.set_epoch(4)
        keys = list(sampler)
        assert len(keys) == len(sampler) == 3 and {epoch for epoch, _ in keys} == {4}
        seen += [index for _, index in keys]
    assert len(set(seen)) == 9 and set(seen) <= set(range(10, 21))
    keys = fixed_views(np.arange(5), first_epoch=9, views=2)
    shares = []
    for rank in range(3):
        with_rank(monkeypatch, rank)
        share = ShareSampler(keys, world_size=3)
        assert len(share) == len(list(share))
        shares += list(share)
    assert sorted(shares) == sorted(keys)


def test_batches_of_places_hold_pairs_and_every_image_at_most_once(monkeypatch):
    places = np.array([0] * 9 + [1] * 4 + [2] * 2 + [3] * 1 + [4] * 3)
    sampler = PlaceBatchSampler(np.arange(19), places, batch_size=8, images_per_place=4, seed=0)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 2  # groups 4 + 4 of place 0, 4, 2, 3: five, two in a batch
        for batch in batches:
            counts = np.bincount(places[[index for _, index in batch]], minlength=5)
            assert all(count == 0 or count >= 2 for count in counts) and 3 not in places[[index for _, index in batch]]
        images = [index for batch in batches for _, index in batch]
        assert len(set(images)) == len(images)
        epochs.append(batches)
    assert epochs[0] == epochs[2] != epochs[1]
    both = []
    for rank in range(2):
        with_rank(monkeypatch, rank)
        share = PlaceBatchSampler(np.arange(19), places, 8, 4, seed=0, world_size=2)
        assert len(list(share)) == len(share) == 1
        both += [index for batch in share for _, index in batch]
    assert len(set(both)) == len(both)
    with pytest.raises(TrainingError, match="no place has two images to train on"):
        PlaceBatchSampler(np.arange(5), np.arange(5), 4, 2, seed=0)
