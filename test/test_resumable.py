"""The work folder of a stage that can be killed: what is kept, what is not, and whose it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from asymvpr_core.errors import ArtefactError
from asymvpr_core.resumable import build_resumably, save_piece


def finish(work: Path, staging: Path) -> None:
    (staging / "result").write_text("whole")


def fail_at_once(work: Path, staging: Path) -> None:
    (staging / "half").write_text("x")
    raise ArtefactError("the first image is damaged")


def fail_after_a_piece(work: Path, staging: Path) -> None:
    save_piece(work / "piece", lambda file: file.write(b"work"))
    raise ArtefactError("the second image is damaged")


def test_a_failure_that_left_no_work_leaves_no_folder(tmp_path: Path):
    with pytest.raises(ArtefactError, match="first image"):
        build_resumably(tmp_path / "out", {"settings": 1}, fail_at_once)
    assert list(tmp_path.iterdir()) == []


def test_work_is_kept_for_the_same_command_only(tmp_path: Path):
    with pytest.raises(ArtefactError, match="second image"):
        build_resumably(tmp_path / "out", {"settings": 1}, fail_after_a_piece)
    with pytest.raises(ArtefactError, match="differed in settings"):
        build_resumably(tmp_path / "out", {"settings": 2}, finish)
    found = []
    build_resumably(tmp_path / "out", {"settings": 1}, lambda work, staging: found.append((work / "piece").read_bytes()))
    assert found == [b"work"]


def test_a_killed_command_that_left_no_work_binds_nobody(tmp_path: Path):
    (tmp_path / "out.partial" / "staging").mkdir(parents=True)
    (tmp_path / "out.partial" / "staging" / "half").write_text("x")
    (tmp_path / "out.partial" / "fingerprint.json").write_text('{"settings": 1}')
    (tmp_path / "out.partial" / "lock").touch()
    build_resumably(tmp_path / "out", {"settings": 2}, finish)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "result"]


def test_a_folder_of_the_user_is_left_alone(tmp_path: Path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ArtefactError, match="exists and is no remains of a command"):
        build_resumably(tmp_path / "out", {}, finish)
    assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["photo.jpg"]


def test_a_damaged_record_is_one_clear_error(tmp_path: Path):
    with pytest.raises(ArtefactError, match="second image"):
        build_resumably(tmp_path / "out", {}, fail_after_a_piece)
    (tmp_path / "out.partial" / "fingerprint.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"fingerprint\.json is damaged; remove"):
        build_resumably(tmp_path / "out", {}, finish)


HOLDER = """
import os, sys, time
from pathlib import Path
from asymvpr_core.resumable import build_resumably
def build(work, staging):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
build_resumably(Path(sys.argv[1]), {}, build)
"""


def test_one_process_at_a_time_and_a_killed_one_frees_the_folder_at_once(tmp_path: Path):
    """A loading process of a killed training lives on for seconds; it must not hold the lock."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(ArtefactError, match="in use by another process"):
            build_resumably(tmp_path / "out", {}, finish)
        holder.kill()
        holder.wait()
        build_resumably(tmp_path / "out", {}, finish)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        os.kill(child, signal.SIGKILL)
    assert (tmp_path / "out" / "result").read_text() == "whole"
