"""JSON files of artefacts, from whomever: read whole or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asymvpr_core.errors import ArtefactError

# What this package writes is nested ten deep at most. Checksums and checks go down into it by recursion, and a stranger's
# file that is nested a hundred thousand deep would end the process instead of being refused.
_MAX_DEPTH = 50


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is none; what that means depends on the artefact.
        ArtefactError: no regular file, unreadable, not JSON, or nested deeper than any artefact's.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for, /dev/zero has no end
        raise ArtefactError(f"{path} is no regular file", expected="a JSON file", remedy=remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", remedy="check its permissions") from error
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged: not JSON", remedy=remedy) from error
    except RecursionError as error:
        raise _too_deep(path, remedy) from error
    inside = [content]
    for _ in range(_MAX_DEPTH):
        inside = [value for outer in inside if isinstance(outer, dict | list) for value in _values(outer) if isinstance(value, dict | list)]
    if inside:
        raise _too_deep(path, remedy)
    return content


def _values(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def _too_deep(path: Path, remedy: str) -> ArtefactError:
    return ArtefactError(f"{path} is damaged: nested more than {_MAX_DEPTH} deep", remedy=remedy)
