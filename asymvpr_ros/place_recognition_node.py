"""The place-recognition node: live camera frames in, place-match poses and loop closures out.

A lifecycle node that configures and activates by itself unless `autostart` is false. It
translates messages and owns parameters, timing and diagnostics; the algorithm is
`asymvpr_core.retrieval.recogniser`. See docs/ros_interface.md.
"""

from __future__ import annotations

import functools
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from asymvpr_core.errors import AsymvprError
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import QueryFrame
from asymvpr_ros.conversions import cv_bridge_works, rgb_of, stamp_ns
from asymvpr_ros.diagnostics import NodeStatus
from asymvpr_ros.frame_age import age_s, fault_of_stamp
from asymvpr_ros.frame_worker import Frame, FrameWorker
from asymvpr_ros.outputs import Answer, Output, destroy_outputs, make_outputs
from asymvpr_ros.parameters import NodeParameters, ResolvedSettings
from asymvpr_ros.shutdown import spin_until, start_ros

_REPORT_PERIOD_S = 1.0
_WARNING_PERIOD_S = 5.0
Transition = Callable[["PlaceRecognitionNode", LifecycleState], TransitionCallbackReturn]
_TRANSPORTS: dict[str, tuple[str, Any]] = {"raw": ("image", Image), "compressed": ("image/compressed", CompressedImage)}


