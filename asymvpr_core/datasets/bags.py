"""Reads rosbag2 recordings (sqlite3 and mcap) without ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.rosbag2 import Reader

from asymvpr_core.datasets.bag_limits import check_chunks, check_sqlite_schema, limit_decompression
from asymvpr_core.datasets.bag_storage import check_sqlite_path, standard_types
from asymvpr_core.errors import BagError

_STORAGE_SUFFIXES = (".db3", ".mcap")


def is_bag(path: Path) -> bool:
    """Whether `path` looks like a rosbag2: a folder with metadata or storage files, or one storage file."""
    path = Path(path)
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or bool(_storage_files(path))
    return path.suffix in (*_STORAGE_SUFFIXES, ".bag")


@dataclass(frozen=True)
class BagMessage:
    """One message of a bag: `received_ns` is when it was recorded, `raw` its CDR bytes."""

    topic: str
    msgtype: str
    received_ns: int
    raw: bytes | memoryview


class Bag:
    """A rosbag2 open for reading; use as a context manager.

    `topics` maps each topic to its type ("sensor_msgs/msg/Image"), `message_counts` to its
    number of messages.
    """

    def __init__(self, path: Path, reader: Reader):
        self.path = path
        self._reader = reader
        self._typestore = standard_types()
        self.topics: dict[str, str] = {}
        self.message_counts: dict[str, int] = {}
        for connection in sorted(reader.connections, key=lambda c: c.topic):
            other = self.topics.get(connection.topic, connection.msgtype)
            self.topics[connection.topic] = connection.msgtype if other == connection.msgtype else f"{other} and {connection.msgtype}"
            self.message_counts[connection.topic] = self.message_counts.get(connection.topic, 0) + connection.msgcount

    @staticmethod
    def open(path: Path) -> Bag:
        """Open a bag: its folder, or one .db3 or .mcap file.

        Raises:
            BagError: missing, no rosbag2, without metadata, truncated or damaged, or without messages.
        """
        path = Path(path)
        try:
            _check_is_bag(path)
            limit_decompression()
            reader = Reader(path)
            reader.open()
            storages = getattr(reader.storage, "storages", [reader.storage])
            check_chunks(path, storages)
            for storage in storages:  # those that were unpacked for it
                if storage.path.suffix == ".db3" and path not in (storage.path, *storage.path.parents):
                    check_sqlite_schema(storage.path)
        except BagError:
            raise
        except Exception as error:  # rosbags lets errors of SQLite, YAML, zstd and struct through; they share no base
            raise _damaged(path, error) from error
        bag = Bag(path, reader)
        if not sum(bag.message_counts.values()):
            bag.close()
            raise BagError(f"bag {path} holds no messages", remedy="record again, and check that the topics were published")
        return bag

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        if self._reader.is_open:
            self._reader.close()

    def describe_topics(self) -> str:
        """All topics with their types, for messages."""
        return ", ".join(f"{topic} ({msgtype})" for topic, msgtype in self.topics.items())

    def choose_topic(self, topic: str | None, msgtypes: Sequence[str], role: str, flag: str) -> str:
        """The topic asked for, or the only one of `msgtypes`, after checking that it has messages of such a type.

        Args:
            role: what the topic is for ("image"), used in messages.
            flag: the setting that names the topic, used in messages.

        Raises:
            BagError: not in the bag, of another type, without messages, or none or several to choose from.
        """
        short = " or ".join(msgtype.rpartition("/")[2] for msgtype in msgtypes)
        if topic is None:
            found = [name for name, msgtype in self.topics.items() if msgtype in msgtypes and self.message_counts[name]]
            if not found:
                raise BagError(f"bag {self.path} has no {role} topic; it has {self.describe_topics()}", expected=f"a topic of {short}")
            if len(found) > 1:
                names = ", ".join(f"{name} ({self.topics[name]})" for name in found)
                raise BagError(f"bag {self.path} has {len(found)} {role} topics: {names}", remedy=f"choose one with {flag}")
            return found[0]
        self._check_topic(topic)
        if self.topics[topic] not in msgtypes:
            others = ", ".join(name for name, msgtype in self.topics.items() if msgtype in msgtypes) or "none"
            raise BagError(
                f"topic {topic} of bag {self.path} holds {self.topics[topic]}", expected=f"a topic of {short}; the bag has: {others}",
                remedy=f"choose one with {flag}",
            )  # fmt: skip
        return topic

    def messages(
        self, topics: Sequence[str] | None = None, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[BagMessage]:
        """Messages of `topics` (None: all), in the order of recording, received in [start_ns, stop_ns).

        Raises:
            BagError: a topic is not in the bag or has no messages; the storage is damaged.
        """
        for topic in topics or ():
            self._check_topic(topic)
        connections = [c for c in self._reader.connections if topics is None or c.topic in topics]
        iterator = self._reader.messages(connections, start_ns, stop_ns)
        seen: set[str] = set()
        while True:
            try:
                connection, received_ns, raw = next(iterator)
            except StopIteration:
                break
            except Exception as error:  # as in open()
                raise _damaged(self.path, error) from error
            if not isinstance(raw, bytes | memoryview) or not isinstance(received_ns, int):
                # SQLite keeps a value of any type in any column.
                raise _damaged(self.path, TypeError(f"a record on {connection.topic} holds a {type(raw).__name__} as its message"))
            seen.add(connection.topic)
            yield BagMessage(connection.topic, connection.msgtype, received_ns, raw)
        if topics is not None and start_ns is None and stop_ns is None and (silent := set(topics) - seen):
            # rosbags passes over a topic whose entries in metadata.yaml and storage differ.
            raise BagError(
                f"bag {self.path} lists topic {', '.join(sorted(silent))} but gives none of its messages",
                remedy="renew its metadata.yaml with 'ros2 bag reindex'",
            )

    def decode(self, message: BagMessage) -> Any:
        """The message as an object with the fields of its type.

        Raises:
            BagError: the bytes are no such message.
        """
        try:
            return self._typestore.deserialize_cdr(message.raw, message.msgtype)
        except Exception as error:  # SerdeError, AssertionError, KeyError, … depending on where the bytes are wrong
            raise BagError(
                f"a message on {message.topic} of bag {self.path} is no {message.msgtype}: {error}", remedy="record the bag again"
            ) from error

    def _check_topic(self, topic: str) -> None:
        if topic not in self.topics:
            raise BagError(f"topic {topic} is not in bag {self.path}", expected=f"one of {self.describe_topics()}")
        if not self.message_counts[topic]:
            raise BagError(f"topic {topic} of bag {self.path} has no messages", remedy="check that it was published while recording")


def _check_is_bag(path: Path) -> None:
    expected = "the folder of a rosbag2 (with metadata.yaml), or a .db3 or .mcap file"
    if not path.exists():
        raise BagError(f"there is no bag {path}", expected=expected, remedy="check the path")
    if path.is_file() and path.suffix == ".bag":
        raise BagError(f"{path} is a ROS 1 bag", expected=expected, remedy="convert it with 'rosbags-convert --src BAG --dst FOLDER'")
    if path.is_file() and path.suffix not in _STORAGE_SUFFIXES:
        raise BagError(f"{path} is no bag", expected=expected)
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        found = _storage_files(path)
        if not found:
            raise BagError(f"{path} is no bag: it has no metadata.yaml", expected=expected)
        raise BagError(
            f"bag {path} has no metadata.yaml, so its recording was not finished",
            remedy=f"run 'ros2 bag reindex' on it, or give the file {found[0].name} itself",
        )
    if path.suffix == ".db3" or (path.is_dir() and any(path.glob("*.db3"))):
        check_sqlite_path(path.absolute(), "sqlite3")
        for file in [path] if path.is_file() else sorted(path.glob("*.db3")):
            check_sqlite_schema(file)


def _storage_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _STORAGE_SUFFIXES)


def _damaged(path: Path, error: Exception) -> BagError:
    if isinstance(error, PermissionError):
        return BagError(f"bag {path} cannot be read: {error.strerror}", remedy="check its permissions")
    reason = " ".join(str(error).split()) or type(error).__name__
    return BagError(
        f"bag {path} is damaged or truncated: {reason.rstrip('.')}",
        remedy="copy it again, or repair it with 'ros2 bag reindex' or 'mcap recover'",
    )
