"""JPEG and PNG files made by hand, with what an encoder would not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(height: int, width: int) -> np.ndarray:
    """A smooth `(H, W, 3)` uint8 RGB picture without symmetry, which a JPEG keeps to a few grey levels."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    return np.stack([250 * columns, 250 * rows, 120 + 60 * columns - 60 * rows], axis=2).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    """Random `(H, W, 3)` uint8 RGB pixels, of which a JPEG needs many bytes."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """The bytes that Pillow writes."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def tiff_orientation(orientation: int, order: str = "<") -> bytes:
    """A TIFF directory with one entry: orientation (0x0112), one short."""
    return {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def segment(marker: int, content: bytes) -> bytes:
    """One segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def after_start(jpeg: bytes, *segments: bytes) -> bytes:
    """The JPEG with segments put before all others."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(height: int, width: int, bits: int, colour_type: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of rows that begin with their filter's number; `chunks` stand before the picture."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of(samples: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of `(H, W, C)` uint8 or uint16 samples: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples)
    return png(height, width, samples.dtype.itemsize * 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *chunks)
