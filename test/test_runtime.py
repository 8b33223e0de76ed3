"""The query model's runtimes: what each gives, what is refused, and what `runtime: auto` chooses and remembers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from tiny_artefacts import (
    DIMENSION,
    PREPROCESS,
    change_manifest,
    encode_jpeg,
    grid_descriptor,
    make_model,
    make_model_of_format_1,
    make_picture,
)  # fmt: skip
from typer.testing import CliRunner

from asymvpr_core.cli.main import app
from asymvpr_core.config import RuntimeSettings
from asymvpr_core.deploy import onnxruntime_session, openvino_session, runtimes, tuning
from asymvpr_core.deploy.model_folder import SELF_TEST, ModelFolder, Variant
from asymvpr_core.deploy.report import Measured
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.deploy.session import Choice
from asymvpr_core.errors import ArtefactError, DeployError, ImageError, SettingsError
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.manifest import sha256_of

needs_openvino = pytest.mark.skipif(openvino_session.why_no_openvino() is not None, reason="needs OpenVINO")
RUNTIMES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", self_test=True)


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch):
    """OpenVINO as if it were not installed."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    for function in (openvino_session.why_no_openvino, openvino_session.computes_bf16):
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in (openvino_session.why_no_openvino, openvino_session.computes_bf16):
        function.cache_clear()


def scripted(monkeypatch: pytest.MonkeyPatch, **latencies_ms: float) -> list[str]:
    """Let measurements give `runtime_precision_threads` → ms (others 100); the list collects what was measured."""
    asked: list[str] = []
    opened: list[Choice] = []
    original = runtimes.open_session

    def open_session(folder, choice, cache=None):
        opened.append(choice)
        return original(folder, choice, cache)

    def latency_ms(folder, session):
        choice = opened[-1]
        asked.append(f"{choice.runtime}_{choice.precision}_{choice.threads}")
        return latencies_ms.get(asked[-1], 100.0)

    monkeypatch.setattr(tuning, "open_session", open_session)
    monkeypatch.setattr(tuning, "_latency_ms", latency_ms)
    monkeypatch.setattr(tuning, "usable_cores", lambda: 2)
    return asked


