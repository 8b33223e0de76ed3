"""Networks by name: every name builds, has the released shapes and the published costs; the grammar and its errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks import registry
from asymvpr_core.networks.backbone_kinds import find_backbone
from asymvpr_core.networks.backbones import find_stage
from asymvpr_core.networks.cost import network_cost
from asymvpr_core.networks.registry import known_networks, network_spec, register
from asymvpr_core.networks.shapes_only import shapes_only
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource, squashed

DATA = Path(__file__).parent / "data"
REPOSITORY = Path(__file__).resolve().parents[1]


def run_without_numbers(spec: NetworkSpec, images: int = 2) -> torch.Size:
    with shapes_only():
        return spec.build().eval()(torch.zeros(images, 3, spec.preprocess.height, spec.preprocess.width)).shape


@pytest.mark.parametrize("spec", known_networks(), ids=lambda spec: spec.name)
def test_every_listed_network_builds_and_gives_its_dimension(spec):
    assert run_without_numbers(spec) == (2, spec.dimension)
    assert network_spec(spec.name) == spec
    assert spec.weights.address is None or spec.weights.address.startswith("https://")
    assert spec.weights.package or spec.weights.address


@pytest.mark.parametrize(
    "name", ["cosplace_resnet18_32", "mixvpr_128", "efficientnet_lite0_salad", "tinynet_e_salad", "resnet18@8_convap_64px"]
)
def test_descriptors_are_finite_and_normalised(name):
    spec = network_spec(name)
    module = spec.build().eval()
    size = spec.preprocess.height if spec.preprocess.is_static else 64
    with torch.inference_mode():
        descriptors = module(torch.randn(2, 3, size, size))
    assert descriptors.shape == (2, spec.dimension)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(2), rtol=0, atol=1e-5)
    assert not torch.allclose(descriptors[0], descriptors[1])


@pytest.mark.parametrize(("name", "keys"), [("dinov2_salad", "salad"), ("dinov2_boq", "boq"), ("megaloc", "megaloc")])
def test_names_and_shapes_are_those_of_the_released_files(name, keys):
    released = {key: tuple(shape) for key, shape in json.loads((DATA / f"keys_{keys}_full.json").read_text()).items()}
    own = {key: tuple(tensor.shape) for key, tensor in network_spec(name).build_without_memory().state_dict().items()}
    assert own == released


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("dinov2_boq", 95_206_560), ("megaloc", 228_639_553), ("mobilevitv2_100_boq", 12.13e6), ("efficientvit_b2_boq", 22.28e6)],
)
def test_parameters_are_the_published_ones(name, parameters):
    found = sum(p.numel() for p in network_spec(name).build_without_memory().parameters())
    assert found == parameters if isinstance(parameters, int) else round(found / 1e6, 2) == parameters / 1e6


@pytest.mark.parametrize(("name", "gmac"), [("mobilevitv2_100_boq", 4.16), ("efficientvit_b2_boq", 4.34)])
def test_multiply_adds_are_the_published_ones(name, gmac):
    assert round(network_cost(network_spec(name)).macs / 1e9, 2) == gmac


class OneConvolution(torch.nn.Module):
    """A network whose multiply-adds are counted by hand: 10 x 10 positions of 3·3·3 products for each of 4 channels."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.norm(self.convolution(images)).flatten(2)
        return torch.nn.functional.normalize((features @ features.transpose(1, 2)).flatten(1), dim=1)


def own_network(name: str = "mine", **changes: object) -> NetworkSpec:
    settings = {
        "role": "query", "description": "one convolution", "build": OneConvolution, "dimension": 16, "preprocess": squashed(10),
        "weights": WeightsSource("MIT"),
    } | changes  # fmt: skip
    return NetworkSpec(name=name, **settings)


def test_multiply_adds_counted_by_hand():
    cost = network_cost(own_network())
    attention = 100 * 4 * 4
    assert (cost.parameters, cost.macs, cost.attention_macs) == (4 * 27 + 8, 100 * 27 * 4 + attention, attention)


# The grammar of query networks


def test_stride_and_size_are_part_of_the_name():
    spec = network_spec("mobilenetv4_conv_small@16_salad_224px")
    assert (spec.preprocess.height, spec.preprocess.width) == (224, 224)
    assert "stride 16, 96 x 14 x 14" in spec.description
    assert network_spec("mobilevitv2_100_boq").preprocess.height == 322
    assert network_spec("mobilevitv2_100_boq_320px").preprocess.height == 320
    assert run_without_numbers(network_spec("resnet18@8_cosplace_96px"), 1) == (1, 512)


