"""Every way in which a bag can be wrong is one clear error."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from rosbags.rosbag2 import Writer
from small_bags import EVERY, IMAGE, INFO, ODOM, RAW, START_NS, STORAGES, SUFFIX, TENTH_NS, TRUTH, drive, encode, only_images, picture

from asymvpr_core.config import SourceSettings
from asymvpr_core.datasets.bag_storage import standard_types
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.datasets.bags import Bag
from asymvpr_core.datasets.source import open_source
from asymvpr_core.datasets.trajectory import Trajectory, write_tum
from asymvpr_core.errors import BagError, DatasetError, ImageError
from asymvpr_core.types import Pose


@pytest.fixture(scope="module", params=STORAGES)
def bag_path(request, tmp_path_factory) -> Path:
    return drive(tmp_path_factory.mktemp("bags") / f"drive_{request.param}", request.param, raw=True)


def error_of(path: Path, settings: SourceSettings = EVERY) -> str:
    """The one line that the user sees."""
    with pytest.raises(DatasetError) as caught:
        open_source(path, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_bag_and_what_is_no_bag(tmp_path):
    with pytest.raises(BagError, match="there is no bag .*absent; expected the folder of a rosbag2"):
        Bag.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match=r"empty is no bag: it has no metadata\.yaml"):
        Bag.open(tmp_path / "empty")
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(BagError, match=r"words\.txt is no bag"):
        Bag.open(tmp_path / "words.txt")
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0")
    assert "is a ROS 1 bag" in error_of(tmp_path / "old.bag") and "rosbags-convert" in error_of(tmp_path / "old.bag")


@pytest.mark.parametrize("storage", STORAGES)
def test_recording_without_metadata(tmp_path, storage):
    path = drive(tmp_path / "bag", storage, frames=3)
    (path / "metadata.yaml").unlink()
    assert (
        f"has no metadata.yaml, so its recording was not finished; run 'ros2 bag reindex' on it, or give the file bag.{SUFFIX[storage]}"
        in (error_of(path))
    )


@pytest.mark.parametrize("text", ["", "{", "rosbag2_bagfile_information: 7", "rosbag2_bagfile_information: {version: 99}"])
def test_damaged_metadata(tmp_path, text):
    path = drive(tmp_path / "bag", frames=2)
    (path / "metadata.yaml").write_text(text)
    assert "is damaged or truncated" in error_of(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("storage", STORAGES)
def test_truncated_storage(tmp_path, storage, share):
    path = drive(tmp_path / "bag", storage, frames=60)
    file = path / f"bag.{SUFFIX[storage]}"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    assert "is damaged or truncated" in error_of(path)
    assert "is damaged or truncated" in error_of(file)


@pytest.mark.parametrize("storage", STORAGES)
def test_storage_file_missing_or_of_other_content(tmp_path, storage):
    path = drive(tmp_path / "bag", storage, frames=2)
    file = path / f"bag.{SUFFIX[storage]}"
    file.write_bytes(b"no storage at all" * 1000)
    assert "is damaged or truncated" in error_of(path)
    file.unlink()
    assert "files are missing" in error_of(path)


@pytest.mark.parametrize("storage", STORAGES)
def test_bag_without_messages(tmp_path, storage):
    with BagWriter(tmp_path / "bag", storage):
        pass
    assert "holds no messages" in error_of(tmp_path / "bag")


def test_topic_that_is_not_in_the_bag_lists_those_that_are(bag_path):
    for field in ("image_topic", "pose_topic"):
        message = error_of(bag_path, EVERY.model_copy(update={field: "/nowhere"}))
        assert "topic /nowhere is not in bag" in message
        assert f"{IMAGE} (sensor_msgs/msg/CompressedImage)" in message and f"{ODOM} (nav_msgs/msg/Odometry)" in message
    with Bag.open(bag_path) as bag, pytest.raises(BagError, match="topic /nowhere is not in bag"):
        next(bag.messages(["/nowhere"]))


def test_topic_of_the_wrong_type(bag_path):
    message = error_of(bag_path, EVERY.model_copy(update={"image_topic": ODOM}))
    assert f"topic {ODOM} of bag" in message and "holds nav_msgs/msg/Odometry; expected a topic of Image or CompressedImage" in message
    assert f"the bag has: {RAW}, {IMAGE}" in message
    message = error_of(bag_path, EVERY.model_copy(update={"pose_topic": INFO}))
    assert "holds sensor_msgs/msg/CameraInfo; expected a topic of Odometry or PoseStamped or PoseWithCovarianceStamped" in message


def test_several_topics_without_a_choice(bag_path):
    message = error_of(bag_path, SourceSettings())
    assert "has 2 image topics" in message and RAW in message and IMAGE in message and "choose one with --image-topic" in message
    message = error_of(bag_path, SourceSettings(image_topic=IMAGE))
    assert "has 2 pose topics" in message and ODOM in message and TRUTH in message and "--pose-topic" in message


def test_no_image_or_no_pose_topic(tmp_path):
    images = only_images(tmp_path / "images", [START_NS])
    message = error_of(images, SourceSettings())
    assert f"has no pose topic; it has {IMAGE} (sensor_msgs/msg/CompressedImage)" in message
    with BagWriter(tmp_path / "poses") as writer:
        writer.write_pose(TRUTH, 0, Pose((0, 0, 0)))
    assert "has no image topic; it has /ground_truth/pose" in error_of(tmp_path / "poses", SourceSettings())


def test_poses_that_do_not_overlap_the_images(tmp_path, bag_path):
    write_tum(tmp_path / "t.tum", Trajectory([0, 10**9], [Pose((0, 0, 0)), Pose((1, 0, 0))]))
    message = error_of(bag_path, SourceSettings(image_topic=IMAGE, trajectory_file=tmp_path / "t.tum"))
    assert "none of the 21 images" in message
    assert "from 1700000000.050000123 to 1700000002.050000123 s" in message and "from 0.000000000 to 1.000000000 s" in message
    assert "21 lie after the last pose" in message
    assert "cannot be read" in error_of(bag_path, SourceSettings(image_topic=IMAGE, trajectory_file=tmp_path / "absent.tum"))


def test_frames_without_a_pose_are_counted_by_reason(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for tenth in (2, 3, 4, 14, 15):
            writer.write_pose(TRUTH, tenth * TENTH_NS, Pose.from_xy_yaw(tenth, 0, 0))
        for tenth in (0, 1, 2, 3, 3, 4, 9, 10, 11, 15, 16):
            writer.write_compressed_image(IMAGE, tenth * TENTH_NS, "camera", encode(picture(tenth)))
    dataset = open_source(tmp_path / "bag", EVERY)
    assert [r.stamp_ns // TENTH_NS for r in dataset.records] == [2, 3, 4, 15]
    assert (dataset.skipped, dataset.n_images) == (7, 11)
    assert dataset.skipped_summary == (
        "1 repeat the stamp of the image before, 2 lie before the first pose, "
        "3 lie between poses more than 0.5 s apart, 1 lie after the last pose"
    )
    assert [(i, int(round(image[0, 0, 0] / 4))) for i, image in dataset.read_images([0, 1, 2, 3])] == [(0, 2), (1, 3), (2, 4), (3, 15)]


@pytest.mark.parametrize("pose", [Pose((math.nan, 0, 0)), Pose((0, 0, 0), (0, 0, math.inf, 1)), Pose((0, 0, 0), (0, 0, 0, 0))])
def test_pose_that_is_no_pose(tmp_path, pose):
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_compressed_image(IMAGE, 0, "camera", encode(picture(0)))
        writer.write_pose(TRUTH, 0, Pose((0, 0, 0)))
        writer.write_pose(TRUTH, TENTH_NS, pose)
    message = error_of(tmp_path / "bag")
    assert f"topic {TRUTH} of bag" in message and "pose 2 has" in message and ("finite numbers" in message or "unit quaternion" in message)


def test_stamps_that_go_backward(tmp_path):
    store = standard_types()
    for topic in (IMAGE, TRUTH):
        source, path = tmp_path / f"source{len(topic)}", tmp_path / f"bag{len(topic)}"
        drive(source, frames=4)
        with Bag.open(source) as bag:
            messages = list(bag.messages([IMAGE, TRUTH]))
            with Writer(path, version=8) as writer:
                connections = {t: writer.add_connection(t, bag.topics[t], typestore=store) for t in (IMAGE, TRUTH)}
                first, second = [i for i, m in enumerate(messages) if m.topic == topic][:2]
                messages[first], messages[second] = messages[second], messages[first]
                for received_ns, message in enumerate(messages):
                    writer.write(connections[message.topic], received_ns, bytes(message.raw))
        message = error_of(path)
        assert f"topic {topic} of bag" in message and "s follows one of" in message and "expected header stamps that increase" in message


def test_poses_in_two_frames(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_compressed_image(IMAGE, 0, "camera", encode(picture(0)))
        writer.write_pose(TRUTH, 0, Pose((0, 0, 0)), "map")
        writer.write_pose(TRUTH, 1, Pose((0, 0, 0)), "odom")
    assert "gives poses in frames 'map' and 'odom'; expected poses in one frame" in error_of(tmp_path / "bag")


def test_repeated_poses_are_taken_once(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_compressed_image(IMAGE, 5, "camera", encode(picture(0)))
        for x in (1.0, 9.0):
            writer.write_pose(TRUTH, 5, Pose((x, 0, 0)))
    assert open_source(tmp_path / "bag", EVERY).records[0].pose.position[0] == 1.0


def test_images_that_cannot_be_decoded_name_the_frame(tmp_path):
    jpeg = encode(picture(0))
    write_tum(tmp_path / "t.tum", Trajectory([0, 5], [Pose((0, 0, 0)), Pose((1, 0, 0))]))
    settings = SourceSettings(trajectory_file=tmp_path / "t.tum", keyframes=None)
    truncated = open_source(only_images(tmp_path / "truncated", [0, 5], payload=jpeg[: len(jpeg) // 2]), settings)
    with pytest.raises(ImageError, match=r"camera_image_compressed/0\.jpg of bag .*truncated JPEG"):
        list(truncated.read_images([0, 1]))
    with BagWriter(tmp_path / "raw") as writer:
        writer.write_image(RAW, 0, "camera", bytes(64), height=4, width=4, encoding="32FC1")
    unknown = open_source(tmp_path / "raw", settings)
    for read in (unknown.read_images, unknown.read_encoded):
        with pytest.raises(ImageError, match=r"camera_image/0\.png of bag .*encoding '32FC1'; expected one of rgb8"):
            list(read([0]))


def test_message_that_is_no_message(tmp_path):
    store = standard_types()
    for raw, part in ((b"\0\1", "begins with no header"), (b"\0\1\0\0" + bytes(12) + b"\xff" * 8, "is no sensor_msgs/msg/CompressedImage")):
        path = tmp_path / f"bag{len(raw)}"
        with Writer(path, version=8) as writer:
            image = writer.add_connection(IMAGE, "sensor_msgs/msg/CompressedImage", typestore=store)
            pose = writer.add_connection(TRUTH, "geometry_msgs/msg/PoseStamped", typestore=store)
            writer.write(image, 0, raw)
            writer.write(pose, 1, raw)
        message = error_of(path)
        assert part in message and IMAGE in message


def test_bag_that_changes_after_opening(tmp_path):
    dataset = open_source(drive(tmp_path / "bag", frames=5), EVERY)
    shutil.rmtree(tmp_path / "bag")
    with pytest.raises(BagError, match="there is no bag"):
        list(dataset.read_images([0]))
    drive(tmp_path / "bag", frames=2)
    with pytest.raises(BagError, match="no longer holds the image stamped"):
        list(dataset.read_images([0, 3]))


def test_metadata_that_disagrees_with_the_storage(tmp_path):
    path = drive(tmp_path / "bag", frames=2)
    text = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(text.replace("reliability: 1", "reliability: 2"))
    assert "gives none of its messages" in error_of(path) and "ros2 bag reindex" in error_of(path)


def test_two_writers_of_one_bag_and_what_a_killed_one_left(tmp_path):
    (tmp_path / ".bag.partial" / "bag").mkdir(parents=True)
    (tmp_path / ".bag.partial" / "bag" / "bag.db3").write_bytes(b"half")
    (tmp_path / ".bag.partial" / "lock").touch()
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_compressed_image(IMAGE, START_NS, "camera", encode(picture(0)))
        with pytest.raises(BagError, match=r"\.bag\.partial is in use by another process; wait for it"), BagWriter(tmp_path / "bag"):
            pytest.fail("the block must not run")
        writer.write_compressed_image(IMAGE, START_NS + TENTH_NS, "camera", encode(picture(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]
    assert Bag.open(tmp_path / "bag").path == tmp_path / "bag"
