"""The command line: help, exit codes, one clear line for every known error, no half-written results."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from tiny_artefacts import encode_jpeg, make_identity, make_model, make_picture, make_street, revisit
from typer.testing import CliRunner

from asymvpr_core import __version__
from asymvpr_core.cli import gallery as gallery_commands
from asymvpr_core.cli.main import app
from asymvpr_core.config import EvaluationSettings, MatcherSettings, TrainSettings
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.types import Pose

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = (
    ["demo"], ["gallery", "build"], ["gallery", "info"], ["gallery", "verify"], ["bank", "build"], ["bank", "info"],
    ["bank", "neighbours"], ["train"], ["export"], ["evaluate", "recall"], ["evaluate", "pairs"],
    ["evaluate", "bag"], ["calibrate"],
    ["dataset", "info"], ["dataset", "layouts"],
)  # fmt: skip


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command in this process; a bug keeps its traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="asymvpr")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object, code: int = 1) -> str:
    """The one line on stderr of a command that fails with a known error."""
    exit_code, stdout, stderr = run(*arguments)
    assert exit_code == code, stderr
    assert stdout == ""
    assert stderr.startswith("asymvpr: ") and stderr.count("\n") == 1
    return stderr


def misused(*arguments: object) -> str:
    """What a usage error prints; its exit code is 2."""
    exit_code, _, stderr = run(*arguments)
    assert exit_code == 2, stderr
    assert "Usage:" in stderr
    return " ".join(stderr.split())


@pytest.fixture
def street(tmp_path: Path) -> Path:
    return make_street(tmp_path / "street", n_keyframes=3)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A csv source of one image."""
    (tmp_path / "a.jpg").write_bytes(encode_jpeg(make_picture(0)))
    (tmp_path / "images.csv").write_text("image,x,y,z,qx,qy,qz,qw\na.jpg,0,0,0,0,0,0,1\n")
    return tmp_path / "images.csv"


def test_version():
    assert run("--version") == (0, f"asymvpr {__version__}\n", "")


def test_python_m_is_the_same_command():
    command = [sys.executable, "-m", "asymvpr_core", "--version"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == f"asymvpr {__version__}\n"


def test_help_opens_with_worked_examples():
    code, text, _ = run("--help")
    assert code == 0
    assert 0 < text.index("asymvpr demo --out") < text.index("Options:") < text.index("Commands:")
    listed = re.findall(r"^  (\w+) ", text[text.index("Commands:") :], re.MULTILINE)
    assert listed == [
        "demo", "networks", "dataset", "gallery", "index", "bank", "align", "train", "export", "model", "calibrate", "evaluate",
        "bench",
    ]  # fmt: skip


def examples() -> list[str]:
    """Every line of every help text that is a command, with continued lines joined."""
    texts = [run(*command, "--help")[1] for command in ([], *COMMANDS)]
    joined = "\n".join(texts).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip().startswith("asymvpr ")]


@pytest.mark.parametrize("example", examples())
def test_examples_in_the_help_are_valid_commands(example: str):
    words = shlex.split(example)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("asymvpr", words)  # raises on an unknown option or a missing one


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_and_option_explains_itself(names: list[str]):
    command = typer.main.get_command(app)
    for name in names:
        command = command.commands[name]
    assert command.help
    assert command.params
    assert [parameter.name for parameter in command.params if not parameter.help] == []


def test_defaults_in_the_help_come_from_the_settings():
    text = " ".join(run("train", "--help")[1].split())
    assert f"(default: {TrainSettings().epochs})" in text
    assert "--loss asym+|asym|explicit|queue|regression|aml|raml|csd|rop|d3still|symmetric" in text
    text = " ".join(run("evaluate", "bag", "--help")[1].split())
    assert f"(default: {','.join(map(str, EvaluationSettings().k))})" in text
    assert f"(default: {MatcherSettings().score_threshold})" in text
    assert "distance [m]" in text  # square brackets survive


def test_no_command_is_a_usage_error():
    code, stdout, stderr = run()
    assert code == 2
    assert "Usage: asymvpr" in stdout + stderr


