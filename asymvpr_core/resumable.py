"""The work folder of a stage that can be killed and continued: `<out>.partial`, one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from asymvpr_core.errors import ArtefactError
from asymvpr_core.manifest import finish_folder, refuse_existing, unwritable, write_text_atomically


def build_resumably(out: Path, fingerprint: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
    """Run `build(work, staging)` and give its staging folder the name `out`, atomically; returns `out`.

    `build` may find in `work` what an earlier, killed run of the same command left there; `staging`
    is empty. The work folder is removed when the artefact is complete and kept when anything fails.

    Args:
        out: the artefact's final folder; must not exist, or be empty.
        fingerprint: everything that must be equal for the work of a killed run to be used again; JSON values.

    Raises:
        ArtefactError: `out` exists, cannot be written, is in use by another process, or its work
            folder belongs to a command with another fingerprint.
    """
    out = Path(out)
    refuse_existing(out)
    work = out.with_name(out.name + ".partial")
    staging = work / "staging"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            _lock(lock.fileno(), work)
            _check_fingerprint(work, json.loads(json.dumps(fingerprint)))
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            build(work, staging)
            if out.is_dir():
                out.rmdir()  # an empty folder that the user made
            finish_folder(staging, out)
            shutil.rmtree(work)
    except OSError as error:
        raise unwritable(out, error) from error
    return out


def save_piece(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file of the work folder so that it exists only when it is whole, also after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _lock(descriptor: int, work: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ArtefactError(f"{work} is in use by another process", remedy="wait for it, or give another --out") from error


def _check_fingerprint(work: Path, mine: dict[str, Any]) -> None:
    record = work / "fingerprint.json"
    if record.exists():
        theirs = json.loads(record.read_text(encoding="utf-8"))
        different = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        if different:
            raise ArtefactError(
                f"{work} is what remains of a command that differed in {', '.join(different)}",
                expected="the command that was stopped",
                remedy=f"repeat that command, or remove {work} to start anew",
            )
    else:
        write_text_atomically(record, json.dumps(mine, indent=2) + "\n")
