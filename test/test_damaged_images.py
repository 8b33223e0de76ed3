"""Broken, enormous and wrong files: an error that names the image, never an exception of OpenCV, nothing on the terminal."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from picture_files import after_start, chunk, encoded, noise, png, png_of, segment

from asymvpr_core.errors import ImageError
from asymvpr_core.image_decoding import MAX_FILE_BYTES, MAX_PIXELS, MAX_SIDE, decode_image, read_image

NOISE = noise(60, 80)
JPEG = encoded(NOISE, "JPEG")
PROGRESSIVE = encoded(NOISE, "JPEG", progressive=True)
PNG = encoded(NOISE, "PNG")
PREVIEW = segment(0xE1, b"Exif\0\0" + encoded(noise(16, 16), "JPEG"))  # a whole JPEG inside of a header


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, after_start(JPEG, PREVIEW)], ids=["baseline", "progressive", "preview"])
def test_a_truncated_jpeg_is_refused(data: bytes, share: float, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(ImageError, match="image front/12 is a truncated JPEG"):
        decode_image(data[: int(len(data) * share)], "front/12")
    assert capfd.readouterr() == ("", "")


def test_every_length_of_a_truncated_file_is_refused():
    small = encoded(noise(9, 9), "JPEG"), encoded(noise(9, 9), "JPEG", progressive=True), encoded(noise(9, 9), "PNG")
    for data in small:
        decode_image(data, "x")
        for length in range(len(data)):
            with pytest.raises(ImageError, match="image x "):
                decode_image(data[:length], "x")


def test_a_jpeg_whose_end_was_never_written_is_refused(capfd: pytest.CaptureFixture[str]):
    # A file system that lost its last blocks fills the file with zeros.
    half = len(JPEG) // 2
    with pytest.raises(ImageError, match="truncated JPEG"):
        decode_image(JPEG[:half] + bytes(len(JPEG) - half), "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_png_is_refused(share: float, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(ImageError, match=r"image front/12 cannot be decoded \(\d+ bytes\): the PNG is truncated"):
        decode_image(PNG[: max(9, int(len(PNG) * share))], "front/12")
    assert capfd.readouterr() == ("", "")


def test_a_png_with_a_flipped_byte_is_refused(capfd: pytest.CaptureFixture[str]):
    for position in (16, 20, 27, 60, len(PNG) // 2, len(PNG) - 20, len(PNG) - 1):
        damaged = bytearray(PNG)
        damaged[position] ^= 0x10
        with pytest.raises(ImageError, match="image front/12 cannot be decoded .*damaged, its checksum at byte"):
            decode_image(bytes(damaged), "front/12")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND"), "does not begin with its header"),
        (png_of(NOISE, chunk(b"ABCD", b"x")), "unknown part b'ABCD'"),
        (png(0, 5, 8, 2, b""), "image x is 5 x 0; expected at least one pixel"),
        (png(5, 5, 8, 2, b""), "cannot be decoded"),
        (png(5, 5, 7, 2, bytes(80)), "cannot be decoded"),
        (png(6, 8, 8, 2, bytes(3 * 25)), "cannot be decoded"),  # half of the rows
    ],
)
def test_a_png_that_is_whole_but_wrong_is_refused(data: bytes, message: str):
    with pytest.raises(ImageError, match=message):
        decode_image(data, "x")


def test_damage_inside_of_a_jpegs_scan_gives_a_picture_of_the_right_size():
    # There is no checksum: the decoder goes on with wrong blocks.
    start = JPEG.index(b"\xff\xda") + 20
    for seed in range(20):
        damaged = bytearray(JPEG)
        damaged[int(np.random.default_rng(seed).integers(start, len(JPEG) - 2))] ^= 0x10
        image = decode_image(bytes(damaged), "x")
        assert image.shape == NOISE.shape and image.dtype == np.uint8


@pytest.mark.parametrize("header", ["SOF", "DHT", "DQT"])
def test_a_damaged_jpeg_header_is_refused(header: str):
    marker = {"SOF": b"\xff\xc0", "DHT": b"\xff\xc4", "DQT": b"\xff\xdb"}[header]
    position = JPEG.index(marker)
    damaged = JPEG[: position + 4] + b"\xff" * 16 + JPEG[position + 20 :]
    with pytest.raises(ImageError, match="image x "):
        decode_image(damaged, "x")


def test_a_jpeg_without_a_picture_is_refused():
    for data in (b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\xff" * 50, b"\xff\xd8\xff\xc0\0\3x" + JPEG[2:]):
        with pytest.raises(ImageError, match="image x "):
            decode_image(data, "x")


def jpeg_of_declared_size(height: int, width: int) -> bytes:
    """The small JPEG with another size in its header."""
    position = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:position] + struct.pack(">HH", height, width) + JPEG[position + 4 :]


@pytest.mark.parametrize(
    ("height", "width"), [(60_000, 60_000), (1, MAX_SIDE + 1), (MAX_SIDE + 1, 1), (13_378, 13_378)], ids=["square", "wide", "high", "just"]
)
def test_enormous_pictures_are_refused_by_their_header(height: int, width: int, capfd: pytest.CaptureFixture[str]):
    assert height * width > MAX_PIXELS or max(height, width) > MAX_SIDE
    for data in (png(height, width, 8, 2, b""), jpeg_of_declared_size(height, width)):
        with pytest.raises(ImageError, match=f"image x is {width} x {height}; expected at most {MAX_PIXELS} pixels .* {MAX_SIDE}"):
            decode_image(data, "x")
    assert capfd.readouterr() == ("", "")


def test_a_png_of_600_million_pixels_costs_no_memory():
    # 20 000 x 30 000 grey pixels that are all 0 shrink to about 600 kB.
    code = """
