"""Weights from files: what loads, with which notes, and the precise error for everything else."""

from __future__ import annotations

import collections
import pickle
import re
import struct
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks import loading
from asymvpr_core.networks.checkpoints import read_state
from asymvpr_core.networks.efficientnet_lite import rename_lite
from asymvpr_core.networks.loading import LoadedNetwork, load_network, random_network
from asymvpr_core.networks.query import save_tensors
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.networks.spec import renamed

SMALL = "cosplace_resnet18_32"


def made_at_random(name: str) -> dict[str, Tensor]:
    return random_network(network_spec(name), seed=1).state_dict()


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A checkpoint of SMALL with the released names."""
    return made_at_random(SMALL)


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def describe(network: LoadedNetwork, size: int) -> Tensor:
    with torch.inference_mode():
        return network.module(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


def refusal(name: str, path: Path) -> str:
    with pytest.raises(NetworkError) as error:
        load_network(name, path)
    return str(error.value)


@pytest.fixture
def no_owner(monkeypatch):
    """Leave out the search for the network that a strange file belongs to: it builds all of them."""
    monkeypatch.setattr(loading, "known_networks", list)


# What loads


@pytest.mark.parametrize(
    ("name", "size"),
    [(SMALL, 64), ("eigenplaces_resnet18_256", 64), ("mixvpr_128", 320), ("resnet50_boq", 64), ("efficientnet_lite0_gem", 64)],
)
def test_a_checkpoint_with_the_released_names_loads_strictly(tmp_path, name, size):
    state = made_at_random(name)
    loaded = load_network(name, saved(state, tmp_path / "released.pth"))
    assert loaded.report.used == len(state) and not loaded.report.ignored and not loaded.report.notes
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.module.state_dict().items())
    descriptors = describe(loaded, size)
    assert descriptors.shape == (2, loaded.spec.dimension) and bool(torch.isfinite(descriptors).all())
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(2), rtol=0, atol=1e-5)
    assert not loaded.module.training


def test_the_flat_file_of_salad_loads_and_describes(tmp_path):
    state = made_at_random("dinov2_salad")
    loaded = load_network("dinov2_salad", saved(state, tmp_path / "dino_salad.ckpt"))
    assert loaded.report.used == 188
    descriptors = describe(loaded, 126)
    assert descriptors.shape == (2, 8448)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(2), rtol=0, atol=1e-5)
    # The token part and each of the 64 clusters have norm 1/√65.
    torch.testing.assert_close(descriptors[:, :256].norm(dim=1), torch.full((2,), 65**-0.5), rtol=1e-4, atol=0)


def test_a_lightning_checkpoint_is_unwrapped(tmp_path, released):
    wrapper = {
        "epoch": 3, "global_step": 700, "pytorch-lightning_version": "2.5.0", "state_dict": released,
        "hyper_parameters": {"lr": 6e-5, "optimizer": "adamw"}, "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "best_model_path": "x.ckpt"}}, "lr_schedulers": [],
    }  # fmt: skip
    loaded = load_network(SMALL, saved(wrapper, tmp_path / "last.ckpt"))
    assert loaded.report.used == len(released)
    assert loaded.report.notes == ("unwrapped 'state_dict' of a training checkpoint",)


def test_names_of_distributed_training_are_stripped(tmp_path, released):
    parallel = {"model_state_dict": {f"module.{name}": tensor for name, tensor in released.items()}}
    report = load_network(SMALL, saved(parallel, tmp_path / "best_model.pth")).report
    assert report.notes == ("unwrapped 'model_state_dict' of a training checkpoint", "removed 'module.' from all names")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_types_are_converted_and_said(tmp_path, released, dtype):
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in released.items()}
    loaded = load_network(SMALL, saved(state, tmp_path / "half.pth"))
    assert loaded.report.notes == (f"converted from {str(dtype).removeprefix('torch.')} to float32",)
    weight = loaded.module.state_dict()["aggregation.3.weight"]
    assert weight.dtype == torch.float32 and torch.equal(weight, state["aggregation.3.weight"].float())


def test_a_file_from_a_gpu_loads_without_one(tmp_path, released, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = saved(released, tmp_path / "gpu.pth")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):  # the file does ask for a GPU
            torch.load(path, weights_only=True)
    loaded = load_network(SMALL, path)
    assert {tensor.device.type for tensor in loaded.module.state_dict().values()} == {"cpu"}


def test_safetensors_and_the_old_format_of_torch(tmp_path, released):
    save_file(released, tmp_path / "w.bin")  # told by its content, not by its name
    torch.save(released, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    first, second = (load_network(SMALL, tmp_path / name).module.state_dict() for name in ("w.bin", "old.pth"))
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], released[name]) for name in released)


@pytest.mark.parametrize("frozen", [0, 4, 5, 7])
def test_the_two_lists_of_boq_are_one_trunk(tmp_path, frozen):
    state = made_at_random("resnet50_boq")
    renumbered = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"backbone\.net\.(\d+)\.(.+)", name):
            number = int(match[1])
            name = (
                f"backbone.frozen_layers.{number}.{match[2]}"
                if number < frozen
                else f"backbone.unfrozen_layers.{number - frozen}.{match[2]}"
            )
        renumbered[name] = tensor
    assert renumbered.keys() != state.keys()
    loaded = load_network("resnet50_boq", saved(renumbered, tmp_path / "resnet50_16384.pth"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.module.state_dict().items())


def test_the_older_megaloc_file_is_renamed_and_its_mask_token_ignored():
    spec = network_spec("megaloc")
    module = spec.build_without_memory()
    now = module.state_dict()
    older = {name.replace("backbone.", "backbone.model.", 1) if name.startswith("backbone.") else name: t for name, t in now.items()}
    used, ignored = spec.convert(older | {"backbone.model.mask_token": torch.zeros(1, 768)}, module)
    assert used.keys() == now.keys()
    assert ignored == {"backbone.model.mask_token": "used in DINOv2's own training only"}
    assert spec.convert(now, module) == (now, {})


@pytest.mark.parametrize("classifier", ["fc", "head.fc", "classifier", "head"])
def test_an_imagenet_file_fills_the_backbone_and_says_that_the_aggregator_is_random(tmp_path, classifier):
    whole = timm.create_model("resnet18", pretrained=False).state_dict()
    state = {name.replace("fc.", f"{classifier}.") if name.startswith("fc.") else name: tensor for name, tensor in whole.items()}
    path = saved(state, tmp_path / "resnet18.pth")
    loaded = load_network("resnet18_salad", path, seed=5)
    own = loaded.module.state_dict()
    assert all(torch.equal(own[f"backbone.net.{name}"], whole[name]) for name in whole if not name.startswith("fc."))
    assert loaded.report.lines() == [
        "120 tensors used",
        "the file holds the backbone only: the aggregator starts random and has to be trained",
        f"ignored {classifier}.weight, {classifier}.bias: the ImageNet classifier",
    ]
    again = load_network("resnet18_salad", path, seed=5).module.state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)
    other = load_network("resnet18_salad", path, seed=6).module.state_dict()
    assert not torch.equal(own["aggregator.score.0.weight"], other["aggregator.score.0.weight"])
    gem = load_network("resnet18_gem", path)  # learns nothing but its exponent
    assert not gem.report.notes


def test_a_file_of_the_whole_query_network_is_used_whole(tmp_path):
    state = made_at_random("resnet18_salad")
    loaded = load_network("resnet18_salad", saved(state, tmp_path / "trained.pth"))
    assert loaded.report.used == len(state) and loaded.report.notes == ()
    assert torch.equal(loaded.module.state_dict()["aggregator.score.0.weight"], state["aggregator.score.0.weight"])


def test_half_an_aggregator_is_not_taken_for_none(tmp_path, no_owner):
    state = made_at_random("resnet18_salad")
    del state["aggregator.score.0.bias"]
    assert "missing: aggregator.score.0.bias" in refusal("resnet18_salad", saved(state, tmp_path / "trained.pth"))


def test_dinov2s_own_file_fills_a_query_network(tmp_path):
    backbone = random_network(network_spec("dinov2_vits14_gem"), 0).backbone.state_dict()
    loaded = load_network("dinov2_vits14_salad", saved(backbone, tmp_path / "dinov2_vits14_pretrain.pth"))
    assert loaded.report.used == len(backbone) == 175
    assert loaded.report.notes[0].startswith("the file holds the backbone only")


def test_torchs_generator_is_left_as_it_was(tmp_path, released):
    path = saved(released, tmp_path / "w.pth")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_network(SMALL, path)
    assert torch.equal(torch.rand(1), expected)


# What does not fit


def test_one_tensor_too_few_too_many_or_of_another_shape_is_named(tmp_path, no_owner, released):
    path = tmp_path / "changed.pth"
    bias = released["aggregation.3.bias"]
    less = {name: tensor for name, tensor in released.items() if name != "aggregation.3.bias"}
    fits_not = f"weights file {path} does not fit {SMALL}: "
    assert refusal(SMALL, saved(less, path)) == f"{fits_not}missing: aggregation.3.bias; give this network's own weights"
    more = released | {"surplus.weight": bias}
    assert refusal(SMALL, saved(more, path)) == f"{fits_not}unexpected: surplus.weight; give this network's own weights"
    wrong = released | {"aggregation.3.bias": torch.zeros(31)}
    assert f"{fits_not}wrong shape: aggregation.3.bias (31,) for (32,)" in refusal(SMALL, saved(wrong, path))
    integers = released | {"aggregation.3.bias": torch.zeros(32, dtype=torch.int8)}
    assert f"{fits_not}wrong type: aggregation.3.bias int8 for float32" in refusal(SMALL, saved(integers, path))
    all_at_once = less | {"surplus.weight": bias, "aggregation.3.weight": torch.zeros(2)}
    message = refusal(SMALL, saved(all_at_once, path))
    assert re.search(r"missing: .*bias; unexpected: surplus.weight; wrong shape: .*weight \(2,\) for \(32, 512\)", message)


def test_many_misfits_are_counted(tmp_path, no_owner):
    message = refusal(SMALL, saved({"a": torch.zeros(1)}, tmp_path / "w.pth"))
    n_tensors = len(network_spec(SMALL).build_without_memory().state_dict())
    assert f"and {n_tensors - 8} more; unexpected: a" in message and len(message) < 1000


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, released, number):
    """Not taken for weights of the EigenPlaces network of the same shapes either."""
    state = made_at_random("cosplace_resnet18_256")
    state["aggregation.3.bias"][3] = number
    message = refusal("cosplace_resnet18_256", saved(state, tmp_path / "w.pth"))
    assert "tensor aggregation.3.bias holds numbers that are not finite" in message


def test_the_file_of_another_network_is_named_with_both_names(tmp_path, released):
    path = saved(released, tmp_path / "w.pth")
    assert f"is of {SMALL}; expected weights of cosplace_resnet18_64" in refusal("cosplace_resnet18_64", path)
    assert f"is of {SMALL}; expected weights of efficientnet_lite0_gem" in refusal("efficientnet_lite0_gem", path)
    with torch.device("meta"):
        shapes = timm.create_model("tinynet_e", pretrained=False).state_dict()
    backbone = saved({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}, tmp_path / "tinynet.pth")
    assert f"is of tinynet_e_salad; expected weights of {SMALL}" in refusal(SMALL, backbone)


def test_one_tensor_under_two_names_is_refused(tmp_path, no_owner):
    state = made_at_random("resnet50_boq")
    twice = state | {"backbone.unfrozen_layers.6.0.bn1.bias": torch.ones(256)}
    assert "one tensor twice, as backbone.net.6.0.bn1.bias and backbone.unfrozen_layers.6" in refusal(
        "resnet50_boq", saved(twice, tmp_path / "w.pth")
    )
    with pytest.raises(NetworkError, match="twice, as a and b"):
        renamed({"a": torch.zeros(1), "b": torch.zeros(1)}, lambda name: "same")


def test_odd_names_do_not_stop_the_renaming():
    state = dict.fromkeys(("_blocks", "_blocks.0", "_blocks.٣.x", "_fc", "_blocks.0._project_conv.bias"), torch.zeros(()))
    assert rename_lite(state).keys() == {"_blocks", "_blocks.0", "_blocks.٣.x", "classifier", "_blocks.0._project_conv.bias"}


# What is no weights file


def test_truncated_at_any_length(tmp_path, released):
    torch.save({name: released[name] for name in list(released)[:5]}, tmp_path / "zip.pth")
    torch.save({name: released[name] for name in list(released)[:5]}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({name: released[name] for name in list(released)[:5]}, tmp_path / "new.safetensors")
    for path in (tmp_path / "zip.pth", tmp_path / "old.pth", tmp_path / "new.safetensors"):
        whole = path.read_bytes()
        lengths = {0, 1, 4, 8, 9, 30, 64, 100, 200, 400, 560, 600, 1000, len(whole) // 2, len(whole) - 500, len(whole) - 1}
        for length in sorted(lengths):
            path.write_bytes(whole[:length])
            with pytest.raises(NetworkError, match=f"weights file {path} (is damaged|holds)"):
                read_state(path)


def test_flipped_bytes_never_escape_as_other_errors(tmp_path):
    """Some pass, as torch's formats hold no checksums of the numbers; none raises anything but a NetworkError."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "w.pth"
    for zipped in (True, False):
        torch.save({"a": torch.zeros(4), "b": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            position = int(torch.randint(len(whole), (1,), generator=generator))
            damaged[position] = int(torch.randint(256, (1,), generator=generator))
            path.write_bytes(damaged)
            try:
                read_state(path)
            except NetworkError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("length", [10**8 + 1, 2**63, 10**7, 3])
def test_an_absurd_header_of_safetensors(tmp_path, length):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4))
    with pytest.raises(NetworkError, match="w.safetensors is damaged"):
        read_state(path)


