"""Damage done to the files of an artefact, one at a time, and what its readers make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from asymvpr_core.errors import AsymvprError

HARMLESS = "harmless"


def damages(path: Path, other: Path | None) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of every way to damage a file; None where it is gone. `other` is the same file of another artefact."""
    whole = path.read_bytes()
    for position in sorted({0, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        yield f"flipped at {position}", whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
    yield "one byte short", whole[:-1]
    yield "half", whole[: len(whole) // 2]
    yield "one byte more", whole + b"\0"
    yield "emptied", b""
    yield "missing", None
    if other is not None:
        assert other.read_bytes() != whole, f"{other} has nothing that could be swapped"
        yield "swapped", other.read_bytes()
    if path.suffix == ".json" and isinstance(content := json.loads(whole), dict) and isinstance(content.get("format_version"), int):
        yield "newer format", json.dumps(content | {"format_version": 99, "from_the_future": True}).encode()


def outcomes(artefact: Path, use: Callable[[Path], object], other: Path | None = None) -> dict[tuple[str, str], str]:
    """What `use` makes of every damage of every file below `artefact`, by file and damage.

    The message where it refuses; `HARMLESS` where it gives what it gives for the whole artefact; "WRONG: …" where it gives
    anything else. An error that is none of asymvpr's own goes through. The files are as before in the end.
    """
    right, found = use(artefact), {}
    for path in sorted(artefact.rglob("*")):
        if not path.is_file():
            continue
        name, whole = path.relative_to(artefact).as_posix(), path.read_bytes()
        for damage, content in damages(path, None if other is None else counterpart(other, name)):
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            try:
                answer = use(artefact)
                found[name, damage] = HARMLESS if answer == right else f"WRONG: {answer}"
            except AsymvprError as error:
                assert error.remedy, f"{name}, {damage}: '{error}' says no remedy"
                found[name, damage] = str(error)
            finally:
                path.write_bytes(whole)
    assert use(artefact) == right
    return found


def counterpart(other: Path, name: str) -> Path:
    """The file of another artefact that has the name, or, where names are checksums, the kind."""
    if (other / name).is_file():
        return other / name
    (same_kind,) = other.glob(f"*{Path(name).suffix}")
    return same_kind
