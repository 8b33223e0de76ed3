"""The benchmarks run: on sizes that say nothing, so that they still work when somebody needs their numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow


def run(script: str, *words: object) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_loss_step(tmp_path: Path):
    text = run("loss_step.py", "--batch", 4, "--places", 300, "--dimension", 64, "--repeats", 1, "--out", tmp_path / "step.json")
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["commit"] and record["cores"] and record["versions"]["torch"]
    for row in record["times"]:
        assert f"| {row['method']} |" in text and row["forward_ms"] > 0
        assert row["loss_difference"] is None or row["loss_difference"] < 1e-3
    assert {row["method"] for row in record["memory"]} > {row["method"] for row in record["times"]}


def test_kill_training(tmp_path: Path):
    """Three kills, whenever they come: every run ends with the weights and the metrics of the undisturbed one."""
    text = run("kill_training.py", "--kills", 3, "--folder", tmp_path, "--out", tmp_path / "kills.json")
    record = json.loads((tmp_path / "kills.json").read_text())
    assert sum(record["kills"].values()) == sum(result["kills"] for result in record["runs"]) == 3
    assert all(result["difference"] <= 1e-5 and result["same"] for result in record["runs"])
    assert "3 kills in" in text
    assert [path.name for path in tmp_path.iterdir()] == ["kills.json"]


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
    record = json.loads((tmp_path / "bank.json").read_text())
    assert [result["images"] for result in record["times"]] == [100, 200]
    for result in record["times"]:
        assert all(seconds > 0 for seconds in result["seconds"].values())
        name = "lists, FAISS flat"
        assert result["seconds"][name] == pytest.approx(result["runs_s"][name][0] * result["images"] / 50)
    assert [row["order"] for row in record["memory"]] == ["in order", "shuffled"] * 2
    assert "| lists, torch bfloat16 |" in text and "400 (extrapolated)" in text
    assert [path.name for path in tmp_path.iterdir()] == ["bank.json"]
