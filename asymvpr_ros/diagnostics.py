"""What the node reports of itself at 1 Hz: counts, latency, identities, and the reason of the last decision."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus

from asymvpr_core.retrieval.joint import PriorCondition
from asymvpr_core.types import Recognition
from asymvpr_ros.camera_status import SILENCE_S, CameraStatus, CameraView, status

STATUS_SUFFIX = ": place recognition"
CAMERA_SUFFIX = ": camera "
# Frames over which latency is taken: about 20 s of a camera at 15 Hz.
_WINDOW = 300
_RATE_WINDOW_S = 5.0


@dataclass(frozen=True)
class NodeView:
    """What the rest of the node knows at the time of a report; `needs_odometry` names the outputs that wait for it."""

    cameras: dict[str, CameraView]
    odometry_topic: str = ""
    odometry_publishers: int = 0
    needs_odometry: str = ""
    enabled: bool = True
    waiting_for: str = ""
    qos_faults: list[str] = field(default_factory=list)
    prior: PriorCondition = PriorCondition()


class NodeStatus:
    """Counts and last words of one node; every method may be called from any thread."""

    def __init__(self, name: str):
        self._node = name
        self._lock = threading.Lock()
        self._state = "unconfigured"
        self._refusal = ""
        self._identity: dict[str, str] = {}
        self.begin_run()

    def begin_run(self) -> None:
        """Start counting from zero: the node has become active."""
        with self._lock:
            self._begun_s = time.monotonic()
            self._cameras: dict[str, CameraStatus] = {}
            self._counts = dict.fromkeys(
                (
                    "accepted", "rejected", "published", "session_accepted", "session_published", "session_keyframes",
                    "localisations", "odometry_received", "odometry_refused", "odometry_restarts", "clock_resets",
                ),
                0,
            )  # fmt: skip
            self._words = dict.fromkeys(
                (
                    "last_reason", "last_accept_reason", "last_reject_reason", "last_session_reason", "last_skip_reason",
                    "last_localisation", "last_match_gallery", "odometry_fault", "held_back",
                ),
                "",
            )  # fmt: skip
            self._latencies_s: deque[float] = deque(maxlen=_WINDOW)
            self._finished_s: deque[float] = deque(maxlen=_WINDOW)
            self._skipped_since_report: str | None = None
            self._answered_exactly_before = 0
            self._odometry_fault_since_report = ""

    def entered(self, state: str, refusal: str = "") -> None:
        """The lifecycle state has changed, or stayed because a transition was refused for this reason."""
        with self._lock:
            self._state, self._refusal = state, refusal

    def identify(self, identity: dict[str, str]) -> None:
        """Gallery and model that are in use; an empty mapping where none is."""
        with self._lock:
            self._identity = dict(identity)

    def received(self, camera: str = "", *, ignored: bool = False) -> None:
        """A frame has come in; `ignored` where matching is disabled."""
        with self._lock:
            counts = self._camera(camera)
            counts.received += 1
            counts.received_s = time.monotonic()
            counts.ignored += ignored

    def stale(self, camera: str, reason: str) -> None:
        """A frame was dropped because of its stamp."""
        with self._lock:
            self._camera(camera).stale += 1
            self._skipped(camera, reason)

    def failed(self, camera: str, reason: str) -> None:
        """A frame was skipped because of an error."""
        with self._lock:
            self._camera(camera).failed += 1
            self._skipped(camera, reason)

    def decided(
        self,
        camera: str,
        recognition: Recognition,
        *,
        prior_reason: str,
        session_reason: str,
        published: bool,
        session_published: bool,
        session_keyframes: int,
        held_back: str,
        no_odometry: str,
        match_gallery: str,
        latency_s: float,
        image_age_s: float | None,
    ) -> None:
        """A frame has been matched and its answer published; `latency_s` counts from its arrival."""
        prior, session = recognition.prior, recognition.session
        with self._lock:
            self._camera(camera).processed += 1
            self._camera(camera).image_age_s = image_age_s
            self._counts["published"] += published
            self._counts["session_published"] += session_published
            self._counts["session_keyframes"] = session_keyframes
            if prior is not None:
                self._counts["accepted" if prior.accepted else "rejected"] += 1
                self._words["last_accept_reason" if prior.accepted else "last_reject_reason"] = prior_reason
                self._words["last_reason"] = _decision(prior.accepted, prior_reason)
            if session is not None:
                self._counts["session_accepted"] += session.accepted
                self._words["last_session_reason"] = _decision(session.accepted, session_reason)
            self._words["held_back"] = held_back
            if match_gallery:
                self._words["last_match_gallery"] = match_gallery
            if self._counts["odometry_received"]:  # before the first message nothing is wrong, unless an output needs it
                self._words["odometry_fault"] = no_odometry
            self._latencies_s.append(latency_s)
            self._finished_s.append(time.monotonic())

    def localised(self, reason: str) -> None:
        """An initial pose was published."""
        with self._lock:
            self._counts["localisations"] += 1
            self._words["last_localisation"] = reason

    def odometry_received(self) -> None:
        """A good odometry message has come in."""
        with self._lock:
            self._counts["odometry_received"] += 1

    def odometry_refused(self, reason: str) -> None:
        """An odometry message was left out."""
        with self._lock:
            self._counts["odometry_refused"] += 1
            self._odometry_fault_since_report = self._words["odometry_fault"] = reason

    def odometry_restarted(self, reason: str) -> None:
        """Odometry has begun anew."""
        with self._lock:
            self._counts["odometry_restarts"] += 1
            self._odometry_fault_since_report = self._words["odometry_fault"] = reason

    def clock_jumped_back(self) -> None:
        """The buffers were cleared because the clock went back."""
        with self._lock:
            self._counts["clock_resets"] += 1

    def report(self, view: NodeView) -> list[DiagnosticStatus]:
        """The statuses to publish now: the node's, and one for each camera."""
        with self._lock:
            level, message = self._summary(view)
            self._answered_exactly_before = view.prior.answered_exactly
            cameras = [
                self._camera(n).report(f"{self._node}{CAMERA_SUFFIX}{n or 'image'}", v, self._state, self._begun_s)
                for n, v in view.cameras.items()
            ]
            self._skipped_since_report, self._odometry_fault_since_report = None, ""
            counts = [self._camera(name) for name in view.cameras]
            ages = [c.image_age_s for c in counts if c.image_age_s is not None]
            topics = ", ".join(camera.topic for camera in view.cameras.values())
            values = {
                "state": self._state,
                "enabled": str(view.enabled).lower(),
                **self._identity,
                "image_topic": topics,
                "image_publishers": sum(camera.publishers for camera in view.cameras.values()),
                "frames_received": sum(c.received for c in counts),
                "frames_ignored": sum(c.ignored for c in counts),
                "frames_processed": sum(c.processed for c in counts),
                "frames_dropped": sum(camera.superseded for camera in view.cameras.values()),
                "frames_rate_limited": sum(camera.rate_limited for camera in view.cameras.values()),
                "frames_stale": sum(c.stale for c in counts),
                "frames_failed": sum(c.failed for c in counts),
                "rate_hz": f"{self._rate_hz():.2f}",
                "latency_ms_p50": self._latency_ms(50),
                "latency_ms_p95": self._latency_ms(95),
                "image_age_s": f"{max(ages):.3f}" if ages else "",
                "index": view.prior.index,
                "index_answered_exactly": view.prior.answered_exactly,
                "gallery_verification": view.prior.verification,
                "odometry_topic": view.odometry_topic,
                "odometry_publishers": view.odometry_publishers,
                **self._counts,
                "waiting_for": view.waiting_for,
                "qos_faults": "; ".join(view.qos_faults),
                **self._words,
            }
        return [status(level, self._node + STATUS_SUFFIX, message, topics, values), *cameras]

    def _camera(self, name: str) -> CameraStatus:
        return self._cameras.setdefault(name, CameraStatus())

    def _skipped(self, camera: str, reason: str) -> None:
        self._camera(camera).skip_reason = reason
        self._words["last_skip_reason"] = self._skipped_since_report = f"camera {camera}: {reason}" if camera else reason

    def _summary(self, view: NodeView) -> tuple[bytes, str]:
        if self._refusal:
            return DiagnosticStatus.ERROR, self._refusal
        if self._state != "active":
            return DiagnosticStatus.WARN, f"{self._state}: frames are not matched"
        if not view.enabled:
            return DiagnosticStatus.WARN, "matching is disabled; call ~/enable with true"
        faults = [
            view.prior.damage,
            self._slow_search(view.prior),
            f"frame skipped: {self._skipped_since_report}" if self._skipped_since_report is not None else "",
            *view.qos_faults,
            *(self._camera(name).silence(camera, self._begun_s) for name, camera in view.cameras.items()),
            f"initialpose is held back: {self._words['held_back']}" if self._words["held_back"] else "",
            self._odometry_fault_since_report or self._words["odometry_fault"],
            self._missing_odometry(view),
        ]
        found = [fault for fault in faults if fault]
        if found:
            return DiagnosticStatus.WARN, "; ".join(found)
        reason = self._words["last_reason"] or self._words["last_session_reason"]
        topics = ", ".join(camera.topic for camera in view.cameras.values())
        return DiagnosticStatus.OK, reason or f"waiting for the first image on {topics}"

    def _slow_search(self, prior: PriorCondition) -> str:
        """A search that fell back to the exact one since the last report: an answer as good, and many times slower."""
        more = prior.answered_exactly - self._answered_exactly_before
        if more <= 0:
            return ""
        return (
            f"{more} frames were answered by exact search, which is slower: the index ({prior.index}) found too few keyframes; "
            "build it anew with 'asymvpr index build', or exclude fewer keyframes"
        )

    def _missing_odometry(self, view: NodeView) -> str:
        if not view.needs_odometry or self._counts["odometry_received"] or time.monotonic() - self._begun_s <= SILENCE_S:
            return ""
        who = "nobody publishes it" if view.odometry_publishers == 0 else f"{view.odometry_publishers} publishers offer it"
        return f"no odometry on {view.odometry_topic}, which {view.needs_odometry} needs; {who}"

    def _rate_hz(self) -> float:
        """Frames finished in the last seconds, per second."""
        now_s = time.monotonic()
        recent = sum(now_s - finished_s <= _RATE_WINDOW_S for finished_s in self._finished_s)
        return recent / min(_RATE_WINDOW_S, max(now_s - self._begun_s, 1.0))

    def _latency_ms(self, percentile: float) -> str:
        return f"{np.percentile(self._latencies_s, percentile) * 1e3:.2f}" if self._latencies_s else ""


def _decision(accepted: bool, reason: str) -> str:
    return ("accepted: " if accepted else "rejected: ") + reason
