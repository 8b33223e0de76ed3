"""The image transform against a naive one, and decoding of real and broken image bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from asymvpr_core.errors import ImageError
from asymvpr_core.preprocess import Preprocess, decode_image, read_image

IMAGENET = Preprocess(height=32, width=48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RED = np.full((10, 20, 3), (255, 0, 0), np.uint8)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image_rgb: np.ndarray, extension: str) -> bytes:
    return cv2.imencode(extension, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def test_normalise_equals_the_formula():
    image = random_image(32, 48)
    expected = np.empty((3, 32, 48))
    for channel in range(3):
        for row in range(32):
            for column in range(48):
                value = image[row, column, channel] / 255.0
                expected[channel, row, column] = (value - IMAGENET.mean[channel]) / IMAGENET.std[channel]
    result = IMAGENET(image)
    assert result.shape == (3, 32, 48)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_shrinking_averages_areas():
    image = random_image(64, 96)  # exactly twice the input: each output pixel is the mean of four
    expected = image.reshape(32, 2, 48, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(IMAGENET.resize(image) - expected).max() <= 0.51  # rounding to uint8


def test_a_fine_pattern_does_not_alias():
    # Black and white columns: the area mean is grey; bilinear sampling would keep stripes.
    stripes = np.zeros((320, 480, 3), np.uint8)
    stripes[:, ::2] = 255
    assert IMAGENET.resize(stripes).std() < 1.0


def test_enlarging_keeps_a_flat_image_flat():
    assert (IMAGENET.resize(RED) == (255, 0, 0)).all()


def test_the_aspect_ratio_is_not_kept():
    left_half_white = np.zeros((64, 960, 3), np.uint8)
    left_half_white[:, :480] = 255
    resized = IMAGENET.resize(left_half_white)
    assert (resized[:, :23] == 255).all() and (resized[:, 25:] == 0).all()


def test_an_image_of_the_right_size_is_untouched():
    image = random_image(32, 48)
    assert np.array_equal(IMAGENET.resize(image), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_other_shapes_and_types_are_refused(image: np.ndarray):
    with pytest.raises(ImageError, match=r"expected \(H, W, 3\) uint8 RGB"):
        IMAGENET(image)


def test_settings_survive_json():
    assert Preprocess.model_validate_json(IMAGENET.model_dump_json()) == IMAGENET
    with pytest.raises(ValidationError):
        Preprocess.model_validate({**IMAGENET.model_dump(), "crop": 0.9})


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_decoding_gives_rgb(extension: str):
    decoded = decode_image(encode(RED, extension), "red")
    assert decoded.shape == RED.shape
    assert np.abs(decoded.astype(int) - RED).max() <= 3  # JPEG is lossy


def test_grey_becomes_three_channels():
    grey = random_image(8, 8)[:, :, 0]
    decoded = decode_image(cv2.imencode(".png", grey)[1].tobytes(), "grey")
    assert np.array_equal(decoded, np.repeat(grey[:, :, np.newaxis], 3, axis=2))


def test_exif_rotation_is_applied():
    jpeg = encode(RED, ".jpg")
    # One TIFF directory with one entry: orientation (0x0112), a short, 6 = rotate by 90 degrees clockwise.
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    with_exif = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert decode_image(with_exif, "rotated").shape == (20, 10, 3)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_refused(share: float):
    data = encode(random_image(120, 160), ".jpg")
    with pytest.raises(ImageError, match="front/12 is a truncated JPEG"):
        decode_image(data[: int(len(data) * share)], "front/12")


def test_a_truncated_png_is_refused():
    data = encode(random_image(120, 160), ".png")
    with pytest.raises(ImageError, match="front/12"):
        decode_image(data[: len(data) // 2], "front/12")


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x00" * 100])
def test_bytes_that_are_no_image_are_refused(data: bytes):
    with pytest.raises(ImageError, match=rf"image x cannot be decoded \({len(data)} bytes\)"):
        decode_image(data, "x")


def test_read_image(tmp_path: Path):
    (tmp_path / "red.png").write_bytes(encode(RED, ".png"))
    assert np.array_equal(read_image(tmp_path / "red.png"), RED)
    with pytest.raises(ImageError, match=r"missing\.png cannot be read: No such file"):
        read_image(tmp_path / "missing.png")
