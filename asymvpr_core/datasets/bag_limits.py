"""What a bag may make of itself: limits to what its compressed parts become, and a database that only stores.

rosbags decompresses whatever a file holds, and SQLite computes whatever a file's schema says; a bag of some
kilobytes could so become more than all memory, or messages without an end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lz4.frame import LZ4FrameDecompressor
from rosbags.rosbag2 import reader, storage_mcap

from asymvpr_core.errors import BagError

# The largest picture that is decoded has half of it; recorders close a chunk after some megabytes.
MAX_PART_BYTES = 1 << 30
# Of chunks whose times overlap, and which a reader therefore holds together.
MAX_TOGETHER_BYTES = 4 << 30


@cache
def limit_decompression() -> None:
    """Make rosbags refuse, in this process, chunks and messages that become larger than they say or than `MAX_PART_BYTES`.

    rosbags has no setting for it; where a release keeps its decompressors elsewhere, `test_hostile_bags.py` fails.
    """
    zstd = storage_mcap.zstd
    storage_mcap.DECOMPRESSORS.update(
        lz4=lambda data, size: inflated(data, LZ4FrameDecompressor, size),
        zstd=lambda data, size: inflated(data, zstd.ZstdDecompressor, size),
    )
    bounded = SimpleNamespace(decompress=lambda data: inflated(data, zstd.ZstdDecompressor, MAX_PART_BYTES), open=zstd.open)
    reader.zstd = bounded  # of bags whose messages are compressed one by one


def inflated(data: bytes, decompressor: Callable[[], Any], limit: int) -> bytes:
    """The decompressed frames of `data`.

    Raises:
        ValueError: they are cut off, or become more than `limit` or `MAX_PART_BYTES`.
    """
    if limit > MAX_PART_BYTES:
        raise ValueError(f"a compressed part declares {limit} bytes, at most {MAX_PART_BYTES} are read")
    pieces, total = [], 0
    while data:
        frame = decompressor()
        piece = frame.decompress(data, max_length=limit - total + 1)
        total += len(piece)
        if total > limit:
            raise ValueError(f"a compressed part becomes more than {limit} bytes")
        if not frame.eof:
            raise ValueError("a compressed part is cut off")
        pieces.append(piece)
        data = frame.unused_data
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_chunks(path: Path, storages: Sequence[Any]) -> None:
    """Refuse a bag whose chunks cannot be read in order without more than `MAX_TOGETHER_BYTES` of them at a time.

    Args:
        storages: rosbags' readers of the files; those of mcap have chunks.

    Raises:
        BagError: naming the bag.
    """
    changes = []
    for chunk in (chunk for storage in storages for chunk in getattr(storage, "chunks", ())):
        begin, end = chunk.message_start_time, max(chunk.message_start_time, chunk.message_end_time)
        changes += [(begin, 0, chunk.uncompressed_size), (end, 1, -chunk.uncompressed_size)]
    together = 0
    for _, _, change in sorted(changes):
        together += change
        if together > MAX_TOGETHER_BYTES:
            raise BagError(
                f"bag {path} has chunks that overlap in time and become {together} bytes", expected=f"at most {MAX_TOGETHER_BYTES}",
                remedy="sort it with 'mcap sort', or do not use it",
            )  # fmt: skip


def check_sqlite_schema(path: Path) -> None:
    """Refuse a database whose tables are computed: views, triggers, virtual tables, generated columns. Recorders write none.

    Raises:
        BagError: naming the file and what is computed.
        sqlite3.Error: it is no database.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        schema = database.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master").fetchall()
        computed = [name for kind, name, sql in schema if kind in ("view", "trigger") or sql.upper().startswith("CREATE VIRTUAL")]
        for kind, name, _ in schema:
            if kind == "table" and not computed:
                hidden = "SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden <> 0"
                computed += [name] if database.execute(hidden, (name,)).fetchone()[0] else []
    if computed:
        raise BagError(
            f"bag file {path} computes its {computed[0]!a} instead of storing it", expected="plain tables, as recorders write them",
            remedy="do not use this bag",
        )  # fmt: skip
