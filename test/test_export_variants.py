"""Exported variants agree with the trained network in every runtime that runs them, or are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_artefacts import encode_jpeg, make_picture, make_street
from torch import nn
from typer.testing import CliRunner

from asymvpr_core.cli.main import app
from asymvpr_core.config import ExportSettings, RuntimeSettings
from asymvpr_core.deploy import export, openvino_session
from asymvpr_core.deploy.export import WEIGHTS, export_model
from asymvpr_core.deploy.model_folder import ModelFolder
from asymvpr_core.deploy.onnx_files import write_onnx
from asymvpr_core.deploy.parity import Views
from asymvpr_core.deploy.quantise import Scheme
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import DeployError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.manifest import new_folder, write_manifest
from asymvpr_core.networks.loading import random_network
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.preprocess import Preprocess

GEM, SALAD, BOQ = "lcnet_035@16_gem_64px", "lcnet_035@16_salad_544_96px", "lcnet_035@16_boq_64px"
HAS_OPENVINO = openvino_session.why_no_openvino() is None
FEW = {"parity_images": 3, "recall_views": 0, "calibration_images": 4, "self_test_images": 2}


def make_network(name: str, dimension: int) -> QueryNetwork:
    """A small network with random weights that differ from picture to picture as trained ones do."""
    spec = network_spec(name)
    encoder = random_network(spec, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in encoder.modules():  # the statistics of a random network, so that no layer dies out
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        encoder.train()
        with torch.no_grad():
            encoder(torch.randn(8, 3, spec.preprocess.height, spec.preprocess.width))
        return QueryNetwork(spec, dimension, encoder).eval()


def make_run(root: Path, name: str) -> tuple[Path, QueryNetwork]:
    """A run folder of a network that was never trained, against a gallery of twelve pictures."""
    gallery = Gallery.open(make_street(root / "gallery"))
    identity = gallery.manifest.gallery_network
    network = make_network(name, identity.dimension)
    with new_folder(root / "run") as folder:
        network.save(folder / WEIGHTS)
        write_manifest(
            folder, "run", identity, inputs={"gallery": str(gallery.path)},
            details={"query_network": name, "preprocess": network.spec.preprocess.model_dump(mode="json"), "gated": False},
        )  # fmt: skip
    return root / "run", network


def by_torch(network: QueryNetwork, image: np.ndarray) -> np.ndarray:
    """The gallery's own path: `Preprocess`, then torch."""
    with torch.inference_mode():
        return network(torch.from_numpy(network.spec.preprocess(image))[None]).numpy()[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QueryNetwork, Path]:
    """A run with GeM, its network, and its ONNX file."""
    root = tmp_path_factory.mktemp("gem")
    run, network = make_run(root, GEM)
    write_onnx(network, network.spec.preprocess, root / "model.onnx", 18)
    return run, network, root / "model.onnx"


@pytest.fixture
def gem(exported, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, QueryNetwork]:
    """The run and its network; torch's exporter, which takes seconds, has done its work already."""
    monkeypatch.setattr(export, "write_onnx", lambda network, preprocess, path, opset: shutil.copy(exported[2], path))
    return exported[:2]


