"""The offline pair, GeM, the projection, the query network."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from asymvpr_core.errors import ArtefactError, GalleryError, NetworkError
from asymvpr_core.networks.aggregators import GeM
from asymvpr_core.networks.checkpoints import load_strictly, read_state
from asymvpr_core.networks.efficientnet_lite import rename_lite
from asymvpr_core.networks.loading import load_network
from asymvpr_core.networks.projection import Projection, fit_projection
from asymvpr_core.networks.query import QueryNetwork, save_tensors
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.networks.weights_files import find_weights

LITE = ("efficientnet_lite0_gem", "efficientnet_lite2_gem")


@pytest.mark.parametrize("name", LITE)
def test_imagenet_weights_load_and_describe(name):
    network = load_network(name)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with torch.inference_mode():
        descriptors = network.module(torch.from_numpy(network.spec.preprocess(image))[None])
    assert descriptors.shape == (1, network.spec.dimension)
    assert abs(float(descriptors.norm()) - 1) < 1e-5


def test_imagenet_weights_are_really_used():
    """Every tensor of the file is in the network: the renaming drops nothing but the classifier."""
    loaded = load_network("efficientnet_lite0_gem")
    state, _ = read_state(find_weights(loaded.spec))
    backbone = loaded.module.backbone.net.state_dict()
    assert loaded.report.used == len(state) - 2 == len(backbone)
    assert loaded.report.ignored == dict.fromkeys(("classifier.weight", "classifier.bias"), "the ImageNet classifier")
    assert torch.equal(backbone["conv_head.weight"], state["_conv_head.weight"])
    assert torch.equal(backbone["blocks.1.1.conv_pwl.weight"], state["_blocks.2._project_conv.weight"])
    assert torch.equal(backbone["blocks.0.0.bn2.bias"], state["_blocks.0._bn2.bias"])


def test_renamed_lite_weights_have_the_names_and_shapes_of_timm():
    state, _ = read_state(find_weights(network_spec("efficientnet_lite2_gem")))
    timms = timm.create_model("tf_efficientnet_lite2", pretrained=False).state_dict()
    assert {name: t.shape for name, t in rename_lite(state).items()} == {name: t.shape for name, t in timms.items()}


def test_gem_equals_the_naive_formula():
    features = torch.rand(2, 3, 4, 5)
    naive = torch.stack([torch.stack([(m.flatten() ** 3).mean() ** (1 / 3) for m in image]) for image in features])
    torch.testing.assert_close(GeM()(features), naive / naive.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_weights_of_another_network_are_refused_with_names():
    state = network_spec("efficientnet_lite0_gem").build().backbone.state_dict()
    other = network_spec("efficientnet_lite2_gem").build().backbone
    with pytest.raises(NetworkError, match="wrong shape"):
        load_strictly(other, state, "lite0.pth")
    changed = dict(state)
    changed["surplus.weight"] = changed.pop("net.conv_stem.weight")
    with pytest.raises(NetworkError, match="missing: net.conv_stem.weight; unexpected: surplus.weight"):
        load_strictly(network_spec("efficientnet_lite0_gem").build().backbone, changed, "lite0.pth")


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
    assert not torch.equal(
        after["encoder.backbone.net.blocks.6.0.conv_pw.weight"], before["encoder.backbone.net.blocks.6.0.conv_pw.weight"]
    )
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


@pytest.mark.parametrize("name", ["dinov2_vits14_gem_42px", "vit_tiny_patch16_224_gem", "resnet18_gem_64px"])
def test_every_kind_of_backbone_can_be_frozen_in_parts(name):
    network = QueryNetwork(network_spec(name), 8)
    stages = network.encoder.backbone.stages
    network.freeze(0.5)
    frozen = [not any(p.requires_grad for p in stage.parameters()) for stage in stages]
    assert frozen == [True] * (len(stages) // 2) + [False] * (len(stages) - len(stages) // 2)
    network.freeze(1.0)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_a_network_without_stages_can_only_be_trained_as_a_whole():
    network = QueryNetwork(network_spec("efficientnet_lite0_gem"), 8, encoder=torch.nn.Conv2d(3, 1280, 1))
    network.freeze(0)
    with pytest.raises(NetworkError, match="efficientnet_lite0_gem does not say its stages"):
        network.freeze(0.5)


def test_saved_tensors_may_share_memory_and_leave_nothing_half_written(tmp_path):
    tied = torch.randn(3, 2)
    save_tensors({"a": tied, "b": tied, "c": tied.T}, tmp_path / "w.safetensors")
    state, _ = read_state(tmp_path / "w.safetensors")
    assert torch.equal(state["a"], tied) and torch.equal(state["b"], tied) and torch.equal(state["c"], tied.T)
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match="cannot be written"):
        save_tensors({"a": tied}, tmp_path / "file" / "w.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "w.safetensors"]
