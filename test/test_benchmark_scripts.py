"""The benchmarks run: on sizes that say nothing, so that they still work when somebody needs their numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from town_folder import make_folder

from asymvpr_core.bench.results import read_result

pytestmark = pytest.mark.slow


def run(script: str, *words: object) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def values(out: Path, *, aims: bool = True) -> dict[str, Any]:
    """What a benchmark wrote; whatever it is, it says with what it was made and its tables are whole."""
    result = read_result(out)
    assert result.made_with["commit"] and result.made_with["cores"] and result.made_with["versions"]["numpy"]
    assert all(len(row) == len(table.columns) for table in result.tables for row in table.rows)
    assert bool(result.aims) or not aims
    return result.values


def test_loss_step(tmp_path: Path):
    out = tmp_path / "step.json"
    text = run("loss_step.py", "--batch", 4, "--places", 300, "--dimension", 64, "--repeats", 1, "--out", out)
    found = values(out)
    for row in found["times"]:
        assert f"| {row['method']} |" in text and row["forward_ms"] > 0
        assert row["loss_difference"] is None or row["loss_difference"] < 1e-3
    assert {row["method"] for row in found["memory"]} > {row["method"] for row in found["times"]}


def test_kill_training(tmp_path: Path):
    """Three kills, whenever they come: every run ends with the weights and the metrics of the undisturbed one."""
    text = run("kill_training.py", "--kills", 3, "--folder", tmp_path, "--out", tmp_path / "kills.json")
    record = json.loads((tmp_path / "kills.json").read_text())
    assert sum(record["kills"].values()) == sum(result["kills"] for result in record["runs"]) == 3
    assert all(result["difference"] <= 1e-5 and result["same"] for result in record["runs"])
    assert "3 kills in" in text
    assert [path.name for path in tmp_path.iterdir()] == ["kills.json"]


def test_kill_artefacts(tmp_path: Path):
    """Some kills of every stage, whenever they come: nothing wrong is left, and the next command gives the undisturbed result."""
    run("kill_artefacts.py", "--kills", 2, "--folder", tmp_path, "--out", tmp_path / "kills.json")
    stages = values(tmp_path / "kills.json", aims=False)["stages"]
    assert set(stages) == {"session save", "bank build", "index build", "gallery build", "export"}
    assert all(stage["kills"] >= 2 and not stage["wrong"] for stage in stages.values())
    assert [path.name for path in tmp_path.iterdir()] == ["kills.json"]


def test_disk_faults(tmp_path: Path):
    run("disk_faults.py", "--stages", "session", "bank", "index", "gallery", "--folder", tmp_path, "--out", tmp_path / "disk.json")
    reasons = values(tmp_path / "disk.json", aims=False)["reasons"]
    assert set(reasons) == {"session save", "bank build", "index build", "gallery build"}
    for reason in reasons.values():
        assert reason["full disk"][0] >= 1 and "cannot be written" in reason["full disk"][1]
        assert "Permission denied" in reason["read-only folder"] and "another process" in reason["second at once"]


def test_alignment_memory(tmp_path: Path):
    text = run(
        "alignment_memory.py",
        "--images",
        400,
        6400,
        "--channels",
        16,
        "--dimension",
        24,
        "--folder",
        tmp_path,
        "--out",
        tmp_path / "a.json",
    )
    small, large = json.loads((tmp_path / "a.json").read_text())["results"]
    assert "| 6400 |" in text and large["files_mb"] == pytest.approx(16 * small["files_mb"], rel=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_training_images(tmp_path: Path):
    words = ("--images", 1, "--repeats", 1, "--batch", 1, "--query-network", "efficientnet_lite0_gem_64px")
    text = run("training_images.py", *words, "--out", tmp_path / "rates.json")
    record = json.loads((tmp_path / "rates.json").read_text())
    assert all(0 < rates["augmented"] < rates["decoded"] for rates in record["loaded"].values())
    assert all(value > 0 for value in record["trained"].values()) and "| 1920 x 1080 |" in text


def test_memory_bank(tmp_path: Path):
    text = run(
        "memory_bank.py", "--images", 100, 200, "--dimension", 64, "--queries", 50, "--repeats", 1, "--target", 400,
        "--folder", tmp_path, "--out", tmp_path / "bank.json",
    )  # fmt: skip
    found = values(tmp_path / "bank.json")
    assert [result["images"] for result in found["times"]] == [100, 200]
    for result in found["times"]:
        assert all(seconds > 0 for seconds in result["seconds"].values())
        name = "lists, FAISS flat"
        assert result["seconds"][name] == pytest.approx(result["runs_s"][name][0] * result["images"] / 50)
    assert [row["order"] for row in found["memory"]] == ["in order", "shuffled"] * 2
    assert "| lists, torch bfloat16 |" in text and "400 (extrapolated)" in text
    assert [path.name for path in tmp_path.iterdir()] == ["bank.json"]


def test_gallery_build(tmp_path: Path):
    run(
        "gallery_build.py",
        "--network",
        "efficientnet_lite0_gem",
        "--images",
        4,
        "--rounds",
        1,
        "--threads",
        1,
        "--out",
        tmp_path / "build.json",
    )
    assert set(values(tmp_path / "build.json")["seconds"]) == {"build", "bare"}


def test_node_load(tmp_path: Path):
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from tiny_artefacts import make_model, make_street

    gallery, model = make_street(tmp_path / "gallery"), make_model(tmp_path / "model")
    text = run(
        "node_load.py", "--gallery", gallery, "--model", model, "--seconds", 1, "--streams", 1, "--out", tmp_path / "load.json"
    )  # fmt: skip
    (row,) = values(tmp_path / "load.json")["streams"]
    assert "| 640x480 at 30 Hz | 30 |" in text and row["sent"] == 30
    assert row["sent"] >= row["received"] >= row["processed"] + row["dropped"] > 0 and row["failed"] == 0
    assert row["latency_ms_p95"] >= row["latency_ms_p50"] > 0


def test_long_run(tmp_path: Path):
    """Every fault at least once in half a minute: none ends the node, and every frame is counted."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    size = ("--width", 64, "--height", 48, "--keyframes", 20, "--network", "lcnet_035@16_gem_64px")
    run("long_run.py", "--minutes", 0.4, "--faster", 12, *size, "--out", tmp_path / "long.json", "--plots", tmp_path / "plots")
    found = values(tmp_path / "long.json")
    assert all(found["events"].values()) and found["refusals"] == [] and found["exit_code"] == 0
    last = found["rows"][-1]
    assert last["frames_processed"] > 0 and last["clock_resets"] > 0 and all(row["active"] for row in found["rows"])
    assert last["frames_received"] - sum(last[f"frames_{n}"] for n in ("processed", "dropped", "stale", "failed")) in (0, 1)
    assert len(list((tmp_path / "plots").glob("long_run_*.png"))) == 3