# What runs


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_picture_gets_the_descriptor_that_numpy_computes(model: Path, runtime: str):
    opened = QueryModel.open(model, RuntimeSettings(runtime=runtime, threads=1))
    pictures = [make_picture(seed, height=height, width=width) for seed, (height, width) in enumerate([(120, 160), (64, 64), (30, 300)])]
    for picture in pictures:
        expected = grid_descriptor(PREPROCESS.resize(picture))
        np.testing.assert_allclose(opened.encode(picture), expected, atol=1e-6)
    first = opened.encode(pictures[0])
    opened.encode(pictures[1])
    np.testing.assert_allclose(first, grid_descriptor(PREPROCESS.resize(pictures[0])), atol=1e-6)  # no later frame writes into it
    batch = opened.encode_batch(np.stack([opened.prepare(picture) for picture in pictures]))
    np.testing.assert_array_equal(batch, [opened.encode(picture) for picture in pictures])
    assert opened.encode_batch(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, DIMENSION)
    assert opened.report.cosine > 0.9999


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_jpeg_on_the_robot_gets_the_descriptor_of_the_gallerys_rule(model: Path, runtime: str):
    """Gallery: decode, `Preprocess`, network on normalised planes. Robot: decode, resize, graph that normalises."""
    image = decode_image(encode_jpeg(make_picture(3, height=480, width=640)), "frame")
    planes = PREPROCESS(image)
    cells = planes.reshape(3, 8, 8, 8, 8).mean(axis=(2, 4)).reshape(-1)
    described = QueryModel.open(model, RuntimeSettings(runtime=runtime)).encode(image)
    np.testing.assert_allclose(described, cells / np.linalg.norm(cells), atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_folder_of_format_1_still_opens(tmp_path: Path, model: Path, runtime: str):
    old = QueryModel.open(make_model_of_format_1(tmp_path / "old"), RuntimeSettings(runtime=runtime))
    picture = make_picture(5)
    np.testing.assert_allclose(old.encode(picture), QueryModel.open(model).encode(picture), atol=1e-6)
    two = old.encode_batch(np.stack([old.prepare(make_picture(seed)) for seed in (5, 6)]))
    np.testing.assert_allclose(two[0], old.encode(picture), atol=1e-6)
    assert old.report.cosine is None


def test_the_default_is_onnxruntime_alone_and_loads_nothing_else(model: Path):
    assert (RuntimeSettings().runtime, RuntimeSettings().fixed_threads) == ("onnxruntime", 1)
    code = (
        "import sys; from pathlib import Path; from asymvpr_core.deploy.runtime import QueryModel\n"
        f"report = QueryModel.open(Path({str(model)!r})).report\n"
        "assert str(report.choice) == 'onnxruntime (cpu), fp32, 1 thread', report.choice\n"
        "assert report.notes == () and not report.measured and report.latency_ms is None\n"
        "assert not {'openvino', 'torch', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not (model / tuning.TUNING).exists()


# What is refused


def test_inputs_that_were_not_prepared_are_refused(model: Path):
    opened = QueryModel.open(model)
    with pytest.raises(ImageError, match=r"float32 \(1, 3, 64, 64\); expected uint8 \(B, 64, 64, 3\)"):
        opened.encode_batch(PREPROCESS(make_picture(0))[np.newaxis])
    for wrong in (np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32)):
        with pytest.raises(ImageError, match="expected"):
            opened.encode(wrong)


def test_a_newer_format_is_refused_by_its_number(model: Path):
    change_manifest(model, format_version=3)
    with pytest.raises(ArtefactError, match="format version 3; expected at most 2; update asymvpr"):
        QueryModel.open(model)


@pytest.mark.parametrize("name", ["model.onnx", SELF_TEST])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_refused_by_its_name(model: Path, name: str, damage: str):
    whole = (model / name).read_bytes()
    if damage == "missing":
        (model / name).unlink()
    else:
        (model / name).write_bytes(whole[:-1] + (bytes([whole[-1] ^ 1]) if damage == "flipped" else b""))
    with pytest.raises(ArtefactError, match=rf"{name} (is damaged|is missing|has \d+ bytes)"):
        QueryModel.open(model)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_is_no_network_is_refused_by_the_runtime(model: Path, runtime: str):
    (model / "model.onnx").write_bytes(b"this is no network")
    files = json.loads((model / "manifest.json").read_text())["files"]
    change_manifest(model, files=files | {"model.onnx": {"bytes": 18, "sha256": sha256_of(model / "model.onnx")}})
    with pytest.raises(DeployError, match="model.onnx is refused by (onnxruntime|OpenVINO).*export it again"):
        QueryModel.open(model, RuntimeSettings(runtime=runtime))


def test_a_manifest_that_describes_its_variants_wrongly_is_refused(tmp_path: Path):
    wrong = make_model(tmp_path / "model", variants=[{"file": "model.onnx", "format": "onnx", "precision": "fp4"}])
    with pytest.raises(ArtefactError, match=r"describes its variants wrongly \('0.precision'\)"):
        QueryModel.open(wrong)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_variant_that_was_not_exported_is_refused(model: Path, precision: str):
    with pytest.raises(
        DeployError, match=rf"no variant of precision {precision}; it has model.onnx \(fp32\).*--precision fp32,{precision}"
    ):
        QueryModel.open(model, RuntimeSettings(precision=precision))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_installed_is_refused(model: Path, provider: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnxruntime_session.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeployError, match=f"has no provider '{provider}'; it has cpu; install onnxruntime-gpu"):
        QueryModel.open(model, RuntimeSettings(provider=provider))


def test_a_provider_that_does_not_start_is_refused_and_not_replaced(model: Path, monkeypatch: pytest.MonkeyPatch):
    """onnxruntime itself goes on with the CPU and writes a line to the terminal."""
    original = onnxruntime_session.onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime_session.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime_session.onnxruntime,
        "InferenceSession",
        lambda path, options, providers: original(path, options, providers=providers[-1:]),
    )
    with pytest.raises(DeployError, match="provider 'cuda' does not start on this machine; CPUExecutionProvider would have been used"):
        QueryModel.open(model, RuntimeSettings(provider="cuda"))