@pytest.mark.parametrize("arguments", [["fly"], ["train", "map"], ["gallery", "build", "x", "--out", "y", "--netwrok", "z"]])
def test_wrong_usage_exits_2(arguments: list[str]):
    misused(*arguments)


def test_a_missing_source_is_one_line(tmp_path: Path):
    assert "nowhere" in refused("gallery", "build", tmp_path / "nowhere", "--out", tmp_path / "map")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_network_lists_the_known(images: Path):
    before = set(images.parent.iterdir())
    message = refused("gallery", "build", images, "--network", "efficientnet_lite2_gme", "--out", images.parent / "map")
    assert "unknown network 'efficientnet_lite2_gme'" in message
    assert "did you mean 'efficientnet_lite2_gem'" in message and "'asymvpr networks' lists them" in message
    assert set(images.parent.iterdir()) == before


def test_an_existing_result_is_not_overwritten(images: Path, street: Path):
    before = (street / "manifest.json").read_bytes()
    assert "exists already" in refused("gallery", "build", images, "--out", street)
    assert (street / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [["gallery", "info", "{}"], ["gallery", "verify", "{}"], ["train", "{}", "--out", "{}_out"], ["export", "{}", "--out", "{}_out"]],
    ids=" ".join,
)
def test_a_missing_artefact_is_one_line(tmp_path: Path, command: list[str]):
    absent = str(tmp_path / "absent")
    assert absent in refused(*(word.format(absent) for word in command))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_is_named(tmp_path: Path, street: Path):
    (tmp_path / "settings.yaml").write_text("train: {epocs: 3}\n")
    message = refused("train", street, "--config", tmp_path / "settings.yaml", "--out", tmp_path / "run")
    assert "unknown setting 'epocs'" in message and "epochs" in message


def test_a_value_out_of_range_is_named(tmp_path: Path, street: Path):
    assert "'d3still' or 'symmetric'" in refused("train", street, "--loss", "triplet", "--out", tmp_path / "run")
    assert "setting 'epochs' is -1" in refused("train", street, "--epochs", "-1", "--out", tmp_path / "run")


