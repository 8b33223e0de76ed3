"""Messages to core types and back.

Images go through cv_bridge where it imports and works, otherwise through the core's own
conversion; both give the same picture. Stamps are integer nanoseconds on the core's side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Quaternion
from geometry_msgs.msg import Pose as PoseMessage
from sensor_msgs.msg import CompressedImage, Image

from asymvpr_core import pixel_formats
from asymvpr_core.errors import ImageError
from asymvpr_core.types import Pose

_SECOND_NS = 1_000_000_000
# Encodings that cv_bridge turns into rgb8, with their channels; of 8UC3, 16UC1, … it knows no colour.
_CV_BRIDGE_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
ImageConverter = Callable[[Image], np.ndarray]


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds of a message stamp."""
    return stamp.sec * _SECOND_NS + stamp.nanosec


def stamp_message(nanoseconds: int) -> Time:
    """Message stamp of integer nanoseconds."""
    seconds, rest = divmod(nanoseconds, _SECOND_NS)
    return Time(sec=seconds, nanosec=rest)


def pose_message(pose: Pose) -> PoseMessage:
    """geometry_msgs/Pose of a core pose."""
    (x, y, z), (qx, qy, qz, qw) = pose.position, pose.quaternion
    return PoseMessage(
        position=Point(x=float(x), y=float(y), z=float(z)),
        orientation=Quaternion(x=float(qx), y=float(qy), z=float(qz), w=float(qw)),
    )


def pose_from_message(message: PoseMessage) -> Pose:
    """Core pose of a geometry_msgs/Pose."""
    p, q = message.position, message.orientation
    return Pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def rgb_of(message: Image | CompressedImage) -> np.ndarray:
    """`(H, W, 3)` uint8 RGB picture of an image message.

    Raises:
        ImageError: unknown encoding or format, no pixels, truncated or undecodable data.
    """
    if isinstance(message, CompressedImage):
        return pixel_formats.compressed_to_rgb(message.data, message.format, f"stamped {stamp_ns(message.header.stamp)}")
    return image_converter()(message)


@functools.cache
def image_converter() -> ImageConverter:
    """The conversion of sensor_msgs/Image that this process uses: cv_bridge's where that works, else the core's."""
    return with_cv_bridge if cv_bridge_works() else with_pixel_formats


def with_pixel_formats(message: Image) -> np.ndarray:
    """Convert with the core's numpy and OpenCV code; every encoding that the package knows."""
    return pixel_formats.raw_to_rgb(
        message.data,
        height=message.height,
        width=message.width,
        step=message.step,
        encoding=message.encoding,
        is_bigendian=bool(message.is_bigendian),
    )


def with_cv_bridge(message: Image) -> np.ndarray:
    """Convert with cv_bridge what it is sure to get right, the rest with the core's code.

    Some releases shift the rows when their padding is no whole number of pixels.
    """
    packed = message.step == message.width * _CV_BRIDGE_CHANNELS.get(message.encoding, -1)
    if not packed or message.height == 0 or message.width == 0:
        return with_pixel_formats(message)
    try:
        return np.ascontiguousarray(_bridge().imgmsg_to_cv2(message, desired_encoding="rgb8"))
    except Exception as error:  # cv_bridge raises its own class for some faults, numpy's for others
        raise ImageError(f"{message.encoding} image is refused by cv_bridge: {error}", remedy="check the camera driver") from error


@functools.cache
def cv_bridge_works() -> bool:
    """Whether cv_bridge imports and converts a small picture rightly; NumPy 2 breaks some builds."""
    message = Image(height=2, width=1, encoding="bgr8", step=3, data=bytes([1, 2, 3, 4, 5, 6]))
    try:
        return bool(np.array_equal(_bridge().imgmsg_to_cv2(message, desired_encoding="rgb8"), [[[3, 2, 1]], [[6, 5, 4]]]))
    except Exception:  # whatever fails here, the answer is that it does not work
        return False


@functools.cache
def _bridge() -> Any:
    from cv_bridge import CvBridge

    return CvBridge()