import sys, zlib, resource
from picture_files import chunk, png
from asymvpr_core.errors import ImageError
from asymvpr_core.image_decoding import decode_image
compressor = zlib.compressobj(1)
packed = b"".join(compressor.compress(bytes(30_001)) for _ in range(20_000)) + compressor.flush()
data = png(20_000, 30_000, 8, 0, b"").replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", packed))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_image(data, "bomb")
except ImageError as error:
    print(error.found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000)
"""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'test'}"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "image bomb is 30000 x 20000 True"


def test_an_exception_of_opencv_becomes_an_image_error(monkeypatch: pytest.MonkeyPatch):
    import cv2

    def out_of_memory(*_: object) -> None:
        raise cv2.error("Insufficient memory")

    monkeypatch.setattr(cv2, "imdecode", out_of_memory)
    with pytest.raises(ImageError, match="image x cannot be decoded .*: Insufficient memory"):
        decode_image(PNG, "x")


@pytest.mark.parametrize("data", [b"", b"no picture", b"\0" * 100, b"\xff", b"\x89PNG", b"<!DOCTYPE html><html>not found</html>"])
def test_bytes_that_are_no_image_are_refused(data: bytes):
    with pytest.raises(ImageError, match=rf"image x cannot be decoded \({len(data)} bytes\); expected a JPEG or PNG file"):
        decode_image(data, "x")


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("a shopping list")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    expected = {
        "empty": r"cannot be decoded \(0 bytes\)",
        "text": r"cannot be decoded \(15 bytes\)",
        "folder": "is no regular file",
        "pipe": "is no regular file",
        "link": "cannot be read: No such file",
        "missing": "cannot be read: No such file",
        "circle": "cannot be read: Too many levels of symbolic links",
        "sparse": "has 1073741825 bytes; expected at most 1073741824",
    }
    for name, message in expected.items():
        with pytest.raises(ImageError, match=rf"image {re.escape(str(tmp_path))}/{name}\.jpg {message}"):
            read_image(tmp_path / f"{name}.jpg")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "png", "png with new checksums"])
def test_random_damage_gives_a_picture_or_an_image_error(kind: str):
    data = {"baseline": JPEG, "progressive": PROGRESSIVE}.get(kind, PNG)
    random = np.random.default_rng(7)
    pictures = 0
    for _ in range(200):
        damaged = bytearray(data)
        for position in random.integers(0, len(data) if random.random() < 0.5 else 200, random.integers(1, 6)):
            damaged[position] = random.integers(0, 256)
        if random.random() < 0.2:
            del damaged[random.integers(0, len(data)) :]
        if random.random() < 0.2:
            del damaged[(start := int(random.integers(0, len(data)))) : start + int(random.integers(1, 500))]
        try:
            image = decode_image(with_checksums(bytes(damaged)) if "checksums" in kind else bytes(damaged), "x")
        except ImageError as error:
            assert str(error).startswith("image x ")
        else:
            assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size > 0
            pictures += 1
    assert pictures < 200 and (kind == "png" or pictures > 0)


def with_checksums(data: bytes) -> bytes:
    """The PNG with every checksum made right, so that the decoder sees the damage."""
    repaired, position = bytearray(data), 8
    while position + 12 <= len(repaired):
        end = position + 8 + int.from_bytes(repaired[position : position + 4], "big")
        if end + 4 <= len(repaired):
            repaired[end : end + 4] = struct.pack(">I", zlib.crc32(repaired[position + 4 : end]))
        position = end + 4
    return bytes(repaired)
