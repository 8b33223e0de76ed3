"""All wall textures in one picture, each in many resolutions of both directions (a ripmap).

A wall that is seen along the street shrinks far more across than upwards; with resolutions for
each direction of its own it neither flickers nor blurs.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

LEVELS = 5  # 1, 1/2, … 1/16 in each direction
_MULTIPLE = 2 ** (LEVELS - 1)
_ATLAS_WIDTH = 8192


@dataclass(frozen=True)
class Atlas:
    """Texture k at level (i, j) covers columns x0 + w (2 - 2^(1-i)) … + w / 2^i, rows likewise with j.

    `image` is (H, W, 4) uint8; `x0, y0, width, height` are (K,) float32 in pixels of the full resolution.
    """

    image: np.ndarray
    x0: np.ndarray
    y0: np.ndarray
    width: np.ndarray
    height: np.ndarray


def pack(textures: list[np.ndarray]) -> Atlas:
    """Pack (h, w, 4) uint8 textures; sizes are rounded to multiples of the coarsest level."""
    sizes = [tuple(max(_MULTIPLE, round(n / _MULTIPLE) * _MULTIPLE) for n in texture.shape[:2]) for texture in textures]
    atlas_width = max([_ATLAS_WIDTH, *(2 * w for _, w in sizes)])
    x0, y0 = np.zeros(len(textures), np.float32), np.zeros(len(textures), np.float32)
    x = y = shelf = 0
    for k in sorted(range(len(textures)), key=lambda k: -sizes[k][0]):
        height, width = sizes[k]
        if x + 2 * width > atlas_width:
            x, y, shelf = 0, y + shelf, 0
        x0[k], y0[k] = x, y
        x, shelf = x + 2 * width, max(shelf, 2 * height)
    image = np.zeros((y + shelf, atlas_width, 4), np.uint8)
    for k, texture in enumerate(textures):
        height, width = sizes[k]
        for j in range(LEVELS):
            for i in range(LEVELS):
                w, h = width >> i, height >> j
                column = int(x0[k]) + 2 * width - 2 * w
                row = int(y0[k]) + 2 * height - 2 * h
                image[row : row + h, column : column + w] = cv2.resize(texture, (w, h), interpolation=cv2.INTER_AREA)
    shape = np.array(sizes, np.float32).reshape(-1, 2)
    return Atlas(image, x0, y0, shape[:, 1].copy(), shape[:, 0].copy())
