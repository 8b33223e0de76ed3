"""What stands or moves in the streets: cars, people, trees, lamps; placed by seed, lap and time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asymvpr_core.demo.sprites import FURNITURE, LAMPS, PEOPLE, TREES
from asymvpr_core.demo.town import ROAD_HALF_WIDTH_M, Street, Town, inset

_CLEAR_M = 14.0  # no parked car this close to a corner
_CAR_KINDS, _CAR_COLOURS = 4, 10


@dataclass(frozen=True)
class Billboard:
    """A sprite at a place, standing on the ground."""

    sprite: str
    x: float
    y: float


@dataclass(frozen=True)
class Car:
    """A car at a place; yaw [rad] is the way its front points."""

    x: float
    y: float
    yaw_rad: float
    kind: int
    colour: int
    moving: bool = False


def _frame(town: Town, street: Street) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Start, unit vector along, unit vector to the right, and length of a street."""
    a, b = town.corners[street.start], town.corners[street.end]
    length = float(np.linalg.norm(b - a))
    along = (b - a) / length
    return a, along, np.array([along[1], -along[0]]), length


def place_furniture(town: Town) -> list[Billboard]:
    """What never moves: trees, lamps, bins, signs."""
    things: list[Billboard] = []
    for street in town.streets.values():
        rng = np.random.default_rng([town.settings.seed, 41, street.design, street.variant])
        start, along, right, length = _frame(town, street)
        kerb = ROAD_HALF_WIDTH_M + 0.7
        tree = int(np.random.default_rng([town.settings.seed, 43, street.design]).integers(TREES))
        phase = float(rng.uniform(0, 4))
        if street.trees:
            for at in np.arange(_CLEAR_M + phase, length - _CLEAR_M, 10.5):
                for side in (-1, 1):
                    if rng.random() < 0.8:
                        x, y = start + along * (at + rng.uniform(-0.6, 0.6)) + right * side * kerb
                        things.append(Billboard(f"tree{tree if rng.random() < 0.8 else int(rng.integers(TREES))}", float(x), float(y)))
        for k, at in enumerate(np.arange(_CLEAR_M - 2 + phase, length - _CLEAR_M + 4, 17.0)):
            x, y = start + along * at + right * (kerb if k % 2 else -kerb)
            things.append(Billboard(f"lamp{street.lamp % LAMPS}", float(x), float(y)))
        for _ in range(int(rng.integers(2, 5))):
            x, y = start + along * rng.uniform(_CLEAR_M, length - _CLEAR_M) + right * rng.choice((-1, 1)) * (kerb + 0.5)
            things.append(Billboard(f"furniture{int(rng.integers(FURNITURE))}", float(x), float(y)))
    for number, block in enumerate(town.blocks):
        rng = np.random.default_rng([town.settings.seed, 42, number])
        ground = inset(block.outer, [4.0] * 4) if block.kind != "houses" else block.inner
        count = {"park": 26, "church": 8}.get(block.kind, 2)
        low, high = ground.min(axis=0), ground.max(axis=0)
        for _ in range(count):
            x, y = rng.uniform(low, high)
            clear = {"park": 7.5, "church": 15.0}.get(block.kind, 0.0)
            if np.hypot(*(np.array([x, y]) - ground.mean(axis=0))) > clear:
                things.append(Billboard(f"tree{int(rng.integers(TREES))}", float(x), float(y)))
    return things


class Traffic:
    """Cars and people of one lap; `at(time_s)` tells where they are."""

    def __init__(self, town: Town, lap: int):
        self._town, self._lap = town, lap
        self._parked = self._park()
        rng = np.random.default_rng([town.settings.seed, 51, lap])
        # (street, sign of direction, start [m], speed [m/s], kind or sprite, colour or lateral offset)
        self._driving: list[tuple[Street, int, float, float, int, int]] = []
        self._walking: list[tuple[Street, int, float, float, int, float]] = []
        for street in town.inner_streets():
            for sign in (-1, 1):
                self._driving.append(
                    (street, sign, rng.uniform(0, 60), rng.uniform(4, 9), int(rng.integers(_CAR_KINDS)), int(rng.integers(_CAR_COLOURS)))
                )
            for _ in range(6):
                lateral = float(rng.choice((-1, 1)) * (ROAD_HALF_WIDTH_M + rng.uniform(0.9, street.half_width_m - ROAD_HALF_WIDTH_M - 0.6)))
                self._walking.append(
                    (street, int(rng.choice((-1, 1))), rng.uniform(0, 60), rng.uniform(0.7, 1.8), int(rng.integers(PEOPLE)), lateral)
                )

    def _park(self) -> list[Car]:
        cars = []
        for street in self._town.inner_streets():
            seed = [self._town.settings.seed, 52, street.design, street.variant]
            always, today = np.random.default_rng(seed), np.random.default_rng([*seed, self._lap, 1])
            start, along, right, length = _frame(self._town, street)
            for at in np.arange(_CLEAR_M + 3.5, length - _CLEAR_M - 1, 6.2):
                for side in (-1, 1):
                    # Every slot draws the same numbers, so that one lap's cars do not shift the other's.
                    stays = [float(v) for v in always.random(5)]
                    new = [float(v) for v in today.random(5)]
                    occupied, colour, kind, shift, turn = stays if stays[4] < 0.2 else new
                    if occupied > 0.36:
                        continue
                    x, y = start + along * (at + shift - 0.5) + right * side * (ROAD_HALF_WIDTH_M - 1.05)
                    heading = float(np.arctan2(along[1], along[0])) + (0.0 if side > 0 else np.pi) + 0.06 * (turn - 0.5)
                    cars.append(Car(float(x), float(y), heading, int(kind * _CAR_KINDS), int(colour * 2 * _CAR_COLOURS) % _CAR_COLOURS))
        return cars

    def at(self, time_s: float) -> tuple[list[Car], list[Billboard]]:
        """Cars, parked and driving, and people at a time since the lap's start."""
        cars = list(self._parked)
        for street, sign, phase, speed, kind, colour in self._driving:
            start, along, right, length = _frame(self._town, street)
            way = (phase + speed * time_s) % (length + 25.0)
            at = way if sign > 0 else length - way
            x, y = start + along * at + right * sign * 1.45
            if 0 < way < length:
                cars.append(Car(float(x), float(y), float(np.arctan2(sign * along[1], sign * along[0])), kind, colour, True))
        people = []
        for street, sign, phase, speed, sprite, lateral in self._walking:
            start, along, right, length = _frame(self._town, street)
            way = (phase + speed * time_s) % (length - 16.0) + 8.0
            x, y = start + along * (way if sign > 0 else length - way) + right * lateral
            people.append(Billboard(f"person{sprite}", float(x), float(y)))
        return cars, people
