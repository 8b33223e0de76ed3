"""Random messages through the real node: its own callbacks, worker and outputs. No crash, and every frame counted with a reason."""

from __future__ import annotations

import array
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

rclpy = pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseWithCovarianceStamped
from live_ros import image_message
from nav_msgs.msg import Odometry
from picture_files import encoded
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tiny_artefacts import make_model, make_picture, make_street

from asymvpr_core.pixel_formats import KNOWN_ENCODINGS
from asymvpr_ros.conversions import stamp_message
from asymvpr_ros.outputs import OUTPUTS
from asymvpr_ros.place_recognition_node import PlaceRecognitionNode

CAMERAS = ("", "left")
DEADLINE_S = 20.0
STRANGE_ENCODINGS = ("", "32FC1", "64FC1", "RGB8", "jpeg", "bayer_rggb12", "nv12", "8UC5", "8UC", "mono8 ", "🎥", "a" * 300)
STRANGE_FORMATS = ("", "jpeg", "png", "16UC1; compressedDepth png", "h264", "bgr8; jpeg compressed bgr8", "\t", "💥")

uint32 = st.integers(0, 2**32 - 1)
sides = st.one_of(st.integers(0, 9), st.sampled_from([1, 63, 64, 65, 4097, 65_536, 2**31 - 1, 2**31, 2**32 - 1]), uint32)
names = st.one_of(st.sampled_from(["", "camera", "/map", "map", "odom", "base_link", "a b", "\u00e9\u4e2d"]), st.text(max_size=12))
fillings = st.sampled_from(["zeros", "ones", "noise", "nan", "infinity"])


class Driver:
    """An active node with all outputs, fed as its subscriptions feed it, and the number of messages given to it."""

    def __init__(self, node: PlaceRecognitionNode):
        self.node = node
        self.images = {camera: 0 for camera in CAMERAS}
        self.odometry = 0
        self._callbacks = {camera: node._inputs._frame_callback(camera) for camera in CAMERAS}

    def image(self, message: Image | CompressedImage, camera: str = "") -> None:
        self.images[camera] += 1
        self._callbacks[camera](message)

    def send_odometry(self, message: Odometry) -> None:
        self.odometry += 1
        self.node._inputs._on_odometry(message)

    def values(self) -> dict[str, str]:
        """The node's diagnostics, read as a listener would."""
        (status, *_) = self.node._status.report(self.node._view())
        return {pair.key: pair.value for pair in status.values}

    def settle(self) -> dict[str, str]:
        """Wait until every frame has been counted; the diagnostics then."""
        deadline_s = time.monotonic() + DEADLINE_S
        while (values := self.values()) and self._counted(values) != int(values["frames_received"]):
            assert time.monotonic() < deadline_s, f"{self._counted(values)} of {values['frames_received']} frames are counted: {values}"
            assert self.node._pipeline.worker._thread.is_alive()
            time.sleep(0.0005)
        return values

    @staticmethod
    def _counted(values: dict[str, str]) -> int:
        ways = ("ignored", "processed", "dropped", "rate_limited", "stale", "failed")
        return sum(int(values[f"frames_{way}"]) for way in ways)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    folder = tmp_path_factory.mktemp("artefacts")
    rclpy.init()
    values = {
        "gallery_path": str(make_street(folder / "gallery")), "model_path": str(make_model(folder / "model")),
        "camera_names": list(CAMERAS), "session_gallery": True, "outputs": list(OUTPUTS), "base_frame": "base_link", "autostart": False,
        "exclude_time_s": 0.0, "exclude_keyframes": 0, "exclude_distance_m": 0.0, "session_capacity": 50,
    }  # fmt: skip
    node = PlaceRecognitionNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
    try:
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        yield Driver(node)
    finally:
        node.close()
        rclpy.shutdown()


@st.composite
def stamps(draw: st.DrawFn) -> Time:
    kind = draw(st.sampled_from(["now", "near", "near", "zero", "any"]))
    if kind == "zero":
        return Time()
    if kind == "any":
        return Time(sec=draw(st.integers(-(2**31), 2**31 - 1)), nanosec=draw(uint32))
    shift_s = 0.0 if kind == "now" else draw(st.floats(-4.0, 4.0))
    return stamp_message(time.time_ns() + int(shift_s * 1e9))


def filled(size: int, filling: str) -> array.array:
    """`size` bytes; NaN and infinity are those of float32."""
    number = {"nan": math.nan, "infinity": math.inf}.get(filling)
    if number is not None:
        block = np.full(size // 4 + 1, number, np.float32).tobytes()[:size]
    elif filling == "noise":
        block = np.random.default_rng(size).bytes(size)
    else:
        block = (b"\0" if filling == "zeros" else b"\xff") * size
    return array.array("B", block)


@st.composite
def raw_images(draw: st.DrawFn) -> Image:
    """Images from right to absurd; the data are never large, whatever the header says."""
    encoding = draw(st.one_of(st.sampled_from(KNOWN_ENCODINGS), st.sampled_from(STRANGE_ENCODINGS), st.text(max_size=8)))
    height, width = (draw(st.integers(1, 12)), draw(st.integers(1, 12))) if draw(st.booleans()) else (draw(sides), draw(sides))
    exact = width * draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    step = min(2**32 - 1, exact + draw(st.integers(0, 5))) if draw(st.booleans()) else draw(sides)
    size = step * height + draw(st.sampled_from([0, 0, 0, -1, 1, 7])) if step * height <= 100_000 else draw(st.integers(0, 1000))
    return Image(
        header=Header(stamp=draw(stamps()), frame_id=draw(names)), height=height, width=width, encoding=encoding, step=step,
        is_bigendian=draw(st.integers(0, 255)), data=filled(max(0, size), draw(fillings)),
    )  # fmt: skip


@st.composite
def compressed_images(draw: st.DrawFn) -> CompressedImage:
    """JPEG and PNG files, whole, damaged, truncated and extended, and bytes that are none."""
    kind = draw(st.sampled_from(["JPEG", "PNG", "bytes"]))
    if kind == "bytes":
        data = bytearray(draw(st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])) + draw(st.binary(max_size=60)))
    else:
        data = bytearray(encoded(make_picture(1, height=20, width=24), kind))
        for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
            data[place] = value
        data = data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data + draw(st.binary(max_size=20))
    header = Header(stamp=draw(stamps()), frame_id=draw(names))
    return CompressedImage(header=header, format=draw(st.one_of(st.sampled_from(STRANGE_FORMATS), names)), data=bytes(data))