def test_tensorrt_gets_its_precision_a_cache_and_what_it_lacks_from_cuda():
    (name, options), second, third = onnxruntime_session.provider_chain("tensorrt", "fp16", Path("/engines"))
    assert (name, second, third) == ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["trt_fp16_enable"] and not options["trt_int8_enable"] and options["trt_engine_cache_path"] == "/engines"
    assert onnxruntime_session.provider_chain("tensorrt", "int8", None)[0][1] == {"trt_fp16_enable": False, "trt_int8_enable": True}
    assert onnxruntime_session.provider_chain("cpu", "fp32", None) == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (RuntimeSettings(precision="bf16"), "'bf16' is OpenVINO's alone"),
        (RuntimeSettings(runtime="openvino", provider="cuda"), "'cuda' is onnxruntime's alone"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(model: Path, settings: RuntimeSettings, reason: str):
    with pytest.raises(SettingsError, match=reason):
        QueryModel.open(model, settings)


@needs_openvino
def test_bf16_on_a_cpu_without_it_is_refused_and_not_replaced(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino_session, "computes_bf16", lambda: False)
    with pytest.raises(DeployError, match="does not compute in bf16, and OpenVINO would use fp32 instead"):
        QueryModel.open(model, RuntimeSettings(runtime="openvino", precision="bf16"))


def test_openvino_that_is_not_installed_is_refused_where_it_is_asked_for(model: Path, no_openvino: None):
    with pytest.raises(DeployError, match="OpenVINO is not installed; install it with 'pip install openvino'"):
        QueryModel.open(model, RuntimeSettings(runtime="openvino"))


def test_descriptors_that_are_not_the_trained_networks_are_refused(tmp_path: Path):
    wrong = make_model(tmp_path / "model", self_test=True, tolerances={"fp32": 0.9999})
    with np.load(wrong / SELF_TEST) as arrays:
        inputs, descriptors = arrays["inputs"], arrays["descriptors"]
    np.savez(wrong / SELF_TEST, inputs=inputs, descriptors=descriptors[:, ::-1].copy())
    files = json.loads((wrong / "manifest.json").read_text())["files"]
    path = wrong / SELF_TEST
    change_manifest(wrong, files=files | {SELF_TEST: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}})
    with pytest.raises(DeployError, match=r"in fp32 cosine -?0\.\d+ to the trained network on this machine; expected at least 0\.9999"):
        QueryModel.open(wrong)
    with pytest.raises(DeployError, match="nothing runs model.*is not considered"):
        QueryModel.open(wrong, RuntimeSettings(runtime="auto"))


def test_a_runtime_that_fails_on_an_image_is_a_known_error(model: Path, monkeypatch: pytest.MonkeyPatch):
    opened = QueryModel.open(model)
    monkeypatch.setattr(type(opened.session), "run", lambda self, inputs: 1 / 0)
    with pytest.raises(DeployError, match="onnxruntime .* failed on an image: division by zero"):
        opened.encode(make_picture(0))


# runtime: auto


@needs_openvino
def test_auto_takes_the_fastest_and_remembers_it(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtimes, "computes_bf16", lambda: False)
    asked = scripted(monkeypatch, onnxruntime_fp32_1=50.0, onnxruntime_fp32_2=30.0, openvino_fp32_1=20.0, openvino_fp32_2=19.0)
    auto = RuntimeSettings(runtime="auto")
    report = QueryModel.open(model, auto).report
    assert asked == ["onnxruntime_fp32_1", "onnxruntime_fp32_2", "openvino_fp32_1", "openvino_fp32_2"]
    # 19 ms is no tenth less than 20: the second thread is left to the rest of the robot.
    assert (report.choice, report.latency_ms) == (Choice("openvino", "cpu", "fp32", 1), 20.0)
    assert [row.latency_ms for row in report.measured] == [19.0, 20.0, 30.0, 50.0]
    assert report.remembered_in == str(model / tuning.TUNING)
    assert report.as_diagnostics()["runtime_measured_ms"] == "20.00" and "openvino 20" in report.summary
    again = QueryModel.open(model, auto).report
    assert len(asked) == 4 and (again.choice, again.measured) == (report.choice, report.measured)
    QueryModel.open(model, RuntimeSettings(runtime="auto", threads=2))  # another question
    assert asked[4:] == ["onnxruntime_fp32_2", "openvino_fp32_2"]
    monkeypatch.setattr(tuning, "_cpu_name", lambda: "another machine")
    QueryModel.open(model, auto)
    assert len(asked) == 10


