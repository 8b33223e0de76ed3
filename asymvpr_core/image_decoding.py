"""Image files as RGB arrays: what is read, what is refused. `docs/images.md` lists every case.

Needs numpy and OpenCV only, and runs for every compressed frame on the robot. The file's structure
is checked here, before OpenCV sees it, because OpenCV answers differently from release to release:
to a truncated file with a picture that is part grey, to a huge one with an exception or all memory,
to an orientation depending on where in the file it stands.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np

from asymvpr_core.errors import ImageError

MAX_PIXELS = 178_956_970  # the size above which Pillow refuses a picture; 0.5 GB as RGB
MAX_SIDE = 65_500  # libjpeg's own limit
MAX_FILE_BYTES = 1 << 30

_REMEDY = "replace or remove it"
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_END_OF_IMAGE = b"\xff\xd9"
# In entropy-coded data FF is followed by 00 or by a restart marker; before another byte it ends the data.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_CRITICAL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_OTHER_FORMATS = {
    "GIF": re.compile(rb"GIF8"),
    "BMP": re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "WebP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "HEIF or AVIF": re.compile(rb".{4}ftyp", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP|\xff\x4f\xff\x51"),
    "Git LFS pointer": re.compile(rb"version https://git-lfs"),
}
# EXIF orientation: what turns the stored picture upright (Exif 2.3, section 4.6.4, tag 0x0112).
_TURN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.flip(cv2.transpose(image), -1),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode a JPEG or PNG file to `(H, W, 3)` uint8 RGB.

    Grey becomes three channels; alpha is dropped and what lies below it kept; 16-bit samples are
    scaled by `scale_to_8_bits`; the picture is turned as its EXIF orientation says. Nothing but
    the bytes decides on the format. A JPEG carries no checksum: where bytes in its middle are
    damaged, it decodes to a picture that is wrong from there on.

    Args:
        data: the encoded file.
        name: what the error message calls the image.

    Raises:
        ImageError: another format, truncated, damaged where that shows, without pixels, more than
            `MAX_PIXELS`, or a side above `MAX_SIDE`.
    """
    if data[:2] == _JPEG:
        orientation = _check_jpeg(data, name)
    elif data[:8] == _PNG:
        data, orientation = _checked_png(data, name)
    else:
        _refuse_other_format(data, name)
    try:
        # ANYDEPTH: without it OpenCV cuts 16-bit samples instead of rounding them.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _undecodable(data, name, " ".join(str(error).split())) from error
    if image is None:
        raise _undecodable(data, name)
    if image.dtype == np.uint16:
        image = scale_to_8_bits(image)
    return _TURN[orientation](cv2.cvtColor(image, cv2.COLOR_BGR2RGB))  # IMREAD_COLOR_RGB is not in the OpenCV of older distributions


def decode_grey_jpeg(data: bytes, name: str, max_side: int) -> np.ndarray:
    """Decode a JPEG to `(H, W)` uint8 grey, as it is stored.

    Raises:
        ImageError: no JPEG, truncated, damaged where that shows, or a side above `max_side`, which is found before any pixel is.
    """
    if data[:2] != _JPEG:
        _refuse_other_format(data, name)
    _check_jpeg(data, name, max_side)
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise _undecodable(data, name, " ".join(str(error).split())) from error
    if grey is None:
        raise _undecodable(data, name)
    return grey


def read_image(path: Path) -> np.ndarray:
    """Read an image file to `(H, W, 3)` uint8 RGB.

    Raises:
        ImageError: as `read_image_file` and `decode_image`.
    """
    return decode_image(read_image_file(path), str(path))


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file, not decoded.

    Raises:
        ImageError: missing, a link that leads nowhere, no regular file (a folder, a pipe), not
            readable, or larger than `MAX_FILE_BYTES`.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise ImageError(f"image {path} is no regular file", expected="a JPEG or PNG file", remedy=_REMEDY)
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"image {path} has {status.st_size} bytes", expected=f"at most {MAX_FILE_BYTES}", remedy=_REMEDY)
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"image {path} cannot be read: {error.strerror}", remedy="check the path") from error


