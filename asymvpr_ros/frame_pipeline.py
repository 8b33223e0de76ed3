"""The way of a frame through the configured node: stamp, odometry, picture, recogniser, outputs, diagnostics.

Everything here that touches the recogniser runs in the worker's thread while the node is active.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rclpy.node import Node

from asymvpr_core.errors import AsymvprError
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.rigid_transforms import carried_on
from asymvpr_core.types import MatchResult, QueryFrame, Recognition
from asymvpr_ros.conversions import rgb_of, stamp_ns
from asymvpr_ros.diagnostics import NodeStatus
from asymvpr_ros.frame_age import age_s, fault_of_stamp
from asymvpr_ros.frame_worker import Frame, FrameWorker
from asymvpr_ros.inputs import Inputs
from asymvpr_ros.localisation_events import Cooldown, LocalisationEvents
from asymvpr_ros.odometry_buffer import Sample
from asymvpr_ros.outputs import Answer, FrameNames, Localisation, Output
from asymvpr_ros.outputs.localisation import InitialPoseOutput
from asymvpr_ros.parameters import ResolvedSettings

_WARNING_PERIOD_S = 5.0


class FramePipeline:
    """A recogniser with its outputs; processes frames between `start` and `stop`."""

    def __init__(
        self, node: Node, recogniser: PlaceRecogniser, outputs: list[Output], settings: Callable[[], ResolvedSettings], status: NodeStatus
    ):
        self._node, self._settings, self._status = node, settings, status
        self.recogniser, self.outputs = recogniser, outputs
        self.enabled = True
        node_settings = settings().node
        self._events_wanted = any(isinstance(output, InitialPoseOutput) for output in outputs)
        self.events = LocalisationEvents(node_settings.relocalisation_distance_m, node_settings.relocalisation_yaw_deg)
        self._cooldowns = {"prior": Cooldown(), "session": Cooldown()}
        self._last_stamps_ns: dict[str, int] = {}  # of each camera
        self._worker: FrameWorker | None = None
        self._inputs: Inputs | None = None
        self._recogniser_settings = (settings().matcher, settings().session)
        self._generation = -1  # of the odometry that the session's poses come from

    @property
    def worker(self) -> FrameWorker | None:
        """The worker while the node is active."""
        return self._worker

    @property
    def map_frame(self) -> str:
        """Frame of the published poses: as in the parameter, else the gallery's."""
        gallery = self.recogniser.gallery
        return self._settings().node.map_frame or (gallery.map_frame if gallery is not None else "map")

    def start(self, inputs: Inputs) -> None:
        """Begin to process what `submit` is given, with an empty session: nobody knows what odometry did meanwhile."""
        self._inputs = inputs
        self._generation = -1
        if self.recogniser.session is not None:
            self.recogniser.reset_session()
        self._forget_frames()
        self._begin_outputs()
        self._worker = FrameWorker(self._process, self._forget_frames, self._settings().node.max_rate_hz)
        self._worker.start()

    def stop(self) -> None:
        """Finish the frame in work and end the thread."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def submit(self, frame: Frame) -> None:
        """Take a frame in, unless matching is disabled."""
        self._status.received(frame.camera, ignored=not self.enabled)
        if self._worker is not None and self.enabled:
            self._worker.submit(frame)

    def between_frames(self, task: Callable[[], Any]) -> Future[Any]:
        """Run `task` where no frame is in work; the future has its result, or is cancelled where the node stops first."""
        if self._worker is not None:
            return self._worker.call(task)
        future: Future[Any] = Future()
        try:
            future.set_result(task())
        except Exception as error:
            future.set_exception(error)
        return future

    def use_gallery_of(self, other: PlaceRecogniser) -> None:
        """Take the prior gallery of `other` into use; what this session has seen stays. Call between two frames.

        Raises:
            ArtefactError: it is of another pair than the model in use, whose folder may have changed since.
        """
        self.recogniser.use_gallery_of(other)
        self._forget_frames()
        self._begin_outputs()

    def change_settings(self, settings: ResolvedSettings) -> None:
        """Use other settings from the next frame on; they have been checked."""
        self.events.distance_m, self.events.yaw_deg = settings.node.relocalisation_distance_m, settings.node.relocalisation_yaw_deg
        if self._worker is not None:
            self._worker.max_rate_hz = settings.node.max_rate_hz
        if (settings.matcher, settings.session) != self._recogniser_settings:
            self._recogniser_settings = (settings.matcher, settings.session)
            change = self.between_frames(lambda: self.recogniser.change_settings(settings.matcher, settings.session))
            change.add_done_callback(self._say_failed_change)

    def _say_failed_change(self, change: Future[Any]) -> None:
        """A change that was checked can still fail where another gallery was loaded since."""
        if not change.cancelled() and change.exception() is not None:
            self._node.get_logger().error(f"the changed settings are not in use: {change.exception()}")

    def names(self) -> FrameNames:
        """The frames of what is published now."""
        inputs = self._inputs
        odometry = "odom" if inputs is None else inputs.odometry_frame or "odom"
        return FrameNames(self.map_frame, odometry, "" if inputs is None else inputs.base_frame)

    def _begin_outputs(self) -> None:
        for output in self.outputs:
            output.begin(self.recogniser.gallery, self.names())

    def _forget_frames(self) -> None:
        """Begin a new run: clear what earlier frames left. Runs in the worker's thread, between two frames."""
        for cooldown in self._cooldowns.values():
            cooldown.reset()
        self._last_stamps_ns.clear()
        self.events.begin()
        self.recogniser.reset()

    def _process(self, frame: Frame) -> None:
        """Match one frame and publish the answer; never raises."""
        stamp = stamp_ns(frame.message.header.stamp)
        reason = fault_of_stamp(stamp, self._now_ns(), self._settings().node.max_image_age_s)
        if reason is not None:
            self._status.stale(frame.camera, reason)
            self._node.get_logger().warning(f"frame skipped: {reason}", throttle_duration_sec=_WARNING_PERIOD_S)
            return
        try:
            self._match(frame, stamp)
        except AsymvprError as error:
            self._status.failed(frame.camera, str(error))
            self._node.get_logger().warning(f"frame skipped: {error}", throttle_duration_sec=_WARNING_PERIOD_S)
        except Exception as error:  # one frame must not end the robot's localisation
            self._status.failed(frame.camera, f"unexpected {type(error).__name__}: {error}")
            self._node.get_logger().error(f"frame skipped:\n{traceback.format_exc()}", throttle_duration_sec=_WARNING_PERIOD_S)

    def _match(self, frame: Frame, stamp: int) -> None:
        assert self._inputs is not None  # the worker lives only between start and stop
        image = rgb_of(frame.message)
        if stamp < self._last_stamps_ns.get(frame.camera, stamp):
            self._forget_frames()  # a bag or a simulation that starts again
        self._last_stamps_ns[frame.camera] = stamp
        sample = self._inputs.odometry.at(stamp)
        if sample.generation != self._generation:
            self._begin_generation(sample.generation)
        recognition = self.recogniser.process(image, QueryFrame(stamp, sample.pose, frame.camera))
        asked = self.events.asked
        say_prior, prior_reason = self._announce("prior", recognition.prior, stamp, bool(asked))
        say_session, session_reason = self._announce("session", recognition.session, stamp, False)
        localisation, held_back = self._localisation(recognition, sample)
        keyframes = 0 if self.recogniser.session is None else len(self.recogniser.session)
        answer = Answer(recognition, self.names(), image, self.recogniser.gallery, say_prior, say_session, localisation, keyframes)
        for output in self.outputs:
            output.publish(answer)
        if say_prior and asked:
            self.events.answered()
        if localisation is not None:
            self._status.localised(localisation.reason)
            self._node.get_logger().info(f"initial pose: {localisation.reason}")
        self._status.decided(
            frame.camera,
            recognition,
            prior_reason=prior_reason,
            session_reason=session_reason,
            published=say_prior,
            session_published=say_session,
            session_keyframes=keyframes,
            held_back=held_back,
            no_odometry=sample.reason,
            match_gallery=self._gallery_of(recognition.prior),
            latency_s=time.monotonic() - frame.received_s,
            image_age_s=age_s(stamp, self._now_ns()),
        )
        self._node.get_logger().debug(f"frame {stamp}: {prior_reason or session_reason}")

    def _gallery_of(self, result: MatchResult | None) -> str:
        """Folder of the gallery that an accepted match lies in; empty where nothing was accepted."""
        if result is None or result.match is None:
            return ""
        return str(self.recogniser.gallery_of(result.match.keyframe_index))

    def _begin_generation(self, generation: int) -> None:
        """Odometry is in a new frame: what was concluded from the old one, and the session's poses, mean nothing in it."""
        if self._generation >= 0:
            if self.recogniser.session is not None:
                self.recogniser.reset_session()
            self.recogniser.reset()
            self.events.odometry_restarted()
        self._generation = generation

    def _announce(self, gallery: str, result: MatchResult | None, stamp: int, asked: bool) -> tuple[bool, str]:
        """Whether the match is published, and the reason of the decision in words."""
        if result is None:
            return False, ""
        cooldown = self._cooldowns[gallery]
        left_s = 0.0 if asked else cooldown.left_s(stamp, self._settings().node.cooldown_s)
        if not result.accepted:
            return False, result.reason
        if left_s > 0:
            return False, f"{result.reason}; not published, cooldown for {left_s:.2f} s more"
        cooldown.begin(stamp)
        return True, result.reason

    def _localisation(self, recognition: Recognition, sample: Sample) -> tuple[Localisation | None, str]:
        """The event that this accepted match is, if it is one, and why an event had to be held back."""
        prior = recognition.prior
        if not self._events_wanted or prior is None or prior.match is None or prior.match.pose is None or prior.covariance is None:
            return None, ""
        latest = self._inputs.odometry.latest if self._inputs is not None else None
        if sample.pose is None or latest is None or latest[1].pose is None or latest[1].generation != sample.generation:
            held_back = f"{self.events.due} cannot be carried to now: {sample.reason or 'odometry has just begun anew'}"
            return None, held_back if self.events.due else ""
        reason = self.events.reason(prior.match.pose, sample.pose)
        if not reason:
            return None, ""
        now_ns, now = latest
        return Localisation(carried_on(prior.match.pose, sample.pose, now.pose), now_ns, prior.covariance, reason), ""

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds
