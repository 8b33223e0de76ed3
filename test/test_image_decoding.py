"""Every kind of whole picture file against the picture it was made of; `docs/images.md` lists them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from picture_files import after_start, chunk, encoded, noise, picture, png, png_of, segment, tiff_orientation
from PIL import Image

from asymvpr_core.errors import ImageError
from asymvpr_core.image_decoding import decode_image, read_image, scale_to_8_bits
from asymvpr_core.pixel_formats import raw_to_rgb

RGB = picture(24, 40)
SAMPLES_16_BIT = np.random.default_rng(0).integers(0, 65536, (6, 9, 4), dtype=np.uint16)
SAMPLES_16_BIT[0, :8, 0] = [0, 128, 129, 257, 32767, 65406, 65407, 65535]


def difference(image: np.ndarray, expected: np.ndarray) -> int:
    """The largest difference of two pictures, in grey levels."""
    assert image.shape == expected.shape and image.dtype == np.uint8
    return int(np.abs(image.astype(int) - expected).max())


def as_shown(image: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as EXIF's definition has it: which edges the first row and the first column show."""
    rows_and_columns = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: image.transpose(1, 0, 2)[:, ::-1],
        7: image.transpose(1, 0, 2)[::-1, ::-1],
        8: image.transpose(1, 0, 2)[::-1],
    }
    return rows_and_columns[orientation]


def test_png_gives_the_exact_picture():
    assert difference(decode_image(encoded(RGB, "PNG"), "x"), RGB) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}, {"optimize": True}])
def test_jpeg_baseline_progressive_and_with_restarts(options: dict):
    assert difference(decode_image(encoded(RGB, "JPEG", quality=95, **options), "x"), RGB) <= 12


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_becomes_three_channels(kind: str):
    grey = Image.fromarray(RGB).convert("L")
    decoded = decode_image(encoded(grey, kind, **({"quality": 95} if kind == "JPEG" else {})), "x")
    assert difference(decoded, np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)) <= (3 if kind == "JPEG" else 0)
    assert (decoded == decoded[:, :, :1]).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_spread_to_8(bits: int):
    rows = bytes([0, 0b10110001])  # no filter, then as many pixels as 8 bits hold
    values = [(0b10110001 >> shift) & (2**bits - 1) for shift in range(8 - bits, -1, -bits)]
    decoded = decode_image(png(1, 8 // bits, bits, 0, rows), "x")
    assert decoded[0, :, 1].tolist() == [value * 255 // (2**bits - 1) for value in values]


@pytest.mark.parametrize("alpha", [0, 1, 128, 255])
def test_alpha_is_dropped_and_the_colour_below_it_kept(alpha: int):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], alpha, np.uint8)])
    assert difference(decode_image(encoded(rgba, "PNG"), "x"), RGB) == 0
    grey_alpha = np.ascontiguousarray(rgba[..., 2:])
    assert difference(decode_image(png_of(grey_alpha), "x"), np.repeat(rgba[..., 2:3], 3, axis=2)) == 0


def test_a_palette_gives_its_colours_transparent_or_not():
    indexed = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(indexed.convert("RGB"))
    for options in ({}, {"transparency": 3}, {"transparency": bytes(range(16))}):
        assert difference(decode_image(encoded(indexed, "PNG", **options), "x"), expected) == 0


def test_a_transparent_colour_of_a_png_is_kept():
    red = np.full((2, 3, 3), (255, 0, 0), np.uint8)
    assert difference(decode_image(png_of(red, chunk(b"tRNS", b"\0\xff\0\0\0\0")), "x"), red) == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_samples_are_rounded_as_those_of_messages(channels: int):
    samples = np.ascontiguousarray(SAMPLES_16_BIT[..., :channels])
    colour = samples if channels >= 3 else np.repeat(samples[..., :1], 3, axis=2)
    expected = [[[round(int(value) * 255 / 65535) for value in pixel[:3]] for pixel in row] for row in colour]
    assert difference(decode_image(png_of(samples), "x"), np.array(expected)) == 0


