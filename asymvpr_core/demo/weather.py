"""Light and weather: what colours the town, and what the camera makes of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from asymvpr_core.demo.canvas import fractal_noise

RGB = tuple[float, float, float]

SUN_DIRECTION = (0.55, -0.68, 0.75)  # towards the sun: high in the south-east; not normalised
SKY_ROWS_PER_RAD = 220.0


@dataclass(frozen=True)
class Weather:
    """Numbers between which a lap can fade; colours are factors or RGB in [0, 255]."""

    ambient: RGB  # light from everywhere, a factor on the surface's colour
    sun: RGB  # light from the sun, a factor times the cosine of its angle to the wall
    shadow: float  # darkness of the shadows on the ground, 0 to 1
    sky_top: RGB
    sky_low: RGB
    cloud: float  # share of the sky that clouds cover
    cloud_colour: RGB
    fog_per_m: float
    fog_colour: RGB
    night: float  # how much of the lit windows, lamps and headlights shows, 0 to 1
    wet: float  # how much the street mirrors, 0 to 1
    rain: float  # density of the rain's streaks, 0 to 1
    saturation: float
    noise: float  # standard deviation of the sensor's noise, in grey levels of 255
    lens_drops: float


WEATHERS: dict[str, Weather] = {
    "day": Weather(
        (0.60, 0.64, 0.72), (0.66, 0.60, 0.48), 0.42, (70, 128, 206), (186, 214, 238), 0.42, (250, 250, 250), 0.0016, (190, 212, 234),
        0.0, 0.0, 0.0, 0.95, 1.6, 0.0,
    ),
    "overcast": Weather(
        (0.78, 0.80, 0.84), (0.06, 0.06, 0.06), 0.04, (158, 166, 176), (206, 210, 214), 0.85, (186, 190, 196), 0.004, (200, 204, 208),
        0.0, 0.05, 0.0, 0.82, 2.0, 0.0,
    ),
    "rain": Weather(
        (0.68, 0.70, 0.75), (0.0, 0.0, 0.0), 0.0, (122, 130, 142), (166, 174, 182), 0.9, (126, 132, 142), 0.006, (154, 162, 170),
        0.15, 0.5, 0.5, 0.85, 2.0, 0.3,
    ),
    "fog": Weather(
        (0.74, 0.76, 0.78), (0.0, 0.0, 0.0), 0.0, (196, 200, 204), (204, 207, 210), 0.3, (200, 203, 206), 0.028, (204, 207, 210),
        0.1, 0.15, 0.0, 0.55, 3.0, 0.1,
    ),
    "evening": Weather(
        (0.53, 0.49, 0.56), (0.20, 0.12, 0.06), 0.0, (44, 56, 104), (226, 150, 104), 0.5, (150, 104, 116), 0.004, (120, 100, 112),
        0.8, 0.08, 0.0, 0.9, 2.5, 0.0,
    ),
}  # fmt: skip


def blend(a: Weather, b: Weather, share: float) -> Weather:
    """The weather `share` of the way from `a` to `b`."""
    values: dict[str, Any] = {}
    for field in fields(Weather):
        first, second = np.array(getattr(a, field.name)), np.array(getattr(b, field.name))
        value = first + share * (second - first)
        values[field.name] = tuple(value.tolist()) if value.ndim else float(value)
    return Weather(**values)


def weather_at(names: tuple[str, ...], share_of_lap: float, fade: float = 0.06) -> tuple[str, str, float]:
    """(name now, name next, share of the next): the names divide the lap evenly and fade into each other."""
    position = min(max(share_of_lap, 0.0), 1.0) * len(names)
    now = min(int(position), len(names) - 1)
    following = min(now + 1, len(names) - 1)
    width = fade * len(names)
    return names[now], names[following], float(np.clip((position - (now + 1 - width)) / width, 0.0, 1.0))


def sky_panorama(weather: Weather, seed: list[int]) -> np.ndarray:
    """(rows, columns, 3) float32 RGB: all round in the columns, from the zenith to just below the horizon in the rows."""
    rng = np.random.default_rng(seed)
    rows, columns = int(SKY_ROWS_PER_RAD * 1.25), int(SKY_ROWS_PER_RAD * 2 * np.pi)
    height = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None] ** 0.7
    sky = np.array(weather.sky_low, np.float32) * (1 - height) + np.array(weather.sky_top, np.float32) * height
    sky = np.repeat(sky, columns, axis=1)
    noise = fractal_noise(rng, rows, columns, octaves=6, first=5, wrap=True)
    cover = np.clip((noise + weather.cloud * 1.2 - 0.55) * 2.6, 0, 1)[..., None] * 0.85
    tone = 0.86 + 0.16 * fractal_noise(rng, rows, columns, octaves=4, first=8, wrap=True)[..., None]
    sky = sky * (1 - cover) + np.array(weather.cloud_colour, np.float32) * tone * cover
    hills = (0.05 + 0.035 * fractal_noise(rng, 2, columns, octaves=5, first=6, wrap=True)[0]) * SKY_ROWS_PER_RAD
    row = np.arange(rows)[:, None]
    below = row > rows - 1 - hills[None, :]
    land = np.array((63, 77, 58), np.float32) * np.array(weather.ambient, np.float32) + 0.45 * np.array(weather.fog_colour, np.float32)
    return np.where(below[..., None], land, sky).astype(np.float32)


def add_rain(image: np.ndarray, weather: Weather, rng: np.random.Generator) -> None:
    """Draw streaks of rain into a (H, W, 3) float32 picture, in place."""
    height, width = image.shape[:2]
    count = int(weather.rain * width * height / 700)
    if count == 0:
        return
    layer = np.zeros((height, width), np.uint8)
    slope = rng.normal(0.08, 0.05)
    for x, y, length, tone in zip(
        rng.uniform(0, width, count),
        rng.uniform(-0.1, 1, count) * height,
        rng.uniform(0.03, 0.12, count) * height,
        rng.integers(30, 90, count),
        strict=True,
    ):
        cv2.line(layer, (int(x), int(y)), (int(x + slope * length), int(y + length)), int(tone), 1, cv2.LINE_AA)
    image += layer[..., None].astype(np.float32) * 0.55


def add_lens_drops(image: np.ndarray, weather: Weather, rng: np.random.Generator) -> np.ndarray:
    """Blur a few round spots, as drops on the lens do; `rng` decides where, so the same one keeps them in place."""
    count = int(weather.lens_drops * 9)
    if count == 0:
        return image
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.float32)
    for x, y, radius in zip(
        rng.uniform(0, width, count), rng.uniform(0, height, count), rng.uniform(0.012, 0.04, count) * width, strict=True
    ):
        cv2.circle(mask, (int(x), int(y)), max(1, int(radius)), 0.85, -1, cv2.LINE_AA)
    soft = max(1.0, width / 90)
    mask = cv2.GaussianBlur(mask, (0, 0), soft * 0.4)[..., None]
    return image * (1 - mask) + cv2.GaussianBlur(image, (0, 0), soft * 2) * 1.08 * mask
