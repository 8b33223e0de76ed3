"""The place-recognition node: live camera frames in, place-match poses and loop closures out.

A lifecycle node that configures and activates by itself unless `autostart` is false. It owns the
lifecycle, the parameters and the diagnostics; `inputs.py` listens, `frame_pipeline.py` takes each
frame through, `outputs/` says what comes out, and the algorithm is
`asymvpr_core.retrieval.recogniser`. See docs/ros_interface.md.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from std_msgs.msg import Header

from asymvpr_core.errors import AsymvprError
from asymvpr_core.retrieval.joint import PriorCondition
from asymvpr_ros.configuration import identity, open_recogniser, refusal
from asymvpr_ros.diagnostics import CameraView, NodeStatus, NodeView
from asymvpr_ros.frame_pipeline import FramePipeline
from asymvpr_ros.frame_worker import Frame
from asymvpr_ros.inputs import ODOMETRY, Inputs, image_topic
from asymvpr_ros.outputs import TransformOutput, destroy_outputs, make_outputs
from asymvpr_ros.parameters import NodeParameters, ResolvedSettings
from asymvpr_ros.qos import QosFaults
from asymvpr_ros.services import Services
from asymvpr_ros.shutdown import spin_until, start_ros

_REPORT_PERIOD_S = 1.0
# tf2 forgets after ten seconds; ten times a second lets listeners interpolate without a visible lag.
_TF_PERIOD_S = 0.1
Transition = Callable[["PlaceRecognitionNode", LifecycleState], TransitionCallbackReturn]


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
    """Matches the frames of one or more cameras against a prior gallery, the session's own keyframes, or both.

    Raises:
        SettingsError: a parameter given at start is unknown, of the wrong type or out of range.
    """

    def __init__(self, **node_options: Any):
        super().__init__("place_recognition", **node_options)
        self._pipeline: FramePipeline | None = None
        self._inputs: Inputs | None = None
        self._fault = ""
        self._status = NodeStatus(self.get_fully_qualified_name())
        self._qos_faults = QosFaults(self.get_logger().warning)
        self._settings = NodeParameters(self, check=self._check_settings, apply=self._apply_settings)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady clocks: diagnostics must come even when simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._report_timer = self.create_timer(_REPORT_PERIOD_S, self._report, clock=steady)
        self._tf_timer = self.create_timer(_TF_PERIOD_S, self._repeat_transform, clock=steady)
        self._tf_timer.cancel()  # until the node is active
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jump_handle = self.get_clock().create_jump_callback(backwards, post_callback=self._on_clock_jump)
        # Not "_services": rclpy keeps its own there.
        self._own_services = Services(
            self, pipeline=lambda: self._pipeline, settings=lambda: self._settings.resolved, reloaded=self._identify
        )

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
        """Open gallery and model, make the publishers; a refusal keeps its reason in log and diagnostics."""
        settings = self._settings.resolved
        if reason := refusal(settings):
            return self._refuse(reason)
        try:
            recogniser = open_recogniser(settings)
            outputs = make_outputs(self, self._qos_faults, settings.node.outputs, transform=settings.node.publish_tf)
        except (AsymvprError, OSError) as error:  # OSError: no permission, a broken disk
            return self._refuse(str(error))
        self._pipeline = FramePipeline(self, recogniser, outputs, lambda: self._settings.resolved, self._status)
        self._settings.configured = True
        self._identify()
        self._status.entered("inactive")
        return super().on_configure(state)

    @_reports_faults
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the cameras."""
        assert self._pipeline is not None  # the lifecycle activates only what is configured
        result = super().on_activate(state)  # the publishers first: the first frame may come at once
        self._status.begin_run()
        self._inputs = Inputs(self, self._settings.resolved.node, self._status, self._qos_faults, self)
        self._pipeline.start(self._inputs)
        self._inputs.start()
        if self._settings.resolved.node.publish_tf:
            self._tf_timer.reset()
        self._status.entered("active")
        self.get_logger().info(f"listening to {', '.join(self._inputs.topics.values())}")
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
        """End the threads and destroy the node."""
        self._stop_listening()
        self._own_services.close()
        self._release()
        self.destroy_node()

    def _refuse(self, reason: str) -> TransitionCallbackReturn:
        self._status.entered("unconfigured", reason)
        self.get_logger().error(f"refused to configure: {reason}")
        self._report()
        return TransitionCallbackReturn.FAILURE

    def _stop_listening(self) -> None:
        self._tf_timer.cancel()
        if self._inputs is not None:
            self._inputs.stop()
        if self._pipeline is not None:
            self._pipeline.stop()
        self._inputs = None

    def _release(self) -> None:
        if self._pipeline is not None:
            destroy_outputs(self, self._pipeline.outputs)
        self._pipeline = None
        self._settings.configured = False
        self._qos_faults.clear()
        self._status.identify({})

    def _identify(self) -> None:
        """Tell log and diagnostics which gallery and model are in use."""
        if self._pipeline is not None:
            recogniser, map_frame = self._pipeline.recogniser, self._pipeline.map_frame
            self._status.identify(identity(recogniser, map_frame))
            gallery = recogniser.gallery
            what = "no prior gallery" if gallery is None else f"gallery {gallery.path}: {len(gallery)} keyframes in frame '{map_frame}'"
            self.get_logger().info(f"{what}, network {recogniser.model.manifest.gallery_network}")

    # What the inputs say

    def on_frame(self, frame: Frame) -> None:
        """A camera has sent an image."""
        if self._pipeline is not None:
            self._pipeline.submit(frame)

    def on_trigger(self, reason: str) -> None:
        """Somebody wants the next match, whatever the cooldown."""
        if self._pipeline is not None:
            self._pipeline.events.trigger(reason)
            self.get_logger().info(f"the next confident match is awaited by {reason}")

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if self._pipeline is None or self._pipeline.worker is None or self._inputs is None:
            return
        self._inputs.odometry.clear()
        self._pipeline.worker.request_reset()
        self._status.clock_jumped_back()
        self.get_logger().warning("the clock went back or changed its source; frames and odometry seen so far are forgotten")

    # Settings and diagnostics

    def _check_settings(self, settings: ResolvedSettings) -> None:
        if self._pipeline is not None:
            self._pipeline.recogniser.check_settings(settings.matcher, settings.session)

    def _apply_settings(self, settings: ResolvedSettings) -> None:
        if self._inputs is not None:
            self._inputs.odometry.max_gap_s = settings.node.max_odom_gap_s
        if self._pipeline is not None:
            self._pipeline.change_settings(settings)

    def _repeat_transform(self) -> None:
        for output in self._pipeline.outputs if self._pipeline is not None else ():
            if isinstance(output, TransformOutput):
                output.repeat(self.get_clock().now().nanoseconds)

    def _report(self) -> None:
        statuses = self._status.report(self._view())
        now = self.get_clock().now().to_msg()
        self._diagnostics.publish(DiagnosticArray(header=Header(stamp=now), status=statuses))

    def _view(self) -> NodeView:
        settings, pipeline = self._settings.resolved.node, self._pipeline
        worker = pipeline.worker if pipeline is not None else None
        faults, cameras = self._qos_faults.reasons(self), {}
        for name in settings.camera_names:
            topic = self.resolve_topic_name(image_topic(name, settings.transport))
            dropped = (0, 0) if worker is None else (worker.superseded[name], worker.rate_limited[name])
            cameras[name] = CameraView(topic, self.count_publishers(topic), *dropped, qos_fault=faults.get(topic, ""))
        odometry = self.resolve_topic_name(ODOMETRY)
        return NodeView(
            cameras,
            odometry,
            self.count_publishers(odometry),
            needs_odometry=", ".join(output.topic for output in pipeline.outputs if output.needs_odometry) if pipeline is not None else "",
            enabled=pipeline is None or pipeline.enabled,
            waiting_for=pipeline.events.asked if pipeline is not None else "",
            qos_faults=list(faults.values()),
            prior=PriorCondition() if pipeline is None else pipeline.recogniser.condition,
        )


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
