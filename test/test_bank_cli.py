"""`asymvpr bank`: what the commands write and print, and what they refuse in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from descriptor_gallery import make_gallery, unit_rows
from test_cli import misused, refused, run

from asymvpr_core.memory.neighbours import NeighbourLists
from asymvpr_core.memory.store import StoredBank


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    return make_gallery(tmp_path / "gallery", unit_rows(30, 8), np.arange(30) // 3)


def test_build_prints_what_info_prints(gallery: Path, tmp_path: Path):
    code, text, _ = run("bank", "build", gallery, "--rank", 2, "--dtype", "float16", "--out", tmp_path / "bank")
    assert code == 0
    assert "places       10, 0 of them with one image" in text
    assert "covariance   diagonal + rank 2, 20 factors" in text
    assert "with gamma 15, temperature 0.05" in text
    assert run("bank", "info", tmp_path / "bank")[1] == text
    assert StoredBank.open(tmp_path / "bank").bank.centroids.dtype == np.float16


def test_settings_come_from_flag_then_file(gallery: Path, tmp_path: Path):
    config = tmp_path / "settings.yaml"
    config.write_text("bank: {rank: 1, cells: {cell_size_m: 9.0, heading_sectors: 2}}\nneighbours: {k: 3}\n")
    run("bank", "build", gallery, "--config", config, "--cell-size-m", 4, "--out", tmp_path / "bank")
    settings = StoredBank.open(tmp_path / "bank").manifest.settings
    assert settings["rank"] == 1 and settings["cells"] == {"cell_size_m": 4.0, "heading_sectors": 2}
    run("bank", "neighbours", gallery, "--config", config, "--threads", 1, "--out", tmp_path / "lists")
    assert NeighbourLists.open(tmp_path / "lists").neighbours.shape == (30, 3)


def test_a_bank_without_variances_says_so(tmp_path: Path):
    single = make_gallery(tmp_path / "single", unit_rows(4, 8), np.arange(4))
    assert "spread       none: no place has two images" in run("bank", "build", single, "--out", tmp_path / "bank")[1]


def test_known_errors_are_one_line(gallery: Path, tmp_path: Path):
    assert "there is no bank folder" in refused("bank", "info", tmp_path / "nothing")
    assert "is a gallery; expected a bank" in refused("bank", "info", gallery)
    assert "there is no gallery folder" in refused("bank", "build", tmp_path / "nothing", "--out", tmp_path / "bank")
    assert "'cell_size_m' is -1.0" in refused("bank", "build", gallery, "--cell-size-m", -1, "--out", tmp_path / "bank")
    assert "'rank' is -1" in refused("bank", "build", gallery, "--rank", -1, "--out", tmp_path / "bank")
    assert "k is 31; expected at most the 30 images" in refused("bank", "neighbours", gallery, "--k", 31, "--out", tmp_path / "lists")
    one = make_gallery(tmp_path / "one", unit_rows(4, 8), np.zeros(4, np.int64))
    assert "one place in all" in refused("bank", "build", one, "--out", tmp_path / "bank")
    assert "Missing option '--out'" in misused("bank", "build", gallery)
