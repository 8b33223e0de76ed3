"""The work folder of a stage that can be killed and continued: `<out>.partial`, one process at a time.

`build_resumably` makes a new artefact, `replace_resumably` puts another in the place of a finished one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from asymvpr_core.errors import ArtefactError
from asymvpr_core.folder_exchange import check_exchange, exchange_folders
from asymvpr_core.manifest import (
    MANIFEST_NAME,
    finish_folder,
    flush_folder,
    refuse_existing,
    sha256_of,
    unwritable,
    write_atomically,
    write_text_atomically,
)

_FINGERPRINT, _LOCK, _STAGING, _REPLACED = "fingerprint.json", "lock", "staging", "replaced"
_BOOKKEEPING = {_FINGERPRINT, f".{_FINGERPRINT}.partial", _LOCK, _REPLACED, f".{_REPLACED}.partial"}


def build_resumably(out: Path, fingerprint: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
    """Run `build(work, staging)` and give its staging folder the name `out`, atomically; returns `out`.

    `build` may find in `work` what an earlier, killed run of the same command left there; `staging`
    is empty. The work folder is removed when the artefact is complete, and when `build` fails before
    it has put anything there that a second run could use; otherwise it is kept.

    Args:
        out: the artefact's final folder; must not exist, or be empty.
        fingerprint: everything that must be equal for the work of a killed run to be used again; JSON values.

    Raises:
        ArtefactError: `out` exists, cannot be written, is in use by another process, or its work
            folder is the user's own or belongs to a command with another fingerprint.
    """
    out = Path(out)
    refuse_existing(out)

    def finish(work: Path, staging: Path) -> None:
        if out.is_dir():
            out.rmdir()  # an empty folder that the user made
        finish_folder(staging, out)

    return _run(out, fingerprint, build, finish)


def replace_resumably(out: Path, fingerprint: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
    """As `build_resumably`, for an artefact `out` that exists: the staging folder takes its place in one step; returns `out`.

    Whoever opens `out` finds the old artefact or the new one, at every moment. What a process has open of the old
    one stays readable to it.

    Raises:
        ArtefactError: as `build_resumably`; or the file system cannot exchange two folders, which is told before the work.
    """
    out = Path(out)
    clear_replaced(out)

    def checked(work: Path, staging: Path) -> None:
        check_exchange(work, out)
        build(work, staging)

    def finish(work: Path, staging: Path) -> None:
        flush_folder(staging)
        # By this a later run knows, after a kill, that the staging folder holds what was replaced.
        write_text_atomically(work / _REPLACED, sha256_of(staging / MANIFEST_NAME))
        exchange_folders(staging, out)

    return _run(out, fingerprint, checked, finish)


def clear_replaced(out: Path) -> None:
    """Remove the work folder of a `replace_resumably` that was killed after the artefact had been replaced.

    Raises:
        ArtefactError: another process works there, or it cannot be removed.
    """
    work = _work_of(Path(out))
    marker = work / _REPLACED
    try:
        if not marker.is_file():
            return
        with open(work / _LOCK, "w") as lock:
            _lock(lock.fileno(), work)
            if marker.read_text(encoding="utf-8") == sha256_of(Path(out) / MANIFEST_NAME):
                _remove(work)
            else:
                marker.unlink()
    except OSError as error:
        raise unwritable(work, error) from error


def _remove(work: Path) -> None:
    """Remove a work folder, what says whose it is last, so that a kill in the middle does not leave remains of nobody."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _BOOKKEEPING:
            path.unlink()
    shutil.rmtree(work)


def _work_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _run(
    out: Path, fingerprint: dict[str, Any], build: Callable[[Path, Path], None], finish: Callable[[Path, Path], None]
) -> Path:  # fmt: skip
    work = _work_of(out)
    staging = work / _STAGING
    try:
        if work.exists() and not (work / _FINGERPRINT).exists() and _holds_pieces(work):
            raise ArtefactError(f"{work} exists and is no remains of a command", remedy="give another --out, or move that folder away")
        work.mkdir(parents=True, exist_ok=True)
        with open(work / _LOCK, "w") as lock:
            _lock(lock.fileno(), work)
            _check_fingerprint(work, json.loads(json.dumps(fingerprint)))
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                build(work, staging)
            except BaseException:
                if not _holds_pieces(work):
                    shutil.rmtree(work)
                raise
            finish(work, staging)
            _remove(work)
    except OSError as error:
        raise unwritable(out, error) from error
    return out


def save_piece(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file of the work folder so that it exists only when it is whole, also after a power cut."""
    write_atomically(path, write)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a finished file a second name, so that a kill before the end loses neither; a copy where there are no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _lock(descriptor: int, work: Path) -> None:
    try:
        # Not flock: a loading process that outlives a killed training by some seconds would inherit its lock.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # which of them depends on the system
        raise ArtefactError(f"{work} is in use by another process", remedy="wait for it, or give another --out") from error


def _check_fingerprint(work: Path, mine: dict[str, Any]) -> None:
    record = work / _FINGERPRINT
    if record.exists() and _holds_pieces(work):
        try:
            theirs = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtefactError(f"{record} is damaged", remedy=f"remove {work} to start anew") from error
        different = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        if different:
            raise ArtefactError(
                f"{work} is what remains of a command that differed in {', '.join(different)}",
                expected="the command that was stopped",
                remedy=f"repeat that command, or remove {work} to start anew",
            )
    else:
        write_text_atomically(record, json.dumps(mine, indent=2) + "\n")


def _holds_pieces(work: Path) -> bool:
    """Whether a second run could use anything of the work folder: its own bookkeeping and the staging folder are no work."""
    paths = [path for entry in work.iterdir() if entry.name != _STAGING for path in (entry, *entry.rglob("*"))]
    return any(path.is_file() and path.name not in _BOOKKEEPING for path in paths)
