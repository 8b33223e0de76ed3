"""One thread, one slot: the newest frame is processed, older ones that wait are dropped and counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Frame:
    """An image message and when it came, on the steady clock."""

    message: Any
    received_s: float


class FrameWorker:
    """Runs `process` on the newest frame, in a thread of its own.

    `superseded` counts the frames that a newer one replaced while the thread was busy;
    `rate_limited` those replaced while it rested to keep to `max_rate_hz`.
    `process` and `reset` are called from the thread and must not raise.
    """

    def __init__(self, process: Callable[[Frame], None], reset: Callable[[], None], max_rate_hz: float = 0.0):
        self._process, self._reset = process, reset
        self._condition = threading.Condition()
        self._slot: Frame | None = None
        self._stopping = False
        self._reset_asked = False
        self._busy = False
        self.max_rate_hz = max_rate_hz
        self.superseded = self.rate_limited = 0
        self._thread = threading.Thread(target=self._run, name="place_recognition_worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the frame in work finish, drop the waiting one, and end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()

    def submit(self, frame: Frame) -> None:
        """Put a frame in the slot, in place of one that waits there."""
        with self._condition:
            if self._slot is not None:
                if self._busy or self.max_rate_hz <= 0:
                    self.superseded += 1
                else:
                    self.rate_limited += 1
            self._slot = frame
            self._condition.notify()

    def request_reset(self) -> None:
        """Drop the waiting frame and call `reset` before the next one."""
        with self._condition:
            self._slot = None
            self._reset_asked = True
            self._condition.notify()

    def _run(self) -> None:
        next_start_s = 0.0
        while True:
            with self._condition:
                self._busy = False
                while not self._stopping and not self._reset_asked:
                    rest_s = next_start_s - time.monotonic()
                    if self._slot is not None and rest_s <= 0:
                        break
                    # Without a frame only a notification ends the wait; with one, the rest that the rate asks for.
                    self._condition.wait(rest_s if self._slot is not None else None)
                if self._stopping:
                    return
                reset, self._reset_asked = self._reset_asked, False
                frame, self._slot = (None, self._slot) if reset else (self._slot, None)
                self._busy = True
            if reset:
                self._reset()
            if frame is not None:
                next_start_s = time.monotonic() + (1.0 / self.max_rate_hz if self.max_rate_hz > 0 else 0.0)
                self._process(frame)
