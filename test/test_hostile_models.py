"""A query model or weights file from a stranger: no file outside its folder is read, no code runs, no memory is taken for what it says."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from memory_limit import refusal_within
from onnx import TensorProto, helper
from test_fuzz_artefacts import seal, vouch_for
from tiny_artefacts import DIMENSION, INPUT_SIZE, make_model

from asymvpr_core.config import RuntimeSettings
from asymvpr_core.deploy.model_folder import SELF_TEST
from asymvpr_core.deploy.openvino_session import why_no_openvino
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, AsymvprError, DeployError, NetworkError
from asymvpr_core.manifest import MANIFEST_NAME

torch = pytest.importorskip("torch")

from asymvpr_core.networks.checkpoints import read_state

needs_openvino = pytest.mark.skipif(why_no_openvino() is not None, reason="needs OpenVINO")
RUNTIMES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_model(tmp_path / "model", self_test=True)


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    vouch_for(folder, folder / name)


def external(location: str, *, length: int = 4 * DIMENSION, offset: int = 0, as_constant: bool = False) -> bytes:
    """An ONNX network whose descriptor is what the file at `location` holds."""
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1, DIMENSION], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, INPUT_SIZE, INPUT_SIZE, 3])
    descriptor = helper.make_tensor_value_info("descriptor", TensorProto.FLOAT, [1, DIMENSION])
    nodes, initialisers = [helper.make_node("Identity", ["secret"], ["descriptor"])], [tensor]
    if as_constant:
        constant = helper.make_node("Constant", [], ["secret"])
        constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
        nodes, initialisers = [constant, *nodes], []
    graph = helper.make_graph(nodes, "reads_files", [image], [descriptor], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("as_constant", [False, True])
@pytest.mark.parametrize("where", ["../secret.bin", "absolute", "./../model/../secret.bin", "link.bin", "/dev/zero", "/proc/self/environ"])
def test_an_onnx_file_whose_weights_lie_outside_its_folder_is_refused(model: Path, runtime: str, as_constant: bool, where: str):
    secret = model.parent / "secret.bin"
    secret.write_bytes(np.arange(DIMENSION, dtype=np.float32).tobytes())
    (model / "link.bin").symlink_to(secret)
    put(model, "model.onnx", external(str(secret) if where == "absolute" else where, as_constant=as_constant))
    with pytest.raises(DeployError, match=r"model/model\.onnx is refused by"):
        QueryModel.open(model, RuntimeSettings(runtime=runtime))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("length", "offset"), [(4 * DIMENSION, 10**15), (10**15, 0), (4, 0), (-1, 0), (4 * DIMENSION, -8)])
def test_an_onnx_file_that_reads_beyond_a_file_is_refused(model: Path, runtime: str, length: int, offset: int):
    (model / "weights.bin").write_bytes(bytes(4 * DIMENSION))
    put(model, "model.onnx", external("weights.bin", length=length, offset=offset))
    with pytest.raises(AsymvprError, match="model"):
        QueryModel.open(model, RuntimeSettings(runtime=runtime))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_operator_of_somebodys_own_library_is_refused(model: Path, runtime: str):
    network = onnx.load(str(model / "model.onnx"))
    network.graph.node[0].domain = "com.example.own"
    network.opset_import.add(domain="com.example.own", version=1)
    put(model, "model.onnx", network.SerializeToString())
    with pytest.raises(DeployError, match=r"model/model\.onnx is refused by"):
        QueryModel.open(model, RuntimeSettings(runtime=runtime))


@pytest.mark.parametrize("file", ["../model.onnx", "/etc/passwd", "images/../../x.onnx"])
def test_a_variant_outside_of_the_folder_is_not_opened(model: Path, file: str):
    content = json.loads((model / MANIFEST_NAME).read_text())
    content["details"]["variants"][0]["file"] = file
    seal(model / MANIFEST_NAME, content)
    with pytest.raises(ArtefactError, match="does not list '"):
        QueryModel.open(model)


def test_a_self_test_that_declares_much_costs_no_memory(model: Path):
    import zipfile

    with (
        zipfile.ZipFile(model / SELF_TEST, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("inputs.npy", "w", force_zip64=True) as file,
    ):
        text = repr({"descr": "|u1", "fortran_order": False, "shape": (400 << 20,)}).encode()
        file.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text)
        for _ in range(100):
            file.write(bytes(4 << 20))
    vouch_for(model, model / SELF_TEST)
    imports = "from pathlib import Path\nfrom asymvpr_core.deploy.model_folder import ModelFolder"
    said = refusal_within(60, imports, f"ModelFolder.open(Path('{model}')).self_test()")
    assert "model/self_test.npz would become" in said


@needs_openvino
@pytest.mark.parametrize("change", [('offset="0"', 'offset="100000000000"'), ('size="', 'size="9')])
def test_an_ir_that_reads_beyond_its_weights_is_refused(model: Path, change: tuple[str, str]):
    from asymvpr_core.deploy.onnx_files import write_ir

    write_ir(model / "model.onnx", model / "model.xml", fp16=False)
    text = (model / "model.xml").read_text()
    assert change[0] in text
    content = json.loads((model / MANIFEST_NAME).read_text())
    content["details"]["variants"].append({"file": "model.xml", "format": "openvino", "precision": "fp32"})
    seal(model / MANIFEST_NAME, content)
    vouch_for(model, model / "model.bin")
    put(model, "model.xml", text.encode())
    assert QueryModel.open(model, RuntimeSettings(runtime="openvino")).variant.file == "model.xml"
    put(model, "model.xml", text.replace(*change).encode())
    with pytest.raises(DeployError, match=r"model/model\.xml is refused by OpenVINO"):
        QueryModel.open(model, RuntimeSettings(runtime="openvino"))


@needs_openvino
def test_weights_of_an_ir_that_are_a_link_to_outside_are_refused(model: Path):
    from asymvpr_core.deploy.onnx_files import write_ir

    write_ir(model / "model.onnx", model / "model.xml", fp16=False)
    content = json.loads((model / MANIFEST_NAME).read_text())
    content["details"]["variants"].append({"file": "model.xml", "format": "openvino", "precision": "fp32"})
    seal(model / MANIFEST_NAME, content)
    for name in ("model.xml", "model.bin"):
        vouch_for(model, model / name)
    (model / "model.bin").rename(model.parent / "secret")
    (model / "model.bin").symlink_to(model.parent / "secret")
    with pytest.raises(ArtefactError, match=r"model/model\.bin is a link to .*secret, outside its folder"):
        QueryModel.open(model, RuntimeSettings(runtime="openvino"))


# Weights files


def safetensors(header: dict[str, object] | bytes, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**15]}}),
        safetensors({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [-1, 15]}}),
        safetensors(
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}
        ),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
        safetensors(b"{" + b'"a":{' * 1000),
        struct.pack("<Q", 99_999_999) + b"{" + bytes(16),
        struct.pack("<Q", 2**63) + b"{" + bytes(16),
    ],
    ids=range(10),
)
def test_safetensors_with_wrong_offsets_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=r"weights file .*w\.safetensors "):
        read_state(path)


def test_safetensors_that_declare_a_petabyte_cost_no_memory(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}))
    imports = "from pathlib import Path\nfrom asymvpr_core.networks.checkpoints import read_state"
    assert "w.safetensors is damaged" in refusal_within(100, imports, f"read_state(Path('{path}'))")


class _Persistent(pickle.Pickler):
    """Pickles (kind, key, location, count) as torch's reader of old files takes a storage."""

    def persistent_id(self, obj: object) -> object:
        return obj.tuple if isinstance(obj, _Storage) else None


