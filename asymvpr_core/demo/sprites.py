"""Flat pictures that always face the camera: trees, lamps, people, street furniture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from asymvpr_core.demo.palette import ACCENT

TREES, LAMPS, PEOPLE, FURNITURE = 8, 3, 12, 5
_PX_PER_M = 40


@dataclass(frozen=True)
class Sprite:
    """A picture of `width_m` x `height_m` standing on the ground.

    `levels[k]` is (h / 2^k, w / 2^k, 4) float32: RGB in [0, 255] premultiplied by opacity, opacity in
    [0, 1]; `light[k]` is (h / 2^k, w / 2^k) float32: light given off at night, in [0, 255].
    """

    width_m: float
    height_m: float
    levels: tuple[np.ndarray, ...]
    light: tuple[np.ndarray, ...]


def draw_sprites(seed: int) -> dict[str, Sprite]:
    """All sprites of a town by name: "tree0" …, "lamp0" …, "person0" …, "furniture0" …."""
    sprites: dict[str, Sprite] = {}
    for k in range(TREES):
        sprites[f"tree{k}"] = _tree(np.random.default_rng([seed, 21, k]), k)
    for k in range(LAMPS):
        sprites[f"lamp{k}"] = _lamp(k)
    for k in range(PEOPLE):
        sprites[f"person{k}"] = _person(np.random.default_rng([seed, 22, k]))
    for k in range(FURNITURE):
        sprites[f"furniture{k}"] = _furniture(k)
    return sprites


class _Surface:
    def __init__(self, width_m: float, height_m: float):
        self.width_m, self.height_m = width_m, height_m
        self.image = np.zeros((round(height_m * _PX_PER_M), round(width_m * _PX_PER_M), 5), np.uint8)

    def px(self, x: float, y: float) -> tuple[int, int]:
        return round((x + self.width_m / 2) * _PX_PER_M), round((self.height_m - y) * _PX_PER_M)

    def polygon(self, points: list[tuple[float, float]], colour: tuple[int, int, int], light: int = 0) -> None:
        corners = np.array([self.px(x, y) for x, y in points], np.int32)
        (c0, r0), (c1, r1) = np.maximum(corners.min(axis=0), 0), corners.max(axis=0) + 1
        region = self.image[r0:r1, c0:c1]
        mask = np.zeros(region.shape[:2], np.uint8)
        cv2.fillPoly(mask, [corners - (c0, r0)], 1)
        region[mask > 0] = (*colour, light, 255)

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int], light: int = 0) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, light)

    def disc(self, x: float, y: float, radius_m: float, colour: tuple[int, int, int], light: int = 0, squash: float = 1.0) -> None:
        (cx, cy), r = self.px(x, y), radius_m * _PX_PER_M
        axes = (max(1, round(r)), max(1, round(r * squash)))
        c0, c1, r0, r1 = max(cx - axes[0], 0), cx + axes[0] + 1, max(cy - axes[1], 0), cy + axes[1] + 1
        region = self.image[r0:r1, c0:c1]
        mask = np.zeros(region.shape[:2], np.uint8)
        cv2.ellipse(mask, (cx - c0, cy - r0), axes, 0, 0, 360, 1, -1)
        region[mask > 0] = (*colour, light, 255)

    def finish(self) -> Sprite:
        levels = [np.ascontiguousarray(self.image[..., [0, 1, 2, 4]]).astype(np.float32)]
        levels[0][..., 3] /= 255.0
        light = [self.image[..., 3].astype(np.float32)]
        while min(levels[-1].shape[:2]) >= 8:
            height, width = levels[-1].shape[:2]
            for pyramid in (levels, light):
                pyramid.append(cv2.resize(pyramid[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
        return Sprite(self.width_m, self.height_m, tuple(levels), tuple(light))


def _tone(rng: np.random.Generator, colour: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    shift = int(rng.integers(-amount, amount + 1))
    r, g, b = (int(np.clip(c + shift + rng.integers(-6, 7), 0, 255)) for c in colour)
    return r, g, b


def _tree(rng: np.random.Generator, kind: int) -> Sprite:
    height = float(rng.uniform(5.0, 8.5))
    shape = kind % 4  # round, slim, conifer, wide
    width = height * (0.75, 0.4, 0.5, 0.95)[shape]
    surface = _Surface(width, height)
    bark = _tone(rng, (84, 66, 50), 14)
    trunk = 0.13 + 0.01 * height
    surface.polygon([(-trunk, 0), (trunk, 0), (trunk * 0.6, height * 0.6), (-trunk * 0.6, height * 0.6)], bark)
    leaf = ((70, 104, 48), (88, 116, 52), (44, 78, 54), (104, 118, 44), (128, 104, 48), (62, 96, 62), (48, 84, 50), (92, 124, 66))[kind % 8]
    if shape == 2:
        for y in np.sort(rng.uniform(0.12, 0.97, 420)) * height:
            half = (width / 2 - 0.15) * (1.02 - y / height) * 1.12
            x = half * rng.uniform(-1, 1)
            reach = float(rng.uniform(0.25, 0.5))
            tip = x + 0.4 * reach * np.sign(x)
            colour = _tone(rng, (leaf[0], leaf[1], leaf[2]), 22)
            surface.polygon([(x - reach * 0.5, y), (x + reach * 0.5, y), (tip, y - reach * 0.8)], colour)
        return surface.finish()
    middle, reach_up, reach_aside = height * 0.64, height * 0.34, width / 2
    for _ in range(420):
        angle, share = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * 0.86
        x, y = share * reach_aside * np.cos(angle), middle + share * reach_up * np.sin(angle)
        light = 1.0 + 0.28 * (y - middle) / reach_up
        colour = _tone(rng, (int(leaf[0] * light), int(leaf[1] * light), int(leaf[2] * light)), 18)
        surface.disc(float(x), float(y), float(rng.uniform(0.1, 0.3)), colour, squash=0.8)
    return surface.finish()


def _lamp(kind: int) -> Sprite:
    if kind == 0:  # lantern on a cast-iron post
        surface = _Surface(0.8, 4.2)
        surface.rect(-0.06, 0, 0.06, 3.4, (38, 44, 42))
        surface.rect(-0.14, 0, 0.14, 0.5, (38, 44, 42))
        surface.polygon([(-0.2, 3.4), (0.2, 3.4), (0.32, 3.95), (-0.32, 3.95)], (250, 226, 170), 255)
        surface.polygon([(-0.36, 3.95), (0.36, 3.95), (0, 4.18)], (38, 44, 42))
    elif kind == 1:  # mast with an arm
        surface = _Surface(2.6, 6.4)
        surface.rect(-0.07, 0, 0.07, 6.2, (150, 154, 158))
        surface.rect(-0.05, 6.1, 1.2, 6.24, (150, 154, 158))
        surface.rect(0.75, 5.98, 1.28, 6.12, (255, 224, 170), 255)
    else:  # globe
        surface = _Surface(0.9, 3.9)
        surface.rect(-0.06, 0, 0.06, 3.3, (36, 62, 52))
        surface.disc(0, 3.5, 0.34, (246, 240, 226), 255)
    return surface.finish()


def _person(rng: np.random.Generator) -> Sprite:
    height = float(rng.uniform(1.55, 1.9))
    surface = _Surface(0.9, height)
    coat, legs = (ACCENT[int(i)] for i in rng.choice(len(ACCENT), 2))
    coat, legs = _tone(rng, coat, 25), _tone(rng, (legs[0] // 2, legs[1] // 2, legs[2] // 2), 12)
    skin = ((232, 196, 166), (196, 150, 116), (140, 98, 70), (96, 66, 48))[int(rng.integers(4))]
    step = float(rng.uniform(0.08, 0.24))
    hip = height * 0.5
    surface.polygon([(-step - 0.09, 0), (-step + 0.09, 0), (0.06, hip), (-0.16, hip)], legs)
    surface.polygon([(step - 0.09, 0), (step + 0.09, 0), (0.16, hip), (-0.06, hip)], legs)
    surface.polygon([(-0.2, hip - 0.12), (0.2, hip - 0.12), (0.25, height * 0.8), (-0.25, height * 0.8)], coat)
    for side in (-1, 1):
        surface.polygon([(side * 0.22, height * 0.8), (side * 0.32, hip), (side * 0.24, hip)], _tone(rng, coat, 20))
    surface.disc(0, height * 0.9, height * 0.065, skin)
    surface.disc(0, height * 0.93, height * 0.062, _tone(rng, (70, 52, 38), 40), squash=0.7)
    if rng.random() < 0.3:
        surface.rect(0.24, hip - 0.35, 0.42, hip + 0.05, _tone(rng, (150, 110, 60), 40))
    return surface.finish()


def _furniture(kind: int) -> Sprite:
    if kind == 0:  # litter bin
        surface = _Surface(0.6, 1.0)
        surface.rect(-0.24, 0.05, 0.24, 0.95, (52, 80, 58))
        surface.rect(-0.26, 0.82, 0.26, 0.92, (30, 40, 34))
    elif kind == 1:  # road sign
        surface = _Surface(0.8, 2.7)
        surface.rect(-0.03, 0, 0.03, 2.2, (140, 142, 146))
        surface.disc(0, 2.3, 0.36, (200, 30, 30))
        surface.disc(0, 2.3, 0.26, (240, 240, 236))
    elif kind == 2:  # post box
        surface = _Surface(0.6, 1.5)
        surface.rect(-0.24, 0.1, 0.24, 1.4, (206, 40, 34))
        surface.rect(-0.18, 1.08, 0.18, 1.16, (20, 20, 20))
    elif kind == 3:  # advertising column
        surface = _Surface(1.3, 3.1)
        surface.rect(-0.6, 0, 0.6, 2.8, (206, 198, 180))
        surface.rect(-0.62, 2.75, 0.62, 3.0, (54, 76, 66))
        for k, (x, y) in enumerate(((-0.55, 1.7), (0.0, 1.6), (-0.5, 0.5), (0.08, 0.4))):
            surface.rect(x, y, x + 0.48, y + 0.9, ACCENT[(3 * k + 1) % len(ACCENT)], 50)
    else:  # bus stop
        surface = _Surface(3.4, 2.6)
        surface.rect(-1.6, 2.4, 1.6, 2.56, (66, 70, 76))
        for x in (-1.55, -0.1, 1.45):
            surface.rect(x, 0, x + 0.1, 2.4, (66, 70, 76))
        surface.rect(-1.45, 0.5, -0.1, 2.2, (120, 138, 148))
        surface.rect(0.05, 0.4, 1.4, 2.2, (226, 190, 60), 120)
        surface.rect(0.25, 1.3, 1.2, 2.0, (40, 80, 140), 120)
    return surface.finish()