def scale_to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Scale uint16 samples by 255/65535 (cv_bridge's factor) to uint8, rounded to nearest."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 is 257


def _check_jpeg(data: bytes, name: str, max_side: int = MAX_SIDE) -> int:
    """The orientation of a JPEG; refuses one whose header is damaged, that is too large, or whose picture has no end."""
    orientation = None
    for marker, content, end in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame: precision, height, width
            if len(content) < 5:
                raise _undecodable(data, name, "a header of the JPEG is too short")
            height, width = struct.unpack(">HH", content[1:5])
            _check_size(height, width, name, max_side)
        elif marker == 0xE1 and orientation is None and content.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(content[6:])
        elif marker == 0xDA:  # start of the first scan
            # The end to look for is that of the first picture: cameras append previews and films behind it. Where
            # nothing is appended it is the file's last two bytes, and a truncated scan cannot end with these.
            if data.endswith(_END_OF_IMAGE) or _has_end(data, end):
                return orientation or 1
            break
    raise ImageError(f"image {name} is a truncated JPEG ({len(data)} bytes)", remedy=_REMEDY)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, content, where it ends) of each segment behind the first two bytes, as far as whole ones follow each other."""
    position = 2
    while True:
        # As libjpeg does: what stands between segments is passed over.
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            return
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these have no content
            position += 2
        else:
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            end = position + 2 + length
            if marker == 0xD9 or length < 2 or end > len(data):
                return
            yield marker, data[position + 4 : end], end
            position = end


def _has_end(data: bytes, position: int) -> bool:
    """Whether scans and the segments between them lead to an end of image."""
    while (found := _NEXT_MARKER.search(data, position)) is not None:
        if found.group() == _END_OF_IMAGE:
            return True
        position = found.start() + 2
        if found.group()[1] != 0x01:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return False


def _checked_png(data: bytes, name: str) -> tuple[bytes, int]:
    """The PNG without its ancillary chunks, all checksums verified; and its orientation.

    Without them every OpenCV gives the same picture: some show the frames of an animation in place
    of its still picture, and libpng writes warnings about colour profiles to the terminal.
    """
    view = memoryview(data)
    kept, position, orientation, kind = [view[: len(_PNG)]], len(_PNG), 1, b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + length
        if end > len(data):
            raise _undecodable(data, name, "the PNG is truncated")
        kind = data[position + 4 : position + 8]
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _undecodable(data, name, f"the PNG is damaged, its checksum at byte {end - 4} is wrong")
        if position == len(_PNG):
            if kind != b"IHDR" or length != 13:
                raise _undecodable(data, name, "the PNG does not begin with its header")
            width, height = struct.unpack(">II", view[position + 8 : position + 16])
            _check_size(height, width, name)
        if kind in _CRITICAL_CHUNKS:
            kept.append(view[position:end])
        elif kind[:1].isupper():  # a capital says that the picture cannot be read without this chunk
            raise _undecodable(data, name, f"the PNG has an unknown part {kind!r}")
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : end - 4])
        position = end
    return b"".join(kept), orientation


def _exif_orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8, in the first directory of EXIF data; 1 where there is none or it is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return value if kind == 3 and value in _TURN else 1
    except struct.error:  # an offset that leads out of the data
        pass
    return 1


def _check_size(height: int, width: int, name: str, max_side: int = MAX_SIDE) -> None:
    if height == 0 or width == 0:
        raise ImageError(f"image {name} is {width} x {height}", expected="at least one pixel", remedy=_REMEDY)
    if height * width > MAX_PIXELS or max(height, width) > max_side:
        raise ImageError(
            f"image {name} is {width} x {height}",
            expected=f"at most {MAX_PIXELS} pixels and no side above {max_side}",
            remedy="make it smaller or remove it",
        )


def _undecodable(data: bytes, name: str, reason: str = "") -> ImageError:
    found = f"image {name} cannot be decoded ({len(data)} bytes)"
    return ImageError(f"{found}: {reason}" if reason else found, expected="a JPEG or PNG file", remedy=_REMEDY)


def _refuse_other_format(data: bytes, name: str) -> NoReturn:
    for kind, start in _OTHER_FORMATS.items():
        if start.match(data):
            remedy = "fetch the file with 'git lfs pull'" if "LFS" in kind else "convert it"
            raise ImageError(f"image {name} is a {kind}", expected="a JPEG or PNG file", remedy=remedy)
    raise _undecodable(data, name)
