"""Descriptors that were computed once, kept on disk by what they depend on: the image's bytes and the encoder.

Folder: one shelf an encoder, named by the SHA-256 of its identity; in it files of rows (SHA-256 of the
image file, descriptor), each named by the SHA-256 of its own content. A file is written under another
name and renamed, and is never changed afterwards: processes need no lock, and what a kill or a flipped
bit leaves behind fails its checksum, is removed and computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.errors import ArtefactError
from asymvpr_core.manifest import sha256_of

_SEGMENT_BYTES = 64 << 20  # rows waiting in memory before they become a file
_ABANDONED_S = 24 * 3600.0  # a temporary file this old was left by a killed process
_DIGEST = re.compile(r"[0-9a-f]{64}")


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/asymvpr/descriptors`, or below `~/.cache` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asymvpr" / "descriptors"


class DescriptorCache:
    """A folder of shelves, together at most `limit_bytes` large: what was used longest ago goes first."""

    def __init__(self, folder: Path, limit_bytes: int):
        self.folder, self.limit_bytes = Path(folder), limit_bytes

    def shelf(self, identity: dict[str, Any], dimension: int) -> Shelf:
        """The descriptors of one encoder.

        Args:
            identity: everything that a descriptor depends on beside the image, as JSON values.

        Raises:
            ArtefactError: the folder cannot be read or written.
        """
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        path = self.folder / hashlib.sha256(text.encode()).hexdigest()
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / "identity.json").exists():  # for people; nothing reads it
                _write_new(path, "identity.json", json.dumps(identity, indent=2, sort_keys=True).encode())
            return Shelf(path, dimension, self)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def shrink(self) -> None:
        """Remove the files that were used longest ago until the limit holds, and what killed processes left."""
        found = []
        for path in self.folder.glob("*/*"):
            if not _DIGEST.fullmatch(path.parent.name):
                continue  # not ours
            try:
                state = path.stat()
                if path.suffix == ".partial" and time.time() - state.st_mtime > _ABANDONED_S:
                    path.unlink()
                elif path.suffix == ".npy" and _DIGEST.fullmatch(path.stem):
                    found.append((state.st_mtime, state.st_size, path))
            except FileNotFoundError:  # another process was quicker
                continue
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, key=lambda entry: entry[0]):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)  # a process that has it mapped keeps its rows
            total -= size


class Shelf:
    """The cached descriptors of one encoder, (D,) float32 by the SHA-256 of the image file.

    `damaged` counts the files that failed their checksum and were removed on opening.
    """

    def __init__(self, path: Path, dimension: int, cache: DescriptorCache):
        self.path, self.cache, self.damaged = path, cache, 0
        self._type = np.dtype([("image", "u1", 32), ("descriptor", "<f4", (dimension,))])
        self._segments: list[np.ndarray] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._waiting: dict[bytes, np.ndarray] = {}
        for file in sorted(path.glob("*.npy")):
            rows = self._open(file)
            if rows is not None:
                for row, image in enumerate(rows["image"]):
                    self._places[image.tobytes()] = (len(self._segments), row)
                self._segments.append(rows)

    def __len__(self) -> int:
        return len(self._places.keys() | self._waiting.keys())

    def get(self, image: bytes) -> np.ndarray | None:
        """(D,) float32 of the image with this SHA-256 (32 bytes), or None."""
        if image in self._waiting:
            return self._waiting[image]
        place = self._places.get(image)
        return None if place is None else self._segments[place[0]][place[1]]["descriptor"]

    def put(self, image: bytes, descriptor: np.ndarray) -> None:
        """Keep a descriptor; on disk after `flush` at the latest.

        Raises:
            ArtefactError: the folder cannot be written.
        """
        self._waiting[image] = np.array(descriptor, dtype=np.float32)
        if len(self._waiting) * self._type.itemsize >= _SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one file, and shrink the cache to its limit.

        Raises:
            ArtefactError: the folder cannot be written.
        """
        if not self._waiting:
            return
        rows = np.zeros(len(self._waiting), dtype=self._type)
        for row, (image, descriptor) in enumerate(self._waiting.items()):
            rows[row]["image"] = np.frombuffer(image, np.uint8)
            rows[row]["descriptor"] = descriptor
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        data = buffer.getvalue()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            name = f"{hashlib.sha256(data).hexdigest()}.npy"
            _write_new(self.path, name, data)
            # Mapped, so that a large gallery does not stay in memory; before `shrink`, which may remove the file.
            rows = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
            self.cache.shrink()
        except OSError as error:
            raise _unusable(self.cache.folder, error) from error
        self._places |= {image: (len(self._segments), row) for row, image in enumerate(self._waiting)}
        self._segments.append(rows)
        self._waiting = {}

    def _open(self, file: Path) -> np.ndarray | None:
        """The rows of a file, memory-mapped; None, and the file removed, where its content is not what its name says."""
        try:
            if sha256_of(file) == file.stem:
                rows = np.load(file, mmap_mode="r", allow_pickle=False)
                if rows.dtype == self._type and rows.ndim == 1:
                    os.utime(file)  # used now: the last to be removed
                    return rows
        except FileNotFoundError:  # removed by another process that made room
            return None
        except (ValueError, EOFError):
            pass
        self.damaged += 1
        file.unlink(missing_ok=True)
        return None


def _write_new(folder: Path, name: str, data: bytes) -> None:
    """Write a file so that it exists only when it is whole; two processes may write the same one."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, folder / name)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _unusable(folder: Path, error: OSError) -> ArtefactError:
    return ArtefactError(
        f"the descriptor cache {folder} cannot be used: {error.strerror or error}", remedy="free space, give another --cache, or --no-cache"
    )
