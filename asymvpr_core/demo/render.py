"""The renderer: a level camera, one ray a column, all walls along it, and a picture with depth.

Camera frame: x forward, y left (REP-103), the camera looks along +x of the base. Columns count
to the right, rows down, the optical axis meets row `horizon` * height; pixel (c, r) is a square whose middle lies at (c + 0.5, r + 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from asymvpr_core.demo.atlas import LEVELS
from asymvpr_core.demo.objects import ObjectPainter
from asymvpr_core.demo.scene import Scene
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.demo.traffic import Billboard, Car
from asymvpr_core.demo.weather import SKY_ROWS_PER_RAD, SUN_DIRECTION, Weather, add_lens_drops, add_rain

FAR_M = 170.0
NEAR_M = 0.05
_WALLS_PER_COLUMN = 12
_SUPERSAMPLING = 1.5
_NOISE_MARGIN = 97
_GRAIN_PER_M, _GRAIN_FAR_M = 36.0, 9.0


@dataclass(frozen=True)
class View:
    """Where the camera is: position [m], yaw [rad], and by how much it is pitched up [rad]."""

    x: float
    y: float
    yaw_rad: float
    pitch_rad: float = 0.0


@dataclass(frozen=True)
class Conditions:
    """What the picture is taken under: the weather, its sky, exposure, and how the camera turns during it."""

    weather: Weather
    sky: np.ndarray
    exposure: float = 1.0
    turn_rad: float = 0.0  # turn of the camera during the exposure: motion blur
    drops_seed: tuple[int, ...] = (0,)


@dataclass
class _Walls:
    """The visible walls of each column, nearest first; all (K, C) float32, infinite or zero where there is none."""

    depth: np.ndarray
    top_row: np.ndarray
    column: np.ndarray  # in the atlas
    row_start: np.ndarray  # in the atlas: row = clip(row_start + row_step * r, 0.5, rows - 0.5) + row_base
    row_step: np.ndarray
    row_base: np.ndarray
    rows: np.ndarray
    light: np.ndarray  # (K, C) cosine to the sun, 0 where it faces away


class Renderer:
    """Takes pictures of a scene."""

    def __init__(self, scene: Scene, settings: TownSettings):
        self.scene = scene
        self.out_shape = (settings.image_height, settings.image_width)
        self.height, self.width = (round(n * _SUPERSAMPLING) for n in self.out_shape)
        self.focal = self.width / 2 / math.tan(math.radians(settings.horizontal_fov_deg) / 2)
        self.camera_m = settings.camera_height_m
        self._level_row = settings.horizon * self.height  # principal row: the lens is shifted, not tilted
        self._tan = ((self.width / 2 - 0.5 - np.arange(self.width)) / self.focal).astype(np.float32)  # left is positive
        self._rows = np.arange(self.height, dtype=np.float32)[:, None]
        self._columns = np.arange(self.width)[None, :]
        direction = scene.p1 - scene.p0
        self._normal = np.stack([direction[:, 1], -direction[:, 0]], axis=1) / np.linalg.norm(direction, axis=1, keepdims=True)
        sun = np.array(SUN_DIRECTION) / np.linalg.norm(SUN_DIRECTION)
        self._sunlit = np.clip(self._normal @ sun[:2], 0.0, 1.0).astype(np.float32)
        self._sun_up = float(sun[2])
        grain = np.random.default_rng(1).standard_normal((512, 512), np.float32)
        self._grain = 0.13 * grain + 0.25 * cv2.GaussianBlur(grain, (0, 0), 2.0)
        noise = np.random.default_rng(0).standard_normal((*(n + _NOISE_MARGIN for n in self.out_shape), 4), np.float32)
        self._noise = noise[..., :1] + 0.4 * noise[..., 1:]  # most of it grey, a little coloured
        self._objects = ObjectPainter(scene.sprites, self.focal, self.camera_m, (self.height, self.width))

    def depth(self, view: View) -> np.ndarray:
        """(H, W) float32 at the picture's size: distance along the viewing direction [m] to wall or ground; inf is sky."""
        depth = self._geometry(view)[0]
        height, width = self.out_shape
        rows = ((np.arange(height) + 0.5) * self.height / height).astype(int)
        columns = ((np.arange(width) + 0.5) * self.width / width).astype(int)
        return depth[np.ix_(rows, columns)]

    def render(
        self, view: View, conditions: Conditions, cars: list[Car], billboards: list[Billboard], rng: np.random.Generator
    ) -> np.ndarray:
        """Take a picture: (H, W, 3) uint8 RGB. `rng` makes the noise."""
        weather = conditions.weather
        depth, colour, glow, sunlit, is_ground, horizon = self._surfaces(view, weather)
        ambient, sun = np.array(weather.ambient, np.float32), np.array(weather.sun, np.float32)
        colour *= sunlit[..., None] * sun + ambient
        image = colour
        if weather.night > 0:
            warm = np.array((1.0, 0.80, 0.50), np.float32) * np.float32(weather.night * 0.95)
            image += glow[..., None] * warm
        self._fog(image, depth, weather)
        self._draw_sky(image, depth, view, conditions, horizon)
        if weather.wet > 0:
            self._mirror(image, is_ground, weather, horizon)
        wall_depth = np.where(is_ground, np.float32(np.inf), depth)
        self._objects.paint(image, wall_depth, (view.x, view.y, view.yaw_rad), horizon, weather, cars, [*self.scene.furniture, *billboards])
        return self._develop(image, conditions, rng)

    def _geometry(self, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray, _Walls, float]:
        """Depth (H, W), whether a pixel shows the ground, index of its wall in the flattened walls, the walls, the horizon's row."""
        horizon = self._level_row + self.focal * math.tan(view.pitch_rad)
        walls = self._cast(view, horizon)
        ceiling = np.minimum.accumulate(walls.top_row, axis=0)
        layer = np.zeros((self.height, self.width), np.uint8)
        for k in range(len(ceiling)):
            layer += self._rows + 0.5 < ceiling[k]
        hit = layer < len(ceiling)
        index = np.minimum(layer, len(ceiling) - 1).astype(np.int32) * np.int32(self.width) + self._columns.astype(np.int32)
        wall_depth = walls.depth.ravel()[index]
        wall_depth[~hit] = np.inf
        below = self._rows[:, 0] + 0.5 - horizon
        ground_depth = np.full(self.height, np.inf, np.float32)
        ground_depth[below > 0] = self.focal * self.camera_m / below[below > 0]
        is_ground = ground_depth[:, None] < wall_depth
        depth = np.minimum(wall_depth, ground_depth[:, None])
        return depth, is_ground, index, walls, horizon

    def _cast(self, view: View, horizon: float) -> _Walls:
        """Meet every column's ray with the walls that face the camera and keep the nearest ones."""
        scene, tan = self.scene, self._tan
        cos, sin = math.cos(view.yaw_rad), math.sin(view.yaw_rad)
        eye = np.array([view.x, view.y])
        turn = np.array([[cos, -sin], [sin, cos]])
        facing = np.einsum("ij,ij->i", self._normal, eye - scene.p0) > 0
        a, b = (scene.p0 - eye) @ turn, (scene.p1 - eye) @ turn
        edge = 1.02 * float(tan[0])
        inside = (np.maximum(a[:, 0], b[:, 0]) > NEAR_M) & (np.minimum(a[:, 0], b[:, 0]) < FAR_M)
        for side in (1, -1):  # both ends beyond the same edge of the picture
            inside &= (side * a[:, 1] < edge * a[:, 0]) | (side * b[:, 1] < edge * b[:, 0])
        chosen = np.flatnonzero(facing & inside)
        if len(chosen) == 0:
            chosen = np.array([0])
        a, b = a[chosen].astype(np.float32), b[chosen].astype(np.float32)
        d = b - a
        with np.errstate(divide="ignore", invalid="ignore"):
            denominator = d[:, 1:] - tan * d[:, :1]
            share = (tan * a[:, :1] - a[:, 1:]) / denominator
            depth = a[:, :1] + share * d[:, :1]
            change = np.abs(a[:, 0] * d[:, 1] - a[:, 1] * d[:, 0])[:, None] / denominator**2 / np.float32(self.focal)
        miss = ~((share >= 0) & (share < 1) & (depth > NEAR_M))
        depth[miss] = np.inf
        keep = min(_WALLS_PER_COLUMN, len(chosen))
        nearest = np.argpartition(depth, keep - 1, axis=0)[:keep]
        nearest = np.take_along_axis(nearest, np.argsort(np.take_along_axis(depth, nearest, axis=0), axis=0, kind="stable"), axis=0)
        depth = np.take_along_axis(depth, nearest, axis=0)
        found = np.isfinite(depth)
        share = np.where(found, np.take_along_axis(share, nearest, axis=0), 0.0)
        change = np.where(found, np.take_along_axis(change, nearest, axis=0), 0.0)
        near = np.where(found, depth, 1.0)
        wall = chosen[nearest]
        samples = scene.line_m.shape[1]
        line = scene.line_m[wall, np.clip((share * samples).astype(int), 0, samples - 1)]
        top_row = np.where(found, horizon - self.focal * (line - self.camera_m) / near, np.float32(self.height + 1))
        texture = scene.texture[wall]
        atlas = scene.atlas
        width, rows, top = atlas.width[texture], atlas.height[texture], scene.top_m[wall].astype(np.float32)
        across = 2.0 ** np.clip(np.round(np.log2(np.maximum(change * width, 1e-6)) - 0.15), 0, LEVELS - 1)
        up = 2.0 ** np.clip(np.round(np.log2(rows / top * near / self.focal) - 0.15), 0, LEVELS - 1)
        w, h = width / across, rows / up
        column = atlas.x0[texture] + 2 * width - 2 * w + np.clip(share * w, 0.5, w - 0.5) - 0.5
        # height of row r: camera_m + (horizon - r - 0.5) * depth / focal
        row_start = (1 - (self.camera_m + (horizon - 0.5) * near / self.focal) / top) * h
        row_step = near / self.focal / top * h
        row_base = atlas.y0[texture] + 2 * rows - 2 * h - 0.5
        arrays = (depth, top_row, column, row_start, row_step, row_base, h, np.where(found, self._sunlit[wall], 0.0))
        return _Walls(*(np.ascontiguousarray(array, np.float32) for array in arrays))

    def _surfaces(self, view: View, weather: Weather) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
        """Depth, unlit colour, light given off [0, 255], cosine to the sun, ground mask, horizon."""
        depth, is_ground, index, walls, horizon = self._geometry(view)
        column, rows = walls.column.ravel()[index], walls.rows.ravel()[index]
        row = walls.row_start.ravel()[index] + walls.row_step.ravel()[index] * self._rows
        row = np.clip(row, 0.5, rows - 0.5) + walls.row_base.ravel()[index]
        texel = cv2.remap(self.scene.atlas.image, column, row, cv2.INTER_LINEAR)
        colour = texel[..., :3].astype(np.float32)
        glow = texel[..., 3].astype(np.float32)
        sunlit = walls.light.ravel()[index]
        first = max(0, math.ceil(horizon + 0.5))
        if first < self.height:
            ground, shadow = self._ground(view, horizon, first)
            mask = is_ground[first:]
            np.copyto(colour[first:], ground, where=mask[..., None])
            np.copyto(glow[first:], 0.0, where=mask)
            np.copyto(sunlit[first:], self._sun_up * (1 - weather.shadow / 0.42 * shadow), where=mask)
        return depth, colour, glow, sunlit, is_ground, horizon

    def _ground(self, view: View, horizon: float, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Colour and shadow of the ground for the rows from `first` down, whatever stands before it."""
        plan = self.scene.ground
        depth = self.focal * self.camera_m / (self._rows[first:, 0] + 0.5 - horizon)
        cos, sin = math.cos(view.yaw_rad), math.sin(view.yaw_rad)
        east = view.x + depth[:, None] * (cos - sin * self._tan)
        north = view.y + depth[:, None] * (sin + cos * self._tan)
        column = ((east - plan.west) * plan.px_per_m).astype(np.float32)
        row = ((plan.north - north) * plan.px_per_m).astype(np.float32)
        # Pixels of the plan in one of the picture, geometric mean of across and along.
        step = plan.px_per_m * np.sqrt(depth / self.focal * depth**2 / (self.focal * self.camera_m))
        level = np.clip(np.round(np.log2(np.maximum(step, 1e-6)) - 0.3), 0, len(plan.levels) - 1).astype(int)
        texel = np.empty((len(depth), self.width, 4), np.uint8)
        for k in np.unique(level):
            rows = np.flatnonzero(level == k)
            band = slice(int(rows[0]), int(rows[-1]) + 1)
            scale = np.float32(0.5**k)
            texel[band] = cv2.remap(
                plan.levels[k], column[band] * scale - 0.5, row[band] * scale - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
        colour = texel[..., :3].astype(np.float32)
        near = depth < _GRAIN_FAR_M  # the plan is too coarse there
        if near.any():
            x, y = east[near].astype(np.float32) * np.float32(_GRAIN_PER_M), north[near].astype(np.float32) * np.float32(_GRAIN_PER_M)
            fade = (1 - depth[near] / _GRAIN_FAR_M).astype(np.float32)[:, None]
            colour[near] *= (1 + fade * cv2.remap(self._grain, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))[..., None]
        return colour, texel[..., 3].astype(np.float32) / 255.0

    def _fog(self, image: np.ndarray, depth: np.ndarray, weather: Weather) -> None:
        fog = np.array(weather.fog_colour, np.float32)
        image -= fog
        image *= cv2.exp(np.minimum(depth, np.float32(1e4)) * np.float32(-weather.fog_per_m))[..., None]
        image += fog

    def _draw_sky(self, image: np.ndarray, depth: np.ndarray, view: View, conditions: Conditions, horizon: float) -> None:
        last = min(self.height, max(0, math.ceil(horizon) + 1))
        if last == 0:
            return
        sky = conditions.sky
        column = (-(view.yaw_rad + np.arctan(self._tan)) * SKY_ROWS_PER_RAD) % sky.shape[1]
        row = len(sky) - 1 - np.arctan((horizon - self._rows[:last, 0] - 0.5) / self.focal) * SKY_ROWS_PER_RAD
        map_x, map_y = np.meshgrid(column.astype(np.float32), np.clip(row, 0, len(sky) - 1).astype(np.float32))
        picture = cv2.remap(sky, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        np.copyto(image[:last], picture, where=np.isinf(depth[:last])[..., None])

    def _mirror(self, image: np.ndarray, is_ground: np.ndarray, weather: Weather, horizon: float) -> None:
        """Mix what stands above the horizon into the wet ground, blurred upwards."""
        first = max(0, math.ceil(horizon))
        if first >= self.height:
            return
        source = np.clip(2 * horizon - np.arange(first, self.height) - 1, 0, self.height - 1).astype(int)
        mirrored = cv2.blur(image[source], (3, max(3, self.height // 16)))
        amount = np.float32(weather.wet * 0.42) * is_ground[first:, :, None]
        image[first:] = image[first:] * (1 - amount) + mirrored * amount * np.float32(0.9)

    def _develop(self, image: np.ndarray, conditions: Conditions, rng: np.random.Generator) -> np.ndarray:
        """What the camera makes of the light: size, blur, drops, rain, exposure, colour, noise."""
        weather = conditions.weather
        height, width = self.out_shape
        blur_px = abs(conditions.turn_rad) * self.focal
        if blur_px >= 2:
            image = cv2.blur(image, (int(blur_px) | 1, 1))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        image = add_lens_drops(image, weather, np.random.default_rng(conditions.drops_seed))
        if weather.rain > 0:
            add_rain(image, weather, rng)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = grey[..., None] + (image - grey[..., None]) * np.float32(weather.saturation)
        image *= np.float32(conditions.exposure)
        row, column = rng.integers(_NOISE_MARGIN, size=2)  # another part of the fixed noise for each picture
        image += self._noise[row : row + height, column : column + width] * np.float32(weather.noise)
        return np.clip(image, 0, 255).astype(np.uint8)
