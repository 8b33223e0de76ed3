"""A drawing surface in metres: x to the right, y up from the ground, colours RGB."""

from __future__ import annotations

import cv2
import numpy as np

Colour = tuple[int, int, int]

OVERSAMPLING = 2  # drawn at twice the resolution and averaged: smooth edges at any scale


def shade(colour: Colour, factor: float) -> Colour:
    """`colour` times `factor`, clipped to [0, 255]."""
    r, g, b = (int(min(255, max(0, c * factor))) for c in colour)
    return r, g, b


def fractal_noise(rng: np.random.Generator, height: int, width: int, octaves: int = 4, first: int = 2, wrap: bool = False) -> np.ndarray:
    """(height, width) float32 noise in about [-1, 1], smooth, with `octaves` doublings from `first` cells a side.

    With `wrap`, the left edge continues the right one.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = first * 2**octave
        grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
        if wrap:
            grid[:, -1] = grid[:, 0]
        x = np.linspace(0, cells, width, dtype=np.float32, endpoint=not wrap)
        y = np.linspace(0, cells, height, dtype=np.float32)
        map_x, map_y = np.meshgrid(x, y)
        total += cv2.remap(grid, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) * 0.5**octave
    return total / 1.5


class Canvas:
    """An RGB picture with a fourth channel for the light that a pixel gives off, addressed in metres."""

    def __init__(self, width_m: float, height_m: float, px_per_m: float):
        self.width_m, self.height_m = width_m, height_m
        self.scale = px_per_m * OVERSAMPLING
        self.shape = (max(4, round(height_m * self.scale)), max(4, round(width_m * self.scale)))
        self.image = np.zeros((*self.shape, 3), np.uint8)
        self.light = np.zeros(self.shape, np.uint8)

    def _point(self, x: float, y: float) -> tuple[int, int]:
        return round(x * self.scale), round((self.height_m - y) * self.scale)

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, *, light: int = 0, alpha: float = 1.0) -> None:
        """Fill the rectangle between two corners; `light` replaces the light channel there."""
        c0, r0 = self._point(x0, y1)
        c1, r1 = self._point(x1, y0)
        c0, r0 = max(c0, 0), max(r0, 0)
        if c1 <= c0 or r1 <= r0:
            return
        if alpha < 1.0:
            region = self.image[r0:r1, c0:c1]
            region[:] = (region * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)
            return
        self.image[r0:r1, c0:c1] = colour
        self.light[r0:r1, c0:c1] = light

    def polygon(self, points: list[tuple[float, float]], colour: Colour, *, light: int = 0, alpha: float = 1.0) -> None:
        """Fill a polygon."""
        corners = np.array([self._point(x, y) for x, y in points], np.int32)
        if alpha < 1.0:
            mask = np.zeros(self.shape, np.uint8)
            cv2.fillPoly(mask, [corners], 1)
            inside = mask.astype(bool)
            self.image[inside] = (self.image[inside] * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)
            return
        cv2.fillPoly(self.image, [corners], colour)
        cv2.fillPoly(self.light, [corners], light)

    def line(self, x0: float, y0: float, x1: float, y1: float, thickness_m: float, colour: Colour) -> None:
        """Draw a straight bar."""
        cv2.line(self.image, self._point(x0, y0), self._point(x1, y1), colour, max(1, round(thickness_m * self.scale)))

    def disc(self, x: float, y: float, radius_m: float, colour: Colour, inner: Colour | None, *, light: int = 0) -> None:
        """Draw a disc, with a smaller one of colour `inner` in it."""
        centre, radius = self._point(x, y), max(1, round(radius_m * self.scale))
        cv2.circle(self.image, centre, radius, colour, -1)
        if inner is not None:
            cv2.circle(self.image, centre, max(1, round(radius * 0.84)), inner, -1)
            cv2.circle(self.light, centre, max(1, round(radius * 0.84)), light, -1)

    def bricks(self, rng: np.random.Generator, colour: Colour, width_m: float, height_m: float, joint: float, joint_colour: Colour) -> None:
        """Cover everything with courses of bricks that vary in tone; `joint` is the share of a brick's height."""
        y = self.height_m - (np.arange(self.shape[0]) + 0.5) / self.scale
        row = np.floor(y / height_m).astype(int)
        x = (np.arange(self.shape[1]) + 0.5) / self.scale + width_m / 2 * (row[:, None] % 2)
        column = np.floor(x / width_m).astype(int)
        tones = rng.normal(1.0, 0.10, (row.max() + 1, column.max() + 1))
        wall = np.clip(tones[row[:, None], column, None] * colour, 0, 255).astype(np.uint8)
        gap = height_m * joint
        is_joint = (x - column * width_m < gap) | (y - row * height_m < gap)[:, None]
        self.image = np.where(is_joint[..., None], np.array(joint_colour, np.uint8), wall)

    def weather(self, rng: np.random.Generator, amount: float) -> None:
        """Stain everything drawn so far, and darken it towards the ground."""
        noise = cv2.resize(fractal_noise(rng, (self.shape[0] + 1) // 2, (self.shape[1] + 1) // 2, octaves=5), self.shape[::-1])
        streaks = fractal_noise(rng, 1, self.shape[1], octaves=6, first=2)
        height = np.linspace(self.height_m, 0, self.shape[0], dtype=np.float32)[:, None]
        ground = 1 - 0.25 * np.exp(-height / 0.8)
        factor = (1 + amount * noise + 0.4 * amount * streaks) * ground
        self.image = cv2.multiply(self.image, cv2.merge([factor] * 3), dtype=cv2.CV_8U)

    def finish(self) -> np.ndarray:
        """The picture as (h, w, 4) uint8, RGB and light, at the resolution that was asked for."""
        height, width = max(2, self.shape[0] // OVERSAMPLING), max(2, self.shape[1] // OVERSAMPLING)
        return cv2.resize(np.dstack([self.image, self.light]), (width, height), interpolation=cv2.INTER_AREA)
