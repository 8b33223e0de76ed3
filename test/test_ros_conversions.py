"""Messages to core types: the same expectations for cv_bridge, where it works, and for the core's conversion."""

from __future__ import annotations

import array

import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image
from tiny_artefacts import encode_jpeg, make_picture

from asymvpr_core.errors import ImageError
from asymvpr_core.types import Pose
from asymvpr_ros import conversions

NEEDS_CV_BRIDGE = pytest.mark.skipif(not conversions.cv_bridge_works(), reason="no working cv_bridge")
BACKENDS = [
    pytest.param(conversions.with_pixel_formats, id="core"),
    pytest.param(conversions.with_cv_bridge, id="cv_bridge", marks=NEEDS_CV_BRIDGE),
]
# Two rows of two pixels, RGB.
PIXELS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8)
GREY = np.array([[0, 100], [200, 255]], np.uint8)


def message(samples: np.ndarray, encoding: str, *, padding: int = 0, is_bigendian: bool = False, width: int = 2) -> Image:
    """An image whose rows are `samples` (H, bytes or 16-bit words) with `padding` bytes after each."""
    rows = samples.reshape(len(samples), -1)
    rows = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    data = array.array("B")
    data.frombytes(rows.tobytes())
    return Image(height=len(rows), width=width, step=rows.shape[1], encoding=encoding, is_bigendian=int(is_bigendian), data=data)


@pytest.mark.parametrize("convert", BACKENDS)
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "samples", "expected"),
    [
        ("rgb8", PIXELS, PIXELS),
        ("bgr8", PIXELS[..., ::-1], PIXELS),
        ("rgba8", np.dstack([PIXELS, np.full((2, 2), 7, np.uint8)]), PIXELS),
        ("bgra8", np.dstack([PIXELS[..., ::-1], np.full((2, 2), 7, np.uint8)]), PIXELS),
        ("mono8", GREY, np.dstack([GREY] * 3)),
        ("8UC1", GREY, np.dstack([GREY] * 3)),
        ("8UC3", PIXELS[..., ::-1], PIXELS),
        ("mono16", GREY.astype("<u2") * 257, np.dstack([GREY] * 3)),
        ("16UC1", GREY.astype("<u2") * 257, np.dstack([GREY] * 3)),
        # Grey in 4:2:2: Y in the second byte for UYVY, in the first for YUYV; 16 is black and 235 white.
        ("yuv422", np.array([[128, 16, 128, 235]], np.uint8), np.array([[[0] * 3, [255] * 3]])),
        ("yuv422_yuy2", np.array([[16, 128, 235, 128]], np.uint8), np.array([[[0] * 3, [255] * 3]])),
    ],
)
def test_encodings_with_and_without_padded_rows(convert, encoding, samples, expected, padding):
    converted = convert(message(samples, encoding, padding=padding))
    assert converted.dtype == np.uint8 and converted.shape == expected.shape
    assert np.abs(converted.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("convert", BACKENDS)
def test_big_endian_16_bit(convert):
    converted = convert(message(GREY.astype(">u2") * 257, "mono16", is_bigendian=True))
    assert np.abs(converted[..., 0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("convert", BACKENDS)
def test_bayer_of_one_colour(convert):
    mosaic = np.zeros((4, 4), np.uint8)
    mosaic[0::2, 0::2] = 200  # the red places of RGGB
    converted = convert(message(mosaic, "bayer_rggb8", width=4))
    assert converted[1:3, 1:3, 0].min() > 90 and converted[..., 1:].max() == 0


@pytest.mark.parametrize("convert", BACKENDS)
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Image(height=2, width=2, step=6, encoding="infrared12", data=[0] * 12), "infrared12"),
        (Image(height=0, width=0, step=0, encoding="rgb8"), "0 x 0"),
        (Image(height=2, width=2, step=6, encoding="rgb8", data=[0] * 11), "rgb8|11 bytes"),
    ],
)
def test_bad_images_are_refused(convert, broken, reason):
    with pytest.raises(ImageError, match=reason):
        convert(broken)


def test_a_compressed_image_becomes_rgb():
    picture = make_picture(3)
    rgb = conversions.rgb_of(CompressedImage(format="rgb8; jpeg compressed bgr8", data=encode_jpeg(picture)))
    assert rgb.shape == picture.shape
    assert np.abs(rgb.astype(int) - picture).mean() < 3


def test_a_truncated_or_foreign_compressed_image_is_refused():
    jpeg = encode_jpeg(make_picture(3))
    with pytest.raises(ImageError, match="truncated JPEG"):
        conversions.rgb_of(CompressedImage(format="jpeg", data=jpeg[: len(jpeg) // 2]))
    with pytest.raises(ImageError, match="compressedDepth"):
        conversions.rgb_of(CompressedImage(format="16UC1; compressedDepth", data=jpeg))
    with pytest.raises(ImageError):
        conversions.rgb_of(CompressedImage(format="jpeg", data=b""))


def test_raw_images_go_through_the_conversion_that_works():
    assert (conversions.image_converter() is conversions.with_cv_bridge) == conversions.cv_bridge_works()
    assert np.array_equal(conversions.rgb_of(message(PIXELS, "rgb8")), PIXELS)


@pytest.mark.parametrize("nanoseconds", [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789])
def test_stamps_survive_the_way_there_and_back(nanoseconds):
    stamp = conversions.stamp_message(nanoseconds)
    assert (stamp.sec, stamp.nanosec) == (nanoseconds // 10**9, nanoseconds % 10**9)
    assert conversions.stamp_ns(stamp) == nanoseconds


def test_poses_survive_the_way_there_and_back():
    pose = Pose((1.0, -2.5, 3.0), (0.5, -0.5, 0.5, 0.5))
    assert conversions.pose_from_message(conversions.pose_message(pose)) == pose
    assert conversions.pose_message(pose).orientation.w == 0.5