def test_town_trajectory(tmp_path: Path):
    """A lap over the very streets of the map: nearly every frame closes, and odometry differs with its seed."""
    pytest.importorskip("gtsam")
    text = run(
        "town_trajectory.py", "--folder", tmp_path, "--seeds", 0, "--epochs", 0, "--threads", 1, "--drift-seeds", 1, 2,
        "--matcher", "sequence=off", "score_threshold=0.2", "--out", tmp_path / "town.json",
        "--town", "columns=2", "rows=2", "street_spacing_m=45", "mapping_route=A1 B1 B2", "live_route=A1 B1 B2", "lookalike_streets=0",
        "image_width=96", "image_height=72", "max_frames=30", "processes=1",
    )  # fmt: skip
    first, second = json.loads((tmp_path / "town.json").read_text())["results"]
    for result in (first, second):
        assert result["n_frames"] == result["n_opportunities"] == result["n_closures"] == 30
        assert result["recall"] == 1 - result["n_false"] / 30 == 1 - len(result["false_pairs"]) / 30
        assert result["graph"]["closures_to_map"] + result["graph"]["closures_redundant"] == 30
        assert all(pair["distance_m"] > 10 or pair["yaw_deg"] > 45 for pair in result["false_pairs"])
    assert first["odometry"]["rmse_m"] != second["odometry"]["rmse_m"]
    assert "| 0, drift 2 | sequence=off score_threshold=0.2 | 30 |" in text


