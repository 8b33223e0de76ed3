"""Draws what stands before the walls, far things first, hidden where a wall is nearer."""

from __future__ import annotations

import math

import cv2
import numpy as np

from asymvpr_core.demo.cars import car_parts
from asymvpr_core.demo.sprites import Sprite
from asymvpr_core.demo.traffic import Billboard, Car
from asymvpr_core.demo.weather import Weather

_NEAR_M = 0.6
_FAR_M = 110.0
_CAR_FAR_M = 75.0
_WARM = np.array((1.0, 0.86, 0.62), np.float32)


class ObjectPainter:
    """Paints cars and billboards into a lit float picture."""

    def __init__(self, sprites: dict[str, Sprite], focal_px: float, camera_m: float, shape: tuple[int, int]):
        self._sprites, self._focal, self._camera_m = sprites, focal_px, camera_m
        self._height, self._width = shape

    def paint(
        self,
        image: np.ndarray,
        depth: np.ndarray,
        eye: tuple[float, float, float],
        horizon: float,
        weather: Weather,
        cars: list[Car],
        billboards: list[Billboard],
    ) -> None:
        """Draw into `image` (H, W, 3) float32 RGB.

        `depth` (H, W) [m] is that of the walls, infinite where ground or sky is seen: everything
        stands on the ground, which therefore hides nothing. `eye` is x, y [m] and yaw [rad].
        """
        order: list[tuple[float, float, Car | Billboard]] = []
        things: list[Car | Billboard] = [*cars, *billboards]
        x, y, yaw = eye
        cos, sin = math.cos(yaw), math.sin(yaw)
        offset = np.array([(thing.x - x, thing.y - y) for thing in things]).reshape(-1, 2)
        forward = offset[:, 0] * cos + offset[:, 1] * sin
        left = -offset[:, 0] * sin + offset[:, 1] * cos
        edge = self._width / 2 / self._focal
        visible = (forward > -3.0) & (forward < _FAR_M) & (np.abs(left) < edge * np.maximum(forward, 0) + 6.0)
        for k in np.flatnonzero(visible):
            thing = things[k]
            ahead, aside = float(forward[k]), float(left[k])
            if isinstance(thing, Car):
                # A car closer than this would be inside the robot.
                if ahead > _CAR_FAR_M or (thing.moving and abs(aside) < 1.7 and ahead < 7.0):
                    continue
                half_m, height_m = 2.6, 2.2
            else:
                sprite = self._sprites[thing.sprite]
                half_m, height_m = sprite.width_m / 2, sprite.height_m
            if not self._is_hidden(depth, ahead, aside, half_m, height_m, horizon):
                order.append((ahead, aside, thing))
        order.sort(key=lambda item: -item[0])
        for ahead, aside, thing in order:
            if isinstance(thing, Car):
                self._car(image, depth, thing, eye, horizon, weather)
            elif ahead > _NEAR_M:
                self._billboard(image, depth, self._sprites[thing.sprite], ahead, aside, horizon, weather)

    def _is_hidden(self, depth: np.ndarray, ahead: float, aside: float, half_m: float, height_m: float, horizon: float) -> bool:
        """Whether walls cover the thing: where they cover its upper edge they cover all below it."""
        if ahead < 5.0:
            return False
        near = ahead - half_m
        row = math.floor(horizon - (height_m - self._camera_m) / near * self._focal)
        low = math.floor(self._width / 2 - (aside + half_m) / near * self._focal)
        high = math.ceil(self._width / 2 - (aside - half_m) / near * self._focal)
        strip = depth[min(max(row, 0), self._height - 1), max(low, 0) : max(high, 0)]
        return not (strip > near).any()

    def _light(self, weather: Weather) -> np.ndarray:
        return np.array(weather.ambient, np.float32) + 0.45 * np.array(weather.sun, np.float32)

    def _billboard(
        self, image: np.ndarray, depth: np.ndarray, sprite: Sprite, ahead: float, aside: float, horizon: float, weather: Weather
    ) -> None:
        scale = self._focal / ahead
        left = self._width / 2 - aside * scale - sprite.width_m * scale / 2
        top = horizon - (sprite.height_m - self._camera_m) * scale
        width, height = sprite.width_m * scale, sprite.height_m * scale
        c0, c1 = max(0, math.floor(left)), min(self._width, math.ceil(left + width))
        r0, r1 = max(0, math.floor(top)), min(self._height, math.ceil(top + height))
        if c1 <= c0 or r1 <= r0:
            return
        open_to_view = depth[r0:r1, c0:c1] > ahead
        if not open_to_view.any():
            return
        level = int(np.clip(math.floor(math.log2(max(sprite.levels[0].shape[0] / height, 1.0))), 0, len(sprite.levels) - 1))
        picture = sprite.levels[level]
        step_x, step_y = picture.shape[1] / width, picture.shape[0] / height
        warp = np.array([[step_x, 0, (c0 + 0.5 - left) * step_x - 0.5], [0, step_y, (r0 + 0.5 - top) * step_y - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        patch = cv2.warpAffine(picture, warp, (c1 - c0, r1 - r0), flags=flags)
        alpha = patch[..., 3:] * open_to_view[..., None]
        clear = math.exp(-ahead * weather.fog_per_m)
        colour = patch[..., :3] * (self._light(weather) * np.float32(clear))
        colour += patch[..., 3:] * (np.array(weather.fog_colour, np.float32) * np.float32(1 - clear))
        if weather.night > 0 and sprite.light[0].any():
            light = cv2.warpAffine(sprite.light[level], warp, (c1 - c0, r1 - r0), flags=flags)
            colour += light[..., None] * _WARM * np.float32(weather.night * clear)
            self._halo(image, light * open_to_view, (r0, c0), scale, weather)
        region = image[r0:r1, c0:c1]
        region *= 1 - alpha
        region += colour * open_to_view[..., None]

    def _halo(self, image: np.ndarray, light: np.ndarray, origin: tuple[int, int], scale: float, weather: Weather) -> None:
        total = float(light.sum())
        radius = min(1.3 * scale, self._width / 5)
        if total < 255 or radius < 2:
            return
        rows, columns = np.indices(light.shape, np.float32)
        row, column = origin[0] + float((rows * light).sum()) / total, origin[1] + float((columns * light).sum()) / total
        r0, r1 = max(0, int(row - radius)), min(self._height, int(row + radius) + 1)
        c0, c1 = max(0, int(column - radius)), min(self._width, int(column + radius) + 1)
        if r1 <= r0 or c1 <= c0:
            return
        away = np.hypot(np.arange(r0, r1)[:, None] - row, np.arange(c0, c1)[None, :] - column).astype(np.float32) / np.float32(radius)
        image[r0:r1, c0:c1] += (np.clip(1 - away, 0, 1) ** 2)[..., None] * _WARM * np.float32(80 * weather.night)

    def _car(
        self, image: np.ndarray, depth: np.ndarray, car: Car, eye: tuple[float, float, float], horizon: float, weather: Weather
    ) -> None:
        x, y, yaw = eye
        turn = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
        parts = car_parts(car, (x, y))
        points = np.concatenate([part[0] for part in parts])
        points[:, :2] = (points[:, :2] - (x, y)) @ turn
        ends = np.cumsum([len(part[0]) for part in parts]).tolist()
        shapes = []
        for (polygon, colour, light), end in zip(parts, ends, strict=True):
            seen = points[end - len(polygon) : end]
            if points[:, 0].min() < _NEAR_M:
                seen = _clip_near(seen)
            if len(seen) >= 3:
                scale = self._focal / seen[:, :1]
                pixels = np.array((self._width / 2, horizon)) - (seen[:, 1:] - (0.0, self._camera_m)) * scale
                shapes.append((pixels, colour, light, float(seen[:, 0].sum()) / len(seen)))
        if not shapes:
            return
        corners = np.concatenate([shape[0] for shape in shapes])
        c0, r0 = np.floor(np.maximum(corners.min(axis=0), 0)).astype(int)
        c1, r1 = np.ceil(np.minimum(corners.max(axis=0), (self._width, self._height))).astype(int)
        if c1 <= c0 or r1 <= r0:
            return
        middle = min(shape[3] for shape in shapes)
        open_to_view = depth[r0:r1, c0:c1] > middle - 0.5
        layer = image[r0:r1, c0:c1].copy()
        ambient = self._light(weather)
        clear = math.exp(-max(middle, 0.0) * weather.fog_per_m)
        fog = np.array(weather.fog_colour, np.float32) * (1 - clear)
        for polygon, colour, light, _ in shapes:
            tone = np.array(colour, np.float32) * ambient * clear + fog
            if light and weather.night > 0:
                tone = tone + np.array(colour, np.float32) * weather.night
            fixed = ((np.minimum(np.maximum(polygon, -20000), 20000) - (c0, r0)) * 16).astype(np.int32)
            cv2.fillPoly(layer, [fixed], tone.tolist(), lineType=cv2.LINE_8, shift=4)
        np.copyto(image[r0:r1, c0:c1], layer, where=open_to_view[..., None])


def _clip_near(points: np.ndarray) -> np.ndarray:
    """Cut a polygon (N, 3) in the camera's frame off where it comes nearer than _NEAR_M."""
    if (points[:, 0] >= _NEAR_M).all():
        return points
    kept = []
    for k in range(len(points)):
        a, b = points[k], points[(k + 1) % len(points)]
        if a[0] >= _NEAR_M:
            kept.append(a)
        if (a[0] >= _NEAR_M) != (b[0] >= _NEAR_M):
            kept.append(a + (b - a) * ((_NEAR_M - a[0]) / (b[0] - a[0])))
    return np.array(kept).reshape(-1, 3)
