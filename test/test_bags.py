"""Real rosbag2 files, written and read back: images, poses, keyframes."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from small_bags import EVERY, IMAGE, INFO, ODOM, RAW, START_NS, STORAGES, TENTH_NS, TRUTH, drive, encode, only_images, picture

import asymvpr_core.datasets.bag_dataset as bag_dataset
from asymvpr_core.config import KeyframeSettings, SourceSettings
from asymvpr_core.datasets.bag_dataset import BagDataset
from asymvpr_core.datasets.bag_storage import standard_types
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.datasets.bags import Bag
from asymvpr_core.datasets.source import open_source
from asymvpr_core.datasets.trajectory import Trajectory, write_tum
from asymvpr_core.datasets.utm import UtmZone
from asymvpr_core.errors import BagError
from asymvpr_core.types import Pose


@pytest.fixture(scope="module", params=STORAGES)
def bag_path(request, tmp_path_factory) -> Path:
    return drive(tmp_path_factory.mktemp("bags") / f"drive_{request.param}", request.param, raw=True)


def test_written_bag_carries_definitions_hashes_and_qos(bag_path):
    metadata = yaml.safe_load((bag_path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert metadata["version"] == 8  # the newest that Humble reads
    assert metadata["message_count"] == 5 * 21
    assert metadata["starting_time"]["nanoseconds_since_epoch"] == START_NS
    for topic in metadata["topics_with_message_count"]:
        [qos] = yaml.safe_load(topic["topic_metadata"]["offered_qos_profiles"])
        assert (qos["reliability"], qos["durability"], qos["history"], qos["depth"]) == (1, 2, 1, 10)
        assert qos["lifespan"] == {"sec": 9223372036, "nsec": 854775807}
        assert topic["topic_metadata"]["type_description_hash"].startswith("RIHS01_")
        assert topic["message_count"] == 21
    with Reader(bag_path) as reader:
        definitions = {c.msgtype: c.msgdef.data for c in reader.connections}
    assert "uint8[] data" in definitions["sensor_msgs/msg/CompressedImage"]
    assert "MSG: builtin_interfaces/Time" in definitions["nav_msgs/msg/Odometry"]


def test_written_messages_are_what_ros_reads(bag_path):
    """The real message classes take the bytes and find the fields in them, where ROS 2 is installed."""
    rclpy_serialization = pytest.importorskip("rclpy.serialization")
    with Bag.open(bag_path) as bag:
        messages = {m.topic: m for m in bag.messages()}
    for topic, message in messages.items():
        package, _, name = message.msgtype.split("/")
        decoded = rclpy_serialization.deserialize_message(bytes(message.raw), _message_class(package, name))
        assert len(rclpy_serialization.serialize_message(decoded)) == len(message.raw), topic
    odometry = rclpy_serialization.deserialize_message(bytes(messages[ODOM].raw), _message_class("nav_msgs", "Odometry"))
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base_link")
    assert odometry.pose.pose.position.x == pytest.approx(4.0)
    assert odometry.twist.twist.linear.x == 2.0
    image = rclpy_serialization.deserialize_message(bytes(messages[IMAGE].raw), _message_class("sensor_msgs", "CompressedImage"))
    assert bytes(image.data) == encode(picture(20))
    assert (image.header.stamp.sec, image.header.stamp.nanosec) == divmod(START_NS + 20 * TENTH_NS + TENTH_NS // 2, 10**9)
    info = rclpy_serialization.deserialize_message(bytes(messages[INFO].raw), _message_class("sensor_msgs", "CameraInfo"))
    assert info.k.tolist() == [10, 0, 8, 0, 10, 6, 0, 0, 1]


def _message_class(package: str, name: str):
    return getattr(__import__(f"{package}.msg", fromlist=[name]), name)


def test_failed_recording_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), BagWriter(tmp_path / "bag") as writer:
        writer.write_pose(TRUTH, 0, Pose((0, 0, 0)))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_what_it_cannot_do(tmp_path):
    drive(tmp_path / "bag", frames=1)
    with pytest.raises(BagError, match="bag exists already; remove it"), BagWriter(tmp_path / "bag"):
        pass
    with pytest.raises(BagError, match="storage 'zip' is unknown; expected sqlite3 or mcap"):
        BagWriter(tmp_path / "other", "zip")
    with pytest.raises(BagError, match="holds one of"):
        BagWriter(tmp_path / "a?b")
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="cannot be written: .*; check permissions"), BagWriter(tmp_path / "file" / "bag"):
        pass
    with pytest.raises(BagError, match="is not open for writing"):
        BagWriter(tmp_path / "never").write_pose(TRUTH, 0, Pose((0, 0, 0)))
    with pytest.raises(BagError, match="already holds geometry_msgs/msg/PoseStamped"), BagWriter(tmp_path / "mixed") as writer:
        writer.write_pose("/a", 0, Pose((0, 0, 0)))
        writer.write_odometry("/a", 0, Pose((0, 0, 0)))
    with pytest.raises(BagError, match="stamp -1 ns is negative"), BagWriter(tmp_path / "negative") as writer:
        writer.write_pose("/a", -1, Pose((0, 0, 0)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bag", "file"]


def test_topics_and_messages(bag_path):
    with Bag.open(bag_path) as bag:
        assert bag.topics == {
            INFO: "sensor_msgs/msg/CameraInfo",
            RAW: "sensor_msgs/msg/Image",
            IMAGE: "sensor_msgs/msg/CompressedImage",
            TRUTH: "geometry_msgs/msg/PoseStamped",
            ODOM: "nav_msgs/msg/Odometry",
        }
        assert bag.message_counts[IMAGE] == 21
        received = [m.received_ns for m in bag.messages([IMAGE, ODOM])]
        assert received == sorted(received) and len(received) == 42
        assert {m.topic for m in bag.messages([ODOM])} == {ODOM}
        window = list(bag.messages([ODOM], START_NS + TENTH_NS, START_NS + 3 * TENTH_NS))
        assert [m.received_ns for m in window] == [START_NS + TENTH_NS, START_NS + 2 * TENTH_NS]


def test_every_frame_with_its_interpolated_pose(bag_path):
    dataset = BagDataset(bag_path, EVERY)
    assert (dataset.layout, dataset.map_frame, dataset.root, dataset.n_images) == ("bag", "map", bag_path, 21)
    assert len(dataset.records) == 20
    assert dataset.skipped == 1
    assert dataset.skipped_summary == "1 lie after the last pose"
    for i, record in enumerate(dataset.records):
        stamp_ns = START_NS + i * TENTH_NS + TENTH_NS // 2
        assert record.name == f"camera_image_compressed/{stamp_ns}.jpg"
        assert (record.camera, record.stamp_ns) == ("camera_image_compressed", stamp_ns)
        assert record.pose.position == pytest.approx((5.0, 0.2 * i + 0.1, 0.0))
        assert math.cos(math.radians(record.heading_deg)) == pytest.approx(1.0)  # along +y


def test_keyframes_thin_the_records(bag_path):
    settings = EVERY.model_copy(update={"keyframes": KeyframeSettings(min_distance_m=1.0)})
    dataset = BagDataset(bag_path, settings)
    assert [round(r.pose.position[1], 3) for r in dataset.records] == [0.1, 1.1, 2.1, 3.1]
    assert dataset.skipped == 1  # frames that are no keyframes are not counted
    assert [(i, int(round(image[0, 0, 0] / 4))) for i, image in dataset.read_images([0, 1, 2, 3])] == [(0, 0), (1, 5), (2, 10), (3, 15)]


def test_compressed_payload_survives_unchanged(bag_path):
    dataset = BagDataset(bag_path, EVERY)
    payloads = dict(dataset.read_encoded(list(range(20))))
    assert payloads == {i: encode(picture(i)) for i in range(20)}


def test_raw_images_are_exact_and_encoded_as_png(bag_path):
    dataset = BagDataset(bag_path, EVERY.model_copy(update={"image_topic": RAW}))
    assert dataset.records[0].name.startswith("camera_image/") and dataset.records[0].name.endswith(".png")
    for index, image in dataset.read_images([2, 7, 19]):
        np.testing.assert_array_equal(image, picture(index))
    [(_, data)] = dataset.read_encoded([7])
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], picture(7))


def test_storage_file_alone_can_be_read(bag_path):
    [file] = [p for p in bag_path.iterdir() if p.suffix in (".db3", ".mcap")]
    assert len(open_source(file, EVERY).records) == 20


def test_reading_decodes_only_what_is_kept_and_reads_once(bag_path, monkeypatch):
    decoded, opened = [], []
    decode, open_bag = Bag.decode, Bag.open
    monkeypatch.setattr(Bag, "decode", lambda self, message: decoded.append(message.topic) or decode(self, message))
    monkeypatch.setattr(Bag, "open", staticmethod(lambda path: opened.append(path) or open_bag(path)))
    monkeypatch.setattr(bag_dataset, "rgb_image", lambda *args: pytest.fail("an image was decoded in the first pass"))
    dataset = BagDataset(bag_path, EVERY)
    assert decoded.count(IMAGE) == 1  # the first one, for its format
    monkeypatch.undo()
    decoded.clear()
    monkeypatch.setattr(Bag, "decode", lambda self, message: decoded.append(message.topic) or decode(self, message))
    monkeypatch.setattr(Bag, "open", staticmethod(lambda path: opened.append(path) or open_bag(path)))
    opened.clear()
    assert [i for i, _ in dataset.read_images([3, 4, 17])] == [3, 4, 17]
    assert (decoded, len(opened)) == ([IMAGE] * 3, 1)
    assert list(dataset.read_images([])) == [] and len(opened) == 1


def test_indices_must_ascend(bag_path):
    dataset = BagDataset(bag_path, EVERY)
    with pytest.raises(ValueError, match="ascending"):
        list(dataset.read_images([3, 3]))


def test_first_pass_reports_progress(bag_path):
    seen = []

    def progress(items, description, total=None, completed=0):
        seen.append((description, total))
        yield from items

    open_source(bag_path, EVERY, progress)
    assert seen == [("reading stamps and poses", 42)]


def test_only_topic_is_found_without_being_named(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for i in range(3):
            writer.write_odometry(ODOM, i * TENTH_NS, Pose.from_xy_yaw(i, 0, 0), "odom")
            writer.write_compressed_image(IMAGE, i * TENTH_NS, "camera", encode(picture(i), ".png"), "png")
    dataset = open_source(tmp_path / "bag")
    assert (dataset.map_frame, len(dataset.records)) == ("odom", 3)
    assert dataset.records[0].name == "camera_image_compressed/0.png"


def test_map_frame_setting_wins(bag_path):
    assert BagDataset(bag_path, EVERY.model_copy(update={"map_frame": "site"})).map_frame == "site"


def test_pose_with_covariance_stamped(tmp_path):
    store = standard_types()
    kind = "geometry_msgs/msg/PoseWithCovarianceStamped"
    types = store.types
    images = only_images(tmp_path / "images", [START_NS, START_NS + TENTH_NS])
    with Bag.open(images) as bag:
        raws = [(m.received_ns, m.raw) for m in bag.messages()]
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        image = writer.add_connection(IMAGE, "sensor_msgs/msg/CompressedImage", typestore=store)
        poses = writer.add_connection("/amcl_pose", kind, typestore=store)
        for i, (stamp_ns, raw) in enumerate(raws):
            writer.write(image, stamp_ns, bytes(raw))
            sec, nanosec = divmod(stamp_ns, 10**9)
            header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](sec, nanosec), "map")
            pose = types["geometry_msgs/msg/Pose"](
                types["geometry_msgs/msg/Point"](float(i), 2.0, 3.0), types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
            )
            message = types[kind](header, types["geometry_msgs/msg/PoseWithCovariance"](pose, np.zeros(36)))
            writer.write(poses, stamp_ns, store.serialize_cdr(message, kind))
    dataset = open_source(tmp_path / "bag", SourceSettings(keyframes=None))
    assert [r.pose.position for r in dataset.records] == [(0.0, 2.0, 3.0), (1.0, 2.0, 3.0)]


def test_satellite_fixes_give_positions_without_heading(tmp_path):
    zone = UtmZone(32, "U")
    with BagWriter(tmp_path / "bag") as writer:
        for i in range(5):
            stamp_ns = START_NS + i * TENTH_NS
            # The robot drives eastward over the border of zones 31 and 32; the first message has no fix yet.
            writer.write_nav_sat_fix("/fix", stamp_ns, "gps", 52.0, 5.9999 + i * 1e-4, has_fix=i > 0)
            writer.write_compressed_image(IMAGE, stamp_ns + TENTH_NS // 2, "camera", encode(picture(i)))
    dataset = open_source(tmp_path / "bag", SourceSettings(keyframes=None))
    assert (dataset.map_frame, dataset.pose_topic, dataset.skipped) == ("utm32U", "/fix", 2)
    assert [record.heading_deg for record in dataset.records] == [None] * 3
    expected = [zone.project(52.0, 6.00005 + i * 1e-4) for i in range(3)]
    np.testing.assert_allclose([record.pose.position[:2] for record in dataset.records], expected, atol=1e-3)
    np.testing.assert_allclose(
        [record.lat_lon_deg for record in dataset.records], [(52.0, 6.00005 + i * 1e-4) for i in range(3)], atol=1e-8
    )


def test_odometry_goes_before_satellite_fixes_unless_those_are_named(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for i in range(3):
            writer.write_nav_sat_fix("/fix", START_NS + i * TENTH_NS, "gps", 52.0, 6.1)
            writer.write_odometry(ODOM, START_NS + i * TENTH_NS, Pose((1.0, 2.0, 0.0)), "odom")
            writer.write_compressed_image(IMAGE, START_NS + i * TENTH_NS, "camera", encode(picture(i)))
    assert open_source(tmp_path / "bag").map_frame == "odom"
    assert open_source(tmp_path / "bag", SourceSettings(pose_topic="/fix")).map_frame == "utm32U"


def test_trajectory_file_in_place_of_a_topic(tmp_path):
    images = only_images(tmp_path / "bag", [START_NS + i * TENTH_NS for i in range(5)])
    write_tum(tmp_path / "t.tum", Trajectory([START_NS, START_NS + 3 * TENTH_NS], [Pose((0, 0, 0)), Pose((3, 0, 0))]))
    dataset = open_source(images, SourceSettings(trajectory_file=tmp_path / "t.tum", keyframes=None))
    assert dataset.map_frame == "map"
    assert [r.pose.position[0] for r in dataset.records] == pytest.approx([0, 1, 2, 3])
    assert dataset.skipped == 1