def test_encode(tmp_path: Path):
    light, heavy = "lcnet_035@16_gem_64px", "lcnet_035@16_gem_96px"
    text = run("encode.py", "--networks", light, "--reference", heavy, "--rounds", 2, "--out", tmp_path / "encode.json")
    record = values(tmp_path / "encode.json", aims=False)
    rows = {(row["network"], row["runtime"], row["precision"]): row for row in record["rows"]}
    assert {
        (heavy, "eager torch", "fp32"),
        (heavy, "onnxruntime", "fp32"),
        (light, "onnxruntime", "fp32"),
        (light, "onnxruntime", "int8"),
    } <= set(rows)
    assert rows[heavy, "eager torch", "fp32"]["ratio_to_eager"] == rows[heavy, "onnxruntime", "fp32"]["ratio_to_onnxruntime"] == 1
    for row in record["rows"]:
        assert row["rounds"] == 2 == len(row["latency_ms_all"]) and row["quartiles_ms"][0] <= row["latency_ms"] <= row["quartiles_ms"][1]
        assert row["precision"] != "fp32" or row["cosine_to_torch"] > 0.9999
        assert f"| `{row['network']}` | {row['runtime']} | {row['precision']} |" in text


def test_preprocess(tmp_path: Path):
    text = run("preprocess.py", "--rounds", 1, "--out", tmp_path / "preprocess.json")
    rows = values(tmp_path / "preprocess.json", aims=False)["rows"]
    assert {row["camera"] for row in rows} == {"640 x 480", "1280 x 720", "1920 x 1080"}
    assert {row["step"] for row in rows if row["on_the_robot"]} == {"decode JPEG", "resize (OpenCV, area)", "normalise in the graph"}
    assert all(row["processor_ms"] >= 0 and f"| {row['camera']} | {row['step']}" in text for row in rows)


def test_choice_of_the_losses_settings(tmp_path: Path):
    """30 positions 10 m apart: the 9 eastern ones are searched, the 17 at least 50 m west of them are trained on."""
    images = make_folder(tmp_path / "images", places=30, looks=1)
    common = {"query_network": "efficientnet_lite0_gem_64px", "epochs": 1, "batch_size": 8, "cached_views": 1, "alignment_copies": 0}
    text = run("compare_losses.py", images, "--out", tmp_path / "out", "--losses", "regression", "--common", json.dumps(common))
    assert text.startswith("Images: 17 training, 6 database, 3 queries; seed 0.")
    trials = json.loads((tmp_path / "out" / "trials.json").read_text())["trials"]
    assert [trial["name"] for trial in trials] == ["aligned", *[f"regression-{number}" for number in range(7)]]
    best = max(trials[1:], key=lambda trial: trial["score"])  # the first of equal ones
    chosen = yaml.safe_load((tmp_path / "out" / "chosen.yaml").read_text())
    assert chosen["comparison"]["overrides"]["regression"] == best["changes"]
    assert chosen["train"]["query_network"] == common["query_network"] and chosen["train"]["validation_share"] == 0.0
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").iterdir()}
    run("compare_losses.py", images, "--out", tmp_path / "out", "--losses", "regression", "--common", json.dumps(common))
    assert kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").iterdir()}


def test_search(tmp_path: Path):
    run("search.py", "--rows", 400, "--dimension", 64, "--kinds", "exact", "sq8", "--rounds", 1, "--out", tmp_path / "search.json")
    (result,) = values(tmp_path / "search.json", aims=False)["results"]
    assert result["found"]["exact"]["recall_at_10"] == result["found"]["flat float32, FAISS alone"]["recall_at_10"] == 1
    assert result["found"]["sq8"]["recall_at_10"] > 0.9 and set(result["found"]) < set(result["seconds"])


def test_gallery_size(tmp_path: Path):
    run("gallery_size.py", "--rows", 50, 100, "--dimension", 64, "--queries", 3, "--out", tmp_path / "size.json")
    assert [row["rows"] for row in values(tmp_path / "size.json", aims=False)["results"]["64"]] == [50, 100]


def test_frame_and_robot_cost(tmp_path: Path):
    network = "lcnet_035@16_gem_64px"
    run("frame.py", "--network", network, "--dimension", 32, "--keyframes", 50, "--rounds", 2, "--out", tmp_path / "frame.json")
    found = values(tmp_path / "frame.json")
    assert set(found["core_seconds"]) > {"bare encoder, input ready", "raw frame to match", "JPEG to match"}
    options = ("--networks", f"{network}:32", "--keyframes", 50, "--rates", 5, "--seconds", 1)
    run("robot_cost.py", *options, "--without-node", "--out", tmp_path / "cost.json")
    results = values(tmp_path / "cost.json", aims=False)["results"]
    assert all(result["frames"] >= 5 and result["memory_mb"] > 20 for result in results.values()) and len(results) == 2