@pytest.mark.parametrize(
    ("name", "dimension", "tokens"),
    [
        ("dinov2_vits14_gem", 384, "384 x 23 x 23"),
        ("dinov2_vitb14_reg_boq", 12288, "768 x 23 x 23"),
        ("dinov2_vitl14_salad_224px", 8448, "1024 x 16 x 16"),
    ],
)
def test_dinov2_is_a_backbone_like_the_others(name, dimension, tokens):
    spec = network_spec(name)
    assert tokens in spec.description
    assert run_without_numbers(spec, 1) == (1, dimension)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "xcit_nano_12_p16_224"])
def test_a_plain_transformer_gives_its_last_block(model):
    """timm offers the last three blocks only, so that a place in its list is no index."""
    backbone = network_spec(f"{model}_gem").build_without_memory().backbone
    assert find_stage(model, 224, 224).index == 11
    assert sum(name.startswith("net.model.blocks.") and name.endswith("norm1.weight") for name in backbone.state_dict()) == 12


def test_a_stage_has_the_features_of_timm():
    torch.manual_seed(0)
    whole = timm.create_model("resnet18", pretrained=False).eval()
    network = network_spec("resnet18@16_gem_64px").build().eval()
    used, ignored = find_backbone("resnet18").convert(whole.state_dict(), network)
    network.load_state_dict(used, strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features, token = network.backbone(images)
        expected = whole.forward_intermediates(images, intermediates_only=True)[3]
    assert network.backbone.channels == 256 and torch.equal(features, expected)
    assert torch.equal(token, expected.mean((2, 3)))
    assert set(ignored.values()) == {"the ImageNet classifier", "not needed for the features of the chosen stage"}


@pytest.mark.parametrize(
    "model", ["swin_tiny_patch4_window7_224", "convnext_atto", "dla34", "vit_tiny_patch16_224", "levit_128", "nfnet_l0", "pit_ti_224"]
)
def test_official_weights_fit_other_kinds_of_backbones(model):
    """At its default size, a backbone takes timm's whole model, whatever it calls its classifier."""
    spec = network_spec(f"{model}_gem")
    module = spec.build_without_memory()
    with shapes_only():
        whole = timm.create_model(model, pretrained=False).state_dict()
    used, ignored = spec.convert(whole, module)
    own = {name: tensor.shape for name, tensor in module.state_dict().items() if name.startswith("backbone.")}
    assert {name: tensor.shape for name, tensor in used.items()} == own
    assert len(used) + len(ignored) == len(whole) and "the ImageNet classifier" in ignored.values()


@pytest.mark.parametrize(
    "name", ["mobilevitv2_100_boq", "efficientvit_b2_boq", *(n for n in registry.LISTED_QUERY_NETWORKS if "_salad" in n)]
)
def test_official_weights_fit_every_listed_query_network(name):
    spec = network_spec(name)
    module = spec.build_without_memory()
    with shapes_only():
        whole = timm.create_model(module.backbone.model, pretrained=False).state_dict()
    used, ignored = spec.convert(whole, module)
    assert used.keys() == {name for name in module.state_dict() if name.startswith("backbone.")}
    assert len(used) + len(ignored) == len(whole)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("efficientnet_lite0_gim", "unknown network 'efficientnet_lite0_gim'; did you mean 'efficientnet_lite0_gem' or"),
        ("dinov2_salda", "did you mean 'dinov2_salad' or"),
        ("nonesuch_backbone9_salad", "unknown network 'nonesuch_backbone9_salad'"),
        ("dinov2_vitg14_gem", "unknown network"),
        ("resnet18@7_gem", "resnet18 has no stage of stride 7; expected one of 2, 4, 8, 16, 32"),
        ("dinov2_vits14@16_gem", "dinov2_vits14 has no stage of stride 16; expected 14"),
        ("dinov2_vits14_gem_320px", "dinov2_vits14 has an input of 320 px; expected a multiple of 14; take 322 px"),
        ("resnet18.nonesuch_gem", "no weights 'resnet18.nonesuch'; expected one of resnet18.a1_in1k"),
        ("resnet18_gem_0px", "expected 32 to 4096"),
        ("resnet18_gem_٣٢٠px", "unknown network"),
        ("hiera_tiny_224_gem_320px", "timm's hiera_tiny_224 gives no feature maps at 320 x 320 px"),
        ("", "unknown network ''; 'asymvpr networks' lists them"),
        ("../weights_gem", "unknown network"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing_are_explained(name, says):
    with pytest.raises(NetworkError) as error:
        network_spec(name)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "tokens", "proposals"),
    [
        ("resnet18_salad_224px", "7 x 7 = 49", ["resnet18_salad_288px", "resnet18@16_salad_224px", "resnet18_salad_2112_224px"]),
        ("dinov2_vits14_salad_112px", "8 x 8 = 64", ["dinov2_vits14_salad_126px", "dinov2_vits14_salad_2112_112px"]),
        ("swin_tiny_patch4_window7_224_salad", "7 x 7 = 49",
         ["swin_tiny_patch4_window7_224_salad_288px", "swin_tiny_patch4_window7_224@16_salad", "swin_tiny_patch4_window7_224_salad_2112"]),
        ("efficientvit_m0_salad_2112", "4 x 4 = 16", ["efficientvit_m0_salad_2112_384px", "efficientvit_m0@32_salad_2112"]),
    ],
)  # fmt: skip
def test_too_few_tokens_for_salad_says_what_works(name, tokens, proposals):
    with pytest.raises(NetworkError) as error:
        network_spec(name)
    assert f"{tokens} tokens for" in str(error.value)
    named = re.findall(r"[a-z ]+: ([a-z0-9_@]+)", str(error.value.remedy))
    assert named == proposals
    for proposal in named:
        spec = network_spec(proposal)
        assert run_without_numbers(spec, 1) == (1, spec.dimension)