def test_zeros_text_and_a_picture_are_no_weights(tmp_path):
    for content in (
        bytes(1000),
        b"<!doctype html><html>",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(NetworkError, match="w.pth (is damaged|holds)"):
            read_state(tmp_path / "w.pth")


def test_a_folder_and_a_path_to_nowhere(tmp_path):
    assert refusal(SMALL, tmp_path) == f"{tmp_path} is a folder; expected a weights file"
    assert refusal(SMALL, tmp_path / "none.pth") == f"there is no weights file {tmp_path / 'none.pth'}; check the path"


class Malice:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    for protocol in (2, 4):
        (tmp_path / f"plain{protocol}.pth").write_bytes(pickle.dumps({"weight": Malice()}, protocol))
    saved({"state_dict": {"weight": torch.zeros(1)}, "callbacks": Malice()}, tmp_path / "beside.pth")
    with pytest.raises(NetworkError, match="plain4.pth is damaged or no weights file"):
        read_state(tmp_path / "plain4.pth")
    for name in ("plain2.pth", "beside.pth"):
        with pytest.raises(NetworkError, match=f"{name} holds an object of .*print beside its tensors"):
            read_state(tmp_path / name)
    assert "code from" not in capsys.readouterr().out


def test_a_pickled_network_is_refused_with_its_class(tmp_path):
    with pytest.raises(NetworkError, match=r"an object of torch.nn.modules.linear.Linear beside .* save its state dict"):
        read_state(saved(torch.nn.Linear(2, 2), tmp_path / "whole.pth"))


def test_other_containers_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    for content, says in [
        ([torch.zeros(1)], "holds a list"),
        ({"a": 1, "b": "x", "c": torch.zeros(1)}, "holds a dict of int, str"),
        ({}, "holds a dict"),
        ({"state_dict": {}}, "holds a dict"),
        (collections.OrderedDict(model={"a": {"b": torch.zeros(1)}}), "holds a dict of dict"),
        (torch.zeros(3), "holds a Tensor"),
        ({"a": torch.eye(2).to_sparse()}, "sparse, quantised or without numbers: a"),
        ({"a": torch.empty(2, device="meta")}, "sparse, quantised or without numbers: a"),
    ]:
        with pytest.raises(NetworkError, match=says):
            read_state(saved(content, path))


def test_a_torchscript_archive_is_called_that(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that this format is old
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "model.pt"))
    with pytest.raises(NetworkError, match="model.pt is a TorchScript archive, which holds code"):
        read_state(tmp_path / "model.pt")


def test_saved_weights_may_be_read_by_whom_other_files_may(tmp_path):
    """safetensors' own writer makes files that only their owner may read: a run on a shared disk was of no use to others."""
    (tmp_path / "other").write_bytes(b"")
    save_tensors({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert torch.equal(load_file(tmp_path / "w.safetensors")["w"], torch.ones(2))
