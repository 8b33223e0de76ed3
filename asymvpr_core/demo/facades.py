"""Façades: each house front is drawn from a design that a random generator chose.

A design is reproducible from its seed, so that two streets can be given the same designs: they
look alike except for what `variant` changes: doors, signs and curtains, and every other house's colour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from asymvpr_core.demo.canvas import Canvas, Colour, shade
from asymvpr_core.demo.facade_parts import draw_balcony, draw_extras, draw_ground_floor, draw_shop, draw_window
from asymvpr_core.demo.palette import ACCENT, BRICK, CONCRETE, GLASS, PLASTER, ROOF, SIDING, STONE, vary


@dataclass(frozen=True)
class Character:
    """What the houses of one street have in common."""

    families: tuple[str, ...]
    lot_width_m: float
    floors: tuple[int, int]
    shops: float  # share of houses with a shop in the ground floor
    roofs: tuple[str, ...]
    palette: int = 0  # seed of the few colours that most of the houses have
    uniform: bool = False  # a terrace: one design repeated


@dataclass(frozen=True)
class Facade:
    """A drawn house front.

    `texture` is (h, w, 4) uint8: RGB and, in the fourth channel, how much light the pixel gives
    off at night. Row 0 is `top_m` above the ground, the last row is the ground. `roof_line_m` is
    (64,) float32: the height of the roof's edge from left to right; what is above it is open sky.
    """

    texture: np.ndarray
    width_m: float
    top_m: float
    body_m: float
    roof_line_m: np.ndarray


ROOF_SAMPLES = 64
COPIES = 100  # variants from here on belong to the copy of a street
_WALL_COLOURS = {
    "plaster": PLASTER,
    "timber": PLASTER,
    "brick": BRICK,
    "stone": STONE,
    "concrete": CONCRETE,
    "siding": SIDING,
    "glass": CONCRETE,
}


def random_character(rng: np.random.Generator) -> Character:
    """A street's character: what it is built of, how high, how many shops."""
    kinds = (
        Character(("plaster", "timber"), 8.5, (2, 3), 0.45, ("gable", "gable", "tiles", "stepped")),
        Character(("plaster", "stone"), 12.0, (3, 5), 0.55, ("mansard", "flat", "tiles")),
        Character(("brick",), 9.5, (2, 3), 0.3, ("tiles", "gable", "flat")),
        Character(("brick", "stone", "plaster"), 10.5, (3, 4), 0.7, ("stepped", "mansard", "flat", "gable")),
        Character(("concrete", "glass", "brick"), 15.0, (3, 6), 0.5, ("flat",)),
        Character(("siding", "plaster", "brick"), 10.0, (2, 2), 0.1, ("gable", "tiles")),
    )
    return replace(kinds[int(rng.integers(len(kinds)))], palette=int(rng.integers(1 << 30)))


def draw_facade(seed: list[int], character: Character, width_m: float, px_per_m: float, variant: int = 0) -> Facade:
    """Draw the façade that `seed` and `character` determine.

    Args:
        width_m: width of the lot; the design stretches to it.
        px_per_m: resolution of the texture.
        variant: changes only what differs between two copies of a house: doors, signs, curtains;
            an odd one above `COPIES` the colour of the wall too.
    """
    rng = np.random.default_rng(seed)
    detail = np.random.default_rng([*seed, variant, 991])
    family = str(rng.choice(character.families))
    wall = vary(rng, _choose_colour(rng, character, family), 12)
    if variant >= COPIES and variant % 2:
        wall = vary(detail, _choose_colour(detail, character, family), 12)
    floors = int(rng.integers(character.floors[0], character.floors[1] + 1))
    ground_m = float(rng.uniform(3.0, 4.2))
    floor_m = float(rng.uniform(2.6, 3.3))
    body_m = ground_m + (floors - 1) * floor_m + float(rng.uniform(0.4, 1.0))
    roof = str(rng.choice(character.roofs))
    line = _roof_line(rng, roof, body_m)
    top_m = float(line.max())
    canvas = Canvas(width_m, top_m, px_per_m)
    _draw_wall(canvas, rng, family, wall, body_m)
    _draw_roof(canvas, rng, roof, ROOF[character.palette % len(ROOF)], wall, body_m)
    trim = shade(wall, float(rng.choice((0.62, 1.25, 1.4))))
    _draw_upper_floors(canvas, rng, detail, family, wall, trim, floors, ground_m, floor_m)
    if rng.random() < character.shops:
        draw_shop(canvas, rng, detail, ground_m, trim)
    else:
        draw_ground_floor(canvas, rng, detail, family, ground_m, trim)
    draw_extras(canvas, rng, body_m, ground_m)
    return Facade(canvas.finish(), width_m, top_m, body_m, line)


def _choose_colour(rng: np.random.Generator, character: Character, family: str) -> Colour:
    """Mostly one of the street's own two or three colours: they are what a street is recognised by."""
    colours = _WALL_COLOURS[family]
    own = np.random.default_rng(character.palette).permutation(len(colours))[:3]
    return colours[int(rng.choice(own) if rng.random() < 0.85 else rng.integers(len(colours)))]


def draw_plain_wall(seed: list[int], width_m: float, height_m: float, px_per_m: float) -> Facade:
    """A gable or back wall: brick or plaster, weathered, with a few small windows."""
    rng = np.random.default_rng(seed)
    family = str(rng.choice(("brick", "plaster", "concrete")))
    palette = {"brick": BRICK, "plaster": PLASTER[:8], "concrete": CONCRETE}[family]
    canvas = Canvas(width_m, height_m, px_per_m)
    wall = shade(palette[int(rng.integers(len(palette)))], 0.85)
    _draw_wall(canvas, rng, family, wall, height_m)
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(0.8, width_m - 1.8), rng.uniform(1.5, max(1.6, height_m - 2.0))
        draw_window(canvas, rng, rng, x, y, 0.9, 1.2, (210, 208, 200), "cross", False)
    canvas.rect(0, height_m - 0.25, width_m, height_m, shade(wall, 0.7))
    return Facade(canvas.finish(), width_m, height_m, height_m, np.full(ROOF_SAMPLES, height_m, np.float32))


def _roof_line(rng: np.random.Generator, roof: str, body_m: float) -> np.ndarray:
    u = (np.arange(ROOF_SAMPLES) + 0.5) / ROOF_SAMPLES
    peak = float(rng.uniform(2.4, 4.4))
    if roof == "gable":
        line = body_m + peak * (1 - np.abs(2 * u - 1))
    elif roof == "stepped":
        line = body_m + 0.6 + peak * np.floor((1 - np.abs(2 * u - 1)) * 5) / 5
    elif roof == "mansard":
        line = np.full(ROOF_SAMPLES, body_m + 0.8 * peak)
    elif roof == "tiles":
        line = np.full(ROOF_SAMPLES, body_m + 0.7 * peak)
    else:
        line = np.full(ROOF_SAMPLES, body_m + rng.uniform(0.0, 0.6))
    if roof in ("tiles", "mansard", "flat"):  # chimneys and roof superstructures
        for _ in range(int(rng.integers(0, 3))):
            start, width = int(rng.integers(2, ROOF_SAMPLES - 10)), int(rng.integers(4, 8))
            line[start : start + width] += rng.uniform(0.6, 1.4)
    return line.astype(np.float32)


def _draw_wall(canvas: Canvas, rng: np.random.Generator, family: str, wall: Colour, body_m: float) -> None:
    width = canvas.width_m
    canvas.rect(0, 0, width, canvas.height_m, wall)
    if family == "brick":
        canvas.bricks(rng, wall, 0.56, 0.26, 0.14, shade(wall, 1.22))
    elif family == "stone":
        canvas.bricks(rng, wall, 1.1, 0.55, 0.07, shade(wall, 0.74))
    elif family == "siding":
        for y in np.arange(0, body_m, 0.3):
            canvas.rect(0, y, width, y + 0.07, shade(wall, 0.74))
    elif family == "concrete":
        for y in np.arange(0, body_m, 3.0):
            canvas.rect(0, y, width, y + 0.08, shade(wall, 0.66))
        for x in np.arange(0, width, 2.4):
            canvas.rect(x, 0, x + 0.06, body_m, shade(wall, 0.72))
    elif family == "timber":
        beam = vary(rng, (72, 46, 34), 10)
        for y in np.arange(3.4, body_m, 1.45):
            canvas.rect(0, y, width, y + 0.22, beam)
        for x in np.linspace(0, width - 0.22, max(4, int(width / 1.5))):
            canvas.rect(x, 3.2, x + 0.22, body_m, beam)
        for x in np.linspace(0.3, width - 1.8, 3):
            canvas.line(x, 3.5, x + 1.5, 4.9, 0.2, beam)
            canvas.line(x + 1.5, 4.9, x, 6.3, 0.2, beam)
    canvas.weather(rng, 0.10 if family in ("plaster", "glass") else 0.15)
    if family in ("stone", "plaster", "brick") and rng.random() < 0.45:
        quoin = shade(wall, 1.25 if sum(wall) < 450 else 0.75)
        for k, y in enumerate(np.arange(0, body_m - 0.3, 0.5)):
            w = 0.7 if k % 2 else 0.45
            canvas.rect(0, y, w, y + 0.44, quoin)
            canvas.rect(width - w, y, width, y + 0.44, quoin)


def _draw_roof(canvas: Canvas, rng: np.random.Generator, roof: str, roof_colour: Colour, wall: Colour, body_m: float) -> None:
    width, top = canvas.width_m, canvas.height_m
    colour = vary(rng, roof_colour, 10)
    cornice = shade(wall, float(rng.choice((0.6, 1.3))))
    if roof in ("tiles", "mansard"):
        canvas.rect(0, body_m, width, top, colour)
        for y in np.arange(body_m, top, 0.34):
            canvas.rect(0, y, width, y + 0.1, shade(colour, 0.72))
        if roof == "mansard" or rng.random() < 0.4:  # dormers
            n = max(1, int(width / 4.5))
            for x in (np.arange(n) + 0.5) * width / n:
                canvas.rect(x - 0.8, body_m + 0.3, x + 0.8, body_m + 2.0, shade(wall, 1.15))
                canvas.polygon([(x - 1.0, body_m + 1.9), (x + 1.0, body_m + 1.9), (x, body_m + 2.6)], shade(colour, 0.8))
                draw_window(canvas, rng, rng, x - 0.5, body_m + 0.5, 1.0, 1.3, (226, 224, 216), "cross", False)
        canvas.rect(0, body_m - 0.3, width, body_m + 0.08, cornice)
        canvas.rect(0, body_m - 0.36, width, body_m - 0.28, shade(cornice, 0.6))
    elif roof in ("gable", "stepped"):
        if canvas.height_m - body_m > 2.6:
            size = min(1.1, width / 7)
            if rng.random() < 0.5:
                canvas.disc(width / 2, body_m + 1.0, size * 0.7, shade(wall, 1.3), GLASS)
            else:
                draw_window(canvas, rng, rng, width / 2 - size / 2, body_m + 0.4, size, 1.3, (226, 224, 216), "cross", False)
        if roof == "gable":
            for a, b in (((0, body_m), (width / 2, top)), ((width, body_m), (width / 2, top))):
                canvas.line(a[0], a[1], b[0], b[1], 0.55, shade(colour, 0.9))
        if rng.random() < 0.6:
            canvas.rect(0, body_m - 0.18, width, body_m + 0.1, cornice)
    else:
        canvas.rect(0, body_m - 0.5, width, top, cornice)
        canvas.rect(0, body_m - 0.62, width, body_m - 0.5, shade(cornice, 0.6))


