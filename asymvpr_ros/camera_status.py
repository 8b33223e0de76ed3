"""What is reported of one camera: its counts, and whether it is silent."""

from __future__ import annotations

import time
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

SILENCE_S = 3.0


@dataclass(frozen=True)
class CameraView:
    """What the graph and the worker know of one camera at the time of a report."""

    topic: str
    publishers: int
    superseded: int = 0
    rate_limited: int = 0
    qos_fault: str = ""


@dataclass
class CameraStatus:
    """Counts of one camera since activation."""

    received: int = 0
    received_s: float | None = None
    ignored: int = 0
    processed: int = 0
    stale: int = 0
    failed: int = 0
    image_age_s: float | None = None
    skip_reason: str = ""

    def silence(self, view: CameraView, begun_s: float) -> str:
        """For how long nothing has come since the last image, or since `begun_s`; empty while that is no time to speak of."""
        silent_s = time.monotonic() - (begun_s if self.received_s is None else self.received_s)
        if silent_s <= SILENCE_S:
            return ""
        who = "nobody publishes it" if view.publishers == 0 else f"{view.publishers} publishers offer it"
        return f"no image on {view.topic} for {silent_s:.0f} s; {who}"

    def report(self, name: str, view: CameraView, state: str, begun_s: float) -> DiagnosticStatus:
        """The status of this camera in the lifecycle state `state`."""
        active = state == "active"
        fault = view.qos_fault or (self.silence(view, begun_s) if active else "")
        values = {
            "image_topic": view.topic,
            "image_publishers": view.publishers,
            "frames_received": self.received,
            "frames_ignored": self.ignored,
            "frames_processed": self.processed,
            "frames_dropped": view.superseded,
            "frames_rate_limited": view.rate_limited,
            "frames_stale": self.stale,
            "frames_failed": self.failed,
            "image_age_s": "" if self.image_age_s is None else f"{self.image_age_s:.3f}",
            "last_skip_reason": self.skip_reason,
        }
        level = DiagnosticStatus.WARN if fault or not active else DiagnosticStatus.OK
        message = fault or (f"{self.processed} of {self.received} images matched" if active else state)
        return status(level, name, message, view.topic, values)


def status(level: bytes, name: str, message: str, hardware: str, values: dict[str, object]) -> DiagnosticStatus:
    """diagnostic_msgs/DiagnosticStatus of these values."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware, values=pairs)
