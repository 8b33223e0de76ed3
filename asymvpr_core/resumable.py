"""A stage that can be killed and continued: what it has done lies in `<out>.partial`.

`build_resumably` makes a new artefact, `replace_resumably` puts another in the place of a finished one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from asymvpr_core.errors import ArtefactError
from asymvpr_core.folder_exchange import check_exchange, exchange_folders
from asymvpr_core.manifest import MANIFEST_NAME, sha256_of, write_atomically, write_text_atomically
from asymvpr_core.work_folder import FINGERPRINT, LOCK, REPLACED, STAGING, flush_folder, locked, remove_work, result_folder, unwritable


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
    work = _work_of(out)
    with result_folder(out, work, worth_keeping=_holds_pieces) as staging:
        _check_fingerprint(work, json.loads(json.dumps(fingerprint)))
        build(work, staging)
    return out


def replace_resumably(out: Path, fingerprint: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
    """As `build_resumably`, for an artefact `out` that exists: the staging folder takes its place in one step; returns `out`.

    Whoever opens `out` finds the old artefact or the new one, at every moment. What a process has open of the old
    one stays readable to it.

    Raises:
        ArtefactError: as `build_resumably`; or the file system cannot exchange two folders, which is told before the work.
    """
    out = Path(out)
    work = _work_of(out)
    clear_replaced(out)

    def exchange(staging: Path) -> None:
        flush_folder(staging)
        # By this a later run knows, after a kill, that the staging folder holds what was replaced.
        write_text_atomically(work / REPLACED, sha256_of(staging / MANIFEST_NAME))
        exchange_folders(staging, out)

    with result_folder(out, work, worth_keeping=_holds_pieces, replace=exchange) as staging:
        _check_fingerprint(work, json.loads(json.dumps(fingerprint)))
        check_exchange(work, out)
        build(work, staging)
    return out


def clear_replaced(out: Path) -> None:
    """Remove the work folder of a `replace_resumably` that was killed after the artefact had been replaced.

    Raises:
        ArtefactError: another process works there, or it cannot be removed.
    """
    work = _work_of(Path(out))
    marker = work / REPLACED
    try:
        if not marker.is_file():
            return
        with locked(work):
            if marker.read_text(encoding="utf-8") == sha256_of(Path(out) / MANIFEST_NAME):
                remove_work(work)
            else:
                marker.unlink()
    except OSError as error:
        raise unwritable(work, error) from error


def _work_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def save_piece(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file of the work folder so that it exists only when it is whole, also after a power cut."""
    write_atomically(path, write)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a finished file a second name, so that a kill before the end loses neither; a copy where there are no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check_fingerprint(work: Path, mine: dict[str, Any]) -> None:
    record = work / FINGERPRINT
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
    """Whether a second run could use anything of the work folder: bookkeeping, staging and half-written files are no work."""
    paths = [path for entry in work.iterdir() if entry.name != STAGING for path in (entry, *entry.rglob("*"))]
    names = [path.name for path in paths if path.is_file()]
    return any(name not in (FINGERPRINT, REPLACED, LOCK) and not (name.startswith(".") and name.endswith(".partial")) for name in names)
