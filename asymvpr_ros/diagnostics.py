"""What the node reports of itself at 1 Hz: counts, latency, identities, and the reason of the last decision."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

STATUS_SUFFIX = ": place recognition"
# Frames over which latency is taken: about 20 s of a camera at 15 Hz.
_WINDOW = 300
_RATE_WINDOW_S = 5.0
_SILENCE_S = 3.0


class NodeStatus:
    """Counts and last words of one node; every method may be called from any thread."""

    def __init__(self, name: str):
        self._name = name + STATUS_SUFFIX
        self._lock = threading.Lock()
        self._state = "unconfigured"
        self._refusal = ""
        self._identity: dict[str, str] = {}
        self.begin_run()

    def begin_run(self) -> None:
        """Start counting from zero: the node has become active."""
        with self._lock:
            self._begun_s = time.monotonic()
            self._received = self._processed = self._stale = self._failed = self._accepted = self._rejected = self._published = 0
            self._clock_resets = 0
            self._latencies_s: deque[float] = deque(maxlen=_WINDOW)
            self._finished_s: deque[float] = deque(maxlen=_WINDOW)
            self._received_s: float | None = None
            self._image_age_s: float | None = None
            self._last_reason = self._accept_reason = self._reject_reason = ""
            self._skip_reason = ""
            self._skipped_since_report: str | None = None

    def entered(self, state: str, refusal: str = "") -> None:
        """The lifecycle state has changed, or stayed because a transition was refused for this reason."""
        with self._lock:
            self._state, self._refusal = state, refusal

    def identify(self, identity: dict[str, str]) -> None:
        """Gallery and model that are in use; an empty mapping where none is."""
        with self._lock:
            self._identity = dict(identity)

    def received(self) -> None:
        """A frame has come in."""
        with self._lock:
            self._received += 1
            self._received_s = time.monotonic()

    def stale(self, reason: str) -> None:
        """A frame was dropped because of its stamp."""
        with self._lock:
            self._stale += 1
            self._skip_reason = self._skipped_since_report = reason

    def failed(self, reason: str) -> None:
        """A frame was skipped because of an error."""
        with self._lock:
            self._failed += 1
            self._skip_reason = self._skipped_since_report = reason

    def decided(self, *, accepted: bool, published: bool, reason: str, latency_s: float, image_age_s: float | None) -> None:
        """A frame has been matched and published; `latency_s` counts from its arrival."""
        with self._lock:
            self._processed += 1
            self._published += published
            if accepted:
                self._accepted += 1
                self._accept_reason = reason
            else:
                self._rejected += 1
                self._reject_reason = reason
            self._last_reason = ("accepted: " if accepted else "rejected: ") + reason
            self._latencies_s.append(latency_s)
            self._finished_s.append(time.monotonic())
            self._image_age_s = image_age_s

    def clock_jumped_back(self) -> None:
        """The buffers were cleared because the clock went back."""
        with self._lock:
            self._clock_resets += 1

    def report(self, *, topic: str, publishers: int, superseded: int, rate_limited: int) -> DiagnosticStatus:
        """The status to publish now.

        Args:
            topic: resolved name of the image topic.
            publishers: how many publishers that topic has.
            superseded: frames that a newer one replaced while another was in work.
            rate_limited: frames left out to keep to the rate.
        """
        with self._lock:
            level, message = self._summary(topic, publishers)
            self._skipped_since_report = None
            values = {
                "state": self._state,
                **self._identity,
                "image_topic": topic,
                "image_publishers": publishers,
                "frames_received": self._received,
                "frames_processed": self._processed,
                "frames_dropped": superseded,
                "frames_rate_limited": rate_limited,
                "frames_stale": self._stale,
                "frames_failed": self._failed,
                "accepted": self._accepted,
                "rejected": self._rejected,
                "published": self._published,
                "rate_hz": f"{self._rate_hz():.2f}",
                "latency_ms_p50": self._latency_ms(50),
                "latency_ms_p95": self._latency_ms(95),
                "image_age_s": "" if self._image_age_s is None else f"{self._image_age_s:.3f}",
                "clock_resets": self._clock_resets,
                "last_reason": self._last_reason,
                "last_accept_reason": self._accept_reason,
                "last_reject_reason": self._reject_reason,
                "last_skip_reason": self._skip_reason,
            }
        pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        return DiagnosticStatus(level=level, name=self._name, message=message, hardware_id=topic, values=pairs)

    def _summary(self, topic: str, publishers: int) -> tuple[bytes, str]:
        if self._refusal:
            return DiagnosticStatus.ERROR, self._refusal
        if self._state != "active":
            return DiagnosticStatus.WARN, f"{self._state}: frames are not matched"
        if self._skipped_since_report is not None:
            return DiagnosticStatus.WARN, f"frame skipped: {self._skipped_since_report}"
        silent_s = time.monotonic() - (self._begun_s if self._received_s is None else self._received_s)
        if silent_s > _SILENCE_S:
            who = "nobody publishes it" if publishers == 0 else f"{publishers} publishers offer it"
            return DiagnosticStatus.WARN, f"no image on {topic} for {silent_s:.0f} s; {who}"
        return DiagnosticStatus.OK, self._last_reason or f"waiting for the first image on {topic}"

    def _rate_hz(self) -> float:
        """Frames finished in the last seconds, per second."""
        now_s = time.monotonic()
        recent = sum(now_s - finished_s <= _RATE_WINDOW_S for finished_s in self._finished_s)
        return recent / min(_RATE_WINDOW_S, max(now_s - self._begun_s, 1.0))

    def _latency_ms(self, percentile: float) -> str:
        return f"{np.percentile(self._latencies_s, percentile) * 1e3:.2f}" if self._latencies_s else ""
