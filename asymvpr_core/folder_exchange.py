"""Two folders exchange their names in one step, so that a reader finds one or the other at every moment."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from asymvpr_core.errors import ArtefactError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


def exchange_folders(a: Path, b: Path, *, named: Path | None = None) -> None:
    """Give each of two folders of one file system the name of the other: `renameat2(2)` with RENAME_EXCHANGE.

    Python has no call for it, and two renames would leave a moment without any folder of that name.

    Args:
        named: the artefact that an error names; None: `b`.

    Raises:
        ArtefactError: this system or file system cannot do it (not Linux, some network file systems).
        OSError: missing, or no permission.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        raise _impossible(named or b, "this system has no call for it")
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
            raise _impossible(named or b, f"its file system refuses: {os.strerror(number)}")
        raise OSError(number, os.strerror(number), str(b))


def check_exchange(folder: Path, artefact: Path) -> None:
    """Try it on two empty folders in `folder`, for the sake of `artefact`. Raises as `exchange_folders`."""
    pair = [folder / f".exchange-{name}-{os.getpid()}" for name in ("a", "b")]
    try:
        for one in pair:
            one.mkdir()
        exchange_folders(*pair, named=artefact)
    finally:
        for one in pair:
            if one.is_dir():
                one.rmdir()


def _impossible(path: Path, reason: str) -> ArtefactError:
    return ArtefactError(
        f"the artefact at {path} cannot be replaced in one step: {reason}", expected="Linux, and a file system that exchanges folders",
        remedy="write the result to a new folder with --out",
    )  # fmt: skip
