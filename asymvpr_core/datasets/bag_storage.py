"""What reading and writing of bags share: the message types and the limits of the storage."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from asymvpr_core.errors import BagError


@cache
def standard_types() -> Typestore:
    """The standard message types, made once: generating their code takes longer than opening a bag.

    Those used here are the same in Humble, Jazzy and Kilted.
    """
    return get_typestore(Stores.ROS2_JAZZY)


def check_sqlite_path(path: Path, storage: str) -> None:
    """Refuse a path that SQLite would take for a URI with parameters and so open another file.

    Raises:
        BagError: sqlite3 storage below a folder whose name holds '?', '#' or '%'.
    """
    if storage == "sqlite3" and any(character in str(path) for character in "?#%"):
        raise BagError(f"the path of bag {path} holds one of ? # %", expected="a path that SQLite can open", remedy="rename the folder")
