"""Random bytes in bags: in the records, around them and in the metadata. Read, or refused by name; never another error."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_bags import EVERY, IMAGE, ODOM, RAW, START_NS, SUFFIX, TRUTH, drive

from asymvpr_core.datasets.bag_messages import IMAGE_TYPES, POSE_TYPES, encoded_image, image_suffix, pose_of, read_header, rgb_image
from asymvpr_core.datasets.bag_odometry import read_odometry
from asymvpr_core.datasets.bags import Bag, BagMessage
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import AsymvprError, DatasetError

STORAGES = ("sqlite3", "mcap")


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bags")
    return {storage: drive(folder / storage, storage, frames=4, raw=True) for storage in STORAGES}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spoilt") / "bag"


def read_all(path: Path) -> None:
    """What a gallery build does with a bag, and what a comparison with odometry does."""
    dataset = open_source(path, EVERY)
    for index, data in dataset.read_encoded(list(range(len(dataset.records)))):
        assert 0 <= index < len(dataset.records) and isinstance(data, bytes)
    read_odometry(path, ODOM)


def read_or_refused(path: Path) -> None:
    try:
        read_all(path)
    except DatasetError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000


def copy_of(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


changes = st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=6)


def change(data: bytes, places: list[tuple[int, int]], cut: int | None) -> bytes:
    changed = bytearray(data)
    for place, value in places:
        changed[place % len(changed)] = value
    return bytes(changed if cut is None else changed[: cut % (len(changed) + 1)])


@pytest.mark.parametrize("storage", STORAGES)
@given(places=changes, cut=st.one_of(st.none(), st.none(), st.integers(0, 2**31)), alone=st.booleans())
def test_any_bytes_in_the_storage(
    bags: dict[str, Path], spoilt: Path, storage: str, places: list[tuple[int, int]], cut: int | None, alone: bool
):
    path = copy_of(bags[storage], spoilt)
    file = path / f"{storage}.{SUFFIX[storage]}"
    file.write_bytes(change(file.read_bytes(), places, cut))
    read_or_refused(file if alone else path)


@given(row=st.integers(1, 20), data=st.one_of(st.binary(max_size=80), st.tuples(changes, st.one_of(st.none(), st.integers(0, 2**31)))))
def test_any_bytes_in_a_record(bags: dict[str, Path], spoilt: Path, row: int, data: bytes | tuple[list[tuple[int, int]], int | None]):
    path = copy_of(bags["sqlite3"], spoilt)
    with closing(sqlite3.connect(path / "sqlite3.db3")) as database, database:
        (old,) = database.execute("SELECT data FROM messages WHERE id = ?", (row,)).fetchone()
        new = data if isinstance(data, bytes) else change(old, *data)
        database.execute("UPDATE messages SET data = ? WHERE id = ?", (new, row))
    read_or_refused(path)


odd_values = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=10), st.binary(max_size=10))


@given(
    cell=st.sampled_from([("messages", "timestamp"), ("messages", "topic_id"), ("messages", "data"), ("topics", "name"), ("topics", "type"),
                          ("topics", "serialization_format"), ("topics", "offered_qos_profiles")]),
    row=st.integers(1, 6), value=odd_values,
)  # fmt: skip
@example(cell=("messages", "data"), row=1, value=0)
@example(cell=("messages", "timestamp"), row=1, value="now")
def test_any_value_in_a_table(bags: dict[str, Path], spoilt: Path, cell: tuple[str, str], row: int, value: object):
    path = copy_of(bags["sqlite3"], spoilt)
    table, column = cell
    with closing(sqlite3.connect(path / "sqlite3.db3")) as database, database:
        try:
            database.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (value, row))
        except (sqlite3.IntegrityError, UnicodeEncodeError):  # the schema itself refuses it; half a surrogate pair is no text
            return
    read_or_refused(path)


words = st.one_of(
    st.sampled_from(
        ["", "~", "-1", "[]", "{}", "nan", "1e400", "2001-99-99", "!!binary x", "&a [*a]", "'", "99", "sqlite3", "zstd", "file"]
    ),
    st.text(max_size=10),
)


@given(places=st.lists(st.tuples(st.integers(0, 2**31), words), min_size=1, max_size=3), drop=st.booleans())
def test_any_words_in_the_metadata(bags: dict[str, Path], spoilt: Path, places: list[tuple[int, str]], drop: bool):
    path = copy_of(bags["sqlite3"], spoilt)
    lines = (path / "metadata.yaml").read_text(encoding="utf-8").splitlines()
    for place, word in places:
        line = lines[place % len(lines)]
        lines[place % len(lines)] = word if drop else f"{line.partition(':')[0]}: {word}"
    (path / "metadata.yaml").write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    read_or_refused(path)


@given(
    msgtype=st.sampled_from([*IMAGE_TYPES, *POSE_TYPES, "sensor_msgs/msg/NavSatFix", "std_msgs/msg/String", "no/msg/Such", ""]),
    raw=st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda data: b"\0\1\0\0" + data)),
)
def test_any_bytes_as_a_message(bags: dict[str, Path], msgtype: str, raw: bytes):
    with Bag.open(bags["sqlite3"]) as bag:
        try:
            read_header(raw, "x")
            message = bag.decode(BagMessage("/x", msgtype, 0, raw))
            if msgtype in IMAGE_TYPES:
                image_suffix(message, msgtype)
                encoded_image(message, msgtype, "x")
                rgb_image(message, msgtype, "x")
            if msgtype in POSE_TYPES:
                pose_of(message, msgtype)
        except AsymvprError as error:
            assert "\n" not in str(error)


def test_the_bags_are_whole_before_anything_is_changed(bags: dict[str, Path]):
    for path in bags.values():
        read_all(path)
        with Bag.open(path) as bag:
            assert {IMAGE, RAW, ODOM, TRUTH} <= bag.topics.keys()
            assert next(iter(bag.messages([IMAGE]))).received_ns >= START_NS
