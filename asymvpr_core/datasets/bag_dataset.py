"""A rosbag2 as a dataset: its images, each with the pose at its stamp."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import KeyframeSettings, SourceSettings
from asymvpr_core.datasets.bag_messages import (
    IMAGE_TYPES,
    NAV_SAT_FIX,
    POSE_TYPES,
    encoded_image,
    fix_of,
    image_suffix,
    pose_of,
    read_header,
    rgb_image,
)
from asymvpr_core.datasets.bags import Bag, BagMessage
from asymvpr_core.datasets.keyframes import select_keyframes
from asymvpr_core.datasets.trajectory import Trajectory, format_stamp, read_tum
from asymvpr_core.datasets.utm import UtmZone
from asymvpr_core.errors import BagError
from asymvpr_core.progress import Progress, silent
from asymvpr_core.types import ImageRecord, Pose

_IMAGE_FLAG = "--image-topic (image_topic in a settings file)"
_POSE_FLAG = "--pose-topic (pose_topic in a settings file), or give a TUM trajectory"


@dataclass(frozen=True)
class _Frame:
    stamp_ns: int
    received_ns: int


@dataclass
class _Recording:
    """What the first pass over a bag collects."""

    frames: list[_Frame] = field(default_factory=list)
    suffix: str = ".jpg"
    pose_stamps_ns: list[int] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)
    pose_frame: str = ""
    repeated: int = 0
    zone: UtmZone | None = None  # of a satellite receiver's first fix; None: poses are given in metres


class BagDataset:
    """The images of one camera in a bag that have a pose, thinned to keyframes; satisfies `Dataset`.

    `records[i].pose` is the pose of the recorded topic or trajectory (the robot's base),
    interpolated to the image's header stamp; `heading_deg` is that of the base's +x axis, along
    which the camera is taken to look. `stamp_ns` is the header stamp. `name` is
    "<camera>/<stamp_ns>.jpg" (or .png), where the camera is the topic with '_' for '/'.

    A NavSatFix topic gives positions in the UTM zone of its first fix, without height and without
    heading; fixes that the receiver marks as none are passed over.

    `skipped` counts the images left out because no pose belongs to them, `skipped_summary` says
    why. Images that are merely no keyframes are not counted; `n_images` counts all in the bag.

    Args:
        path: the bag.
        settings: topics, trajectory file and keyframe limits; `keyframes=None` keeps every image with a pose.
        progress: reports the pass over the bag that reads stamps and poses.

    Raises:
        BagError: see `Bag`; also stamps that go backward.
        DatasetError: unreadable trajectory, poses that are not finite, images and poses that do not overlap in time.
    """

    layout = "bag"

    def __init__(self, path: Path, settings: SourceSettings | None = None, progress: Progress = silent):
        settings = settings or SourceSettings()
        self.root = Path(path)
        with Bag.open(self.root) as bag:
            self.image_topic = bag.choose_topic(settings.image_topic, IMAGE_TYPES, "image", _IMAGE_FLAG)
            self.image_type = bag.topics[self.image_topic]
            self.pose_topic: str | None = None
            if settings.trajectory_file is None:
                self.pose_topic = bag.choose_topic(settings.pose_topic, self._pose_types(bag, settings), "pose", _POSE_FLAG)
            recording = self._read_stamps(bag, progress)
        if settings.trajectory_file is None:
            trajectory = Trajectory(recording.pose_stamps_ns, recording.poses, name=f"topic {self.pose_topic} of bag {self.root}")
        else:
            trajectory = read_tum(settings.trajectory_file)
        self._zone = recording.zone if settings.trajectory_file is None else None
        frame = f"utm{self._zone.name}" if self._zone else recording.pose_frame
        self.map_frame = settings.map_frame or frame or "map"
        self.n_images = len(recording.frames) + recording.repeated
        self._skipped: Counter[str] = Counter()
        if recording.repeated:
            self._skipped["repeat the stamp of the image before"] = recording.repeated
        self._select(recording, trajectory, settings.keyframes)

    @property
    def skipped(self) -> int:
        """Number of images left out because no pose belongs to them or their stamp repeats."""
        return self._skipped.total()

    @property
    def skipped_summary(self) -> str:
        """Why images were left out ("3 lie before the first pose, …"); empty where none was."""
        return ", ".join(f"{count} {reason}" for reason, count in self._skipped.items())

    @property
    def stamps_ns(self) -> list[int]:
        """Header stamp of every record's image."""
        return [record.stamp_ns for record in self.records if record.stamp_ns is not None]

    def trajectory(self) -> Trajectory:
        """The records' poses at their stamps."""
        return Trajectory(self.stamps_ns, [record.pose for record in self.records if record.pose is not None], name=str(self.root))

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]:
        """As in `Dataset`. Raises ImageError for a raw image of unknown encoding, BagError for a damaged bag."""
        for index, message, msgtype in self._decoded(indices):
            yield index, encoded_image(message, msgtype, self._image_name(index))

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """As in `Dataset`. Raises ImageError for an image that cannot be decoded, BagError for a damaged bag."""
        for index, message, msgtype in self._decoded(indices):
            yield index, rgb_image(message, msgtype, self._image_name(index))

    @staticmethod
    def _pose_types(bag: Bag, settings: SourceSettings) -> tuple[str, ...]:
        # A robot with odometry and a receiver: the full pose is meant, unless the other topic is named.
        has_pose = any(kind in POSE_TYPES and bag.message_counts[topic] for topic, kind in bag.topics.items())
        return POSE_TYPES if settings.pose_topic is None and has_pose else (*POSE_TYPES, NAV_SAT_FIX)

    def _read_stamps(self, bag: Bag, progress: Progress) -> _Recording:
        recording = _Recording()
        topics = [self.image_topic] + ([self.pose_topic] if self.pose_topic else [])
        total = sum(bag.message_counts[topic] for topic in topics)
        for message in progress(bag.messages(topics), "reading stamps and poses", total=total):
            if message.topic == self.image_topic:
                self._add_frame(recording, bag, message)
            else:
                self._add_pose(recording, bag, message)
        return recording

    def _add_frame(self, recording: _Recording, bag: Bag, message: BagMessage) -> None:
        stamp_ns, _ = self._header(message)
        if not recording.frames:
            recording.suffix = image_suffix(bag.decode(message), message.msgtype)
        elif stamp_ns <= (last_ns := recording.frames[-1].stamp_ns):
            if stamp_ns == last_ns:
                recording.repeated += 1
                return
            raise self._backward(message.topic, stamp_ns, last_ns)
        recording.frames.append(_Frame(stamp_ns, message.received_ns))

    def _add_pose(self, recording: _Recording, bag: Bag, message: BagMessage) -> None:
        stamp_ns, frame_id = self._header(message)
        if recording.poses:
            last_ns = recording.pose_stamps_ns[-1]
            if stamp_ns == last_ns:  # filters publish the same estimate again; the first one counts
                return
            if stamp_ns < last_ns:
                raise self._backward(message.topic, stamp_ns, last_ns)
            if frame_id != recording.pose_frame:
                raise BagError(
                    f"topic {message.topic} of bag {self.root} gives poses in frames '{recording.pose_frame}' and '{frame_id}'",
                    expected="poses in one frame",
                )
        decoded = bag.decode(message)
        if message.msgtype == NAV_SAT_FIX:
            fix = fix_of(decoded)
            if fix is None:
                return
            recording.zone = recording.zone or UtmZone.at(*fix)
            pose = Pose((*recording.zone.project(*fix), 0.0))
        else:
            pose = pose_of(decoded, message.msgtype)
        recording.pose_frame = frame_id
        recording.pose_stamps_ns.append(stamp_ns)
        recording.poses.append(pose)

    def _header(self, message: BagMessage) -> tuple[int, str]:
        return read_header(message.raw, f"topic {message.topic} of bag {self.root}")

    def _backward(self, topic: str, stamp_ns: int, last_ns: int) -> BagError:
        return BagError(
            f"topic {topic} of bag {self.root}: a message stamped {format_stamp(stamp_ns)} s follows one of {format_stamp(last_ns)} s",
            expected="header stamps that increase",
            remedy="cut the bag where its clock jumps, or record it again",
        )

    def _select(self, recording: _Recording, trajectory: Trajectory, keyframes: KeyframeSettings | None) -> None:
        max_gap_s = (keyframes or KeyframeSettings()).max_pose_gap_s
        placed: list[tuple[_Frame, Pose]] = []
        for frame in recording.frames:
            pose = trajectory.at(frame.stamp_ns, max_gap_s)
            if pose is not None:
                placed.append((frame, pose))
            elif frame.stamp_ns < trajectory.stamps_ns[0]:
                self._skipped["lie before the first pose"] += 1
            elif frame.stamp_ns > trajectory.stamps_ns[-1]:
                self._skipped["lie after the last pose"] += 1
            else:
                self._skipped[f"lie between poses more than {max_gap_s:g} s apart"] += 1
        if not placed:
            first, last = recording.frames[0].stamp_ns, recording.frames[-1].stamp_ns
            raise BagError(
                f"none of the {self.n_images} images on {self.image_topic} of bag {self.root} has a pose: the images' header stamps "
                f"go from {format_stamp(first)} to {format_stamp(last)} s, those of {trajectory.name} from {trajectory.span_text}; "
                f"{self.skipped_summary}",
                expected="poses at the times of the images",
                remedy="give the trajectory of this recording, or allow longer gaps between poses (max_pose_gap_s)",
            )
        if keyframes is not None:
            stamps_ns = [frame.stamp_ns for frame, _ in placed]
            placed = [placed[i] for i in select_keyframes([pose for _, pose in placed], keyframes, stamps_ns)]
        camera = self.image_topic.lstrip("/").replace("/", "_")
        self._frames = [frame for frame, _ in placed]
        self.records = [
            ImageRecord(
                name=f"{camera}/{frame.stamp_ns}{recording.suffix}",
                pose=pose,
                heading_deg=None if self._zone else pose.heading_deg,
                stamp_ns=frame.stamp_ns,
                camera=camera,
                lat_lon_deg=self._lat_lon(pose),
            )
            for frame, pose in placed
        ]

    def _lat_lon(self, pose: Pose) -> tuple[float, float] | None:
        if self._zone is None:
            return None
        lat, lon = self._zone.lat_lon(np.array([pose.position[:2]]))[0].tolist()
        return lat, lon

    def _decoded(self, indices: list[int]) -> Iterator[tuple[int, Any, str]]:
        """Yield (index, decoded message, its type) for ascending `indices` in one pass from the first to the last of them."""
        if any(b <= a for a, b in zip(indices, indices[1:], strict=False)):
            raise ValueError("indices must be ascending")
        if not indices:
            return
        frames = [self._frames[i] for i in indices]
        received = [frame.received_ns for frame in frames]
        position = 0
        with Bag.open(self.root) as bag:
            for message in bag.messages([self.image_topic], min(received), max(received) + 1):
                if self._header(message)[0] != frames[position].stamp_ns:
                    continue
                yield indices[position], bag.decode(message), message.msgtype
                position += 1
                if position == len(indices):
                    return
        raise BagError(
            f"bag {self.root} no longer holds the image stamped {format_stamp(frames[position].stamp_ns)} s",
            expected="the bag as it was when opened",
            remedy="run the command again on the unchanged bag",
        )

    def _image_name(self, index: int) -> str:
        return f"{self.records[index].name} of bag {self.root}"