class _Storage:
    def __init__(self, count: int):
        self.tuple = ("storage", torch.FloatStorage, "0", "cpu", count, None)


def test_an_old_checkpoint_that_declares_a_petabyte_costs_no_memory(tmp_path: Path):
    # The format before torch 1.6: a stream of pickles, in which a storage's size stands before its bytes.
    path = tmp_path / "w.pth"
    with open(path, "wb") as file:
        for item in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
            pickle.dump(item, file, protocol=2)
        _Persistent(file, protocol=2).dump({"a": _Storage(10**14)})
        pickle.dump(["0"], file, protocol=2)
        file.write(struct.pack("<q", 10**14) + bytes(64))
    imports = "from pathlib import Path\nfrom asymvpr_core.networks.checkpoints import read_state"
    assert "w.pth" in refusal_within(300, imports, f"read_state(Path('{path}'))")


def test_a_checkpoint_whose_archive_lies_about_a_size_is_refused(tmp_path: Path):
    import zipfile

    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as source, zipfile.ZipFile(tmp_path / "short.pth", "w") as target:
        for item in source.infolist():
            target.writestr(item.filename, bytes(8) if item.filename.endswith("data/0") else source.read(item))
    with pytest.raises(NetworkError, match=r"weights file .*short\.pth"):
        read_state(tmp_path / "short.pth")


def test_a_checkpoint_that_is_a_zip_bomb_costs_no_memory(tmp_path: Path):
    import zipfile

    torch.save({"a": torch.zeros(10)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            if item.filename.endswith("data/0"):
                with target.open(item.filename, "w", force_zip64=True) as file:
                    for _ in range(400):
                        file.write(bytes(4 << 20))
            else:
                target.writestr(item.filename, source.read(item))
    imports = "from pathlib import Path\nfrom asymvpr_core.networks.checkpoints import read_state"
    assert "bomb.pth" in refusal_within(300, imports, f"read_state(Path('{tmp_path}/bomb.pth'))")
