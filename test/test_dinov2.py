"""DINOv2: the reference's tokens at three sizes, official names, position embeddings, export."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.dinov2 import SHAPES, DinoV2, VitShape

DATA = Path(__file__).parent / "data"
TINY = VitShape(embed_dim=32, depth=2, num_heads=2)


def named_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def released_shapes(file_name: str, prefix: str) -> dict[str, tuple[int, ...]]:
    released = json.loads((DATA / file_name).read_text())
    return {name.removeprefix(prefix): tuple(shape) for name, shape in released.items() if name.startswith(prefix)}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def random_tiny(registers: int = 0) -> DinoV2:
    torch.manual_seed(0)
    network = DinoV2(TINY, registers=registers).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network


@pytest.fixture(scope="module")
def reference() -> dict:
    return torch.load(DATA / "dinov2_tiny.pt", weights_only=True)


@pytest.fixture(scope="module")
def network(reference: dict) -> DinoV2:
    meta = reference["meta"]
    network = DinoV2(VitShape(meta["embed_dim"], meta["depth"], meta["heads"]))
    network.load_state_dict(reference["state_dict"], strict=True)
    return network.eval()


@pytest.mark.parametrize("size", [(224, 224), (322, 322), (140, 196)], ids=str)
def test_tokens_equal_the_reference(network: DinoV2, reference: dict, size: tuple[int, int]):
    images, expected = reference["input"][size], reference["output"][size]
    with torch.inference_mode():
        embedded = network.embed(images)
        encoded = network.encode(embedded)
        features, token = network(images)
    torch.testing.assert_close(embedded, expected["tokens_in"], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded, expected["last"], atol=1e-5, rtol=0)
    torch.testing.assert_close(token, expected["normed"][:, 0], atol=1e-5, rtol=0)
    rows, columns = size[0] // 14, size[1] // 14
    assert features.shape == (1, 64, rows, columns)
    for row, column in [(0, 0), (0, columns - 1), (rows - 1, 0), (3, 5)]:
        torch.testing.assert_close(features[:, :, row, column], expected["normed"][:, 1 + row * columns + column], atol=1e-5, rtol=0)


def test_without_final_norm_the_raw_tokens_come_back(reference: dict, network: DinoV2):
    raw = DinoV2(VitShape(64, 4, 4), final_norm=False).eval()
    raw.load_state_dict(reference["state_dict"], strict=True)  # the norm is in the file all the same
    with torch.inference_mode():
        features, token = raw(reference["input"][140, 196])
    expected = reference["output"][140, 196]["last"]
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(token, expected[:, 0], atol=1e-5, rtol=0)


def test_base_has_the_released_names_shapes_and_count():
    with torch.device("meta"):
        base, without_mask = DinoV2("base"), DinoV2("base", mask_token=False)
    assert count(base) == 86_580_480
    assert named_shapes(base) == released_shapes("keys_salad_full.json", "backbone.model.")
    assert named_shapes(base) == released_shapes("keys_boq_full.json", "backbone.dino.")
    assert named_shapes(without_mask) == released_shapes("keys_megaloc_full.json", "backbone.")
    assert all(parameter.is_meta for parameter in base.parameters())


@pytest.mark.parametrize("size", SHAPES)
def test_every_size_has_the_names_and_shapes_that_timm_has(size: str):
    with torch.device("meta"):
        official, registers = DinoV2(size), DinoV2(size, registers=4)
        timms = timm.create_model(f"vit_{size}_patch14_dinov2", pretrained=False)
        timms_registers = timm.create_model(f"vit_{size}_patch14_reg4_dinov2", pretrained=False)
    shapes = named_shapes(official)
    assert shapes.pop("mask_token") == (1, official.channels)
    assert shapes == named_shapes(timms)
    # timm names the registers otherwise, and adds the class token's position to the class token.
    shapes = named_shapes(registers)
    del shapes["mask_token"]
    shapes["reg_token"] = shapes.pop("register_tokens")
    shapes["pos_embed"] = (1, 37 * 37, registers.channels)
    assert shapes == named_shapes(timms_registers)


def test_equals_timm_at_the_size_of_training():
    network = random_tiny()
    timms = VisionTransformer(518, 14, embed_dim=32, depth=2, num_heads=2, init_values=1.0, num_classes=0, global_pool="token").eval()
    state = network.state_dict()
    del state["mask_token"]
    timms.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 518, 518)
    with torch.inference_mode():
        expected = timms.forward_features(images)
        features, token = network(images)
    torch.testing.assert_close(token, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected[:, 1:], atol=1e-5, rtol=1e-5)


def test_registers_equal_timm_at_any_size():
    """With registers timm and the official code have the same rule: antialiased, to the exact size."""
    network = random_tiny(registers=4)
    timms = VisionTransformer(
        518, 14, embed_dim=32, depth=2, num_heads=2, init_values=1.0, num_classes=0, global_pool="token",
        reg_tokens=4, no_embed_class=True, dynamic_img_size=True,
    ).eval()  # fmt: skip
    state = network.state_dict()
    del state["mask_token"]
    state["reg_token"] = state.pop("register_tokens")
    position = state.pop("pos_embed")
    state["cls_token"], state["pos_embed"] = state["cls_token"] + position[:, :1], position[:, 1:]
    timms.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 70, 98)
    with torch.inference_mode():
        expected = timms.forward_features(images)
        features, token = network(images)
    torch.testing.assert_close(token, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected[:, 5:], atol=1e-5, rtol=1e-5)


def cubic_weight(distance: float) -> float:
    """Keys' kernel with a = -0.75, as torch has it."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_position_embedding_equals_naive_bicubic_sampling_with_the_official_offset():
    network = random_tiny()
    grid = network.pos_embed[0, 1:, 0].detach().view(37, 37)
    with torch.no_grad():
        resized = network.position_embedding(23, 16)[0, 1:, 0].view(23, 16)
    for row, column in [(0, 0), (11, 8), (22, 15), (4, 13)]:
        y, x = (row + 0.5) * 37 / (23 + 0.1) - 0.5, (column + 0.5) * 37 / (16 + 0.1) - 0.5
        naive = sum(
            cubic_weight(y - i) * cubic_weight(x - j) * float(grid[min(max(i, 0), 36), min(max(j, 0), 36)])
            for i in range(math.floor(y) - 1, math.floor(y) + 3)
            for j in range(math.floor(x) - 1, math.floor(x) + 3)
        )
        assert float(resized[row, column]) == pytest.approx(naive, abs=1e-5)
    assert torch.equal(network.position_embedding(23, 16)[:, 0], network.pos_embed[:, 0])


