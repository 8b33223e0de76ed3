"""Replay a rosbag2 into the live graph with /clock, where `ros2 bag play` is not installed.

Messages are published as the bytes that were recorded, at the pace of the recording. Topics
are remapped as anywhere in ROS: `--ros-args -r /old:=/new`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from asymvpr_core.datasets.bags import Bag
from asymvpr_core.errors import AsymvprError, BagError
from asymvpr_ros.conversions import stamp_message
from asymvpr_ros.shutdown import StopRequest, own_arguments, start_ros

CLOCK = "/clock"
# Fits every subscriber: reliable serves best-effort ones too, and transient local serves volatile ones.
_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_CLOCK_QOS = QoSProfile(depth=10)
_POLL_S = 0.02
_FLUSH_S = 2.0


@dataclass(frozen=True)
class PlayOptions:
    """What to replay and how; times in seconds, `topics` None for all."""

    topics: Sequence[str] | None = None
    rate: float = 1.0
    clock_hz: float = 100.0  # 0: no /clock
    start_s: float = 0.0
    duration_s: float | None = None
    wait_for: Sequence[str] = field(default_factory=tuple)
    wait_timeout_s: float = 10.0


class BagPlayer(Node):
    """A node that publishes the messages of one bag."""

    def __init__(self, bag: Bag, options: PlayOptions, **node_options: Any):
        """Make a publisher for each topic.

        Raises:
            BagError: a topic is not in the bag (listing those that are), or none can be played.
        """
        super().__init__("bag_player", **node_options)
        self._bag, self._options = bag, options
        self._clock_publisher = self.create_publisher(Clock, CLOCK, _CLOCK_QOS) if options.clock_hz > 0 else None
        self._publishers_by_topic: dict[str, Publisher] = {}
        for topic in bag.topics if options.topics is None else options.topics:
            if topic not in bag.topics:
                raise BagError(f"topic {topic} is not in bag {bag.path}", expected=f"one of {bag.describe_topics()}")
            if not bag.message_counts[topic]:
                if options.topics is not None:
                    raise BagError(f"topic {topic} of bag {bag.path} has no messages", remedy="play other topics")
            elif not (topic == CLOCK and self._clock_publisher):  # two clocks would contradict each other
                self._add_publisher(topic)
        if not self._publishers_by_topic:
            raise BagError(f"no topic of bag {bag.path} can be played", remedy="install the packages of its message types")

    def _add_publisher(self, topic: str) -> None:
        try:
            message_type = message_class(self._bag.topics[topic])
        except BagError as error:
            if self._options.topics is not None:
                raise
            self.get_logger().warning(f"topic {topic} is left out: {error}")
            return
        self._publishers_by_topic[topic] = self.create_publisher(message_type, topic, _QOS)

    def wait_for_subscribers(self, stop: StopRequest) -> None:
        """Wait until each topic of `wait_for` has a subscriber, as many as it is named times; where it is empty, until any topic has one.

        Raises:
            BagError: at the deadline some of `wait_for` have none, or one of them is not played.
        """
        wanted, timeout_s = self._options.wait_for, self._options.wait_timeout_s
        known = {**self._publishers_by_topic, **({CLOCK: self._clock_publisher} if self._clock_publisher else {})}
        for topic in wanted:
            if topic not in known:
                raise BagError(f"topic {topic} is waited for but not played", expected=f"one of {', '.join(known)}")
        deadline_s = time.monotonic() + timeout_s
        while True:
            counts = {topic: publisher.get_subscription_count() for topic, publisher in known.items()}
            lonely = [topic for topic in dict.fromkeys(wanted) if counts[topic] < wanted.count(topic)]
            if not lonely and (wanted or any(count for topic, count in counts.items() if topic != CLOCK)):
                return
            if time.monotonic() >= deadline_s:
                break
            if stop.wait(_POLL_S):
                return
        if wanted:
            few = ", ".join(f"{counts[topic]} of {wanted.count(topic)} subscribe to {topic}" for topic in lonely)
            raise BagError(
                f"{few if any(counts[topic] for topic in lonely) else 'nobody subscribes to ' + ', '.join(lonely)} after {timeout_s:g} s",
                remedy="start the subscriber first, and check names, remappings and ROS_DOMAIN_ID",
            )
        self.get_logger().warning(f"nobody subscribes to a played topic after {timeout_s:g} s; playing all the same")

    def play(self, stop: StopRequest) -> int:
        """Publish the messages at their times until the end or a signal; how many were published.

        Raises:
            BagError: the storage is damaged; what came before the damage has been published.
        """
        options, published = self._options, 0
        pace: _Pace | None = None
        for message in self._bag.messages(list(self._publishers_by_topic)):
            if pace is None:
                pace = _Pace(message.received_ns, options)
            if message.received_ns < pace.first_ns:
                continue
            if pace.last_ns is not None and message.received_ns > pace.last_ns:
                break
            for tick_ns in pace.ticks_until(message.received_ns):
                if stop.wait(pace.seconds_until(tick_ns)):
                    return published
                if self._clock_publisher:
                    self._clock_publisher.publish(Clock(clock=stamp_message(tick_ns)))
            if stop.wait(pace.seconds_until(message.received_ns)):
                return published
            self._publishers_by_topic[message.topic].publish(bytes(message.raw))
            published += 1
        for publisher in self._publishers_by_topic.values():
            publisher.wait_for_all_acked(Duration(seconds=_FLUSH_S))
        return published


class _Pace:
    """Maps times of the bag to the steady clock, and gives the ticks of /clock in between."""

    def __init__(self, bag_start_ns: int, options: PlayOptions):
        self.first_ns = bag_start_ns + round(options.start_s * 1e9)
        self.last_ns = None if options.duration_s is None else self.first_ns + round(options.duration_s * 1e9)
        self._rate = options.rate
        self._period_ns = round(1e9 / options.clock_hz) if options.clock_hz > 0 else 0
        self._next_tick_ns = self.first_ns
        self._started_s = time.monotonic()

    def seconds_until(self, time_ns: int) -> float:
        """Seconds from now until it is time for `time_ns` of the bag; negative when it is late."""
        return self._started_s + (time_ns - self.first_ns) / 1e9 / self._rate - time.monotonic()

    def ticks_until(self, time_ns: int) -> Any:
        """The /clock times that are due up to `time_ns`, which itself is always one: a stamp must not lie in the future."""
        if self._period_ns:
            while self._next_tick_ns < time_ns:
                yield self._next_tick_ns
                self._next_tick_ns += self._period_ns
            yield time_ns


def message_class(msgtype: str) -> Any:
    """The Python class of a type like "sensor_msgs/msg/Image".

    Raises:
        BagError: its package is not installed, or has no such type.
    """
    package, _, name = msgtype.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise BagError(f"message type {msgtype} is unknown here", remedy=f"install the ROS package {package}") from error


def _parse(args: Sequence[str]) -> tuple[Path, PlayOptions]:
    parser = argparse.ArgumentParser(
        prog="bag_player",
        description="Replay a rosbag2 with /clock.",
        epilog="Topics are remapped with --ros-args -r /old:=/new. Example: bag_player drive/ --rate 2 --wait-for /camera/image/compressed",
    )
    parser.add_argument("bag", type=Path, help="folder of the rosbag2, or its .db3 or .mcap file")
    parser.add_argument("--topics", nargs="+", metavar="TOPIC", help="play only these")
    parser.add_argument("--rate", type=_positive, default=1.0, help="speed against the recording (default 1)")
    parser.add_argument("--clock-hz", type=_not_negative, default=100.0, help="rate of /clock in the bag's time; 0: none (default 100)")
    parser.add_argument("--start-s", type=_not_negative, default=0.0, help="leave out this much of the start [s]")
    parser.add_argument("--duration-s", type=_positive, help="play this much [s]")
    waiting = "wait for subscribers of all these, for two of one that is named twice (default: of any)"
    parser.add_argument("--wait-for", nargs="+", default=[], metavar="TOPIC", help=waiting)
    parser.add_argument("--wait-timeout-s", type=_not_negative, default=10.0, help="longest wait for subscribers [s] (default 10)")
    given = vars(parser.parse_args(args))
    return given.pop("bag"), PlayOptions(**given)


def _positive(text: str) -> float:
    value = _not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be greater than 0")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of at least 0")
    return value


def main(args: list[str] | None = None) -> int:
    """Replay a bag: 0 at its end or after a signal, 1 where it cannot be played, 2 for a wrong command line."""
    path, options = _parse(own_arguments("bag_player", args))
    stop = start_ros(args)
    try:
        with Bag.open(path) as bag:
            player = BagPlayer(bag, options)
            player.wait_for_subscribers(stop)
            started_s = time.monotonic()
            published = player.play(stop)
            end = "stopped" if stop.requested else "played to the end"
            player.get_logger().info(f"{end}: {published} messages in {time.monotonic() - started_s:.1f} s")
            player.destroy_node()
        return 0
    except AsymvprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