def test_a_16_bit_file_and_a_16_bit_message_are_the_same_picture():
    samples = np.ascontiguousarray(SAMPLES_16_BIT[..., :3])
    message = raw_to_rgb(samples.tobytes(), height=6, width=9, step=9 * 6, encoding="rgb16")
    assert np.array_equal(decode_image(png_of(samples), "x"), message)
    every_value = np.arange(65536, dtype=np.uint16)
    assert scale_to_8_bits(every_value).tolist() == [round(value * 255 / 65535) for value in range(65536)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg_is_applied(orientation: int, order: str):
    exif = segment(0xE1, b"Exif\0\0" + tiff_orientation(orientation, order))
    jpeg = encoded(RGB, "JPEG", quality=95)
    upright = as_shown(decode_image(jpeg, "x"), orientation)
    assert np.array_equal(decode_image(after_start(jpeg, exif), "x"), upright)
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    assert np.array_equal(decode_image(after_start(jpeg, xmp, exif), "x"), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_png_is_applied(orientation: int):
    data = png_of(RGB, chunk(b"eXIf", tiff_orientation(orientation)))
    assert np.array_equal(decode_image(data, "x"), as_shown(RGB, orientation))


TIFF = tiff_orientation(6)
NO_ORIENTATIONS = [*map(tiff_orientation, (0, 9, 65535)), b"", b"II*\0", TIFF[:12], b"XX" + TIFF[2:], TIFF[:4] + b"\xff" * 16]


@pytest.mark.parametrize("exif", NO_ORIENTATIONS)
def test_an_orientation_that_is_damaged_turns_nothing(exif: bytes):
    jpeg = encoded(RGB, "JPEG", quality=95)
    assert np.array_equal(decode_image(after_start(jpeg, segment(0xE1, b"Exif\0\0" + exif)), "x"), decode_image(jpeg, "x"))
    assert np.array_equal(decode_image(png_of(RGB, chunk(b"eXIf", exif)), "x"), RGB)


def test_the_orientation_of_a_preview_turns_nothing():
    jpeg = encoded(RGB, "JPEG", quality=95)
    preview = after_start(encoded(RGB, "JPEG"), segment(0xE1, b"Exif\0\0" + TIFF))
    for data in (after_start(jpeg, segment(0xE1, b"Exif\0\0" + tiff_orientation(1) + preview)), jpeg + preview):
        assert np.array_equal(decode_image(data, "x"), decode_image(jpeg, "x"))


def test_cmyk_and_ycck_jpegs_are_read_as_adobe_writes_them():
    cmyk = encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    assert difference(decode_image(cmyk, "x"), RGB) <= 12
    transform = cmyk.index(b"Adobe") + 11
    ycck = cmyk[:transform] + b"\2" + cmyk[transform + 1 :]  # the same numbers, said to be luminance and colour differences
    with Image.open(io.BytesIO(ycck)) as image:
        assert difference(decode_image(ycck, "x"), np.asarray(image.convert("RGB"))) <= 2


def test_colour_profiles_and_gamma_change_nothing():
    gamma = chunk(b"gAMA", (100_000).to_bytes(4, "big"))
    assert difference(decode_image(png_of(RGB, gamma, chunk(b"iCCP", b"x\0\0damaged")), "x"), RGB) == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_one_pixel(kind: str):
    assert difference(decode_image(encoded(np.full((1, 1, 3), (10, 200, 30), np.uint8), kind), "x"), np.array([[[10, 200, 30]]])) <= 3


@pytest.mark.parametrize("default_image", [False, True])
def test_an_animated_png_gives_its_still_picture(default_image: bool):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image)
    assert b"acTL" in data
    assert difference(decode_image(data, "x"), np.asarray(frames[0])) == 0


@pytest.mark.parametrize(
    "appended", [b"\0", b"junk" * 3000, b"\0\0\0\x18ftypmp42" + bytes(3_000_000), None], ids=["byte", "junk", "film", "jpeg"]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_appended_to_a_jpeg_is_passed_over(progressive: bool, appended: bytes | None):
    jpeg = encoded(RGB, "JPEG", quality=95, progressive=progressive)
    preview = encoded(noise(8, 8), "JPEG")
    data = jpeg + (preview if appended is None else appended)
    assert np.array_equal(decode_image(data, "x"), decode_image(jpeg, "x"))


def test_what_is_appended_to_a_png_is_passed_over():
    assert difference(decode_image(encoded(RGB, "PNG") + b"junk" * 3000, "x"), RGB) == 0


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encoded(RGB, "GIF"), "GIF"),
        (encoded(RGB, "BMP"), "BMP"),
        (encoded(RGB, "TIFF"), "TIFF"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "WebP"),
        (b"\0\0\0\x1cftypheic", "HEIF or AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_refused_by_name(data: bytes, found: str):
    with pytest.raises(ImageError, match=f"image walk/7.jpg is a {found}; expected a JPEG or PNG file; convert it"):
        decode_image(data, "walk/7.jpg")


def test_a_git_lfs_pointer_is_named():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    with pytest.raises(ImageError, match="is a Git LFS pointer.*git lfs pull"):
        decode_image(pointer, "x")


def test_a_file_name_says_nothing_about_the_format(tmp_path: Path):
    (tmp_path / "really_a_png.jpg").write_bytes(encoded(RGB, "PNG"))
    assert np.array_equal(read_image(tmp_path / "really_a_png.jpg"), RGB)


def test_every_test_that_the_document_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (REPOSITORY / "docs" / "images.md").read_text(encoding="utf-8")))
    assert len(named) > 20
    defined = {
        name for path in (REPOSITORY / "test").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named <= defined