# The user's own networks

OWN_MODULE = """
from torch import nn
from asymvpr_core.networks.registry import register
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource, squashed

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8, elementwise_affine=False))

register(NetworkSpec(name="tiny_mine", role="query", description="one convolution", build=build, dimension=8,
                     preprocess=squashed(32), weights=WeightsSource("CC0")))
"""
USE_IT = """
import sys, torch
from asymvpr_core.networks.loading import load_network, random_network
from asymvpr_core.networks.registry import known_networks, network_spec
spec = network_spec("tiny_mine")
assert spec in known_networks()
torch.save(random_network(spec, 3).state_dict(), sys.argv[1])
loaded = load_network("tiny_mine", sys.argv[1])
print(loaded.report.used, tuple(loaded.module(torch.zeros(2, 3, 32, 32)).shape))
from asymvpr_core.cli.main import app
app(["networks", "info", "tiny_mine"])
"""


def test_a_network_of_the_users_own_is_found_loaded_and_described(tmp_path):
    (tmp_path / "my_networks.py").write_text(OWN_MODULE)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}", "ASYMVPR_NETWORKS": " my_networks , "}
    command = [sys.executable, "-c", USE_IT, str(tmp_path / "own.pth")]
    used = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert used.stderr == ""
    loaded, *facts = used.stdout.splitlines()
    assert loaded == "2 (2, 8)"
    assert {line[:14].strip(): line[15:] for line in facts}.items() >= {
        "made of": "one convolution", "descriptor": "8-D", "parameters": "392", "weights": "of the network, licence CC0",
    }.items()  # fmt: skip


def test_a_module_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setenv("ASYMVPR_NETWORKS", "nonesuch_module")
    registry._load_plugins.cache_clear()
    try:
        with pytest.raises(NetworkError, match="ASYMVPR_NETWORKS names 'nonesuch_module', which cannot be imported"):
            known_networks()
    finally:
        monkeypatch.delenv("ASYMVPR_NETWORKS")
        registry._load_plugins.cache_clear()


def test_an_installed_package_with_a_broken_entry_is_named(monkeypatch):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("x", "nonesuch_package.networks", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    registry._load_plugins.cache_clear()
    try:
        with pytest.raises(NetworkError, match="offers networks in 'nonesuch_package.networks', which cannot be imported"):
            network_spec("dinov2_salad")
    finally:
        registry._load_plugins.cache_clear()


@pytest.fixture
def own_names(monkeypatch):
    monkeypatch.setattr(registry, "_own", {})


@pytest.mark.parametrize("name", ["dinov2_salad", "mobilevitv2_100_boq", "resnet34_gem", "mine"])
def test_a_name_that_is_taken_is_refused(own_names, name):
    register(own_network())
    with pytest.raises(NetworkError, match=f"there is a network '{name}' already"):
        register(own_network(name))


def test_two_networks_cannot_share_a_file_of_the_cache(own_names):
    register(own_network("a", weights=WeightsSource("MIT", address="https://example.org/a/model.safetensors")))
    with pytest.raises(NetworkError, match="would be 'model.safetensors' in the cache, as those of 'a' are"):
        register(own_network("b", weights=WeightsSource("MIT", address="https://example.org/b/model.safetensors")))
    register(own_network("b", weights=WeightsSource("MIT", address="https://example.org/b/model.safetensors", file_name="b.safetensors")))
    assert known_networks()[-1].name == "b"


def test_files_in_the_cache_are_told_apart():
    named: dict[str, str] = {}
    for spec in known_networks():
        if spec.weights.name_in_cache is not None:
            assert named.setdefault(spec.weights.name_in_cache, spec.weights.address) == spec.weights.address