def test_auto_says_that_openvino_is_missing_each_time(model: Path, no_openvino: None, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch)
    for _ in range(2):
        report = QueryModel.open(model, RuntimeSettings(runtime="auto")).report
        assert report.choice.runtime == "onnxruntime"
        assert report.notes == ("openvino is not considered: OpenVINO is not installed",)
        assert "OpenVINO is not installed" in report.summary and "not installed" in report.as_diagnostics()["runtime_notes"]


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([("onnxruntime", "fp32", 1, 50), ("onnxruntime", "fp32", 2, 46)], 0),  # not worth a core
        ([("onnxruntime", "fp32", 1, 50), ("onnxruntime", "fp32", 2, 44)], 1),
        ([("onnxruntime", "fp32", 1, 50), ("openvino", "fp32", 1, 48), ("openvino", "bf16", 1, 46)], 0),
        ([("onnxruntime", "fp32", 1, 50), ("openvino", "fp32", 1, 48), ("openvino", "bf16", 1, 25)], 2),
        ([("openvino", "bf16", 4, 9.5), ("openvino", "bf16", 2, 10), ("onnxruntime", "fp32", 1, 50)], 1),
    ],
)
def test_the_simpler_way_wins_where_the_fastest_gains_less_than_a_tenth(rows, best):
    measured = tuple(Measured(Choice(runtime, "cpu", precision, threads), ms, None) for runtime, precision, threads, ms in rows)
    assert tuning.best_of(measured) == measured[best]


def test_what_missed_parity_at_export_is_not_considered(tmp_path: Path, no_openvino: None, monkeypatch: pytest.MonkeyPatch):
    asked = scripted(monkeypatch)
    row = {"runtime": "onnxruntime", "mean_cosine": 0.98, "images": 4}
    folder = make_model(
        tmp_path / "model",
        variants=[Variant.named("onnx", precision).model_dump() for precision in ("fp32", "int8")],
        parity=[
            {**row, "file": "model.onnx", "precision": "fp32", "min_cosine": 1.0, "tolerance": 0.9999},
            {**row, "file": "model_int8.onnx", "precision": "int8", "min_cosine": 0.97, "tolerance": 0.995},
        ],
        parity_source="gallery",
    )
    report = QueryModel.open(folder, RuntimeSettings(runtime="auto")).report
    assert {name.rsplit("_", 1)[0] for name in asked} == {"onnxruntime_fp32"}
    assert any("int8 is not considered: cosine 0.9700" in note for note in report.notes)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 3}', "\x00"])
def test_a_damaged_memory_is_measured_again(model: Path, no_openvino: None, monkeypatch: pytest.MonkeyPatch, content: str):
    asked = scripted(monkeypatch)
    (model / tuning.TUNING).write_text(content)
    QueryModel.open(model, RuntimeSettings(runtime="auto"))
    assert len(asked) == 2 and len(json.loads((model / tuning.TUNING).read_text())) == 1


def test_a_model_that_cannot_be_written_is_remembered_in_the_users_cache(
    model: Path, own_cache: Path, no_openvino: None, monkeypatch: pytest.MonkeyPatch
):
    asked = scripted(monkeypatch)
    original = tuning.write_text_atomically

    def refusing(path, text):
        if path.parent == model or refusing.everywhere:
            raise OSError(30, "Read-only file system")
        original(path, text)

    refusing.everywhere = True
    monkeypatch.setattr(tuning, "write_text_atomically", refusing)
    report = QueryModel.open(model, RuntimeSettings(runtime="auto")).report
    assert report.remembered_in == "" and any("is not remembered" in note and "Read-only" in note for note in report.notes)
    refusing.everywhere = False
    report = QueryModel.open(model, RuntimeSettings(runtime="auto")).report
    assert len(asked) == 4 and report.remembered_in.startswith(str(own_cache)) and Path(report.remembered_in).exists()
    QueryModel.open(model, RuntimeSettings(runtime="auto"))
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("cores", "threads", "counts"), [(1, 0, (1,)), (2, 0, (1, 2)), (6, 0, (1, 2, 4, 6)), (64, 0, (1, 2, 4, 8, 16)), (8, 3, (3,))]
)
def test_thread_counts(cores, threads, counts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "usable_cores", lambda: cores)
    assert tuning.thread_counts(RuntimeSettings(threads=threads)) == counts
    assert tuning.thread_counts(RuntimeSettings(provider="cuda")) == (1,)


def test_the_command_line_shows_and_measures(model: Path, no_openvino: None, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, onnxruntime_fp32_2=5.0)
    done = CliRunner().invoke(app, ["model", "tune", str(model)])
    assert done.exit_code == 0, done.output
    assert "onnxruntime (cpu), fp32, 2 threads, 5.0 ms" in done.output and "OpenVINO is not installed" in done.output
    done = CliRunner().invoke(app, ["model", "info", str(model)])
    assert done.exit_code == 0, done.output
    assert "model.onnx (fp32" in done.output and "onnxruntime (cpu), fp32, 2 threads" in done.output
    assert len(tuning.remembered(ModelFolder.open(model))) == 1
