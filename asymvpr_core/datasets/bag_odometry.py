"""The poses of one topic of a bag, without images: odometry in a frame of its own."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.datasets.bag_messages import POSE_TYPES, pose_of, read_header
from asymvpr_core.datasets.bags import Bag
from asymvpr_core.datasets.trajectory import Trajectory, format_stamp
from asymvpr_core.errors import BagError
from asymvpr_core.types import Pose


def read_odometry(bag: Path, topic: str) -> Trajectory:
    """Every pose of `topic` (Odometry, PoseStamped or PoseWithCovarianceStamped) at its stamp; of a repeated stamp the first counts.

    Raises:
        BagError: see `Bag`; also a topic that is missing or of another type, or stamps that go backward.
        DatasetError: poses that are not finite.
    """
    stamps_ns: list[int] = []
    poses: list[Pose] = []
    with Bag.open(Path(bag)) as opened:
        opened.choose_topic(topic, POSE_TYPES, "odometry", "--odometry-topic")
        for message in opened.messages([topic]):
            stamp_ns, _ = read_header(message.raw, f"topic {topic} of bag {bag}")
            if stamps_ns and stamp_ns <= stamps_ns[-1]:
                if stamp_ns == stamps_ns[-1]:
                    continue
                raise BagError(
                    f"topic {topic} of bag {bag}: a message stamped {format_stamp(stamp_ns)} s follows one of "
                    f"{format_stamp(stamps_ns[-1])} s",
                    expected="header stamps that increase", remedy="cut the bag where its clock jumps, or record it again",
                )  # fmt: skip
            stamps_ns.append(stamp_ns)
            poses.append(pose_of(opened.decode(message), message.msgtype))
    return Trajectory(stamps_ns, poses, name=f"topic {topic} of bag {bag}")
