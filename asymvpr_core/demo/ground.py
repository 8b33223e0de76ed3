"""The ground from above: roads with their markings, pavements, yards, park paths, and the houses' shadows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from asymvpr_core.demo.canvas import Colour, fractal_noise
from asymvpr_core.demo.town import ROAD_HALF_WIDTH_M, Block, Street, Town, inset
from asymvpr_core.demo.weather import SUN_DIRECTION

_MARGIN_M = 6.0
_LEVELS = 5

# Colour of a road's surface, and whether it is laid of setts (and then has no markings).
SURFACES: tuple[tuple[Colour, bool], ...] = (
    ((92, 92, 96), False),
    ((124, 122, 118), False),
    ((70, 72, 78), False),
    ((122, 112, 102), True),
    ((140, 92, 76), True),
)


@dataclass(frozen=True)
class Ground:
    """`levels[k]` is (h / 2^k, w / 2^k, 4) uint8: RGB and shadow; row 0 is the northern edge.

    A point (x, y) [m] of the map lies at column (x - west) * px_per_m, row (north - y) * px_per_m of level 0.
    """

    levels: tuple[np.ndarray, ...]
    west: float
    north: float
    px_per_m: float


class _Plan:
    def __init__(self, town: Town, px_per_m: float):
        points = np.stack(list(town.corners.values()))
        self.low, high = points.min(axis=0) - _MARGIN_M, points.max(axis=0) + _MARGIN_M
        self.north, self.scale = float(high[1]), px_per_m
        width, height = (int(n) for n in np.ceil((high - self.low) * px_per_m))
        self.image = np.zeros((height, width, 3), np.uint8)

    def px(self, points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, np.float64).reshape(-1, 2)
        return np.round(np.stack([points[:, 0] - self.low[0], self.north - points[:, 1]], axis=1) * self.scale).astype(np.int32)

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        cv2.fillPoly(self.image, [self.px(points)], colour)

    def line(self, a: np.ndarray, b: np.ndarray, width_m: float, colour: Colour) -> None:
        (p, q) = self.px(np.stack([a, b]))
        cv2.line(self.image, p.tolist(), q.tolist(), colour, max(1, round(width_m * self.scale)))


def draw_ground(town: Town, px_per_m: float) -> Ground:
    """Draw the ground of the whole town."""
    rng = np.random.default_rng([town.settings.seed, 31])
    plan = _Plan(town, px_per_m)
    plan.image[:] = (158, 152, 146)
    _pave(plan, rng)
    for block in town.blocks:
        _draw_block(plan, block)
    road = np.zeros(plan.image.shape[:2], np.uint8)
    setts = np.zeros_like(road)
    for street in town.streets.values():
        quad = _strip(town, street, -ROAD_HALF_WIDTH_M, ROAD_HALF_WIDTH_M)
        colour, is_paved = SURFACES[street.surface]
        plan.polygon(quad, colour)
        cv2.fillPoly(setts, [plan.px(quad)], int(is_paved))
        cv2.fillPoly(road, [plan.px(quad)], 1)
    for corner in town.corners.values():
        disc = plan.px(corner)[0].tolist()
        cv2.circle(road, disc, round((ROAD_HALF_WIDTH_M + 1.0) * px_per_m), 1, -1)
        cv2.circle(setts, disc, round((ROAD_HALF_WIDTH_M + 1.0) * px_per_m), 0, -1)
        cv2.circle(plan.image, disc, round((ROAD_HALF_WIDTH_M + 1.0) * px_per_m), SURFACES[0][0], -1)
    _surface(plan, rng, road, setts)
    contours, _ = cv2.findContours(road, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(plan.image, contours, -1, (190, 188, 182), max(1, round(0.22 * px_per_m)))
    for street in town.streets.values():
        _mark(plan, town, street, rng)
    shadow = _shadows(plan, town)
    image = np.dstack([plan.image, shadow])
    levels = [image]
    for _ in range(_LEVELS - 1):
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA))
    return Ground(tuple(levels), float(plan.low[0]), plan.north, px_per_m)


def _strip(town: Town, street: Street, left_m: float, right_m: float, start_m: float = 0.0, end_m: float | None = None) -> np.ndarray:
    """Quadrilateral along a street between two lateral offsets, (4, 2)."""
    a, b = town.corners[street.start], town.corners[street.end]
    length = float(np.linalg.norm(b - a))
    along = (b - a) / length
    across = np.array([along[1], -along[0]])
    p, q = a + along * start_m, a + along * (length if end_m is None else end_m)
    return np.stack([p + across * left_m, q + across * left_m, q + across * right_m, p + across * right_m])


def _pave(plan: _Plan, rng: np.random.Generator) -> None:
    step = max(2, round(0.6 * plan.scale))
    height, width = plan.image.shape[:2]
    tones = rng.normal(1.0, 0.05, (height // step + 1, width // step + 1)).astype(np.float32)
    grid = cv2.resize(tones, (tones.shape[1] * step, tones.shape[0] * step), interpolation=cv2.INTER_NEAREST)[:height, :width]
    if step >= 4:
        grid[::step] *= 0.82
        grid[:, ::step] *= 0.82
    plan.image[:] = cv2.multiply(plan.image, cv2.merge([grid] * 3), dtype=cv2.CV_8U)


def _draw_block(plan: _Plan, block: Block) -> None:
    if block.kind == "houses":
        plan.polygon(block.inner, (112, 116, 92))
        return
    if block.kind == "church":
        plan.polygon(inset(block.outer, [1.0] * 4), (176, 164, 140))
        return
    lawn = inset(block.outer, [1.5] * 4)
    plan.polygon(lawn, (104, 132, 70))
    middle = lawn.mean(axis=0)
    for k in range(4):
        plan.line((lawn[k] + lawn[(k + 1) % 4]) / 2, middle, 2.4, (196, 178, 140))
    cv2.ellipse(plan.image, plan.px(middle)[0].tolist(), (round(7 * plan.scale), round(5 * plan.scale)), 0, 0, 360, (196, 178, 140), -1)
    cv2.ellipse(plan.image, plan.px(middle)[0].tolist(), (round(5 * plan.scale), round(3.4 * plan.scale)), 0, 0, 360, (96, 130, 150), -1)


def _surface(plan: _Plan, rng: np.random.Generator, road: np.ndarray, setts: np.ndarray) -> None:
    """Give everything its stains and grain, and each sett a tone of its own."""
    height, width = road.shape
    small = fractal_noise(rng, height // 8 + 1, width // 8 + 1, octaves=6, first=8)
    stains = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    grain = cv2.resize(
        rng.normal(0, 1, (height // 2 + 1, width // 2 + 1)).astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST
    )
    blocks = rng.normal(0, 1, (height // 3 + 1, width // 4 + 1)).astype(np.float32)
    tones = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
    tone = 1 + stains * (0.10 + np.float32(0.06) * road) + grain * (np.float32(0.05) * road) + tones * (np.float32(0.14) * setts)
    plan.image[:] = cv2.multiply(plan.image, cv2.merge([tone] * 3), dtype=cv2.CV_8U)


def _mark(plan: _Plan, town: Town, street: Street, rng: np.random.Generator) -> None:
    length = float(np.linalg.norm(town.corners[street.end] - town.corners[street.start]))
    white: Colour = (214, 214, 208)
    clear = 11.0
    for at in (clear, length - clear):  # zebra crossings
        for x in np.arange(-ROAD_HALF_WIDTH_M + 0.5, ROAD_HALF_WIDTH_M - 0.4, 1.05):
            plan.polygon(_strip(town, street, x, x + 0.55, at - 1.4, at + 1.4), white)
    if not SURFACES[street.surface][1]:
        for at in np.arange(clear + 3.5, length - clear - 4.5, 4.5):
            plan.polygon(_strip(town, street, -0.08, 0.08, at, at + 2.4), white)
        for side in (-1, 1):  # parking bays
            edge = side * (ROAD_HALF_WIDTH_M - 2.0)
            for at in np.arange(clear + 4.0, length - clear - 3.0, 6.2):
                low, high = sorted((edge, side * (ROAD_HALF_WIDTH_M - 0.2)))
                plan.polygon(_strip(town, street, low, high, at, at + 0.12), (188, 188, 182))
    for _ in range(5):  # manholes and patches of newer asphalt
        at, across = rng.uniform(clear, length - clear), rng.uniform(-2.2, 2.2)
        centre = _strip(town, street, across, across, at, at)[0]
        if rng.random() < 0.5:
            cv2.circle(plan.image, plan.px(centre)[0].tolist(), max(1, round(0.35 * plan.scale)), (58, 56, 54), -1)
        else:
            plan.polygon(_strip(town, street, across - 0.9, across + 0.9, at, at + rng.uniform(1.0, 4.0)), (72, 72, 76))


def _shadows(plan: _Plan, town: Town) -> np.ndarray:
    shadow = np.zeros(plan.image.shape[:2], np.uint8)
    x, y, z = SUN_DIRECTION
    for outline, height in _occluders(town):
        shift = -np.array([x, y]) / z * height
        for k in range(len(outline)):  # each wall throws a parallelogram
            a, b = outline[k], outline[(k + 1) % len(outline)]
            cv2.fillConvexPoly(shadow, plan.px(np.stack([a, b, b + shift, a + shift])), 255)
    return cv2.GaussianBlur(shadow, (0, 0), max(0.6, 0.12 * plan.scale))


def _occluders(town: Town) -> Iterator[tuple[np.ndarray, float]]:
    # A fixed share of the height: full shadows would darken most streets from wall to wall.
    for block in town.blocks:
        for lot in block.lots:
            yield lot.footprint, 5.5 if lot.kind == "house" else 1.8
