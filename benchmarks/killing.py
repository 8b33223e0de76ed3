"""Processes that are killed: forked, so that imports are not paid each time, at a moment in time or before a file operation."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree", "shutil.copyfile")


def start(function: Callable[[], object]) -> int:
    """Run `function` in a forked process of a session of its own; returns its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            function()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return child


def finish(child: int) -> None:
    """Wait for a forked process that has to succeed."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        raise SystemExit(f"a run ended with {code}")


def killed_after(child: int, seconds: float) -> bool:
    """Whether a forked process was still at work after so many seconds; then it was killed. Otherwise it has to succeed."""
    deadline = time.perf_counter() + seconds
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    while ended is None and time.perf_counter() < deadline:
        time.sleep(0.0005)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        os.kill(child, signal.SIGKILL)
    return _was_killed(child)


def killed_before(function: Callable[[], object], folder: Path, operation: int) -> bool:
    """Whether `function` came to its file operation number `operation` below `folder`; there it kills itself."""
    return _was_killed(start(lambda: (FileOperations(folder, fatal=operation), function())))


def stopped_before(function: Callable[[], object], folder: Path, operation: int) -> int:
    """Run `function` in a forked process up to its file operation number `operation` below `folder`; its number, to be continued."""
    child = start(lambda: (FileOperations(folder, operation, signal.SIGSTOP), function()))
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise SystemExit(f"a run ended with {os.waitstatus_to_exitcode(status)} before its operation {operation}")
    return child


def count_operations(function: Callable[[], object], folder: Path) -> int:
    """File operations of an undisturbed run below `folder`: files opened for writing, renamed, removed, folders made."""
    read, write = os.pipe()

    def counted() -> None:
        operations = FileOperations(folder)
        function()
        os.write(write, str(operations.count).encode())

    finish(start(counted))
    os.close(write)
    with os.fdopen(read) as pipe:
        return int(pipe.read())


@dataclass
class FileOperations:
    """Counts what this process is about to change below `folder`, and sends it `signal` before operation number `fatal` (from 1).

    Seen are the operations of Python itself; what C++ libraries write is hit by kills at moments in time.
    """

    folder: Path
    fatal: int = 0
    signal: int = signal.SIGKILL
    count: int = 0

    def __post_init__(self) -> None:
        self._prefix = str(self.folder)
        sys.addaudithook(self._on_event)  # for the rest of this process

    def _on_event(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            changes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in _CHANGES
        if changes and _path(event, arguments).startswith(self._prefix):
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), self.signal)


def _path(event: str, arguments: tuple[object, ...]) -> str:
    """What an event is about to change; removing a tree names its files relative to an open folder."""
    path = str(arguments[0])
    descriptor = arguments[1] if event in ("os.remove", "os.rmdir") else -1
    return path if descriptor == -1 else f"{os.readlink(f'/proc/self/fd/{descriptor}')}/{path}"


def make_pictures(folder: Path, places: int = 8, looks: int = 2) -> Path:
    """Pictures of smooth colour patches, `looks` of each place, the later ones noisier."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for place in range(places):
        patches = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        for look in range(looks):
            picture = cv2.resize(patches, (160, 120), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 6 * look, (120, 160, 3))
            name = f"@{500_000 + 10 * place + look:.2f}@5000000.00@31@U@@@p{place:03d}_{look}@@0@@@@@@.jpg"
            cv2.imwrite(str(folder / name), np.clip(picture, 0, 255).astype(np.uint8))
    return folder


def _was_killed(child: int) -> bool:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run ended with {code}")
    return code != 0