def _reports_faults(transition: Transition) -> Transition:
    """Keep the reason of an unexpected error in a transition, which rclpy would swallow."""

    @functools.wraps(transition)
    def wrapped(node: PlaceRecognitionNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node._fault = f"{transition.__name__} failed with {type(error).__name__}: {error}"
            node.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    return wrapped


class PlaceRecognitionNode(LifecycleNode):
    """Matches the frames of one camera against a gallery.

    Raises:
        SettingsError: a parameter given at start is unknown, of the wrong type or out of range.
    """

    def __init__(self, **node_options: Any):
        super().__init__("place_recognition", **node_options)
        self._recogniser: PlaceRecogniser | None = None
        self._worker: FrameWorker | None = None
        self._outputs: list[Output] = []
        self._subscription: Any = None
        self._map_frame = ""
        self._fault = ""
        self._announced_ns: int | None = None
        self._status = NodeStatus(self.get_fully_qualified_name())
        self._settings = NodeParameters(self, check=self._check_settings, apply=self._apply_settings)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock: diagnostics must come even when simulated time stands still.
        self._report_timer = self.create_timer(_REPORT_PERIOD_S, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jump_handle = self.get_clock().create_jump_callback(backwards, post_callback=self._on_clock_jump)

    @property
    def autostart(self) -> bool:
        """Whether the node configures and activates by itself."""
        return self._settings.resolved.node.autostart

    def start(self) -> None:
        """Configure and, where that succeeds, activate."""
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # Lifecycle

    @_reports_faults
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open gallery and model; a refusal keeps its reason in log and diagnostics."""
        settings = self._settings.resolved
        for name in ("gallery_path", "model_path"):
            if not getattr(settings.node, name):  # an empty path would mean the working directory
                return self._refuse(f"parameter '{name}' is not set; give the folder with '-p {name}:=DIR' or in the parameter file")
        try:
            recogniser = PlaceRecogniser.open(
                Path(settings.node.gallery_path), Path(settings.node.model_path), settings.matcher, settings.runtime
            )
        except (AsymvprError, OSError) as error:  # OSError: no permission, a broken disk
            return self._refuse(str(error))
        self._recogniser = recogniser
        self._map_frame = settings.node.map_frame or recogniser.gallery.map_frame
        self._outputs = make_outputs(self)
        self._settings.configured = True
        identity = recogniser.gallery.manifest.gallery_network
        self._status.identify(
            {
                "pair_id": identity.pair_id,
                "gallery": str(recogniser.gallery.path),
                "gallery_network": identity.name,
                "gallery_keyframes": str(len(recogniser.gallery)),
                "model": str(recogniser.model.path),
                "map_frame": self._map_frame,
                "image_conversion": "cv_bridge" if cv_bridge_works() else "asymvpr_core",
            }
        )
        self._status.entered("inactive")
        self.get_logger().info(
            f"gallery {recogniser.gallery.path}: {len(recogniser.gallery)} keyframes in frame '{self._map_frame}', network {identity}"
        )
        return super().on_configure(state)

    @_reports_faults
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the camera."""
        result = super().on_activate(state)  # the publishers first: the first frame may come at once
        settings = self._settings.resolved.node
        self._announced_ns = None
        self._status.begin_run()
        self._worker = FrameWorker(self._process, self._forget_frames, settings.max_rate_hz)
        self._worker.start()
        topic, message_type = _TRANSPORTS[settings.transport]
        newest_only = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscription = self.create_subscription(
            message_type, topic, self._on_image, newest_only, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
        self._status.entered("active")
        self.get_logger().info(f"listening to {self._subscription.topic_name}")
        return result

    @_reports_faults
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening; the frame in work is finished first."""
        self._stop_listening()
        self._status.entered("inactive")
        return super().on_deactivate(state)

    @_reports_faults
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let gallery and model go."""
        result = super().on_cleanup(state)
        self._release()
        self._status.entered("unconfigured")
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and let everything go, from whatever state."""
        self._stop_listening()
        self._release()
        self._status.entered("finalized")
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a failed transition, be unconfigured again."""
        self._stop_listening()
        self._release()
        self._status.entered("unconfigured", self._fault)
        self._report()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """End the worker thread and destroy the node."""
        self._stop_listening()
        self._release()
        self.destroy_node()

    def _refuse(self, reason: str) -> TransitionCallbackReturn:
        self._status.entered("unconfigured", reason)
        self.get_logger().error(f"refused to configure: {reason}")
        self._report()
        return TransitionCallbackReturn.FAILURE

    def _stop_listening(self) -> None:
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _release(self) -> None:
        destroy_outputs(self, self._outputs)
        self._outputs, self._recogniser = [], None
        self._settings.configured = False
        self._status.identify({})

    # Frames

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._status.received()
        if self._worker is not None:
            self._worker.submit(Frame(message, time.monotonic()))

    def _process(self, frame: Frame) -> None:
        """Match one frame and publish the answer; runs in the worker's thread and never raises."""
        stamp = stamp_ns(frame.message.header.stamp)
        reason = fault_of_stamp(stamp, self._now_ns(), self._settings.resolved.node.max_image_age_s)
        if reason is not None:
            self._status.stale(reason)
            self.get_logger().warning(f"frame skipped: {reason}", throttle_duration_sec=_WARNING_PERIOD_S)
            return
        try:
            self._match(frame, stamp)
        except AsymvprError as error:
            self._status.failed(str(error))
            self.get_logger().warning(f"frame skipped: {error}", throttle_duration_sec=_WARNING_PERIOD_S)
        except Exception as error:  # one frame must not end the robot's localisation
            self._status.failed(f"unexpected {type(error).__name__}: {error}")
            self.get_logger().error(f"frame skipped:\n{traceback.format_exc()}", throttle_duration_sec=_WARNING_PERIOD_S)

    def _match(self, frame: Frame, stamp: int) -> None:
        assert self._recogniser is not None  # the worker lives only while the node is configured
        recognition = self._recogniser.process(rgb_of(frame.message), QueryFrame(stamp))
        result, closure = recognition.prior, recognition.prior_closure
        assert result is not None  # a node without a prior gallery does not configure
        cooling_s = self._cooling_s(stamp) if result.accepted else 0.0
        announce = result.accepted and cooling_s <= 0
        if announce:
            self._announced_ns = stamp
        answer = Answer(result, closure, self._map_frame, announce)
        for output in self._outputs:
            output.publish(answer)
        reason = result.reason + (f"; not published, cooldown for {cooling_s:.2f} s more" if cooling_s > 0 else "")
        self._status.decided(
            accepted=result.accepted,
            published=announce,
            reason=reason,
            latency_s=time.monotonic() - frame.received_s,
            image_age_s=age_s(stamp, self._now_ns()),
        )
        self.get_logger().debug(f"frame {stamp}: {'accepted' if result.accepted else 'rejected'}: {reason}")

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _cooling_s(self, stamp: int) -> float:
        """Seconds that are left of the cooldown, by image stamps; 0 or less when it is over."""
        if self._announced_ns is None or stamp < self._announced_ns:
            return 0.0
        return self._settings.resolved.node.cooldown_s - (stamp - self._announced_ns) / 1e9

    def _forget_frames(self) -> None:
        """Clear what earlier frames left; runs in the worker's thread, between two frames."""
        self._announced_ns = None
        if self._recogniser is not None:
            self._recogniser.reset()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if self._worker is None:
            return
        self._worker.request_reset()
        self._status.clock_jumped_back()
        self.get_logger().warning("the clock went back or changed its source; frames seen so far are forgotten")

    # Settings and diagnostics

    def _check_settings(self, settings: ResolvedSettings) -> None:
        if self._recogniser is not None:
            self._recogniser.check_settings(settings.matcher)

    def _apply_settings(self, settings: ResolvedSettings) -> None:
        if self._recogniser is not None and self._recogniser.matcher.settings != settings.matcher:
            # Safe beside the worker's thread: one assignment, and a frame sees the old matcher or the new one.
            self._recogniser.change_settings(settings.matcher)
        if self._worker is not None:
            self._worker.max_rate_hz = settings.node.max_rate_hz

    def _report(self) -> None:
        topic = self.resolve_topic_name(_TRANSPORTS[self._settings.resolved.node.transport][0])
        worker = self._worker
        status = self._status.report(
            topic=topic,
            publishers=self.count_publishers(topic),
            superseded=0 if worker is None else worker.superseded,
            rate_limited=0 if worker is None else worker.rate_limited,
        )
        now = self.get_clock().now().to_msg()
        self._diagnostics.publish(DiagnosticArray(header=Header(stamp=now), status=[status]))


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM: 0, or 1 where a parameter is refused."""
    stop = start_ros(args)
    try:
        try:
            node = PlaceRecognitionNode()
        except AsymvprError as error:
            get_logger("place_recognition").fatal(str(error))
            return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.autostart:
            node.start()
        spin_until(executor, stop)
        executor.shutdown()
        node.close()
        return 0
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
