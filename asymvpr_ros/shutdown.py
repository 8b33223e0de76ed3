"""Clean ends: SIGINT and SIGTERM set a flag, and the process leaves its loop by itself.

rclpy's own handlers shut the context down at once, under the feet of a thread that publishes.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import Executor
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

# How late a signal is noticed while nothing arrives: rclpy's wait does not return for one.
_POLL_S = 0.1


class StopRequest:
    """Set by SIGINT or SIGTERM; a second signal changes nothing, because the end is under way."""

    def __init__(self) -> None:
        self._event = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep until a signal comes or the time is over; whether a signal has come."""
        return self._event.wait(max(seconds, 0.0))


def start_ros(args: list[str] | None = None) -> StopRequest:
    """Initialise rclpy without its signal handlers and give the request that ours set.

    Raises:
        SystemExit: with code 2, after one line on stderr, where the ROS arguments are refused.
    """
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # the base of rclpy's own for unreadable parameter files, malformed and unknown arguments
        raise _refused(error) from error
    return StopRequest()


def own_arguments(program: str, args: list[str] | None) -> list[str]:
    """What is left of `args` (None: of the command line) for the program's own parser.

    Raises:
        SystemExit: as `start_ros`.
    """
    try:
        return remove_ros_args(sys.argv if args is None else [program, *args])[1:]
    except RuntimeError as error:
        raise _refused(error) from error


def _refused(error: RuntimeError) -> SystemExit:
    reason = str(error).partition(", at ")[0]  # then come places in rcl's source
    print(f"error: the ROS arguments are refused: {reason}; correct what follows --ros-args", file=sys.stderr)
    return SystemExit(2)


def spin_until(executor: Executor, stop: StopRequest, done: Callable[[], bool] = lambda: False) -> None:
    """Run callbacks until a signal comes or `done` is true."""
    while not stop.requested and not done():
        executor.spin_once(timeout_sec=_POLL_S)
