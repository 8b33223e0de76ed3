"""The town in the form that the renderer needs: wall segments with textures, ground, sprites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asymvpr_core.demo.atlas import Atlas, pack
from asymvpr_core.demo.facades import ROOF_SAMPLES, Facade, draw_church_wall, draw_facade, draw_hedge, draw_plain_wall
from asymvpr_core.demo.ground import Ground, draw_ground
from asymvpr_core.demo.sprites import Sprite, draw_sprites
from asymvpr_core.demo.town import Lot, Town, church_footprint, inset
from asymvpr_core.demo.traffic import Billboard, place_furniture

_PLAIN_WALLS, _PLAIN_HEIGHT_M = 8, 21.0
_HEDGE_M = 0.85


@dataclass(frozen=True)
class Scene:
    """Wall k runs from p0[k] to p1[k] as seen from outside, left to right; it shows texture[k].

    `line_m` is (N, 64) float32: the height of its upper edge from left to right; `top_m` is the
    height that the texture's first row stands for.
    """

    p0: np.ndarray
    p1: np.ndarray
    texture: np.ndarray
    top_m: np.ndarray
    line_m: np.ndarray
    atlas: Atlas
    ground: Ground
    sprites: dict[str, Sprite]
    furniture: tuple[Billboard, ...]


class _Walls:
    def __init__(self) -> None:
        self.facades: list[Facade] = []
        self.p0: list[np.ndarray] = []
        self.p1: list[np.ndarray] = []
        self.texture: list[int] = []
        self.line: list[np.ndarray] = []

    def draw(self, facade: Facade) -> int:
        self.facades.append(facade)
        return len(self.facades) - 1

    def add(self, a: np.ndarray, b: np.ndarray, texture: int, height_m: float | None = None) -> None:
        self.p0.append(a)
        self.p1.append(b)
        self.texture.append(texture)
        line = self.facades[texture].roof_line_m
        self.line.append(line if height_m is None else np.full(ROOF_SAMPLES, min(height_m, float(line.max())), np.float32))


def build_scene(town: Town) -> Scene:
    """Draw everything that stands in the town, in a resolution that fits the camera's."""
    settings = town.settings
    focal_px = settings.image_width / 2 / np.tan(np.radians(settings.horizontal_fov_deg) / 2)
    px_per_m = float(np.clip(0.11 * focal_px, 4.0, 40.0))  # a wall 9 m away is seen one to one
    walls = _Walls()
    plain = [walls.draw(draw_plain_wall([settings.seed, 11, k], 10.0, _PLAIN_HEIGHT_M, px_per_m)) for k in range(_PLAIN_WALLS)]
    drawn: dict[tuple[tuple[int, ...], int], int] = {}
    for number, block in enumerate(town.blocks):
        for lot in block.lots:
            _add_lot(walls, lot, drawn, plain, px_per_m)
        if block.kind == "park":
            _add_hedge(walls, block.outer, walls.draw(draw_hedge([settings.seed, 12, number], px_per_m)))
        elif block.kind == "church":
            _add_church(walls, church_footprint(block), [settings.seed, 13, number], px_per_m)
    return Scene(
        np.array(walls.p0),
        np.array(walls.p1),
        np.array(walls.texture),
        np.array([walls.facades[k].top_m for k in walls.texture]),
        np.stack(walls.line),
        pack([facade.texture for facade in walls.facades]),
        draw_ground(town, float(np.clip(0.075 * focal_px, 3.0, 24.0))),
        draw_sprites(settings.seed),
        tuple(place_furniture(town)),
    )


def _add_lot(walls: _Walls, lot: Lot, drawn: dict[tuple[tuple[int, ...], int], int], plain: list[int], px_per_m: float) -> None:
    corners = lot.footprint
    side = plain[sum(lot.seed) % len(plain)]
    if lot.kind == "yard":
        walls.add(corners[0], corners[1], side, 2.0)
        return
    key = (lot.seed, lot.variant)
    if key not in drawn:
        drawn[key] = walls.draw(draw_facade(list(lot.seed), lot.character, lot.width_m, px_per_m, lot.variant))
    body_m = walls.facades[drawn[key]].body_m
    walls.add(corners[0], corners[1], drawn[key])
    for k in (1, 2, 3):
        walls.add(corners[k], corners[(k + 1) % 4], side, body_m)


def _add_hedge(walls: _Walls, outer: np.ndarray, texture: int) -> None:
    line = inset(outer, [1.2] * 4)
    for k in range(4):
        a, b = line[k], line[(k + 1) % 4]
        gap = 1.6 / float(np.linalg.norm(b - a))
        for start, end in ((0.0, 0.5 - gap), (0.5 + gap, 1.0)):  # an entrance in the middle of each side
            n = 4
            for i in range(n):
                p, q = (a + (b - a) * (start + (end - start) * j / n) for j in (i, i + 1))
                walls.add(p, q, texture, _HEDGE_M)
                walls.add(q, p, texture, _HEDGE_M)


def _add_church(walls: _Walls, nave: np.ndarray, seed: list[int], px_per_m: float) -> None:
    long, short = (
        walls.draw(draw_church_wall(seed, 20.0, 11.0, 4, px_per_m)),
        walls.draw(draw_church_wall(seed, 12.0, 11.0, 1, px_per_m, peak_m=6.0)),
    )
    for k in range(4):
        walls.add(nave[k], nave[(k + 1) % 4], long if k % 2 else short)
    middle = (nave[0] + nave[1]) / 2
    tower = middle + np.array([[-3.2, -6.4], [3.2, -6.4], [3.2, 0.0], [-3.2, 0.0]])
    face = walls.draw(draw_church_wall(seed, 6.4, 24.0, 1, px_per_m, peak_m=9.0))
    for k in range(4):
        walls.add(tower[k], tower[(k + 1) % 4], face)
