"""Colours of walls, roofs, doors and signs."""

from __future__ import annotations

import numpy as np

from asymvpr_core.demo.canvas import Colour

PLASTER: tuple[Colour, ...] = (
    (214, 178, 112), (222, 160, 136), (236, 224, 196), (160, 188, 212), (164, 190, 146), (192, 106, 76), (180, 180, 178), (234, 232, 226),
    (210, 160, 60), (210, 146, 152), (176, 212, 190), (78, 112, 120), (132, 62, 58), (172, 160, 200), (228, 196, 84), (110, 140, 180),
)  # fmt: skip
BRICK: tuple[Colour, ...] = ((152, 76, 58), (176, 98, 70), (122, 68, 56), (200, 170, 124), (108, 90, 84), (190, 118, 84), (168, 140, 116))
STONE: tuple[Colour, ...] = ((192, 180, 154), (164, 156, 144), (208, 200, 180), (140, 134, 126), (186, 168, 140))
CONCRETE: tuple[Colour, ...] = ((170, 170, 168), (146, 150, 154), (190, 186, 178), (128, 128, 130))
SIDING: tuple[Colour, ...] = ((116, 150, 166), (168, 60, 50), (92, 116, 84), (222, 222, 212), (70, 84, 102), (206, 180, 120))
ACCENT: tuple[Colour, ...] = (
    (190, 40, 36), (30, 90, 150), (24, 110, 70), (230, 180, 30), (40, 40, 46),
    (236, 236, 230), (120, 40, 100), (220, 110, 30), (60, 150, 170),
)  # fmt: skip
ROOF: tuple[Colour, ...] = ((150, 72, 52), (120, 62, 50), (84, 84, 92), (64, 66, 74), (140, 96, 70), (96, 110, 104))
GLASS: Colour = (62, 78, 94)


def vary(rng: np.random.Generator, colour: Colour, amount: int) -> Colour:
    """`colour` with each channel shifted by up to `amount`."""
    r, g, b = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)
    return r, g, b