numbers = st.one_of(st.floats(-5.0, 5.0), st.sampled_from([0.0, 1.0, 1e300, -1e300, math.nan, math.inf, -math.inf]))


@st.composite
def odometry(draw: st.DrawFn) -> Odometry:
    message = Odometry(header=Header(stamp=draw(stamps()), frame_id=draw(names)), child_frame_id=draw(names))
    if draw(st.booleans()):
        message.header.frame_id, message.child_frame_id = "odom", "base_link"
    position, orientation = message.pose.pose.position, message.pose.pose.orientation
    position.x, position.y, position.z = draw(numbers), draw(numbers), draw(numbers)
    if draw(st.booleans()):
        orientation.x, orientation.y, orientation.z, orientation.w = draw(numbers), draw(numbers), draw(numbers), draw(numbers)
    return message


actions = st.one_of(
    st.tuples(st.just("image"), st.sampled_from(CAMERAS), raw_images()),
    st.tuples(st.just("image"), st.sampled_from(CAMERAS), compressed_images()),
    st.tuples(st.just("odometry"), st.just(""), odometry()),
    st.tuples(st.sampled_from(["trigger", "clock jump", "disable", "enable"]), st.just(""), st.none()),
)


def act(driver: Driver, kind: str, camera: str, message: Any) -> None:
    node = driver.node
    if kind == "image":
        driver.image(message, camera)
    elif kind == "odometry":
        driver.send_odometry(message)
    elif kind == "trigger":
        node._inputs._on_trigger_hint(PoseWithCovarianceStamped())
    elif kind == "clock jump":
        node._on_clock_jump(None)
    else:
        node._pipeline.enabled = kind == "enable"


@given(steps=st.lists(actions, min_size=1, max_size=10))
def test_every_message_is_matched_or_counted_with_a_reason(driver: Driver, steps: list[tuple[str, str, Any]]):
    before = driver.values()
    for kind, camera, message in steps:
        act(driver, kind, camera, message)
    driver.node._pipeline.enabled = True
    values = driver.settle()
    assert int(values["frames_received"]) == sum(driver.images.values())
    assert int(values["odometry_received"]) + int(values["odometry_refused"]) == driver.odometry
    if any(values[name] != before[name] for name in ("frames_stale", "frames_failed")):
        # "unexpected" is what the pipeline says of an error that nobody foresaw.
        assert values["last_skip_reason"] and "unexpected" not in values["last_skip_reason"]
    assert int(values["odometry_refused"]) == int(before["odometry_refused"]) or values["odometry_fault"]


@given(message=st.one_of(raw_images(), compressed_images()))
def test_a_good_frame_is_matched_whatever_came_before_it(driver: Driver, message: Image | CompressedImage):
    driver.image(message)
    before = driver.settle()
    # No camera is so slow: the next frame has to have a later stamp, or the run begins anew.
    driver.image(image_message(make_picture(3), time.time_ns()))
    values = driver.settle()
    assert int(values["frames_processed"]) == int(before["frames_processed"]) + 1
    assert int(values["accepted"]) + int(values["rejected"]) == int(values["frames_processed"])


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_picture_that_is_one_long_row_or_column_is_matched_or_refused(driver: Driver, side: str):
    for length in (32_767, 32_768, 65_536, 100_000, 262_144):
        width, height = (1, length) if side == "height" else (length, 1)
        message = Image(
            header=Header(stamp=stamp_message(time.time_ns())), height=height, width=width, encoding="rgb8", step=3 * width,
            data=filled(3 * length, "noise"),
        )  # fmt: skip
        driver.image(message)
        values = driver.settle()
        assert "unexpected" not in values["last_skip_reason"]


def test_frames_that_wait_when_the_clock_jumps_are_counted(driver: Driver):
    worker, release = driver.node._pipeline.worker, []
    driver.settle()
    task = worker.call(lambda: [time.sleep(0.0005) for _ in iter(lambda: bool(release), True)])
    driver.image(image_message(make_picture(1), time.time_ns()))
    driver.image(image_message(make_picture(1), time.time_ns()), "left")
    dropped = int(driver.values()["frames_dropped"])
    driver.node._on_clock_jump(None)
    release.append(True)
    task.result(timeout=DEADLINE_S)
    assert int(driver.settle()["frames_dropped"]) == dropped + 2
