"""The session gallery: this run's own keyframes, described by the light network, for loop closures within the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from asymvpr_core.config import IndexSettings, MatcherSettings, SessionSettings
from asymvpr_core.errors import RetrievalError
from asymvpr_core.gallery.store import DESCRIPTORS, KEYFRAMES, THUMBNAILS, thumbnail_name, write_keyframes
from asymvpr_core.manifest import GalleryNetworkIdentity, new_folder, write_manifest
from asymvpr_core.retrieval.bayes import Likelihood
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.gate import Fix, OdometryGate
from asymvpr_core.retrieval.growing import GrowingIndex
from asymvpr_core.retrieval.matcher import Matcher, Verifier
from asymvpr_core.retrieval.odometry import Moment, OdometryMonitor, between
from asymvpr_core.retrieval.places import KeyframePlaces
from asymvpr_core.types import Keyframe, LoopClosure, MatchResult, QueryFrame

# Poses and frames must not be dropped for lying exactly at a limit.
_SLACK = 1e-6

# Makes the verifier of a session from its list of JPEG thumbnails, and the thumbnail of a frame.
MakeVerifier = Callable[[list[bytes]], Verifier]
MakeThumbnail = Callable[[np.ndarray], bytes]


@dataclass(frozen=True)
class Verification:
    """What a session needs for geometric verification; see `retrieval.verification`."""

    verifier: MakeVerifier
    thumbnail: MakeThumbnail


@dataclass(frozen=True)
class _Added:
    """A keyframe of the session, and the moment that it was taken at."""

    keyframe: Keyframe
    moment: Moment


class RecentPast:
    """Excludes the last keyframes of the session: by time, by number, and by the way since then."""

    def __init__(self, added: list[_Added], time_s: float, settings: SessionSettings):
        self._added, self._time_s, self._settings = added, time_s, settings

    def __call__(self, moment: Moment) -> np.ndarray:
        """Indices of the excluded keyframes: all from the first recent one on."""
        settings, count = self._settings, len(self._added)
        cameras = len({added.moment.camera for added in self._added[-8 * max(1, settings.exclude_keyframes) :]})
        first = max(0, count - settings.exclude_keyframes * max(1, cameras))
        while first > 0 and self._is_recent(self._added[first - 1].moment, moment):
            first -= 1
        return np.arange(first, count)

    def reason(self, count: int) -> str:
        """Why all keyframes are excluded."""
        settings = self._settings
        past = f"{self._time_s:g} s, {settings.exclude_keyframes} keyframes, {settings.exclude_distance_m:g} m"
        return f"all {count} keyframes of the session are of the recent past ({past})"

    def _is_recent(self, then: Moment, now: Moment) -> bool:
        if abs(now.stamp_ns - then.stamp_ns) < round(self._time_s * 1e9):
            return True
        measured = then.odometry is not None
        return measured and now.travelled_m - then.travelled_m < self._settings.exclude_distance_m


class SessionGallery:
    """Keyframes of this run, and a matcher over them. Not thread-safe.

    A frame is first matched, then it may become a keyframe: when the robot has moved by `min_keyframe_distance_m`
    or turned by `min_keyframe_yaw_deg` since the last keyframe of this camera; without odometry, after
    as many seconds as the distance has metres. When `session_capacity` is reached, every other
    keyframe of each camera goes and the distance doubles: memory is bounded, and the whole run stays covered.

    The gallery begins anew when odometry jumps or first comes, and when stamps go back: poses or stamps
    before and after could not be compared.
    """

    def __init__(
        self, dimension: int, matcher: MatcherSettings, session: SessionSettings,
        *, likelihood: Likelihood | None = None, verification: Verification | None = None,
    ):  # fmt: skip
        """An empty session of `dimension`-D descriptors.

        Args:
            matcher: as for the prior gallery; its score_threshold is replaced by the session's.

        Raises:
            SettingsError: a vote that can never be won.
        """
        self._dimension, self._likelihood, self._verification = dimension, likelihood, verification
        self.matcher_settings, self.settings = _checked(matcher, session), session
        self._monitor = OdometryMonitor(self.matcher_settings)
        self._first: Moment | None = None  # the first moment with odometry
        self._begin(None)

    def change_settings(self, matcher: MatcherSettings, session: SessionSettings) -> None:
        """Use other settings; keyframes stay, what is remembered from frame to frame does not.

        Raises:
            SettingsError: a vote that can never be won; the old settings stay.
        """
        self.matcher_settings, self.settings = _checked(matcher, session), session
        self._monitor.settings = self.matcher_settings
        self._matcher = self._make_matcher()

    def __len__(self) -> int:
        return len(self._added)

    @property
    def keyframes(self) -> list[Keyframe]:
        """Keyframes so far, by index; poses in the frame of odometry."""
        return [added.keyframe for added in self._added]

    def reset(self) -> None:
        """Forget what is remembered from frame to frame; the keyframes stay."""
        self._matcher.reset()
        self._monitor.forget()

    def begin_anew(self) -> None:
        """Begin an empty gallery."""
        self._begin(None)

    def process(self, descriptor: np.ndarray, frame: QueryFrame, image: np.ndarray | None = None) -> tuple[MatchResult, bool]:
        """(what the session says of a frame, whether the frame became a keyframe).

        Raises:
            RetrievalError: another dimension, or a descriptor that is not finite.
        """
        moment = self._monitor.observe(frame)
        note = self._reason_to_begin_anew(moment)
        if note:
            self._begin(moment)
            note = f" ({note}; the session gallery begins anew)"
        elif self._first is None and moment.odometry is not None:
            self._first = moment
            self._matcher = self._make_matcher()
        if self._added:
            result = self._matcher.match(descriptor, frame, image)
        else:
            result = MatchResult(frame.stamp_ns, (), None, "the session gallery is still empty")
        added = self._is_keyframe(moment)
        if added:
            self._add(descriptor, frame, moment, image)
        self._last_stamps[frame.camera] = frame.stamp_ns
        return (replace(result, reason=result.reason + note) if note else result), added

    def closure(self, result: MatchResult) -> LoopClosure | None:
        """The edge between the matched keyframe and the frame, in the frame of odometry; None where nothing was accepted."""
        if result.match is None or result.covariance is None:
            return None
        keyframe = self._added[result.match.keyframe_index].keyframe
        assert keyframe.stamp_ns is not None  # frames have stamps
        return LoopClosure(result.match.keyframe_index, keyframe.stamp_ns, keyframe.pose, result.stamp_ns, keyframe.pose, result.covariance)

    def save(self, path: Path, identity: GalleryNetworkIdentity, odometry_frame: str, source: str) -> Path:
        """Write the session as a gallery artefact; returns `path`.

        Args:
            identity: of the light network, so that only its own query model opens the gallery.
            odometry_frame: name of the frame of the poses.
            source: what the manifest names as origin of the pictures.

        Raises:
            RetrievalError: no keyframes, or keyframes without odometry, which no other run could use.
            ArtefactError: `path` exists or cannot be written.
        """
        if not self._added:
            raise RetrievalError("the session gallery is empty", remedy="save it after the robot has moved")
        if self._added[0].keyframe.pose is None:
            raise RetrievalError(
                f"the {len(self)} keyframes of the session have no poses", expected="odometry with the frames",
                remedy="connect odometry; a gallery without poses cannot be opened by another run",
            )  # fmt: skip
        descriptors = np.stack([self._index.descriptor(i) for i in range(len(self))])
        with new_folder(path) as folder:
            np.save(folder / DESCRIPTORS, descriptors)
            write_keyframes(folder / KEYFRAMES, self.keyframes)
            if self._thumbnails:
                (folder / THUMBNAILS).mkdir()
                for number, data in enumerate(self._thumbnails):
                    (folder / thumbnail_name(number)).write_bytes(data)
            write_manifest(
                folder, "gallery", identity,
                settings={"matcher": self.matcher_settings.model_dump(mode="json"), "session": self.settings.model_dump(mode="json")},
                inputs={"source": source, "layout": "session"},
                versions={"numpy": np.__version__},
                details={"map_frame": odometry_frame, "keyframes": len(self), "images_in_gallery": False,
                         "thumbnails": bool(self._thumbnails), "index": True},
            )  # fmt: skip
            index_gallery(folder, IndexSettings())
        return Path(path)

    def _begin(self, first: Moment | None) -> None:
        self._added: list[_Added] = []
        self._places = KeyframePlaces(cell_m=self.matcher_settings.agreement_radius_m)
        self._index = GrowingIndex(self._dimension)
        self._thumbnails: list[bytes] = []
        self._last_added: dict[str, Moment] = {}
        self._last_stamps: dict[str, int] = {}
        self._thinned = 0  # how often every other keyframe went
        self._first = first if first is not None and first.odometry is not None else None
        self._matcher = self._make_matcher()

    def _make_matcher(self) -> Matcher:
        verifier = None if self._verification is None else self._verification.verifier(self._thumbnails)
        # Gallery and odometry have one frame, so that odometry itself says where the robot is until the first match.
        begin = None
        if self._first is not None and self._first.odometry is not None:
            begin = Fix(self._first.odometry, np.zeros((3, 3)), self._first.odometry, self._first.travelled_m)
        return Matcher.over(
            self._places, self._index, lambda rows: np.stack([self._index.descriptor(int(row)) for row in rows]),
            RecentPast(self._added, self.matcher_settings.exclude_time_s, self.settings), self.matcher_settings,
            OdometryGate(self.matcher_settings, begin), self._monitor, likelihood=self._likelihood, verifier=verifier,
        )  # fmt: skip

    def _reason_to_begin_anew(self, moment: Moment) -> str:
        last_ns = self._last_stamps.get(moment.camera)
        if last_ns is not None and moment.stamp_ns < last_ns:
            return f"stamps went back by {(last_ns - moment.stamp_ns) / 1e9:.2f} s"
        if moment.jumped:
            return moment.fault
        if self._added and self._first is None and moment.odometry is not None:
            return "odometry has come"
        return ""

    def _is_keyframe(self, moment: Moment) -> bool:
        last = self._last_added.get(moment.camera)
        distance_m = self.settings.min_keyframe_distance_m * 2**self._thinned - _SLACK
        if moment.odometry is None:
            if self._first is not None:
                return False  # the session has poses; a keyframe without one would be nowhere
            return last is None or (moment.stamp_ns - last.stamp_ns) / 1e9 >= distance_m
        if last is None or last.odometry is None:
            return True
        step = between(last.odometry, moment.odometry)
        turned_deg = float(np.degrees(abs(step[2])))
        return float(np.hypot(step[0], step[1])) >= distance_m or turned_deg >= self.settings.min_keyframe_yaw_deg - _SLACK

    def _add(self, descriptor: np.ndarray, frame: QueryFrame, moment: Moment, image: np.ndarray | None) -> None:
        if len(self._added) >= self.settings.session_capacity:
            self._thin()
        pose = frame.odometry if moment.odometry is not None else None
        name = f"{frame.camera or 'camera'}/{frame.stamp_ns}"
        heading = None if pose is None else pose.heading_deg
        keyframe = Keyframe(name, pose, heading, frame.stamp_ns, frame.camera)
        if self._verification is not None:
            if image is None:
                raise RetrievalError("geometric verification is on and the frame has no picture", remedy="give the image to process()")
            self._thumbnails.append(self._verification.thumbnail(image))
        self._index.append(descriptor)
        self._places.add(pose, frame.stamp_ns)
        self._added.append(_Added(keyframe, moment))
        self._last_added[frame.camera] = moment

    def _thin(self) -> None:
        """Drop every other keyframe of each camera, and keep from now on only half as many."""
        rank: dict[str, int] = {}
        kept = []
        for index, added in enumerate(self._added):
            rank[added.moment.camera] = rank.get(added.moment.camera, -1) + 1
            if rank[added.moment.camera] % 2 == 0:
                kept.append(index)
        places, smaller = KeyframePlaces(cell_m=self.matcher_settings.agreement_radius_m), GrowingIndex(self._dimension)
        for index in kept:
            places.add(self._added[index].keyframe.pose, self._added[index].keyframe.stamp_ns)
            smaller.append(self._index.descriptor(index))
        self._added = [self._added[index] for index in kept]
        self._thumbnails = [self._thumbnails[index] for index in kept] if self._thumbnails else []
        self._places, self._index = places, smaller
        self._thinned += 1
        self._matcher = self._make_matcher()


def _checked(matcher: MatcherSettings, session: SessionSettings) -> MatcherSettings:
    """The matcher's settings with the session's threshold. Raises SettingsError where they contradict each other."""
    settings = matcher.model_copy(update={"score_threshold": session.session_score_threshold})
    Matcher.check_settings(settings)
    return settings