def test_half_precision_resizes_in_single():
    network = random_tiny()
    expected = network.position_embedding(10, 14)
    found = network.to(torch.bfloat16).position_embedding(10, 14)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 3, 224, 225), "224 x 225 pixels; expected multiples of 14.*; resize to 224 x 224"),
        ((1, 3, 320, 322), "320 x 322 pixels.*resize to 322 x 322"),
        ((1, 3, 5, 14), "5 x 14 pixels.*resize to 14 x 14"),
        ((1, 1, 224, 224), r"shape \(1, 1, 224, 224\); expected \(B, 3, H, W\)"),
        ((3, 224, 224), r"shape \(3, 224, 224\); expected \(B, 3, H, W\)"),
    ],
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], message: str):
    with pytest.raises(NetworkError, match=message):
        DinoV2(TINY)(torch.zeros(shape))


def test_unknown_size_is_refused():
    with pytest.raises(NetworkError, match="no DINOv2 of size 'giant'; expected small, base, large"):
        DinoV2("giant")


@pytest.mark.parametrize("registers", [0, 4])
def test_exported_graph_gives_the_same(tmp_path: Path, registers: int):
    network = random_tiny(registers)
    images = torch.randn(3, 3, 70, 98)
    path = tmp_path / "dinov2.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        network, (images,), path, input_names=["image"], opset_version=18, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    resizes = [node for node in onnx.load(path).graph.node if node.op_type == "Resize"]
    assert len(resizes) == (0 if registers else 1)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        with torch.inference_mode():
            expected = network(batch)
        for found, tensor in zip(session.run(None, {"image": batch.numpy()}), expected, strict=True):
            found = torch.from_numpy(np.asarray(found))
            assert float(functional.cosine_similarity(found.flatten(1), tensor.flatten(1)).min()) >= 0.99999
            torch.testing.assert_close(found, tensor, atol=1e-4, rtol=1e-4)
