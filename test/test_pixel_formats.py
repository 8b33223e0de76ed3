"""Every encoding against pictures made by hand, with padding, byte order and bad input."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
import pytest

from asymvpr_core.errors import ImageError
from asymvpr_core.pixel_formats import KNOWN_ENCODINGS, compressed_to_rgb, raw_to_rgb

HEIGHT, WIDTH = 6, 8
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA = np.full((HEIGHT, WIDTH, 1), 7, np.uint8)


def samples(encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """(samples as a camera sends them, RGB picture that they show)."""
    depth = np.uint16 if "16" in encoding else np.uint8
    scale = 257 if depth is np.uint16 else 1
    base = encoding.replace("16", "8")
    if base in ("mono8", "8UC1"):
        return GREY.astype(depth) * depth(scale), np.repeat(GREY[..., None], 3, axis=2)
    orders = {
        "rgb8": RGB,
        "bgr8": RGB[..., ::-1],
        "8UC3": RGB[..., ::-1],
        "rgba8": np.concatenate([RGB, ALPHA], axis=2),
        "bgra8": np.concatenate([RGB[..., ::-1], ALPHA], axis=2),
        "8UC4": np.concatenate([RGB[..., ::-1], ALPHA], axis=2),
    }
    return np.ascontiguousarray(orders[base]).astype(depth) * depth(scale), RGB


def message_bytes(pixels: np.ndarray, *, padding: int = 0, big: bool = False) -> tuple[bytes, int]:
    """(data, step) of an image message."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big else "<u2")
    rows = [row.tobytes() + b"\xaa" * padding for row in pixels]
    return b"".join(rows), len(rows[0])


PLAIN = [e for e in KNOWN_ENCODINGS if not e.startswith(("bayer", "yu", "uy"))]


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", PLAIN)
def test_plain_encodings_give_the_exact_picture(encoding, padding, big):
    pixels, expected = samples(encoding)
    data, step = message_bytes(pixels, padding=padding, big=big)
    image = raw_to_rgb(data, height=HEIGHT, width=WIDTH, step=step, encoding=encoding, is_bigendian=big)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_the_names_promised_are_known():
    promised = ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "8UC1", "8UC3", "8UC4", "16UC1"]
    promised += ["yuv422", "yuv422_yuy2", "uyvy", "yuyv"]
    promised += [f"bayer_{pattern}{bits}" for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)]
    assert set(promised) <= set(KNOWN_ENCODINGS)


def test_16_bit_samples_are_rounded_to_nearest():
    values = np.array([[0, 128, 129, 257, 32767, 65406, 65407, 65535]], dtype=np.uint16)
    image = raw_to_rgb(values.tobytes(), height=1, width=8, step=16, encoding="mono16")
    assert image[0, :, 0].tolist() == [round(v * 255 / 65535) for v in values[0].tolist()]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: array("B", b), lambda b: np.frombuffer(b, np.uint8)])
def test_every_buffer_that_a_message_may_hold(kind):
    image = raw_to_rgb(kind(RGB.tobytes()), height=HEIGHT, width=WIDTH, step=WIDTH * 3, encoding="rgb8")
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaic_of_one_colour_gives_that_colour(pattern, bits):
    colour = {"r": 200, "g": 100, "b": 30}
    mosaic = np.array([[colour[pattern[(y % 2) * 2 + x % 2]] for x in range(WIDTH)] for y in range(HEIGHT)], np.uint16)
    mosaic = (mosaic * 257).astype(np.uint16) if bits == 16 else mosaic.astype(np.uint8)
    data, step = message_bytes(mosaic, padding=3)
    image = raw_to_rgb(data, height=HEIGHT, width=WIDTH, step=step, encoding=f"bayer_{pattern}{bits}")
    np.testing.assert_array_equal(image, np.broadcast_to(np.array([200, 100, 30], np.uint8), (HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize(("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")])
def test_yuv422_byte_order(encoding, order):
    # BT.601, limited range: red is Y 81, U 90, V 240; blue is Y 41, U 240, V 110.
    rows = []
    for y, u, v in ((81, 90, 240), (41, 240, 110)):
        pair = {"uyvy": [u, y, v, y], "yuyv": [y, u, y, v]}[order]
        rows.append(bytes(pair * (WIDTH // 2)) + b"\xaa\xaa")
    image = raw_to_rgb(b"".join(rows), height=2, width=WIDTH, step=WIDTH * 2 + 2, encoding=encoding)
    np.testing.assert_allclose(image[0].astype(int), [[255, 0, 0]] * WIDTH, atol=4)
    np.testing.assert_allclose(image[1].astype(int), [[0, 0, 255]] * WIDTH, atol=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "32FC1"}, "encoding '32FC1'; expected one of rgb8, bgr8, .*yuyv"),
        ({"encoding": ""}, "encoding ''; expected one of"),
        ({"height": 0}, "image is 8 x 0; expected at least one pixel"),
        ({"width": 0}, "image is 0 x 6; expected at least one pixel"),
        ({"step": WIDTH * 3 - 1}, "step of 23 bytes; expected at least 24 for 8 pixels of rgb8"),
        ({"data": RGB.tobytes()[:-1]}, "holds 143 bytes; expected 144"),
        ({"data": b""}, "holds 0 bytes; expected 144"),
        ({"encoding": "rgb16"}, "step of 24 bytes; expected at least 48"),
        ({"encoding": "yuyv", "width": 7}, "7 pixels wide; expected an even width"),
        ({"encoding": "bayer_rggb8", "width": 2, "height": 2}, "expected at least 3 x 3"),
    ],
)
def test_bad_images_are_one_clear_error(change, message):
    fields = {"data": RGB.tobytes(), "height": HEIGHT, "width": WIDTH, "step": WIDTH * 3, "encoding": "rgb8"} | change
    with pytest.raises(ImageError, match=message):
        raw_to_rgb(fields.pop("data"), **fields)


@pytest.mark.parametrize("format_", ["png", "rgb8; png compressed bgr8", "PNG", ""])
@pytest.mark.parametrize("kind", [bytes, lambda b: array("B", b), lambda b: np.frombuffer(b, np.uint8), memoryview])
def test_compressed_png_is_exact_in_every_buffer(format_, kind):
    data = cv2.imencode(".png", RGB[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(compressed_to_rgb(kind(data), format_, "frame"), RGB)


def test_compressed_jpeg_keeps_the_channel_order():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 250
    data = cv2.imencode(".jpg", red[..., ::-1])[1].tobytes()
    image = compressed_to_rgb(data, "bgr8; jpeg compressed bgr8", "frame")
    assert np.abs(image.astype(int) - red).max() <= 4


def test_bad_compressed_images_are_one_clear_error():
    jpeg = cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
    with pytest.raises(ImageError, match="image frame 7 is a truncated JPEG"):
        compressed_to_rgb(jpeg[: len(jpeg) // 2], "jpeg", "frame 7")
    with pytest.raises(ImageError, match="16UC1; compressedDepth png', a depth image"):
        compressed_to_rgb(jpeg, "16UC1; compressedDepth png", "frame 7")
    with pytest.raises(ImageError, match="format 'h264' starts with bytes 00 00 00 01; expected a JPEG or PNG file"):
        compressed_to_rgb(b"\0\0\0\1video", "h264", "frame 7")
    with pytest.raises(ImageError, match="frame 7 cannot be decoded"):
        compressed_to_rgb(b"", "jpeg", "frame 7")
    png = cv2.imencode(".png", RGB)[1].tobytes()
    with pytest.raises(ImageError, match="frame 7 cannot be decoded"):
        compressed_to_rgb(png[:20], "png", "frame 7")
