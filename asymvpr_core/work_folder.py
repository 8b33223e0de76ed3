"""The folder beside a result in which it is made: one process at a time, and no remains that nobody removes.

`work` holds a lock file, `staging`, which becomes the result by one rename, and whatever a stage keeps to continue
from. A process that is killed leaves it behind; the next command for the same result continues from it or clears it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asymvpr_core.errors import ArtefactError

LOCK, STAGING = "lock", "staging"
FINGERPRINT, REPLACED = "fingerprint.json", "replaced"  # what `resumable` writes down there
_held: set[Path] = set()  # the system's lock keeps out other processes, not another thread of this one
_held_guard = threading.Lock()


@contextmanager
def result_folder(
    final: Path, work: Path, *, worth_keeping: Callable[[Path], bool], replace: Callable[[Path], None] | None = None
) -> Iterator[Path]:  # fmt: skip
    """Give `work/staging`, empty, and name it `final` when the block succeeds; then `work` is removed.

    Args:
        worth_keeping: whether a later command could use what `work` holds; asked when the block fails. What is not
            worth keeping is removed.
        replace: puts the staging folder in the place of a `final` that exists; None: `final` is new.

    Raises:
        ArtefactError: `final` exists, cannot be written, or another process is making it; `work` is the user's own.
    """
    final, work = Path(final), Path(work)
    staging = work / STAGING
    try:
        if replace is None:
            _refuse_existing(final, work, worth_keeping)
        with locked(work):
            try:
                if replace is None:
                    refuse_existing(final)  # it may have come while the lock was not ours
                staging.mkdir(exist_ok=True)  # never missing before the end: without it, the result has its name
                for entry in staging.iterdir():
                    _remove(entry)
                yield staging
                if replace is None:
                    finish_folder(staging, final)
                else:
                    replace(staging)
            except BaseException:
                if not worth_keeping(work):
                    remove_work(work)
                raise
            remove_work(work)
    except OSError as error:
        raise unwritable(final, error) from error


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Make the folder `work`, or take over a killed process's, and keep everybody else out until the block ends.

    Raises:
        ArtefactError: in use, or a folder of the user's own: it holds something and no lock.
        OSError: it cannot be written.
    """
    if work.exists() and not (work / LOCK).exists() and (not work.is_dir() or any(work.iterdir())):
        raise ArtefactError(f"{work} exists and is no remains of a command", remedy="give another --out, or move that folder away")
    key = work.absolute()
    with _held_guard:
        if key in _held:
            raise _in_use(work)
        _held.add(key)
    try:
        with _lock(work):
            yield
    finally:
        with _held_guard:
            _held.remove(key)


def remove_work(work: Path) -> None:
    """Remove a work folder, by the process that has it locked; what says whose it is goes last: a kill leaves no remains of nobody."""
    order = [None, FINGERPRINT, REPLACED]
    entries = [entry for entry in work.iterdir() if entry.name != LOCK]
    for entry in sorted(entries, key=lambda entry: (not entry.is_dir(), order.index(entry.name) if entry.name in order else 0)):
        _remove(entry)
    (work / LOCK).unlink()
    with suppress(OSError):  # another process has just put its own lock there
        work.rmdir()


def finish_folder(staging: Path, final: Path) -> None:
    """Flush a complete staging folder to disk and give it its final name, atomically."""
    flush_folder(staging)
    os.rename(staging, final)


def flush_folder(staging: Path) -> None:
    """Flush all files below a folder to disk."""
    for path in staging.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def refuse_existing(final: Path) -> None:
    """Raise ArtefactError when `final` exists and is not an empty folder, or has a name that cannot be written down."""
    refuse_undecodable(final)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ArtefactError(f"{final} exists already", remedy="give another --out, or remove it first")


def refuse_undecodable(path: Path) -> None:
    """Raise ArtefactError when `path` is no UTF-8: neither JSON nor the C++ libraries that read artefacts can name it."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise ArtefactError(f"the path {str(path)!a} is not UTF-8", remedy="rename the folder") from error


def unwritable(path: Path, error: OSError, remedy: str = "free space or give another --out") -> ArtefactError:
    """The one-line error for a file or folder that cannot be written (permissions, disk full, …)."""
    reason = error.strerror or f"incomplete write ({error})"  # numpy counts bytes where the disk is full
    return ArtefactError(f"{path} cannot be written: {reason}", remedy=remedy)


def _refuse_existing(final: Path, work: Path, worth_keeping: Callable[[Path], bool]) -> None:
    """`refuse_existing`; where `work` is what a process left that was killed after the result had its name, it goes first."""
    try:
        refuse_existing(final)
    except ArtefactError:
        if work.is_dir():
            with suppress(ArtefactError, OSError), locked(work):  # in use, or not ours to remove: what is said below is the reason
                if not (work / STAGING).exists() or not worth_keeping(work):
                    remove_work(work)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _lock(work: Path) -> Iterator[None]:
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            file = open(work / LOCK, "a")  # noqa: SIM115 - closed below, also where it turns out to be removed
        except FileNotFoundError:
            continue  # whoever had it before has just removed the folder
        with file:
            try:
                # Not flock: a loading process that outlives a killed training by some seconds would inherit its lock.
                fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:  # which of them depends on the system
                raise _in_use(work) from error
            if _is_file(file.fileno(), work / LOCK):
                yield
                return


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name: the lock of a folder that was removed meanwhile keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _in_use(work: Path) -> ArtefactError:
    return ArtefactError(f"{work} is in use by another process", remedy="wait for it, or give another --out")
