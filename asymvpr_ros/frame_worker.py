"""One thread, one slot a camera: the newest frames are processed, older ones that wait are dropped and counted.

The cameras take turns: of those whose slot is full, the one that waited longest since its last
turn comes next, so that a fast camera cannot starve a slow one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Frame:
    """An image message, when it came on the steady clock, and the name of its camera."""

    message: Any
    received_s: float
    camera: str = ""


class FrameWorker:
    """Runs `process` on the newest frame of each camera in turn, in a thread of its own.

    `superseded` counts, for each camera, the frames that a newer one of the same camera replaced
    while the thread was busy, and those that waited when a reset was asked for; `rate_limited` those
    replaced while it rested to keep to `max_rate_hz`, which holds for all cameras together.
    `process` and `reset` are called from the thread and must not raise.
    """

    def __init__(self, process: Callable[[Frame], None], reset: Callable[[], None], max_rate_hz: float = 0.0):
        self._process, self._reset = process, reset
        self._condition = threading.Condition()
        self._slots: dict[str, Frame] = {}
        self._turns: dict[str, int] = {}  # the number of each camera's last turn
        self._turn = 0
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._stopping = False
        self._reset_asked = False
        self._busy = False
        self.max_rate_hz = max_rate_hz
        self.superseded: Counter[str] = Counter()
        self.rate_limited: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="place_recognition_worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the frame in work finish, drop what waits, cancel the calls that wait, and end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()
        for future, _ in self._tasks:
            future.cancel()

    def submit(self, frame: Frame) -> None:
        """Put a frame in its camera's slot, in place of one that waits there."""
        with self._condition:
            if frame.camera in self._slots:
                resting = not self._busy and self.max_rate_hz > 0
                (self.rate_limited if resting else self.superseded)[frame.camera] += 1
            self._slots[frame.camera] = frame
            self._condition.notify()

    def request_reset(self) -> None:
        """Drop the waiting frames, which are counted, and call `reset` before the next one."""
        with self._condition:
            self.superseded.update(self._slots.keys())
            self._slots.clear()
            self._reset_asked = True
            self._condition.notify()

    def call(self, task: Callable[[], Any]) -> Future[Any]:
        """Run `task` in the thread between two frames; the future has its result or its exception.

        The future is cancelled where the worker stops first.
        """
        future: Future[Any] = Future()
        with self._condition:
            if self._stopping:
                future.cancel()
            else:
                self._tasks.append((future, task))
                self._condition.notify()
        return future

    def _run(self) -> None:
        next_start_s = 0.0
        while True:
            with self._condition:
                self._busy = False
                while not (self._stopping or self._reset_asked or self._tasks):
                    rest_s = next_start_s - time.monotonic()
                    if self._slots and rest_s <= 0:
                        break
                    # Without a frame only a notification ends the wait; with one, the rest that the rate asks for.
                    self._condition.wait(rest_s if self._slots else None)
                if self._stopping:
                    return
                reset, self._reset_asked = self._reset_asked, False
                task = self._tasks.popleft() if self._tasks and not reset else None
                frame = self._take() if task is None and not reset else None
                self._busy = True
            if reset:
                self._reset()
            if task is not None:
                _run_task(*task)
            if frame is not None:
                next_start_s = time.monotonic() + (1.0 / self.max_rate_hz if self.max_rate_hz > 0 else 0.0)
                self._process(frame)

    def _take(self) -> Frame:
        """The waiting frame of the camera whose last turn is longest ago."""
        camera = min(self._slots, key=lambda name: self._turns.get(name, 0))
        self._turn += 1
        self._turns[camera] = self._turn
        return self._slots.pop(camera)


def _run_task(future: Future[Any], task: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(task())
        except Exception as error:  # it belongs to whoever asked for the call
            future.set_exception(error)