def test_a_misspelt_demo_source_leaves_nothing(tmp_path: Path):
    pytest.importorskip("rclpy")
    assert "there is no folder" in refused("demo", "--source", tmp_path / "nowhere", "--out", tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_number_is_refused(street: Path, tmp_path: Path):
    arguments = ["evaluate", "recall", "--gallery", street, "--queries", tmp_path, "--model", "m", "--out", tmp_path / "out"]
    assert "setting 'radius_m' is inf: input should be a finite number" in refused(*arguments, "--radius-m", "inf")


def test_info_says_what_the_gallery_is(street: Path):
    code, text, _ = run("gallery", "info", street)
    assert code == 0
    rows = dict(re.split(r"\s{2,}|(?<=map frame) ", line, maxsplit=1) for line in text.splitlines())
    assert rows["keyframes"] == "3"
    assert rows["map frame"].strip() == "map"
    assert rows["network"] == "grid8_mean"
    assert rows["descriptors"] == "192-D float32"
    assert re.fullmatch("[0-9a-f]{12}", rows["pair"])


def test_verify(street: Path):
    code, text, _ = run("gallery", "verify", street)
    assert code == 0
    assert "3 keyframes" in text
    picture = next((street / "images").rglob("*.png"))  # verify reads every file, the pictures too
    data = bytearray(picture.read_bytes())
    data[100] ^= 1
    picture.write_bytes(data)
    assert f"{picture} is damaged" in refused("gallery", "verify", street)


def test_recall_needs_a_model_or_a_network(street: Path, tmp_path: Path):
    common = ["evaluate", "recall", "--gallery", street, "--queries", tmp_path, "--out", tmp_path / "out"]
    assert "give one of --model and --network" in misused(*common)
    assert "give one of --model and --network" in misused(*common, "--model", "m", "--network", "n")


def test_recall_of_another_pair_is_refused(street: Path, images: Path, tmp_path: Path):
    model = make_model(tmp_path / "model", make_identity("another"))
    message = refused("evaluate", "recall", "--gallery", street, "--queries", images, "--model", model, "--out", tmp_path / "out")
    assert "grid8_mean" in message and "another" in message
    assert not (tmp_path / "out").exists()


def test_recall_with_another_network_than_the_gallerys_is_refused(street: Path, images: Path, tmp_path: Path):
    arguments = ["evaluate", "recall", "--gallery", street, "--queries", images, "--network", "efficientnet_lite2_gem"]
    assert "was made by grid8_mean; expected efficientnet_lite2_gem" in refused(*arguments, "--out", tmp_path / "out")


@pytest.mark.parametrize("k", ["1,five", "1;5", ""])
def test_k_that_is_no_list_of_numbers(street: Path, tmp_path: Path, k: str):
    misused("evaluate", "recall", "--gallery", street, "--queries", tmp_path, "--model", "m", "--k", k, "--out", tmp_path / "out")


def test_ground_truth_that_is_neither_file_nor_topic(street: Path, tmp_path: Path):
    arguments = ["evaluate", "bag", "bag", "--gallery", street, "--model", "m", "--out", tmp_path / "out", "--ground-truth"]
    assert "there is no file missing.tum" in misused(*arguments, "missing.tum")
    assert "there is no file /data/missing.txt" in misused(*arguments, "/data/missing.txt")


def test_runs_side_by_side_are_named_right(street: Path, tmp_path: Path):
    arguments = ["evaluate", "bag", "a", "b", "--gallery", street, "--model", "m", "--out", tmp_path / "out", "--ground-truth", "/pose"]
    assert "'guess' is none of off, vote, bayes" in misused(*arguments, "--sequence", "off,guess")
    assert "a choice is named twice" in misused(*arguments, "--sequence", "off,off")
    assert "3 for 2 bags" in misused(*arguments, "--ground-truth", "/pose", "--ground-truth", "/pose")
    assert "means nothing without --run" in misused("calibrate", street, "--model", "m", "--ground-truth", "/pose")


def test_a_missing_bag_is_one_line(street: Path, tmp_path: Path):
    model = make_model(tmp_path / "model")
    arguments = ["evaluate", "bag", tmp_path / "bag", "--gallery", street, "--model", model, "--ground-truth", "/pose"]
    assert str(tmp_path / "bag") in refused(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Whole commands, on a street of twelve keyframes 2 m apart that is visited again


@pytest.fixture
def revisited(tmp_path: Path) -> Path:
    """Folder with `map`, `model`, and the same revisit twice: as `queries.csv` and as `live_bag`."""
    make_street(tmp_path / "map", n_keyframes=12, spacing_m=2.0)
    make_model(tmp_path / "model")
    rows = ["image,x,y,z,qx,qy,qz,qw"]
    with BagWriter(tmp_path / "live_bag") as writer:
        for index in range(12):
            picture = encode_jpeg(revisit(make_picture(index), seed=index))
            (tmp_path / f"{index}.jpg").write_bytes(picture)
            rows.append(f"{index}.jpg,{2.0 * index + 0.5},0,0,0,0,0,1")
            stamp_ns = 1000 * 10**9 + index * 10**8
            writer.write_pose("/ground_truth/pose", stamp_ns, Pose((2.0 * index + 0.5, 0.0, 0.0)), "map")
            writer.write_compressed_image("/camera/image/compressed", stamp_ns, "camera", picture)
    (tmp_path / "far.jpg").write_bytes(encode_jpeg(make_picture(99)))
    rows.append("far.jpg,500,0,0,0,0,0,1")  # so far from the map that no correct match exists
    (tmp_path / "queries.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_evaluate_recall(revisited: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(revisited)
    arguments = ["evaluate", "recall", "--gallery", "map", "--queries", "queries.csv", "--model", "model"]
    code, stdout, stderr = run(*arguments, "--radius-m", "1", "--k", "1,3", "--out", "report")
    assert code == 0, stderr
    metrics = json.loads((revisited / "report" / "metrics.json").read_text())
    assert metrics["recall_at_k"] == {"1": 1.0, "3": 1.0}
    assert (metrics["n_queries"], metrics["n_without_positive"]) == (13, 1)
    assert metrics["protocol"]["radius_m"] == 1.0
    assert "recall@1" in stdout and "n_without_positive" in stdout and "within 1 m" in stdout
    assert (revisited / "report" / "report.html").is_file()


def test_evaluate_recall_of_ordered_queries_and_several_models(revisited: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(revisited)
    make_model(revisited / "other")
    arguments = ["evaluate", "recall", "--gallery", "map", "--queries", "queries.csv", "--model", "model", "--compare", "other"]
    options = ["--sequence", "vote", "--agreement-radius-m", "7", "--radius-m", "1", "--seed", "3", "--bootstrap-resamples", "20"]
    code, stdout, stderr = run(*arguments, *options, "--only-wrong", "--boards", "1", "--cache", "kept", "--out", "report")
    assert code == 0, stderr
    metrics = json.loads((revisited / "report" / "metrics.json").read_text())
    assert metrics["sequence"]["matcher"]["agreement_radius_m"] == 7.0 and metrics["sequence"]["n_true"] > 0
    assert metrics["comparison"][0]["second"] == "other" and "seed 3" in metrics["protocol"]["intervals"]
    assert "sequence n_true" in stdout and "1. model, 2. other" in stdout
    assert list((revisited / "kept").glob("*/*.npy"))
    assert "sequence" in refused(*arguments, "--sequence", "perhaps", "--out", "no")
    assert "give one of --cache and --no-cache" in misused(*arguments, "--cache", "kept", "--no-cache", "--out", "no")


def test_evaluate_pairs(revisited: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(revisited)
    arguments = ["evaluate", "pairs", "--queries", "queries.csv", "--radius-m", "1", "--bootstrap-resamples", "20", "--no-cache"]
    code, stdout, stderr = run(*arguments, "--gallery", "map", "--model", "model", "--no-heavy", "--out", "pairs")
    assert code == 0, stderr
    metrics = json.loads((revisited / "pairs" / "metrics.json").read_text())
    assert {name: values["recall_at_k"]["1"] for name, values in metrics["systems"].items()} == {
        "model on grid8_mean": 1.0, "model, both sides": 1.0,
    }  # fmt: skip
    assert "1 and 2" in stdout and "within 1 m" in stdout and (revisited / "pairs" / "report.html").is_file()
    assert "unknown network 'grid8_mean'" in refused(*arguments, "--gallery", "map", "--model", "model", "--out", "no")
    assert "give --benchmark, --gallery or --database" in misused(*arguments, "--out", "no")
    assert "nothing to evaluate" in refused(*arguments, "--database", "queries.csv", "--out", "no")
    assert "--layout means nothing without --benchmark" in misused(*arguments, "--gallery", "map", "--layout", "msls", "--out", "no")


def test_evaluate_pairs_of_networks_by_name(revisited: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(revisited)
    arguments = ["evaluate", "pairs", "--queries", "queries.csv", "--database", "queries.csv", "--radius-m", "0.1"]
    code, _, stderr = run(*arguments, "--network", "efficientnet_lite0_gem", "--threads", "1", "--out", "networks")
    assert code == 0, stderr
    (system,) = json.loads((revisited / "networks" / "metrics.json").read_text())["systems"].values()
    assert system["recall_at_k"]["1"] == 1.0  # every image finds itself
    assert system["query_side"]["dimension"] == 1280 and len(system["query_side"]["weights_sha256"]) == 64


def test_evaluate_bag(revisited: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(revisited)
    arguments = ["evaluate", "bag", "live_bag", "--gallery", "map", "--model", "model", "--ground-truth", "/ground_truth/pose"]
    code, stdout, stderr = run(*arguments, "--radius-m", "1", "--sequence", "off", "--out", "report")
    assert code == 0, stderr
    metrics = json.loads((revisited / "report" / "metrics.json").read_text())
    assert metrics["n_frames"] == 12  # every frame, not only keyframes
    assert metrics["precision_of_accepted"] == 1.0
    assert metrics["n_accepted"] > 0
    assert "position_error_m median" in stdout and "latency_ms p95" in stdout
    assert (revisited / "report" / "matches.csv").is_file()


def test_a_topic_that_is_not_in_the_bag_lists_those_that_are(revisited: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(revisited)
    arguments = ["evaluate", "bag", "live_bag", "--gallery", "map", "--model", "model", "--ground-truth", "/odom", "--out", "report"]
    message = refused(*arguments)
    assert "/odom" in message and "/ground_truth/pose" in message
    assert not (revisited / "report").exists()


# Errors that do not come from the core


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, street: Path) -> Callable[[BaseException], list[object]]:
    """Arguments of a command that raises the given error."""

    def prepare(error: BaseException) -> list[object]:
        def fail(path: Path) -> None:
            raise error

        monkeypatch.setattr(gallery_commands, "print_summary", fail)
        return ["gallery", "info", street]

    return prepare


def test_a_full_disk_is_one_line(failing: Callable[[BaseException], list[object]]):
    message = refused(*failing(OSError(errno.ENOSPC, "No space left on device", "map/descriptors.npy")))
    assert message == "asymvpr: map/descriptors.npy: no space left on device; free space, or give another --out\n"


def test_no_permission_is_one_line(failing: Callable[[BaseException], list[object]]):
    message = refused(*failing(PermissionError(errno.EACCES, "Permission denied", "/root/map")))
    assert message == "asymvpr: /root/map: permission denied; check the permissions\n"


def test_ctrl_c_exits_130(failing: Callable[[BaseException], list[object]]):
    assert refused(*failing(KeyboardInterrupt()), code=130) == "asymvpr: interrupted\n"


def test_a_missing_optional_package_says_how_to_get_it(failing: Callable[[BaseException], list[object]]):
    message = refused(*failing(ModuleNotFoundError("No module named 'timm.models'", name="timm.models")))
    assert "needs the package timm" in message and "pip install '.[train]'" in message


@pytest.mark.parametrize("error", [ValueError("a bug"), ModuleNotFoundError("No module named 'typo'", name="typo")])
def test_a_bug_keeps_its_traceback(failing: Callable[[BaseException], list[object]], error: Exception):
    arguments = failing(error)
    with pytest.raises(type(error), match=str(error)):
        run(*arguments)


def test_a_closed_pipe_is_silent(street: Path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "asymvpr_core", "gallery", "info", str(street)]
    try:
        result = subprocess.run(command, cwd=REPOSITORY, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (1, "")


def test_calibrate_and_ask_for_a_precision(revisited: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(revisited)
    run_flags = ["--run", "live_bag", "--ground-truth", "/ground_truth/pose", "--radius-m", "1", "--sequence", "off"]
    code, _, stderr = run("calibrate", "map", "--model", "model", *run_flags)
    assert code == 1 and "which takes 299 accepted stretches" in stderr and "12 frames" in stderr
    few = ["--target-precision", "0.6", "--confidence", "0.9"]
    code, stdout, stderr = run("calibrate", "map", "--model", "model", *run_flags, *few, "--out", "calibration")
    assert code == 0, stderr
    assert "target_precision 0.6, single frames: threshold" in stdout and "held-out thirds" in stdout
    assert (revisited / "calibration" / "report.html").is_file()
    assert "target_precision 0.6" in run("gallery", "info", "map")[1]
    arguments = ["evaluate", "bag", "live_bag", "--gallery", "map", "--model", "model", "--ground-truth", "/ground_truth/pose"]
    code, stdout, stderr = run(*arguments, "--radius-m", "1", "--target-precision", "0.6", "--sequence", "off,vote", "--out", "report")
    assert code == 0, stderr
    runs = json.loads((revisited / "report" / "metrics.json").read_text())["runs"]
    assert set(runs) == {"live_bag_model_off", "live_bag_model_vote"}
    assert runs["live_bag_model_off"]["protocol"]["matcher"]["target_precision"] == 0.6