@pytest.mark.slow
@pytest.mark.parametrize("name", [GEM, SALAD, BOQ])
def test_every_head_says_in_every_runtime_what_torch_says(tmp_path: Path, name: str):
    run, network = make_run(tmp_path, name)
    formats = ("onnx", "openvino") if HAS_OPENVINO else ("onnx",)
    model = export_model(run, tmp_path / "model", ExportSettings(formats=formats, min_cosine_bf16=0.5, **FEW))
    folder = ModelFolder.open(model)
    rows = {(row.file, row.runtime, row.precision): row for row in folder.parity}
    expected = {("model.onnx", "onnxruntime", "fp32")}
    if HAS_OPENVINO:
        expected |= {("model.onnx", "openvino", "fp32"), ("model.xml", "openvino", "fp32")}
    assert expected <= set(rows)
    assert all(rows[key].min_cosine > 0.99999 and rows[key].images == 3 for key in expected)
    pictures = [decode_image(encode_jpeg(make_picture(seed, height=240, width=320)), "frame") for seed in (20, 21)]
    for runtime in ("onnxruntime", "openvino") if HAS_OPENVINO else ("onnxruntime",):
        opened = QueryModel.open(model, RuntimeSettings(runtime=runtime))
        assert opened.variant.format == ("openvino" if runtime == "openvino" else "onnx")  # the IR before the ONNX file
        described = [opened.encode(picture) for picture in pictures]
        np.testing.assert_allclose(described, [by_torch(network, picture) for picture in pictures], atol=2e-5)
        assert np.abs(described[0] - described[1]).max() > 1e-3  # or else anything would agree
    (port,) = opened.session.inputs
    assert port.shape == (1, network.spec.preprocess.height, network.spec.preprocess.width, 3)  # no side is left open


