"""Cars as extruded side views, drawn polygon by polygon from the far side to the near one."""

from __future__ import annotations

import math

import numpy as np

from asymvpr_core.demo.canvas import Colour, shade
from asymvpr_core.demo.traffic import Car

COLOURS: tuple[Colour, ...] = (
    (176, 30, 32), (228, 228, 226), (40, 44, 50), (160, 166, 172), (36, 70, 130),
    (96, 110, 92), (208, 180, 60), (110, 44, 48), (70, 120, 150), (200, 202, 204),
)  # fmt: skip
_GLASS: Colour = (44, 54, 64)

# Side views from front to rear over the roof, (x forward, z up) [m], and the span of the side windows.
_PROFILES: tuple[tuple[tuple[tuple[float, float], ...], float], ...] = (
    (((2.0, 0.3), (2.05, 0.75), (1.2, 0.95), (0.6, 1.42), (-1.3, 1.45), (-1.95, 0.95), (-2.0, 0.3)), 1.75),
    (((2.3, 0.3), (2.3, 0.7), (1.1, 0.9), (0.4, 1.38), (-1.0, 1.38), (-1.7, 0.98), (-2.3, 0.9), (-2.3, 0.3)), 1.8),
    (((2.4, 0.35), (2.4, 1.0), (1.8, 1.2), (1.3, 2.1), (-2.4, 2.15), (-2.45, 0.35)), 1.95),
    (((2.2, 0.4), (2.25, 1.0), (1.3, 1.12), (0.7, 1.72), (-1.9, 1.74), (-2.15, 1.1), (-2.2, 0.4)), 1.85),
)

_ANGLE = np.linspace(0, 2 * np.pi, 12, endpoint=False)
_WHEEL = np.stack([np.cos(_ANGLE), np.zeros(12), np.sin(_ANGLE)], axis=1)

# A polygon in the car's frame with its colour and the light it gives off.
Part = tuple[np.ndarray, Colour, int]


def car_parts(car: Car, camera_xy: tuple[float, float]) -> list[Part]:
    """The polygons that can be seen from the camera, far ones first.

    Each is ((N, 3) points in the map [m], RGB, light in [0, 255]).
    """
    profile, width = _PROFILES[car.kind]
    colour = COLOURS[car.colour]
    cos, sin = math.cos(car.yaw_rad), math.sin(car.yaw_rad)
    dx, dy = camera_xy[0] - car.x, camera_xy[1] - car.y
    viewer = (cos * dx + sin * dy, -sin * dx + cos * dy)  # the camera in the car's frame
    half = width / 2
    strips: list[tuple[float, Part]] = []
    for k, ((xa, za), (xb, zb)) in enumerate(zip(profile[:-1], profile[1:], strict=True)):
        normal = (za - zb, xb - xa)  # (x, z) to the left of the way front → roof → rear: inwards
        inward = normal[0] * (viewer[0] - xa) + normal[1] * (1.2 - za)
        if inward > 0:
            continue
        points = np.array([[xa, half, za], [xb, half, zb], [xb, -half, zb], [xa, -half, za]])
        steep = abs(zb - za) > 0.3 and max(za, zb) > 1.2
        tone = 1.12 if abs(zb - za) < 0.3 else 0.92
        distance = abs(viewer[0] - (xa + xb) / 2)
        strips.append((distance, (points, _GLASS if steep else shade(colour, tone), 0)))
        end = k == 0 or k == len(profile) - 2
        if end and steep:  # a van's rear: doors with windows, not glass down to the bumper
            strips[-1] = (distance, (points, shade(colour, 0.92), 0))
            for y in (-half + 0.2, 0.06):
                strips.append((distance - 0.01, (_upright(min(xa, xb) - 0.01, y, y + half - 0.26, 1.15, max(za, zb) - 0.2), _GLASS, 0)))
        if end:  # lamps and number plate
            front = k == 0
            lamp: Colour = (244, 240, 214) if front else (170, 20, 22)
            x, z = (max(xa, xb), 0.68) if front else (min(xa, xb), 0.72)
            x += 0.01 if front else -0.01
            for y in (-half + 0.3, half - 0.3):
                strips.append((distance - 0.02, (_upright(x, y - 0.2, y + 0.2, z - 0.1, z + 0.1), lamp, 255 if car.moving else 0)))
            strips.append((distance - 0.02, (_upright(x, -0.28, 0.28, 0.42, 0.55), (222, 220, 208), 0)))
    strips.sort(key=lambda item: -item[0])
    parts: list[Part] = [(_shadow(profile, half), (34, 34, 36), 0)]
    parts += [part for _, part in strips]
    if abs(viewer[1]) > half:
        parts += _side(profile, math.copysign(half, viewer[1]), shade(colour, 0.84))
    points = np.concatenate([part[0] for part in parts])
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    pieces = np.split(points @ turn + (car.x, car.y, 0.0), np.cumsum([len(part[0]) for part in parts])[:-1])
    return [(piece, tone, light) for piece, (_, tone, light) in zip(pieces, parts, strict=True)]


def _upright(x: float, y0: float, y1: float, z0: float, z1: float) -> np.ndarray:
    return np.array([[x, y0, z0], [x, y1, z0], [x, y1, z1], [x, y0, z1]])


def _shadow(profile: tuple[tuple[float, float], ...], half: float) -> np.ndarray:
    front, rear = profile[0][0] + 0.1, profile[-1][0] - 0.1
    return np.array([[front, half + 0.1, 0.01], [rear, half + 0.1, 0.01], [rear, -half - 0.1, 0.01], [front, -half - 0.1, 0.01]])


def _side(profile: tuple[tuple[float, float], ...], y: float, colour: Colour) -> list[Part]:
    outline = np.array([[x, y, z] for x, z in profile])
    roof = max(z for _, z in profile)
    belt = 0.62 * roof + 0.05
    top = [(x, z) for x, z in profile if z > belt + 0.1]
    front, rear = top[0][0], top[-1][0]
    middle = (front + rear) / 2
    parts: list[Part] = [(outline, colour, 0)]
    for a, b, slant_a, slant_b in ((front, middle + 0.06, 0.35, 0.0), (middle - 0.06, rear, 0.0, -0.25)):
        window = np.array([[a + slant_a, y, belt], [a - 0.05, y, roof - 0.12], [b + 0.02, y, roof - 0.12], [b + slant_b, y, belt]])
        parts.append((window, _GLASS, 0))
    parts.append(
        (np.array([[middle, y, 0.4], [middle - 0.03, y, 0.4], [middle - 0.03, y, belt], [middle, y, belt]]), shade(colour, 0.7), 0)
    )
    for x in (profile[0][0] * 0.64, profile[-1][0] * 0.64):
        for radius, tone in ((0.36, (24, 24, 26)), (0.2, (150, 152, 156))):
            parts.append((np.array((x, y, 0.36)) + radius * _WHEEL, tone, 0))
    return parts
