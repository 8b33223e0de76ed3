"""Aggregators: the reference's numbers, naive loops, released names, refusals, export."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.aggregators import SALAD, BoQ, ConvAP, CosPlace, GeM, MegaLocAggregator, MixVPR
from asymvpr_core.networks.aggregators.salad import log_sum_exp, transport_plan

DATA = Path(__file__).parent / "data"

# Small, on 32 channels and 5 x 7 positions; the second value is the descriptor's dimension.
SMALL: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SALAD": (lambda: SALAD(32, num_clusters=6, cluster_dim=5, token_dim=4, hidden_dim=16), 34),
    "MegaLoc": (lambda: MegaLocAggregator(32, num_clusters=6, cluster_dim=5, token_dim=4, hidden_dim=16, dimension=12), 12),
    "BoQ": (lambda: BoQ(32, proj_channels=64, num_queries=8, num_layers=2, row_dim=3), 192),
    "MixVPR": (lambda: MixVPR(32, 5, 7, out_channels=8, mix_depth=2, mlp_ratio=2, out_rows=3), 24),
    "ConvAP": (lambda: ConvAP(32, out_channels=6, s1=2, s2=3), 36),
    "CosPlace": (lambda: CosPlace(32, 10), 10),
}


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return SMALL[name][0]().eval()


def inputs(aggregator: nn.Module, batch: int = 2, rows: int = 5, columns: int = 7) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    features, token = torch.randn(batch, 32, rows, columns, generator=generator), torch.randn(batch, 32, generator=generator)
    return (features, token) if getattr(aggregator, "takes_token", False) else (features,)


def normalised(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def released_shapes(file_name: str, prefix: str) -> dict[str, tuple[int, ...]]:
    released = json.loads((DATA / file_name).read_text())
    return {name.removeprefix(prefix): tuple(shape) for name, shape in released.items() if name.startswith(prefix)}


def named_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


# The reference's numbers


def test_salad_equals_the_reference():
    reference = torch.load(DATA / "salad_tiny.pt", weights_only=True)
    salad = SALAD(64, num_clusters=16, cluster_dim=32, token_dim=32)
    salad.load_state_dict(reference["state_dict"], strict=True)
    salad.eval()
    features, token = reference["input"]["feat"], reference["input"]["token"]
    descriptor, assignment = reference["output"]
    with torch.inference_mode():
        torch.testing.assert_close(salad(features, token), descriptor, atol=1e-5, rtol=0)
        torch.testing.assert_close(salad.assign(features), assignment, atol=1e-5, rtol=0)


# Without gradients torch takes a fused path through its encoder layer, with them the plain one.
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_boq_equals_the_reference(mode: Callable):
    reference = torch.load(DATA / "boq_tiny.pt", weights_only=True)
    boq = BoQ(96, proj_channels=128, num_queries=16, num_layers=2, row_dim=8)
    boq.load_state_dict(reference["state_dict"], strict=True)
    boq.eval()
    expected, *expected_maps = reference["output"]
    with mode():
        descriptor, maps = boq.attend(reference["input"])
        torch.testing.assert_close(boq(reference["input"]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(descriptor, expected, atol=1e-5, rtol=0)
    assert len(maps) == len(expected_maps) == 2
    for found, map_ in zip(maps, expected_maps, strict=True):
        torch.testing.assert_close(found, map_, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.sum(dim=2), torch.ones(2, 16))


# Full size: released names, shapes and counts


def test_full_size_networks_have_the_released_names_and_shapes():
    with torch.device("meta"):
        salad, boq, megaloc = SALAD(768), BoQ(768), MegaLocAggregator(768)
    assert named_shapes(salad) == released_shapes("keys_salad_full.json", "aggregator.")
    assert named_shapes(boq) == released_shapes("keys_boq_full.json", "aggregator.")
    assert named_shapes(megaloc) == released_shapes("keys_megaloc_full.json", "aggregator.")
    assert (salad.dimension, boq.dimension, megaloc.dimension) == (8448, 12288, 8448)
    assert sum(parameter.numel() for parameter in boq.parameters()) == 8_626_080
    # All of MegaLoc has 228,639,553 parameters; its backbone is DINOv2-B without the mask token.
    assert sum(parameter.numel() for parameter in megaloc.parameters()) == 228_639_553 - (86_580_480 - 768)


def test_smaller_variants_of_salad_have_the_published_dimensions():
    with torch.device("meta"):
        assert SALAD(768, 32, 64, 64).dimension == 2048 + 64
        assert SALAD(768, 16, 32, 32).dimension == 512 + 32


def test_resnet50_boq_and_mixvpr_have_the_published_dimensions():
    with torch.device("meta"):
        assert BoQ(1024, proj_channels=512, row_dim=32).dimension == 16384
        mixvpr = MixVPR()
    assert mixvpr.dimension == 4096
    assert set(named_shapes(mixvpr)) == {
        f"{layer}.{kind}"
        for layer in [*(f"mix.{i}.mix.{j}" for i in range(4) for j in (0, 1, 3)), "channel_proj", "row_proj"]
        for kind in ("weight", "bias")
    }
    assert named_shapes(mixvpr)["row_proj.weight"] == (4, 400)


def test_cosplace_and_convap_have_the_released_names():
    assert named_shapes(CosPlace(2048, 512)) == {"1.p": (1,), "3.weight": (512, 2048), "3.bias": (512,)}
    assert named_shapes(ConvAP(2048)) == {"channel_pool.weight": (512, 2048, 1, 1), "channel_pool.bias": (512,)}
    assert ConvAP(2048).dimension == 2048


# Naive loops


def naive_plan(scores: np.ndarray, dustbin_score: float, iterations: int) -> np.ndarray:
    """Sinkhorn's algorithm as in the book, on exp(scores), with the paper's marginals."""
    clusters, positions = scores.shape
    kernel = np.exp(np.vstack([scores, np.full((1, positions), dustbin_score)]))
    total = clusters + positions
    rows = np.array([1 / total] * clusters + [(positions - clusters) / total])
    columns = np.full(positions, 1 / total)
    left, right = np.ones(clusters + 1), np.ones(positions)
    for _ in range(iterations):
        left = np.array([rows[i] / sum(kernel[i, j] * right[j] for j in range(positions)) for i in range(clusters + 1)])
        right = np.array([columns[j] / sum(kernel[i, j] * left[i] for i in range(clusters + 1)) for j in range(positions)])
    return left[:, None] * kernel * right[None] * total


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_transport_plan_equals_the_naive_algorithm(iterations: int):
    scores = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plan = transport_plan(scores, torch.tensor(0.7, dtype=torch.float64), iterations)
    naive = np.stack([naive_plan(image.numpy(), 0.7, iterations) for image in scores])
    np.testing.assert_allclose(plan.numpy(), naive, rtol=1e-10)


def test_transport_plan_converges_to_its_marginals_even_for_large_scores():
    scores = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(3)) * 100  # exp would overflow
    short = transport_plan(scores, torch.tensor(50.0))
    assert torch.isfinite(short).all()
    torch.testing.assert_close(short.sum(dim=1), torch.ones(1, 9))
    converged = transport_plan(scores / 100, torch.tensor(0.5), iterations=200)
    torch.testing.assert_close(converged.sum(dim=2), torch.tensor([[1.0, 1, 1, 1, 5]]), atol=1e-4, rtol=0)


def test_transport_plan_in_half_precision_is_computed_in_single():
    scores = torch.randn(1, 16, 120, generator=torch.Generator().manual_seed(5)).bfloat16()
    plan = transport_plan(scores, torch.tensor(1.0))
    assert plan.dtype == torch.bfloat16
    torch.testing.assert_close(plan, transport_plan(scores.float(), torch.tensor(1.0)).bfloat16(), atol=0, rtol=0)


def test_log_sum_exp_equals_torch():
    values = torch.randn(2, 3, 4) * 200
    torch.testing.assert_close(log_sum_exp(values, dim=1), values.logsumexp(dim=1, keepdim=True))


def test_salad_lays_its_descriptor_out_as_released():
    salad = small("SALAD")
    features, token = inputs(salad)
    with torch.inference_mode():
        descriptor, plan = salad(features, token), salad.assign(features)
        local, token_part = salad.cluster_features(features).flatten(2), normalised(salad.token_features(token))
    assert plan.shape == (2, 7, 35)
    scale = 1 / math.sqrt(1 + 6)
    torch.testing.assert_close(descriptor[:, :4], token_part * scale)
    for image in range(2):
        for cluster in range(6):
            summed = sum(plan[image, cluster, position] * local[image, :, position] for position in range(35))
            found = descriptor[image, 4:][[channel * 6 + cluster for channel in range(5)]]
            torch.testing.assert_close(found, summed / summed.norm() * scale, atol=1e-6, rtol=1e-4)


def test_megaloc_is_a_linear_layer_over_salad():
    megaloc = small("MegaLoc")
    features, token = inputs(megaloc)
    with torch.inference_mode():
        wide = megaloc.agg(features, token)
        torch.testing.assert_close(megaloc(features, token), normalised(wide @ megaloc.linear.weight.T + megaloc.linear.bias))


def test_convap_equals_naive_averages():
    convap = small("ConvAP")
    (features,) = inputs(convap)
    weight, bias = convap.channel_pool.weight[:, :, 0, 0], convap.channel_pool.bias
    naive = torch.zeros(2, 6, 2, 3)
    for i, (top, bottom) in enumerate([(0, 3), (2, 5)]):  # 5 rows in 2 cells overlap in the middle row
        for j, (left, right) in enumerate([(0, 3), (2, 5), (4, 7)]):
            cell = features[:, :, top:bottom, left:right].mean(dim=(2, 3))
            naive[:, :, i, j] = cell @ weight.T + bias
    torch.testing.assert_close(convap(features), normalised(naive.flatten(1)), atol=1e-6, rtol=1e-5)


def test_cosplace_equals_the_naive_formula():
    cosplace = small("CosPlace")
    with torch.no_grad():
        cosplace[1].p.fill_(2.5)
    (features,) = inputs(cosplace)
    pooled = torch.zeros(2, 32)
    for image in range(2):
        vectors = [features[image, :, row, column] for row in range(5) for column in range(7)]
        powers = [(vector / vector.norm()).clamp(min=1e-6) ** 2.5 for vector in vectors]
        pooled[image] = (sum(powers) / 35) ** (1 / 2.5)
    naive = normalised(pooled @ cosplace[3].weight.T + cosplace[3].bias)
    torch.testing.assert_close(cosplace(features), naive, atol=1e-6, rtol=1e-5)


def test_mixvpr_equals_a_loop_over_channels():
    mixvpr = small("MixVPR")
    (features,) = inputs(mixvpr)
    with torch.inference_mode():
        mixed = torch.stack([features[:, channel].flatten(1) for channel in range(32)], dim=2)  # (B, h·w, C)
        for layer in mixvpr.mix:
            norm, first, _, second = layer.mix
            for channel in range(32):
                row = mixed[:, :, channel]
                centred = (row - row.mean(dim=1, keepdim=True)) / (row.var(dim=1, keepdim=True, correction=0) + norm.eps).sqrt()
                hidden = (centred * norm.weight + norm.bias) @ first.weight.T + first.bias
                mixed[:, :, channel] = row + hidden.clamp(min=0) @ second.weight.T + second.bias
        channels = mixed @ mixvpr.channel_proj.weight.T + mixvpr.channel_proj.bias  # (B, h·w, out_channels)
        rows = torch.einsum("bpc,rp->bcr", channels, mixvpr.row_proj.weight) + mixvpr.row_proj.bias
        torch.testing.assert_close(mixvpr(features), normalised(rows.flatten(1)), atol=1e-6, rtol=1e-5)


def test_gem_without_normalisation_is_the_plain_mean_of_powers():
    features = torch.rand(2, 3, 4, 5)
    naive = torch.stack([torch.stack([(channel.flatten() ** 3).mean() ** (1 / 3) for channel in image]) for image in features])
    torch.testing.assert_close(GeM(normalise=False)(features), naive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(GeM()(features), normalised(naive), rtol=1e-5, atol=1e-6)


# All of them


@pytest.mark.parametrize("name", SMALL)
def test_descriptors_are_unit_vectors_of_the_stated_dimension(name: str):
    aggregator = small(name)
    descriptors = aggregator(*inputs(aggregator, batch=3))
    assert descriptors.shape == (3, SMALL[name][1])
    assert aggregator.dimension == SMALL[name][1]
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3))
    assert float((descriptors[0] @ descriptors[1]).detach()) < 0.9999  # different images differ


@pytest.mark.parametrize("name", SMALL)
def test_all_parameters_are_trained(name: str):
    aggregator = small(name).train()
    descriptors = aggregator(*inputs(aggregator, batch=3))
    (descriptors * torch.randn(descriptors.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    without = [n for n, parameter in aggregator.named_parameters() if parameter.grad is None or not parameter.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(2, 31, 5, 7), (2, 35, 32), (32, 5, 7)], ids=str)
def test_features_of_another_shape_are_refused(name: str, shape: tuple[int, ...]):
    aggregator = small(name)
    _, *token = inputs(aggregator)
    with pytest.raises(NetworkError, match=r"was given features of shape \(.*\); expected \(B, 32, h, w\); build the aggregator"):
        aggregator(torch.zeros(shape), *token)


@pytest.mark.parametrize("name", ["SALAD", "MegaLoc"])
def test_a_token_of_another_shape_is_refused(name: str):
    aggregator = small(name)
    with pytest.raises(NetworkError, match=r"token of shape \(2, 31\); expected \(2, 32\)"):
        aggregator(inputs(aggregator)[0], torch.zeros(2, 31))
    with pytest.raises(NetworkError, match=r"token of shape \(1, 32\); expected \(2, 32\)"):
        aggregator(inputs(aggregator)[0], torch.zeros(1, 32))


def test_salad_refuses_fewer_features_than_clusters_and_says_what_helps():
    salad = SALAD(8, num_clusters=64, cluster_dim=4, token_dim=4, hidden_dim=8).eval()
    for side in (7, 8):  # a stride of 32 at 224 gives 7 x 7
        with pytest.raises(
            NetworkError, match=rf"{side}x{side} = {side * side} features for 64 clusters.*larger input.*stride.*fewer clusters"
        ):
            salad(torch.randn(1, 8, side, side), torch.randn(1, 8))
    assert torch.isfinite(salad(torch.randn(1, 8, 5, 13), torch.randn(1, 8))).all()  # 65 is enough


def test_mixvpr_refuses_another_size():
    with pytest.raises(NetworkError, match="7x5 feature map; expected 5x7; resize the images"):
        small("MixVPR")(torch.zeros(1, 32, 7, 5))


def test_boq_refuses_channels_that_its_heads_cannot_share():
    with pytest.raises(NetworkError, match="100 channels; expected a multiple of 64"):
        BoQ(32, proj_channels=100)


# Without gradients torch would take fused operators through an encoder layer; the exported graph must not depend on it.
@pytest.mark.parametrize("name, mode", [*((name, torch.enable_grad) for name in SMALL), ("BoQ", torch.inference_mode)])
def test_exported_graph_gives_the_same(tmp_path: Path, name: str, mode: Callable):
    aggregator = small(name)
    arguments = inputs(aggregator, batch=3)
    names = ["features", "token"][: len(arguments)]
    path = tmp_path / "aggregator.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with mode():
        torch.onnx.export(
            aggregator, arguments, path, input_names=names, opset_version=18, dynamo=True, external_data=False, verbose=False,
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in arguments),
        )  # fmt: skip
    model = onnx.load(path)
    assert model.opset_import[0].version >= 18
    # OpenVINO computes it over all axes.
    assert not [node for node in model.graph.node if node.op_type == "ReduceLogSumExp"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (3, 1):
        some = tuple(argument[:batch] for argument in arguments)
        with torch.inference_mode():
            expected = aggregator(*some)
        (found,) = session.run(None, {name: argument.numpy() for name, argument in zip(names, some, strict=True)})
        assert float((torch.from_numpy(np.asarray(found)) * expected).sum(dim=1).min()) >= 0.99999
        torch.testing.assert_close(torch.from_numpy(np.asarray(found)), expected, atol=1e-5, rtol=0)
