"""One file from an https address: resumable, verified, and under its final name only when it is whole."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asymvpr_core.errors import NetworkError
from asymvpr_core.manifest import sha256_of
from asymvpr_core.progress import Progress, silent

_BLOCK = 1 << 20
_TIMEOUT_S = 30.0
_BY_HAND = "download it elsewhere and give it with --weights FILE"


def download(address: str, target: Path, *, size_bytes: int | None = None, sha256: str | None = None, progress: Progress = silent) -> Path:
    """Download `address` to `target`; returns `target`.

    An interrupted download leaves `target`.part, and the next one continues it where the server allows.

    Args:
        size_bytes: expected size, or None where it is not published.
        sha256: expected digest, or its first digits.

    Raises:
        NetworkError: offline, refused by the server, interrupted, or another size, digest or kind of content than expected.
    """
    target = Path(target)
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(address, part, progress)
    except urllib.error.HTTPError as error:
        raise NetworkError(f"{address} answers {error.code} {error.reason}", remedy=_BY_HAND) from error
    except urllib.error.URLError as error:
        remedy = f"connect this machine to the network, or {_BY_HAND}"
        raise NetworkError(f"{address} cannot be reached: {error.reason}", remedy=remedy) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        found = f"the download of {address} was interrupted: {error or type(error).__name__}"
        raise NetworkError(found, remedy="repeat the command: it continues") from error
    except OSError as error:
        raise NetworkError(f"{part} cannot be written: {error.strerror or error}", remedy="free space, or set ASYMVPR_CACHE") from error
    _verify(part, address, size_bytes, sha256)
    os.replace(part, target)
    return target


def _receive(address: str, part: Path, progress: Progress) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "asymvpr"} | ({"Range": f"bytes={done}-"} if done else {}))
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing after what is there: the verification decides
            return
        raise
    with response:
        continues = done > 0 and response.status == 206
        done = done if continues else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with open(part, "ab" if continues else "wb") as file:
            mebibytes = None if total is None else -(-total // _BLOCK)
            for block in progress(_blocks(response), f"download {part.name.removesuffix('.part')} [MiB]", mebibytes, done // _BLOCK):
                file.write(block)
                done += len(block)
    if total is not None and done < total:
        raise ConnectionError(f"{done} of {total} bytes came")


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block


def _verify(part: Path, address: str, size_bytes: int | None, sha256: str | None) -> None:
    found = part.stat().st_size
    with open(part, "rb") as file:
        head = file.read(64).lstrip().lower()
    problem = None
    if head.startswith((b"<!doctype html", b"<html")):
        problem = "a web page instead of a file"
    elif size_bytes is not None and found != size_bytes:
        problem = f"{found} bytes where {size_bytes} were announced"
    elif sha256 is not None and not sha256_of(part).startswith(sha256):
        problem = f"a file of checksum {sha256_of(part)[:12]} where {sha256[:12]} was published"
    if problem is not None:
        part.unlink()
        raise NetworkError(f"{address} gave {problem}", remedy=f"repeat the command, or {_BY_HAND}")
