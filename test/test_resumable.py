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
from asymvpr_core.manifest import new_folder
from asymvpr_core.resumable import build_resumably, save_piece

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from killing import count_operations, killed_before


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


def make_in_one_go(out: Path) -> None:
    with new_folder(out) as folder:
        (folder / "inner").mkdir()
        for name in ("result", "inner/result"):
            (folder / name).write_text("whole")


def make_resumably(out: Path) -> None:
    def build(work: Path, staging: Path) -> None:
        for name in ("first", "second"):
            if not (work / "pieces" / name).exists():
                (work / "pieces").mkdir(exist_ok=True)
                save_piece(work / "pieces" / name, lambda file: file.write(b"work"))
        (staging / "inner").mkdir()
        for name in ("result", "inner/result"):
            (staging / name).write_text("whole")

    build_resumably(out, {"settings": 1}, build)


@pytest.mark.parametrize("make", [make_in_one_go, make_resumably])
def test_a_kill_before_any_file_operation_leaves_nothing_or_the_whole(tmp_path: Path, make):
    """At each of them: no half result, the next command gives the whole one or says that it exists, and nothing else remains."""
    (tmp_path / "undisturbed").mkdir()
    operations = count_operations(lambda: make(tmp_path / "undisturbed" / "out"), tmp_path / "undisturbed")
    assert operations >= 9
    there = 0
    for operation in range(1, operations + 1):
        out = tmp_path / str(operation) / "out"
        out.parent.mkdir()
        assert killed_before(lambda out=out: make(out), out.parent, operation)
        if out.exists():
            there += 1
            with pytest.raises(ArtefactError, match="out exists already"):
                make(out)
        else:
            make(out)
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == ["inner", "inner/result", "result"]
        assert {path.read_text() for path in out.rglob("result")} == {"whole"}
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert 0 < there < operations


def test_work_beside_a_folder_that_came_from_elsewhere_is_kept(tmp_path: Path):
    with pytest.raises(ArtefactError, match="second image"):
        build_resumably(tmp_path / "out", {"settings": 1}, fail_after_a_piece)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ArtefactError, match="exists already"):
        build_resumably(tmp_path / "out", {"settings": 1}, finish)
    assert (tmp_path / "out.partial" / "piece").read_bytes() == b"work"


def test_two_threads_do_not_make_one_result(tmp_path: Path):
    """The system's lock belongs to the process: a second thread of it would be let in."""
    with new_folder(tmp_path / "out") as folder:
        (folder / "result").write_text("whole")
        with pytest.raises(ArtefactError, match=r"\.out\.partial is in use by another process; wait for it"), new_folder(tmp_path / "out"):
            pytest.fail("the block must not run")
        (folder / "more").write_text("whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["more", "result"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_result_that_appears_meanwhile_is_not_overwritten(tmp_path: Path):
    with pytest.raises(ArtefactError, match="out cannot be written: Directory not empty"), new_folder(tmp_path / "out") as folder:
        (folder / "result").write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "photo.jpg").write_bytes(b"theirs")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "photo.jpg"]


def test_a_hidden_folder_of_the_user_is_left_alone(tmp_path: Path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ArtefactError, match="exists and is no remains of a command"), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.rglob("*")] == [".out.partial", "photo.jpg"]
