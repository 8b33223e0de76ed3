"""Which image files are the same, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from asymvpr_core.progress import Progress, silent


def identical_files(paths: Sequence[Path], progress: Progress = silent) -> list[list[int]]:
    """Groups of two and more indices of `paths` whose files hold the same bytes, ascending; unreadable files are in none.

    Only files of equal size are read.
    """
    by_size = _grouped((i, _size(path)) for i, path in enumerate(paths))
    candidates = [i for group in by_size for i in group]
    digests = ((i, _digest(paths[i])) for i in progress(candidates, "comparing files", total=len(candidates)))
    return sorted(_grouped(digests))


def _grouped(keyed: Iterable[tuple[int, object]]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for index, key in keyed:
        if key is not None:
            groups.setdefault(key, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None