def test_fp16_and_int8_are_written_compared_and_run(gem, tmp_path: Path):
    run, network = gem
    settings = ExportSettings(precisions=("fp32", "fp16", "int8"), min_cosine_int8=0.9, **{**FEW, "recall_views": 12})
    folder = ModelFolder.open(export_model(run, tmp_path / "model", settings))
    assert [variant.file for variant in folder.variants] == ["model.onnx", "model_fp16.onnx", "model_int8.onnx"]
    sizes = {variant.precision: folder.manifest.files[variant.file].bytes for variant in folder.variants}
    assert sizes["fp16"] < 0.75 * sizes["fp32"]
    operators = {node.op_type for node in onnx.load(folder.path / "model_int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert folder.manifest.details["int8"]["scheme"] and folder.manifest.details["opset"] == 18
    for precision, tolerance in (("fp16", 0.999), ("int8", 0.9)):
        rows = [row for row in folder.parity if row.precision == precision]
        assert rows and all(row.min_cosine >= tolerance == row.tolerance for row in rows)
        assert all(row.recall_views == 12 and 0 <= row.recall_at_1 <= 1 and 0 <= row.torch_recall_at_1 <= 1 for row in rows)
        opened = QueryModel.open(folder.path, RuntimeSettings(precision=precision))
        picture = make_picture(30)
        assert opened.variant.precision == precision
        assert float(opened.encode(picture) @ by_torch(network, picture)) > tolerance
    int8 = opened.encode(picture)
    assert np.abs(int8 - by_torch(network, picture)).max() > 1e-5  # it is no copy of fp32


def test_what_misses_its_tolerance_is_refused_unless_forced(gem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, _ = gem
    monkeypatch.setattr(export, "SCHEMES", export.SCHEMES[:2])
    settings = ExportSettings(precisions=("fp32", "int8"), min_cosine_int8=1.0, **FEW)
    with pytest.raises(DeployError, match=r"model_int8.onnx has cosine 0\.\d+ .* in onnxruntime; expected at least 1.0; leave int8 out"):
        export_model(run, tmp_path / "model", settings)
    assert list(tmp_path.iterdir()) == []
    model = export_model(run, tmp_path / "model", settings.model_copy(update={"force": True}))
    (row,) = [row for row in ModelFolder.open(model).parity if (row.runtime, row.precision) == ("onnxruntime", "int8")]
    assert row.forced and row.holds and row.min_cosine < 1.0
    opened = QueryModel.open(model, RuntimeSettings(precision="int8"))
    assert any("exported with --force" in note for note in opened.report.notes)


def test_int8_needs_pictures(gem, tmp_path: Path):
    run, _ = gem
    (run.parent / "gallery").rename(run.parent / "elsewhere")
    try:
        with pytest.raises(DeployError, match="no pictures to calibrate with"):
            export_model(run, tmp_path / "model", ExportSettings(precisions=("int8",), **FEW))
        model = export_model(run, tmp_path / "model", ExportSettings(**FEW))
    finally:
        (run.parent / "elsewhere").rename(run.parent / "gallery")
    assert ModelFolder.open(model).manifest.details["parity_source"] == "noise"


def test_an_operator_without_equivalent_is_named(tmp_path: Path):
    class Unusual(nn.Module):
        def forward(self, images):
            return torch.linalg.eigvalsh(images[:, 0]).flatten(1)

    class Undecided(nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.sum() > 0 else -images.flatten(1)

    preprocess = Preprocess(height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with pytest.raises(DeployError, match="operator 'aten._linalg_eigh', which ONNX at opset 18 does not have; replace it"):
        write_onnx(Unusual(), preprocess, tmp_path / "a.onnx", 18)
    with pytest.raises(DeployError, match="cannot be exported to ONNX: .*data-dependent"):
        write_onnx(Undecided(), preprocess, tmp_path / "b.onnx", 18)


def test_a_network_of_open_size_is_refused(tmp_path: Path):
    run, network = make_run(tmp_path, GEM)
    details = {"query_network": GEM, "preprocess": network.spec.preprocess.model_dump(mode="json") | {"fit": "native"}, "gated": False}
    with new_folder(tmp_path / "open") as folder:
        network.save(folder / WEIGHTS)
        write_manifest(folder, "run", Gallery.open(tmp_path / "gallery").manifest.gallery_network, details=details)
    with pytest.raises(DeployError, match="pictures of any size .*expected a network of one input size"):
        export_model(tmp_path / "open", tmp_path / "model", ExportSettings())


def test_an_ir_without_openvino_is_refused(gem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "why_no_openvino", lambda: "OpenVINO is not installed")
    with pytest.raises(DeployError, match="an OpenVINO file was asked for, and OpenVINO is not installed; pip install openvino"):
        export_model(gem[0], tmp_path / "model", ExportSettings(formats=("openvino",), **FEW))


def test_the_command_shows_the_comparison(gem, tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_text("export: {parity_images: 2, recall_views: 0, self_test_images: 0}\n")
    done = CliRunner().invoke(app, ["export", str(gem[0]), "--precision", "fp32", "--config", str(file), "--out", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert "model.onnx" in done.output and "on 2 images of the gallery" in done.output
    assert ModelFolder.open(tmp_path / "model").self_test() is None
    done = CliRunner().invoke(app, ["export", str(gem[0]), "--precision", "fp64", "--out", str(tmp_path / "other")])
    assert done.exit_code == 1 and "precisions.0" in done.output


def test_recall_of_views_is_that_of_a_naive_count():
    descriptors = np.eye(4, dtype=np.float32)
    views = Views(np.empty((3, 1, 1, 3)), np.array([0, 0, 1]), np.array([0, 0, 1, 1]), descriptors)
    assert views.recall_at_1(descriptors[[1, 2, 3]]) == pytest.approx(2 / 3)  # the second finds row 2, of place 1


def test_a_scheme_leaves_the_first_and_the_last_layers_in_float():
    kinds = ["Cast", "Conv", "Clip", "Conv", "Add", "Conv", "Clip", "Gemm", "Div"]
    nodes = [onnx.helper.make_node(kind, [f"x{i}"], [f"x{i + 1}"], name=f"{kind}{i}") for i, kind in enumerate(kinds)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    assert Scheme(0, 0).excluded(model) == []
    assert Scheme(1, 1).excluded(model) == ["Cast0", "Conv1", "Clip2", "Gemm7", "Div8"]
    assert Scheme(2, 1).excluded(model) == ["Cast0", "Conv1", "Clip2", "Conv3", "Add4", "Gemm7", "Div8"]
    assert len(Scheme(3, 1).excluded(model)) == len(kinds)  # nothing is left
