"""One file from an https address: resumable, verified, and under its final name only when it is whole."""

from __future__ import annotations

import fcntl
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from asymvpr_core.errors import NetworkError
from asymvpr_core.manifest import sha256_of
from asymvpr_core.progress import Progress, silent

_BLOCK = 1 << 20
_TIMEOUT_S = 30.0
_BY_HAND = "download it elsewhere and give it with --weights FILE"


def download(address: str, target: Path, *, size_bytes: int | None = None, sha256: str | None = None, progress: Progress = silent) -> Path:
    """Download `address` to `target`; returns `target`.

    An interrupted download leaves `target`.part, and the next one continues it where the server allows
    and still has the same file.

    Args:
        size_bytes: expected size, or None where it is not published.
        sha256: expected digest, or its first digits.

    Raises:
        NetworkError: offline, refused by the server, interrupted, in work by another process, or another
            size, digest or kind of content than expected.
    """
    target = Path(target)
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            _lock(file, part)
            try:
                _receive(address, file, part, progress)
                file.flush()
                os.fsync(file.fileno())
                _verify(part, address, size_bytes, sha256)
                os.replace(part, target)
            finally:
                if not part.exists() or part.stat().st_size == 0:  # nothing to continue with
                    part.unlink(missing_ok=True)
                    _version_of(part).unlink(missing_ok=True)
    except urllib.error.HTTPError as error:
        error.close()
        raise NetworkError(f"{address} answers {error.code} {error.reason}", remedy=_BY_HAND) from error
    except urllib.error.URLError as error:
        remedy = f"connect this machine to the network, or {_BY_HAND}"
        raise NetworkError(f"{address} cannot be reached: {error.reason}", remedy=remedy) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        found = f"the download of {address} was interrupted: {str(error) or type(error).__name__}"
        raise NetworkError(found, remedy="repeat the command: it continues") from error
    except OSError as error:
        raise NetworkError(f"{target} cannot be written: {error.strerror or error}", remedy="free space, or set ASYMVPR_CACHE") from error
    return target


def _lock(file: BinaryIO, part: Path) -> None:
    try:
        # Not lockf: closing the file that the verification opens would release it.
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
    except (BlockingIOError, FileNotFoundError) as error:
        raise NetworkError(f"{part} is in use by another process", remedy="wait for it, then repeat the command") from error
    if not ours:  # the other process has just completed it
        raise NetworkError(f"{part} was in use by another process", remedy="repeat the command")


def _receive(address: str, file: BinaryIO, part: Path, progress: Progress) -> None:
    """Append what is missing of `address`, or all of it where that cannot be told."""
    done = file.seek(0, os.SEEK_END)
    response = _open(address, done, _version_of(part))
    if response is None:
        return
    with response:
        if done == 0 or response.status != 206:
            done = 0
            file.truncate(0)
            version = response.headers.get("ETag", "")
            _version_of(part).write_text("" if version.startswith("W/") else version, encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        mebibytes = None if total is None else -(-total // _BLOCK)
        for block in progress(_blocks(response), f"download {part.name.removesuffix('.part')} [MiB]", mebibytes, done // _BLOCK):
            file.write(block)
            done += len(block)
    if total is not None and done < total:
        raise ConnectionError(f"{done} of {total} bytes came")


def _open(address: str, done: int, version_file: Path) -> Any:
    """The server's answer, with all of the file or what follows the first `done` bytes; None where nothing follows them."""
    headers = {"User-Agent": "asymvpr"}
    if done:
        headers["Range"] = f"bytes={done}-"
        # Without it, a file that has changed since would be continued, and the two halves would not belong together.
        if version_file.is_file() and (version := version_file.read_text(encoding="utf-8")):
            headers["If-Range"] = version
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        with error:
            total = _last_number(error.headers.get("Content-Range"))
        return None if total in (None, done) else _open(address, 0, version_file)
    if response.status == 206 and not (response.headers.get("Content-Range") or "").startswith(f"bytes {done}-"):
        response.close()
        return _open(address, 0, version_file)
    return response


def _last_number(content_range: str | None) -> int | None:
    """The whole file's size in "bytes 5-9/10" or "bytes */10"."""
    match = re.search(r"/(\d+)$", content_range or "")
    return None if match is None else int(match[1])


def _version_of(part: Path) -> Path:
    """The file that holds the server's name (ETag) for the version of which `part` is the beginning."""
    return part.with_name(part.name + ".etag")


def _blocks(response: Any) -> Iterator[bytes]:
    while block := _read(response):
        yield block


def _read(response: Any) -> bytes:
    try:
        return response.read(_BLOCK)
    except OSError as error:  # TLS errors are plain OSErrors, which would be taken for the disk's
        raise ConnectionError(str(error)) from error


def _verify(part: Path, address: str, size_bytes: int | None, sha256: str | None) -> None:
    found = part.stat().st_size
    with open(part, "rb") as file:
        head = file.read(64).lstrip().lower()
    problem = None
    if found == 0:
        problem = "an empty file"
    elif head.startswith((b"<!doctype html", b"<html")):
        problem = "a web page instead of a file"
    elif size_bytes is not None and found != size_bytes:
        problem = f"{found} bytes where {size_bytes} were announced"
    elif sha256 is not None and not (digest := sha256_of(part)).startswith(sha256.lower()):
        problem = f"a file of checksum {digest[:12]} where {sha256[:12].lower()} was published"
    if problem is not None:
        part.unlink()
        raise NetworkError(f"{address} gave {problem}", remedy=f"repeat the command, or {_BY_HAND}")
