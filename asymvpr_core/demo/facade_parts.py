"""What is set into a façade: windows, balconies, shops, doors, ivy, murals, signs."""

from __future__ import annotations

import numpy as np

from asymvpr_core.demo.canvas import Canvas, Colour, shade
from asymvpr_core.demo.palette import ACCENT, GLASS, vary


def draw_window(
    canvas: Canvas,
    rng: np.random.Generator,
    detail: np.random.Generator,
    x: float,
    y: float,
    w: float,
    h: float,
    frame: Colour,
    mullion: str,
    arched: bool,
) -> None:
    """A window with frame, panes and curtains; (x, y) is the lower left corner of the glass. `detail` varies what is behind it."""
    lit = int(detail.choice((0, 0, 70, 190, 250)))
    tone = float(detail.uniform(0.55, 1.3))
    glass = shade(GLASS, tone)
    canvas.rect(x - 0.07, y - 0.05, x + w + 0.07, y + h + 0.07, frame)
    if arched:
        canvas.disc(x + w / 2, y + h, w / 2 + 0.07, frame, glass, light=lit)
    canvas.rect(x, y, x + w, y + h, glass, light=lit)
    canvas.polygon([(x, y + h), (x + w * 0.7, y + h), (x, y + h * 0.45)], shade(glass, 1.5), light=lit)  # sky in the pane
    curtain = detail.random()
    if curtain < 0.35:
        for side in (x, x + w * 0.76):
            canvas.rect(side, y, side + w * 0.24, y + h, shade((214, 204, 190), tone * 0.9), light=lit // 2)
    elif curtain < 0.5:
        canvas.rect(x, y + h * 0.55, x + w, y + h, shade((206, 200, 186), 0.95), light=lit // 2)
    bar = 0.07
    if mullion in ("cross", "vertical", "grid"):
        canvas.rect(x + w / 2 - bar / 2, y, x + w / 2 + bar / 2, y + h, frame)
    if mullion == "cross":
        canvas.rect(x, y + h * 0.66, x + w, y + h * 0.66 + bar, frame)
    if mullion in ("sash", "grid"):
        canvas.rect(x, y + h * 0.5, x + w, y + h * 0.5 + bar, frame)
    if mullion == "grid":
        for share in (0.25, 0.75):
            canvas.rect(x, y + h * share, x + w, y + h * share + bar, frame)


def draw_balcony(canvas: Canvas, x: float, y: float, w: float, rail: Colour, solid: bool) -> None:
    """A balcony with its shadow; (x, y) is its left end at floor height."""
    canvas.rect(x, y - 0.12, x + w, y + 0.06, shade((150, 148, 144), 0.9))
    canvas.rect(x, y - 0.4, x + w, y - 0.12, (0, 0, 0), alpha=0.3)  # its shadow on the wall
    if solid:
        canvas.rect(x, y, x + w, y + 0.9, shade((186, 184, 178), 0.95))
        return
    canvas.rect(x, y + 0.85, x + w, y + 0.95, rail)
    for bar in np.arange(x, x + w, 0.22):
        canvas.rect(bar, y, bar + 0.06, y + 0.9, rail)


def draw_shop(canvas: Canvas, rng: np.random.Generator, detail: np.random.Generator, ground_m: float, trim: Colour) -> None:
    """A ground floor of shop windows under a sign, sometimes with an awning."""
    width = canvas.width_m
    sign, text = (ACCENT[int(i)] for i in rng.choice(len(ACCENT), 2, replace=False))
    canvas.rect(0, 0, width, ground_m - 0.3, shade(trim, 0.7))
    n = max(1, int(round(width / 5.5)))
    for k in range(n):
        x0, x1 = k * width / n + 0.3, (k + 1) * width / n - 0.3
        canvas.rect(x0, 0.0, x1, 0.5, shade(sign, 0.7))
        canvas.rect(x0, 0.5, x1, ground_m - 1.0, shade(GLASS, 0.8), light=230)
        for _ in range(int(detail.integers(4, 9))):  # goods in the window
            gx, gw = detail.uniform(x0 + 0.1, x1 - 0.8), detail.uniform(0.25, 0.8)
            canvas.rect(
                gx, 0.5, gx + gw, 0.5 + detail.uniform(0.3, 1.4), vary(detail, ACCENT[int(detail.integers(len(ACCENT)))], 30), light=200
            )
        canvas.polygon([(x0, ground_m - 1.0), (x0 + (x1 - x0) * 0.5, ground_m - 1.0), (x0, 0.9)], (150, 170, 186), alpha=0.35)
        door = x0 + float(rng.choice((0.1, 0.5, 0.8))) * max(0.0, x1 - x0 - 1.1)
        canvas.rect(door, 0, door + 1.1, 2.3, shade(text, 0.6))
        canvas.rect(door + 0.14, 0.3, door + 0.96, 2.1, shade(GLASS, 1.1), light=230)
    if rng.random() < 0.45:  # striped awning
        for k, x in enumerate(np.arange(0.2, width - 0.2, 0.6)):
            canvas.polygon(
                [
                    (x, ground_m - 0.7),
                    (x + 0.6, ground_m - 0.7),
                    (x + 0.6, ground_m - 1.6),
                    (x + 0.3, ground_m - 1.75),
                    (x, ground_m - 1.6),
                ],
                sign if k % 2 else (236, 232, 224),
            )
    y0, y1 = ground_m - 0.95, ground_m - 0.15
    canvas.rect(0.15, y0, width - 0.15, y1, sign, light=60)
    x = float(rng.uniform(0.6, 1.6))
    end = float(rng.uniform(0.6, 0.95)) * width
    while x < end - 0.4:  # bars of colour for letters
        w = float(rng.uniform(0.16, 0.5))
        low = y0 + (0.18 if rng.random() < 0.8 else 0.32)
        canvas.rect(x, low, min(x + w, end), y1 - 0.16, text, light=140)
        if rng.random() < 0.5:
            canvas.rect(x + w * 0.35, low + 0.12, x + w * 0.65, y1 - 0.28, sign)
        x += w + (0.12 if rng.random() < 0.85 else 0.5)


def draw_ground_floor(
    canvas: Canvas, rng: np.random.Generator, detail: np.random.Generator, family: str, ground_m: float, trim: Colour
) -> None:
    """A ground floor people live behind: a door, windows, sometimes a garage."""
    width = canvas.width_m
    plinth = float(rng.uniform(0.3, 0.9))
    canvas.rect(0, 0, width, plinth, shade(trim, 0.6))
    if rng.random() < 0.3 and family in ("plaster", "stone", "brick"):
        for y in np.arange(plinth, ground_m - 0.3, 0.5):
            canvas.rect(0, y, width, y + 0.08, shade(trim, 0.7))
    n = max(2, int(width / 2.6))
    door_at = int(rng.integers(n))
    garage_at = int(rng.integers(n)) if rng.random() < 0.3 else -1
    door = ACCENT[int(detail.integers(len(ACCENT)))]
    frame = (230, 228, 220)
    for i in range(n):
        centre = (i + 0.5) * width / n
        if i == door_at:
            canvas.rect(centre - 0.8, 0, centre + 0.8, 2.75, trim)
            canvas.rect(centre - 0.55, 0.15, centre + 0.55, 2.2, door)
            canvas.rect(centre - 0.55, 2.26, centre + 0.55, 2.6, GLASS, light=220)
            for px in (-0.4, 0.06):
                for py in (0.35, 1.25):
                    canvas.rect(centre + px, py, centre + px + 0.34, py + 0.7, shade(door, 0.72))
            canvas.rect(centre - 0.9, 0, centre + 0.9, 0.15, (160, 158, 152))
        elif i == garage_at:
            canvas.rect(centre - 1.2, 0, centre + 1.2, 2.4, shade(trim, 0.8))
            for y in np.arange(0, 2.3, 0.32):
                canvas.rect(centre - 1.1, y, centre + 1.1, y + 0.26, (170, 172, 172))
        else:
            draw_window(canvas, rng, detail, centre - 0.65, 1.05, 1.3, min(1.7, ground_m - 1.7), frame, "cross", False)
            canvas.rect(centre - 0.8, 0.9, centre + 0.8, 1.03, shade(trim, 1.1))


def draw_extras(canvas: Canvas, rng: np.random.Generator, body_m: float, ground_m: float) -> None:
    """A drain pipe, and sometimes ivy, a mural or a sign on a bracket."""
    width = canvas.width_m
    canvas.rect(width - 0.16, 0, width - 0.04, body_m, (70, 70, 72))  # drain pipe
    if rng.random() < 0.08:  # ivy
        x = float(rng.uniform(0.5, width - 2.5))
        for _ in range(260):
            reach = rng.beta(1.0, 1.6)
            canvas.disc(x + rng.normal(0, 0.9), reach * body_m * 0.9, 0.24, vary(rng, (52, 92, 44), 22), None)
    if rng.random() < 0.12 and body_m > ground_m + 3:  # mural
        x0, colours = float(rng.uniform(0.3, width * 0.4)), rng.choice(len(ACCENT), 4, replace=False)
        w, h = float(rng.uniform(2.5, min(5.0, width * 0.5))), float(rng.uniform(2.4, body_m - ground_m - 0.4))
        canvas.rect(x0, ground_m, x0 + w, ground_m + h, ACCENT[int(colours[0])])
        for c in colours[1:]:
            cx, cy = x0 + rng.uniform(0.2, 0.8) * w, ground_m + rng.uniform(0.2, 0.8) * h
            canvas.disc(cx, cy, float(rng.uniform(0.3, 0.9)), ACCENT[int(c)], None)
    if rng.random() < 0.3:  # a vertical sign on a bracket
        x, colour = float(rng.uniform(0.2, width - 1.0)), ACCENT[int(rng.integers(len(ACCENT)))]
        canvas.rect(x, ground_m + 0.2, x + 0.75, ground_m + 2.6, colour, light=150)
        for y in np.arange(ground_m + 0.4, ground_m + 2.3, 0.45):
            canvas.rect(x + 0.18, y, x + 0.57, y + 0.28, (240, 238, 230), light=200)
