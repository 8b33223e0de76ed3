"""A bag from a stranger: what is compressed stays bounded, a database only stores, and what a message declares is never allocated."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from pathlib import Path

import lz4.frame
import pytest
from memory_limit import refusal_within
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Writer, storage_mcap
from small_bags import EVERY, TRUTH, drive

from asymvpr_core.datasets import bag_limits
from asymvpr_core.datasets.bag_limits import check_chunks, inflated
from asymvpr_core.datasets.bag_messages import rgb_image
from asymvpr_core.datasets.bags import Bag, BagMessage
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import BagError, ImageError

zstd = storage_mcap.zstd
IMPORTS = "from pathlib import Path\nfrom asymvpr_core.datasets.bags import Bag\nlist(Bag.open(Path('{whole}')).messages())"
READ = "list(Bag.open(Path('{bag}')).messages())"


def mcap(path: Path, compressed: bytes, *, size: int, compression: str = "zstd") -> Path:
    """An mcap file of one compressed chunk, without an index."""

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value)) + value.encode()

    def record(kind: int, content: bytes) -> bytes:
        return bytes([kind]) + struct.pack("<Q", len(content)) + content

    chunk = struct.pack("<QQQI", 0, 10, size, 0) + text(compression) + struct.pack("<Q", len(compressed)) + compressed
    magic = b"\x89MCAP0\r\n"
    path.write_bytes(magic + record(1, text("ros2") + text("")) + record(6, chunk) + record(2, bytes(20)) + magic)
    return path


def zeros(compressor: object, megabytes: int) -> bytes:
    """So many megabytes of zeros, compressed piece by piece: the frame does not say how many there are."""
    pieces = [compressor.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join([*pieces, compressor.flush()])


@pytest.mark.parametrize("declared", [64, 100 << 20, 10 << 30])
def test_a_chunk_that_is_a_bomb_costs_no_memory(tmp_path: Path, declared: int):
    whole = drive(tmp_path / "whole", "mcap", frames=3)
    bomb = mcap(tmp_path / "bomb.mcap", zeros(zstd.ZstdCompressor(), 1000), size=declared)
    assert bomb.stat().st_size < 1 << 20
    said = refusal_within(400 if declared == 100 << 20 else 60, IMPORTS.format(whole=whole), READ.format(bag=bomb))
    assert "bomb.mcap is damaged or truncated: a compressed part" in said


def test_a_chunk_compressed_with_lz4_is_bounded_too(tmp_path: Path):
    whole = drive(tmp_path / "whole", "mcap", frames=3)
    frame = lz4.frame.compress(bytes(200 << 20))
    said = refusal_within(
        100, IMPORTS.format(whole=whole), READ.format(bag=mcap(tmp_path / "bomb.mcap", frame, size=64, compression="lz4"))
    )
    assert "a compressed part becomes more than 64 bytes" in said


def compressed_writer(path: Path, mode: CompressionMode) -> Writer:
    writer = Writer(path, version=9)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    return writer


def test_messages_compressed_one_by_one_are_bounded(tmp_path: Path):
    whole = drive(tmp_path / "whole", frames=3)
    with compressed_writer(tmp_path / "bomb", CompressionMode.MESSAGE) as writer:
        connection = writer.add_connection(TRUTH, "geometry_msgs/msg/PoseStamped", typestore=_types())
        writer.write(connection, 1, bytes(300 << 20))
    imports = IMPORTS.format(whole=whole) + "\nfrom asymvpr_core.datasets import bag_limits\nbag_limits.MAX_PART_BYTES = 1 << 20"
    said = refusal_within(100, imports, READ.format(bag=tmp_path / "bomb"))
    assert "bomb is damaged or truncated: a compressed part becomes more than 1048576 bytes" in said


def test_whole_bags_that_are_compressed_are_read(tmp_path: Path):
    for mode in (CompressionMode.MESSAGE, CompressionMode.FILE):
        path = tmp_path / mode.name
        with Bag.open(drive(tmp_path / f"from_{mode.name}", frames=4)) as bag, compressed_writer(path, mode) as writer:
            connections = {topic: writer.add_connection(topic, kind, typestore=_types()) for topic, kind in bag.topics.items()}
            for message in bag.messages():
                writer.write(connections[message.topic], message.received_ns, bytes(message.raw))
        assert len(open_source(path, EVERY).records) == 3


def test_frames_one_behind_the_other_are_all_decompressed_and_a_cut_one_is_refused():
    whole = zstd.compress(b"a" * 100) + zstd.compress(b"b" * 50)
    assert inflated(whole, zstd.ZstdDecompressor, 150) == b"a" * 100 + b"b" * 50
    with pytest.raises(ValueError, match="more than 149 bytes"):
        inflated(whole, zstd.ZstdDecompressor, 149)
    with pytest.raises(ValueError, match="cut off"):
        inflated(whole[:-3], zstd.ZstdDecompressor, 150)
    with pytest.raises(ValueError, match="declares"):
        inflated(whole, zstd.ZstdDecompressor, bag_limits.MAX_PART_BYTES + 1)


def test_many_chunks_at_one_time_are_refused():
    def chunk(begin: int, end: int, size: int) -> object:
        return storage_mcap.ChunkInfo(begin, end, 0, 0, {}, 0, "zstd", 10, size, {})

    class Storage:
        chunks = [chunk(10 * i, 10 * i + 9, 1 << 30) for i in range(100)]

    check_chunks(Path("bag"), [Storage])  # one after the other
    Storage.chunks = [chunk(0, 100 - i, 1 << 30) for i in range(5)]
    with pytest.raises(BagError, match=f"bag bag has chunks that overlap in time and become {5 << 30} bytes; expected at most {4 << 30}"):
        check_chunks(Path("bag"), [Storage])


COMPUTED = {
    "messages without an end": (
        "CREATE VIEW messages AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) "
        "SELECT id, 1 AS topic_id, id AS timestamp, zeroblob(900000000) AS data FROM n"
    ),
    "data that are computed": (
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB AS (zeroblob(900000000)))"
    ),
    "a trigger": "CREATE TABLE messages (id INTEGER PRIMARY KEY); CREATE TRIGGER t AFTER INSERT ON messages BEGIN DELETE FROM topics; END",
    "a virtual table": "CREATE VIRTUAL TABLE messages USING fts5(data)",
}


@pytest.mark.parametrize("schema", COMPUTED.values(), ids=COMPUTED)
def test_a_database_that_computes_its_messages_is_refused(tmp_path: Path, schema: str):
    path = drive(tmp_path / "bag", frames=3)
    file = path / "bag.db3"
    database = sqlite3.connect(file)
    database.executescript(f"DROP TABLE messages; {schema};")
    database.close()
    for one in (path, file):
        with pytest.raises(BagError, match=r"bag\.db3 computes its '\w+' instead of storing it; expected plain tables"):
            Bag.open(one)


def cdr_image(height: int, width: int, step: int, declared: int, data: bytes) -> bytes:
    """A serialised sensor_msgs/Image whose data have a declared length."""
    header = struct.pack("<BBBBiII", 0, 1, 0, 0, 5, 0, 1) + b"\0" + bytes(3)
    return header + struct.pack("<III", height, width, 5) + b"rgb8\0" + b"\0" + bytes(2) + struct.pack("<II", step, declared) + data


def test_the_made_up_image_is_read_where_it_is_right(tmp_path: Path):
    with Bag.open(drive(tmp_path / "bag", frames=2)) as bag:
        raw = cdr_image(1, 2, 6, 6, bytes(range(6)))
        message = bag.decode(BagMessage("/x", "sensor_msgs/msg/Image", 0, raw))
        assert rgb_image(message, "sensor_msgs/msg/Image", "x").tolist() == [[[0, 1, 2], [3, 4, 5]]]


@pytest.mark.parametrize(
    ("height", "width", "step", "declared"), [(1, 2, 6, 2**32 - 1), (2**32 - 1, 2**32 - 1, 2**32 - 1, 6), (1, 2**31, 2**32 - 1, 6)]
)
def test_an_image_that_declares_gigabytes_is_refused(tmp_path: Path, height: int, width: int, step: int, declared: int):
    with Bag.open(drive(tmp_path / "bag", frames=2)) as bag, pytest.raises((BagError, ImageError)):
        message = bag.decode(BagMessage("/x", "sensor_msgs/msg/Image", 0, cdr_image(height, width, step, declared, bytes(6))))
        rgb_image(message, "sensor_msgs/msg/Image", "x")


def test_metadata_that_names_files_outside_reads_none_of_them(tmp_path: Path):
    path = drive(tmp_path / "bag", frames=2)
    shutil.copy(path / "bag.db3", tmp_path / "secret.db3")
    text = (path / "metadata.yaml").read_text().replace("bag.db3", "../secret.db3")
    (path / "metadata.yaml").write_text(text)
    with pytest.raises(BagError, match="missing"):
        Bag.open(path)


def test_metadata_of_aliases_and_tags_is_refused(tmp_path: Path):
    path = drive(tmp_path / "bag", frames=2)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    for text in ("\n".join(lines), "rosbag2_bagfile_information: !!python/object/apply:os.system ['touch ran']", "[" * 20_000):
        (path / "metadata.yaml").write_text(text)
        with pytest.raises(BagError, match="bag .*bag is damaged or truncated"):
            Bag.open(path)


def _types() -> object:
    from asymvpr_core.datasets.bag_storage import standard_types

    return standard_types()
