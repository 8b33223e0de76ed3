"""The node's own services: trigger, enable, reset and save the session, load a gallery.

What takes long runs in a thread, and the answer is awaited: images keep coming and are matched
with the old gallery until the new one is whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from asymvpr_core.errors import AsymvprError
from asymvpr_ros.configuration import open_recogniser
from asymvpr_ros.frame_pipeline import FramePipeline
from asymvpr_ros.parameters import ResolvedSettings

# How long the executor rests at each look at a running job; images may be this late meanwhile.
_REST_S = 0.005
_NOT_CONFIGURED = "the node is not configured; see /diagnostics for the reason, then configure it"
_NOT_ACTIVE = "the node is not active: no frame will be matched; activate it first"


class Services:
    """The services of one node, from its construction to its end.

    Args:
        pipeline: gives the pipeline while the node is configured, else None.
        settings: gives the settings as they are now.
        reloaded: called after another gallery was taken into use.
    """

    def __init__(
        self,
        node: Node,
        *,
        pipeline: Callable[[], FramePipeline | None],
        settings: Callable[[], ResolvedSettings],
        reloaded: Callable[[], None],
    ):
        self._pipeline, self._settings, self._reloaded = pipeline, settings, reloaded
        self._logger = node.get_logger()
        # A group of their own: a service that waits must not hold the subscriptions.
        group = MutuallyExclusiveCallbackGroup()
        node.create_service(Trigger, "~/trigger_localization", self._trigger, callback_group=group)
        node.create_service(SetBool, "~/enable", self._enable, callback_group=group)
        node.create_service(Trigger, "~/reset_session", self._reset_session, callback_group=group)
        node.create_service(Trigger, "~/save_session", self._save_session, callback_group=group)
        node.create_service(Trigger, "~/load_gallery", self._load_gallery, callback_group=group)
        self._jobs = ThreadPoolExecutor(max_workers=1, thread_name_prefix="place_recognition_job")

    def close(self) -> None:
        """Wait for the job in work and end its thread."""
        self._jobs.shutdown(wait=True, cancel_futures=True)

    def _trigger(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        pipeline = self._pipeline()
        refusal = ""
        if pipeline is None:
            refusal = _NOT_CONFIGURED
        elif pipeline.worker is None:
            refusal = _NOT_ACTIVE
        elif pipeline.recogniser.gallery is None:
            refusal = "there is no prior gallery to localise in; set gallery_path"
        elif not pipeline.enabled:
            refusal = "matching is disabled; call ~/enable with true first"
        else:
            pipeline.events.trigger("the service ~/trigger_localization")
        return _answer(response, refusal, "the next confident match will be published")

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        pipeline = self._pipeline()
        if pipeline is None:
            return _answer(response, _NOT_CONFIGURED, "")
        pipeline.enabled = request.data
        if not request.data and pipeline.worker is not None:
            pipeline.worker.request_reset()  # what was seen before a pause of unknown length proves nothing
        return _answer(response, "", "frames are matched" if request.data else "frames are ignored until enabled again")

    async def _reset_session(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def reset(pipeline: FramePipeline) -> str:
            pipeline.recogniser.reset_session()
            return "the session gallery is empty"

        return await self._with_session(response, reset)

    async def _save_session(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        path = self._settings().node.session_path
        if not path:
            return _answer(response, "parameter 'session_path' is not set; set it to the folder to write", "")

        def save(pipeline: FramePipeline) -> str:
            return f"the session gallery is in {pipeline.recogniser.save_session(Path(path), pipeline.names().odom)}"

        return await self._with_session(response, save)

    async def _with_session(self, response: Trigger.Response, task: Callable[[FramePipeline], str]) -> Trigger.Response:
        pipeline = self._pipeline()
        if pipeline is None:
            return _answer(response, _NOT_CONFIGURED, "")
        if not self._settings().session.session_gallery:
            return _answer(response, "the session gallery is off; set session_gallery to true", "")
        return await self._outcome(response, pipeline.between_frames(lambda: task(pipeline)))

    async def _load_gallery(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        pipeline, settings = self._pipeline(), self._settings()
        if pipeline is None:
            return _answer(response, _NOT_CONFIGURED, "")
        if not settings.node.prior_paths:
            return _answer(response, "parameter 'gallery_path' is not set; set it, or 'gallery_paths', to the folders to load", "")
        opened = self._jobs.submit(open_recogniser, settings)
        await _Done(opened)
        if opened.cancelled() or opened.exception() is not None or self._pipeline() is not pipeline:
            return await self._outcome(response, opened)
        recogniser = opened.result()

        def use() -> str:
            pipeline.use_gallery_of(recogniser)
            return f"gallery {recogniser.gallery.path}: {len(recogniser.gallery)} keyframes in frame '{pipeline.map_frame}'"

        response = await self._outcome(response, pipeline.between_frames(use))
        if response.success:
            self._reloaded()
        return response

    async def _outcome(self, response: Any, job: Future[Any]) -> Any:
        """The answer of a job once it is done: its text, or the reason why it failed."""
        await _Done(job)
        try:
            text = job.result()
        except CancelledError:
            return _answer(response, "the node stopped meanwhile; nothing was changed", "")
        except (AsymvprError, OSError) as error:
            self._logger.error(f"service refused: {error}")
            return _answer(response, str(error), "")
        except Exception as error:  # the caller is told; the node goes on
            self._logger.error(f"service failed with {type(error).__name__}: {error}")
            return _answer(response, f"unexpected {type(error).__name__}: {error}", "")
        return _answer(response, "" if isinstance(text, str) else "the node was cleaned up meanwhile; nothing was changed", str(text))


class _Done:
    """Awaitable: a job of another thread is done.

    rclpy's own future is asked again without any rest by executors up to Kilted, which would take
    a whole core from the query network while a large gallery is read.
    """

    def __init__(self, job: Future[Any]):
        self._finished = threading.Event()
        job.add_done_callback(lambda _: self._finished.set())

    def __await__(self) -> Generator[None, None, None]:
        while not self._finished.wait(_REST_S):
            yield


def _answer(response: Any, refusal: str, text: str) -> Any:
    response.success, response.message = not refusal, refusal or text
    return response
