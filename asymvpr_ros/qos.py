"""QoS: which policies the user may override, and who offers or asks what does not match."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions


def newest_only() -> QoSProfile:
    """Best effort, depth 1: for images, of which an old one is worth nothing. Matches reliable publishers too."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def sensor_data(depth: int) -> QoSProfile:
    """Best effort with a short queue: for odometry, of which every message counts but none is waited for."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def overridable() -> QoSOverridingOptions:
    """History, depth, reliability and durability, by `qos_overrides.<topic>.<publisher|subscription>.<policy>`."""
    return QoSOverridingOptions([QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY])


class QosFaults:
    """Topics on which somebody's QoS does not match ours, with the reason. May be used from any thread."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, bool, QoSProfile]] = {}  # topic: reason, whether we subscribe, our profile

    def of_subscription(self, topic: str, qos: QoSProfile) -> Callable[[Any], None]:
        """The callback for our subscription of `topic` (its resolved name)."""
        return lambda event: self._note(
            topic,
            f"a publisher of {topic} offers another {_policy(event)} than this node asks for, so nothing of it arrives; "
            f"set qos_overrides.{topic}.subscription.{_policy(event)}, or change the publisher",
            True,
            qos,
        )

    def of_publisher(self, topic: str, qos: QoSProfile) -> Callable[[Any], None]:
        """The callback for our publisher of `topic` (its resolved name)."""
        return lambda event: self._note(
            topic,
            f"a subscriber of {topic} asks for another {_policy(event)} than this node offers, so it gets nothing; "
            f"set qos_overrides.{topic}.publisher.{_policy(event)}, or change the subscriber",
            False,
            qos,
        )

    def _note(self, topic: str, reason: str, subscribing: bool, qos: QoSProfile) -> None:
        with self._lock:
            self._found[topic] = (reason, subscribing, qos)
        self._warn(reason)

    def reasons(self, node: Node) -> dict[str, str]:
        """The reason for each topic on which somebody still does not match; those who have left are forgotten."""
        with self._lock:
            found = dict(self._found)
        gone = [topic for topic, (_, subscribing, qos) in found.items() if not _mismatch(node, topic, subscribing, qos)]
        with self._lock:
            for topic in gone:
                self._found.pop(topic, None)
            return {topic: reason for topic, (reason, _, _) in self._found.items()}

    def clear(self) -> None:
        """Forget all: the subscriptions and publishers are made anew."""
        with self._lock:
            self._found.clear()


def _mismatch(node: Node, topic: str, subscribing: bool, qos: QoSProfile) -> bool:
    """Whether an endpoint on the other side of `topic` does not match our profile."""
    if subscribing:
        pairs = [(endpoint.qos_profile, qos) for endpoint in node.get_publishers_info_by_topic(topic)]
    else:
        pairs = [(qos, endpoint.qos_profile) for endpoint in node.get_subscriptions_info_by_topic(topic)]
    return any(qos_check_compatible(offered, asked)[0] == QoSCompatibility.ERROR for offered, asked in pairs)


def _policy(event: Any) -> str:
    return qos_policy_name_from_kind(event.last_policy_kind).lower()
