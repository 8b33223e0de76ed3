"""The benchmarks run: on sizes that say nothing, so that they still work when somebody needs their numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from asymvpr_core.bench.results import read_result

pytestmark = pytest.mark.slow


def run(script: str, *words: object) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def values(out: Path) -> dict[str, Any]:
    """What a benchmark wrote; whatever it is, it says with what it was made and its tables are whole."""
    result = read_result(out)
    assert result.made_with["commit"] and result.made_with["cores"] and result.made_with["versions"]["numpy"]
    assert all(len(row) == len(table.columns) for table in result.tables for row in table.rows)
    assert result.aims, "a benchmark without an aim"
    return result.values


def test_loss_step(tmp_path: Path):
    out = tmp_path / "step.json"
    text = run("loss_step.py", "--batch", 4, "--places", 300, "--dimension", 64, "--repeats", 1, "--out", out)
    found = values(out)
    for row in found["times"]:
        assert f"| {row['method']} |" in text and row["forward_ms"] > 0
        assert row["loss_difference"] is None or row["loss_difference"] < 1e-3
    assert {row["method"] for row in found["memory"]} > {row["method"] for row in found["times"]}


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


def test_preprocess(tmp_path: Path):
    run("preprocess.py", "--rounds", 2, "--out", tmp_path / "preprocess.json")
    assert all(len(seconds) == 2 for found in values(tmp_path / "preprocess.json")["seconds"].values() for seconds in found.values())
