"""Pixels of ROS image messages as RGB arrays, with numpy and OpenCV only.

Knows nothing of ROS: it takes the fields of sensor_msgs/Image and CompressedImage. Reading a
bag and the node share it, so that both see the same picture.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np

from asymvpr_core.errors import ImageError
from asymvpr_core.image_decoding import decode_image, scale_to_8_bits

Buffer: TypeAlias = "bytes | bytearray | memoryview | array[int] | np.ndarray"
Convert: TypeAlias = Callable[[np.ndarray], np.ndarray]


def _cv(code: int) -> Convert:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _as_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


# encoding: (bits of a sample, samples of a pixel, conversion of (H, W[, C]) to three channels RGB)
_FORMATS: dict[str, tuple[int, int, Convert]] = {
    "rgb8": (8, 3, _as_is),
    "bgr8": (8, 3, _cv(cv2.COLOR_BGR2RGB)),
    "rgba8": (8, 4, _cv(cv2.COLOR_RGBA2RGB)),
    "bgra8": (8, 4, _cv(cv2.COLOR_BGRA2RGB)),
    "mono8": (8, 1, _cv(cv2.COLOR_GRAY2RGB)),
    "8UC1": (8, 1, _cv(cv2.COLOR_GRAY2RGB)),
    "8UC3": (8, 3, _cv(cv2.COLOR_BGR2RGB)),  # OpenCV's own order
    "8UC4": (8, 4, _cv(cv2.COLOR_BGRA2RGB)),
    "rgb16": (16, 3, _as_is),
    "bgr16": (16, 3, _cv(cv2.COLOR_BGR2RGB)),
    "rgba16": (16, 4, _cv(cv2.COLOR_RGBA2RGB)),
    "bgra16": (16, 4, _cv(cv2.COLOR_BGRA2RGB)),
    "mono16": (16, 1, _cv(cv2.COLOR_GRAY2RGB)),
    "16UC1": (16, 1, _cv(cv2.COLOR_GRAY2RGB)),
    # ROS names the pattern after the first row's pixels, and so do OpenCV's four-letter codes.
    **{
        f"bayer_{pattern.lower()}{bits}": (bits, 1, _cv(getattr(cv2, f"COLOR_Bayer{pattern}2RGB")))
        for pattern in ("RGGB", "BGGR", "GBRG", "GRBG")
        for bits in (8, 16)
    },
    "yuv422": (8, 2, _cv(cv2.COLOR_YUV2RGB_UYVY)),
    "uyvy": (8, 2, _cv(cv2.COLOR_YUV2RGB_UYVY)),
    "yuv422_yuy2": (8, 2, _cv(cv2.COLOR_YUV2RGB_YUYV)),
    "yuyv": (8, 2, _cv(cv2.COLOR_YUV2RGB_YUYV)),
}
KNOWN_ENCODINGS = tuple(_FORMATS)


def raw_to_rgb(data: Buffer, *, height: int, width: int, step: int, encoding: str, is_bigendian: bool | int = False) -> np.ndarray:
    """Turn the fields of a sensor_msgs/Image into `(H, W, 3)` uint8 RGB.

    16-bit samples are scaled by 255/65535. Rows may be padded. The result may share memory with
    `data` and is then not to be written to.

    Args:
        data: at least `step * height` bytes.
        step: bytes from the start of one row to the next.
        is_bigendian: byte order of 16-bit samples.

    Raises:
        ImageError: unknown encoding, no pixels, a step shorter than a row, truncated data, or a
            size that the encoding cannot have.
    """
    if encoding not in _FORMATS:
        raise ImageError(f"image has encoding '{encoding}'", expected=f"one of {', '.join(KNOWN_ENCODINGS)}")
    bits, channels, convert = _FORMATS[encoding]
    _check_size(height, width, encoding, channels)
    row_bytes = width * channels * bits // 8
    if step < row_bytes:
        raise ImageError(
            f"image has a step of {step} bytes", expected=f"at least {row_bytes} for {width} pixels of {encoding}",
            remedy="correct the camera driver",
        )  # fmt: skip
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if flat.size < step * height:
        raise ImageError(f"image holds {flat.size} bytes", expected=f"{step * height} for {height} rows of {step}", remedy="skip the frame")
    rows = flat[: step * height].reshape(height, step)[:, :row_bytes]
    if bits == 16:
        samples = np.ascontiguousarray(rows).view(">u2" if is_bigendian else "<u2").astype(np.uint16)
        return scale_to_8_bits(convert(_pixels(samples, height, width, channels)))
    return convert(_pixels(np.ascontiguousarray(rows), height, width, channels))


def compressed_to_rgb(data: Buffer, format_: str, name: str) -> np.ndarray:
    """Turn the fields of a sensor_msgs/CompressedImage into `(H, W, 3)` uint8 RGB.

    Args:
        data: the encoded JPEG or PNG file.
        format_: the message's format ("jpeg", "png", "bgr8; jpeg compressed bgr8", …); the data itself decides.
        name: what the error message calls the image.

    Raises:
        ImageError: depth in a compressedDepth format, video or another format, truncated or damaged data.
    """
    if "compresseddepth" in format_.lower():
        found = f"image {name} has format '{format_}', a depth image"
        raise ImageError(found, expected="a JPEG or PNG picture", remedy="choose a colour topic")
    encoded = data.tobytes() if isinstance(data, np.ndarray | array | memoryview) else bytes(data)
    if encoded and not encoded.startswith((b"\xff\xd8", b"\x89PNG")):
        raise ImageError(
            f"image {name} of format '{format_}' starts with bytes {encoded[:4].hex(' ')}", expected="a JPEG or PNG file",
            remedy="choose a topic with JPEG or PNG images",
        )  # fmt: skip
    return decode_image(encoded, name)


def _check_size(height: int, width: int, encoding: str, channels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"image is {width} x {height}", expected="at least one pixel", remedy="check that the camera delivers pictures")
    if channels == 2 and width % 2:  # two pixels share their colour samples
        raise ImageError(f"{encoding} image is {width} pixels wide", expected="an even width", remedy="correct the camera driver")
    if encoding.startswith("bayer") and (width < 3 or height < 3):  # OpenCV returns black below that
        raise ImageError(f"{encoding} image is {width} x {height}", expected="at least 3 x 3", remedy="correct the camera driver")


def _pixels(samples: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    return samples.reshape(height, width) if channels == 1 else samples.reshape(height, width, channels)
