"""The worker with one slot a camera: newest wins, cameras take turns, the rest is counted, and it ends when asked."""

from __future__ import annotations

import threading
import time

import pytest

from asymvpr_ros.frame_worker import Frame, FrameWorker

DEADLINE_S = 10.0


class Gate:
    """A processing step that waits for permission, so that tests need no timing."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.entered, self.permission = threading.Semaphore(0), threading.Semaphore(0)

    def process(self, frame: Frame) -> None:
        self.events.append(frame.message)
        self.entered.release()
        assert self.permission.acquire(timeout=DEADLINE_S)

    def reset(self) -> None:
        self.events.append("reset")

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=DEADLINE_S)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def worker(gate):
    worker = FrameWorker(gate.process, gate.reset)
    worker.start()
    yield worker
    gate.permission.release(100)
    worker.stop()


def test_the_newest_frame_wins_and_the_others_are_counted(gate, worker):
    worker.submit(Frame("first", 0.0))
    gate.wait_until_entered()
    for name in ("second", "third", "fourth"):
        worker.submit(Frame(name, 0.0))
    gate.permission.release()
    gate.wait_until_entered()
    assert gate.events == ["first", "fourth"]
    assert (worker.superseded[""], worker.rate_limited[""]) == (2, 0)


def test_a_reset_drops_the_waiting_frame_and_comes_before_the_next(gate, worker):
    worker.submit(Frame("old", 0.0))
    gate.wait_until_entered()
    worker.submit(Frame("older than the reset", 0.0))
    worker.request_reset()
    worker.submit(Frame("new", 0.0))
    gate.permission.release()
    gate.wait_until_entered()
    assert gate.events == ["old", "reset", "new"]


def test_frames_left_out_for_the_rate_are_counted_apart(gate, worker):
    worker.max_rate_hz = 0.001  # the rest after the first frame outlasts the test
    worker.submit(Frame("first", 0.0))
    gate.wait_until_entered()
    gate.permission.release()
    deadline_s = time.monotonic() + DEADLINE_S
    while worker._busy:  # until the thread rests
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    for name in ("second", "third", "fourth"):
        worker.submit(Frame(name, 0.0))
    assert gate.events == ["first"]
    assert (worker.superseded[""], worker.rate_limited[""]) == (0, 2)


def test_stop_ends_the_thread_although_a_frame_waits(gate):
    worker = FrameWorker(gate.process, gate.reset, max_rate_hz=0.001)
    worker.start()
    worker.submit(Frame("first", 0.0))
    gate.wait_until_entered()
    worker.submit(Frame("second", 0.0))
    gate.permission.release()
    worker.stop()
    assert gate.events == ["first"]
    assert not any(thread.name == "place_recognition_worker" for thread in threading.enumerate())


def test_cameras_take_turns_and_each_keeps_its_newest(gate, worker):
    worker.submit(Frame("front 1", 0.0, "front"))
    gate.wait_until_entered()
    for name, camera in (("front 2", "front"), ("left 1", "left"), ("front 3", "front"), ("rear 1", "rear"), ("left 2", "left")):
        worker.submit(Frame(name, 0.0, camera))
    for count in range(3):
        gate.permission.release()
        gate.wait_until_entered()
        if count == 0:  # a fast camera delivers again before the slow ones have had their turn
            worker.submit(Frame("front 4", 0.0, "front"))
    gate.permission.release()
    assert gate.events == ["front 1", "left 2", "rear 1", "front 4"]
    assert dict(worker.superseded) == {"front": 2, "left": 1}


def test_a_call_runs_between_two_frames_and_gives_its_result(gate, worker):
    worker.submit(Frame("first", 0.0))
    gate.wait_until_entered()
    worker.submit(Frame("second", 0.0))
    result, failure = worker.call(lambda: gate.events.append("call") or 7), worker.call(lambda: 1 / 0)
    assert not result.done()
    gate.permission.release()
    assert result.result(DEADLINE_S) == 7
    assert isinstance(failure.exception(DEADLINE_S), ZeroDivisionError)
    gate.wait_until_entered()
    gate.permission.release()
    assert gate.events == ["first", "call", "second"]


def test_a_call_that_the_end_overtakes_is_cancelled(gate):
    worker = FrameWorker(gate.process, gate.reset)
    worker.start()
    worker.submit(Frame("first", 0.0))
    gate.wait_until_entered()
    late = worker.call(lambda: gate.events.append("late"))
    worker._stopping = True  # as stop() does at once; the call waits behind the frame
    gate.permission.release()
    worker.stop()
    assert late.cancelled() and worker.call(lambda: None).cancelled()
    assert gate.events == ["first"]