def _draw_upper_floors(
    canvas: Canvas,
    rng: np.random.Generator,
    detail: np.random.Generator,
    family: str,
    wall: Colour,
    trim: Colour,
    floors: int,
    ground_m: float,
    floor_m: float,
) -> None:
    width = canvas.width_m
    window_w, window_h = float(rng.uniform(0.9, 1.6)), float(rng.uniform(1.35, min(2.2, floor_m - 0.8)))
    if family == "glass":
        window_w, window_h = 2.0, floor_m - 0.5
    n = max(2, int(width / (window_w + rng.uniform(0.7, 1.5))))
    frame = (232, 230, 222) if rng.random() < 0.65 else ACCENT[int(rng.integers(len(ACCENT)))]
    mullion = str(rng.choice(("cross", "grid", "vertical", "sash", "none")))
    arched = family in ("brick", "stone", "plaster") and rng.random() < 0.25
    surround = rng.random() < 0.6 and family not in ("glass", "timber")
    shutters = ACCENT[int(rng.integers(len(ACCENT)))] if family in ("plaster", "siding", "timber") and rng.random() < 0.45 else None
    balcony = str(rng.choice(("none", "none", "rail", "slab", "every")))
    course = rng.random() < 0.5
    rail = vary(rng, (48, 50, 56), 8)
    skip = int(rng.integers(n)) if rng.random() < 0.2 else -1
    for floor in range(1, floors):
        base = ground_m + (floor - 1) * floor_m
        if course:
            canvas.rect(0, base - 0.05, width, base + 0.14, trim)
        for i in range(n):
            if i == skip:
                continue
            x = (i + 0.5) * width / n - window_w / 2
            y = base + 0.75
            if surround:
                canvas.rect(x - 0.16, y - 0.12, x + window_w + 0.16, y + window_h + 0.2, trim)
            draw_window(canvas, rng, detail, x, y, window_w, window_h, frame, mullion, arched)
            canvas.rect(x - 0.15, y - 0.14, x + window_w + 0.15, y - 0.02, shade(trim, 1.1))
            if shutters is not None:
                for side in (x - 0.52, x + window_w + 0.06):
                    canvas.rect(side, y, side + 0.46, y + window_h, shutters)
                    for slat in np.arange(y + 0.1, y + window_h, 0.24):
                        canvas.rect(side + 0.06, slat, side + 0.40, slat + 0.07, shade(shutters, 0.7))
            if balcony == "every" or (balcony in ("rail", "slab") and i % 2 == floor % 2):
                draw_balcony(canvas, x - 0.35, base + 0.35, window_w + 0.7, rail, balcony == "slab")
    if family == "glass":
        for x in np.arange(0, width, width / n):
            canvas.rect(x, ground_m, x + 0.14, ground_m + (floors - 1) * floor_m, shade(wall, 0.6))


def draw_church_wall(seed: list[int], width_m: float, body_m: float, windows: int, px_per_m: float, peak_m: float = 0.0) -> Facade:
    """A stone wall with tall arched windows; with `peak_m` it ends in a gable or a spire, and has a portal and a clock."""
    rng = np.random.default_rng(seed)
    u = (np.arange(ROOF_SAMPLES) + 0.5) / ROOF_SAMPLES
    line = (body_m + (peak_m * (1 - np.abs(2 * u - 1)) if peak_m else np.full(ROOF_SAMPLES, 3.5))).astype(np.float32)
    top_m = float(line.max())
    canvas = Canvas(width_m, top_m, px_per_m)
    wall = STONE[0]
    _draw_wall(canvas, rng, "stone", wall, body_m)
    slate: Colour = (84, 96, 100)
    canvas.rect(0, body_m, width_m, top_m, slate)
    for y in np.arange(body_m, top_m, 0.45):
        canvas.rect(0, y, width_m, y + 0.12, shade(slate, 0.75))
    canvas.rect(0, body_m - 0.3, width_m, body_m, shade(wall, 1.2))
    for k in range(windows):
        x = (k + 0.5) * width_m / windows
        for base in np.arange(3.2 if peak_m else 2.2, body_m - 5.0, 6.5):
            draw_window(canvas, rng, rng, x - 0.7, base, 1.4, 3.6, shade(wall, 1.3), "grid", True)
    if peak_m:
        canvas.rect(width_m / 2 - 1.0, 0, width_m / 2 + 1.0, 2.5, (84, 54, 38))
        canvas.disc(width_m / 2, body_m - 1.7, 1.1, (40, 44, 52), (236, 232, 216), light=200)
        canvas.rect(width_m / 2 - 0.08, body_m - 1.7, width_m / 2 + 0.08, body_m - 0.9, (30, 30, 34))
        canvas.rect(width_m / 2, body_m - 1.78, width_m / 2 + 0.6, body_m - 1.62, (30, 30, 34))
    return Facade(canvas.finish(), width_m, top_m, body_m, line)


def draw_hedge(seed: list[int], px_per_m: float) -> Facade:
    """A hedge, 6 m wide and 1 m high."""
    rng = np.random.default_rng(seed)
    canvas = Canvas(6.0, 1.0, px_per_m)
    canvas.rect(0, 0, 6, 1, (46, 74, 40))
    for _ in range(500):
        canvas.disc(float(rng.uniform(0, 6)), float(rng.uniform(0, 1)), 0.08, vary(rng, (64, 100, 52), 24), None)
    return Facade(canvas.finish(), 6.0, 1.0, 1.0, np.full(ROOF_SAMPLES, 1.0, np.float32))
