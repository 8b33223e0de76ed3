"""The town's plan: corners, streets, blocks and building lots, in metres in the frame `map`.

x points east, y north. The plan holds no pictures: façades are drawn from the lots' seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from asymvpr_core.demo.facades import COPIES, Character, random_character
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.errors import SettingsError

Corner = tuple[int, int]  # (column from the west, row from the south); 0 and up lie in the town, the ring around it does not

ROAD_HALF_WIDTH_M = 4.7
LOT_DEPTH_M = 9.0
OUTER_RING_M = 42.0
SURFACES = 5
SHARED_DESIGNS = 14  # façades of streets that nobody drives along


@dataclass(frozen=True)
class Street:
    """A street between two corners, `start` being the smaller; half widths from the middle to the house fronts."""

    start: Corner
    end: Corner
    half_width_m: float
    character: Character
    design: int  # streets of equal design have equal houses
    trees: bool
    lamp: int
    surface: int  # number of the road's surface
    reversed_design: bool = False  # the design runs from `end` to `start`
    variant: int = 0


@dataclass(frozen=True)
class Lot:
    """A house front from `left` to `right` as seen from the street, and the footprint behind it, corners counter-clockwise."""

    footprint: np.ndarray  # (4, 2): left, right, right rear, left rear
    kind: str  # "house", "yard"
    seed: tuple[int, ...]
    character: Character
    variant: int

    @property
    def width_m(self) -> float:
        return float(np.linalg.norm(self.footprint[1] - self.footprint[0]))


@dataclass(frozen=True)
class Block:
    """What lies between four streets; `outer` is the line of the house fronts, (4, 2) counter-clockwise."""

    outer: np.ndarray
    inner: np.ndarray
    kind: str  # "houses", "park", "church"
    lots: tuple[Lot, ...]


@dataclass(frozen=True)
class Town:
    """The whole plan."""

    settings: TownSettings
    corners: dict[Corner, np.ndarray]
    streets: dict[tuple[Corner, Corner], Street]
    blocks: tuple[Block, ...]

    def street(self, a: Corner, b: Corner) -> Street:
        """The street between two neighbouring corners, in whatever order."""
        return self.streets[(min(a, b), max(a, b))]

    def inner_streets(self) -> list[Street]:
        """The streets between two corners of the town itself, in a fixed order."""
        return [street for street in self.streets.values() if self.is_inner(street.start) and self.is_inner(street.end)]

    def is_inner(self, corner: Corner) -> bool:
        """Whether a corner belongs to the town and not to the ring around it."""
        return 0 <= corner[0] < self.settings.columns and 0 <= corner[1] < self.settings.rows

    def outline(self) -> list[np.ndarray]:
        """Outlines to draw a map with: the lots' footprints and the parks, each (N, 2) in metres, not closed."""
        shapes = [lot.footprint for block in self.blocks for lot in block.lots if lot.kind == "house"]
        return (
            shapes
            + [block.outer for block in self.blocks if block.kind == "park"]
            + [church_footprint(b) for b in self.blocks if b.kind == "church"]
        )

    def street_lines(self) -> list[np.ndarray]:
        """Middle lines of the inner streets, each (2, 2) in metres."""
        return [np.stack([self.corners[s.start], self.corners[s.end]]) for s in self.inner_streets()]


def corner_name(corner: Corner) -> str:
    """ "B3" for the second column and the third row."""
    return f"{chr(ord('A') + corner[0])}{corner[1] + 1}"


def parse_route(text: str, settings: TownSettings) -> list[Corner]:
    """Corners of a route such as "A1 B1 B2".

    Raises:
        SettingsError: fewer than two corners, a corner outside of the town, or two corners that are no neighbours.
    """
    last = corner_name((settings.columns - 1, settings.rows - 1))
    route: list[Corner] = []
    for word in text.split():
        corner = (ord(word[0].upper()) - ord("A"), int(word[1:]) - 1) if len(word) >= 2 and word[1:].isdecimal() else (-1, -1)
        if not (0 <= corner[0] < settings.columns and 0 <= corner[1] < settings.rows):
            raise SettingsError(f"route '{text}' passes '{word}'", expected=f"corners from A1 to {last}", remedy="correct the route")
        if route and abs(route[-1][0] - corner[0]) + abs(route[-1][1] - corner[1]) != 1:
            raise SettingsError(f"route '{text}' jumps from {corner_name(route[-1])} to {word}", expected="neighbouring corners")
        if len(route) >= 2 and route[-2] == corner:
            raise SettingsError(f"route '{text}' turns round at {corner_name(route[-1])}", expected="another street out of each corner")
        route.append(corner)
    if len(route) < 2:
        raise SettingsError(f"route '{text}' has {len(route)} corners", expected="at least two")
    return route


@lru_cache(maxsize=4)
def build_town(settings: TownSettings) -> Town:
    """Plan the town that `settings.seed` determines.

    Raises:
        SettingsError: a route that cannot be driven.
    """
    columns, rows = settings.columns, settings.rows
    rng = np.random.default_rng([settings.seed, 1])
    corners: dict[Corner, np.ndarray] = {}
    spacing = settings.street_spacing_m
    inset_ring = spacing - OUTER_RING_M
    for column in range(-1, columns + 1):
        for row in range(-1, rows + 1):
            x = column * spacing + (inset_ring if column < 0 else -inset_ring if column == columns else 0.0)
            y = row * spacing + (inset_ring if row < 0 else -inset_ring if row == rows else 0.0)
            corners[column, row] = np.array([x, y]) + rng.uniform(-0.1, 0.1, 2) * min(spacing, 62.0)
    streets = _lay_streets(settings, corners)
    kinds = _choose_block_kinds(settings)
    blocks = []
    for column in range(-1, columns):
        for row in range(-1, rows):
            ring: list[Corner] = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
            kind = kinds.get((column, row), "houses")
            blocks.append(_lay_block(settings, corners, streets, ring, kind))
    return Town(settings, corners, streets, tuple(blocks))


def _lay_streets(settings: TownSettings, corners: dict[Corner, np.ndarray]) -> dict[tuple[Corner, Corner], Street]:
    streets: dict[tuple[Corner, Corner], Street] = {}
    for number, a in enumerate(sorted(corners)):
        for step, b in enumerate(((a[0] + 1, a[1]), (a[0], a[1] + 1))):
            if b not in corners:
                continue
            rng = np.random.default_rng([settings.seed, 2, number, step])
            streets[a, b] = Street(
                start=a,
                end=b,
                half_width_m=float(rng.uniform(7.0, 9.0)),
                character=random_character(rng),
                design=1000 + 2 * number + step,
                trees=bool(rng.random() < 0.4),
                lamp=int(rng.integers(3)),
                surface=int(rng.integers(SURFACES)),
            )
    for original, copy in _lookalikes(settings):
        first = streets[min(original), max(original)]
        terrace = replace(first.character, uniform=True)
        streets[min(original), max(original)] = replace(first, character=terrace)
        key = (min(copy), max(copy))
        # Driven in the direction of its route, the copy shows the same houses on the same side.
        streets[key] = replace(
            streets[key],
            character=terrace,
            design=first.design,
            half_width_m=first.half_width_m,
            reversed_design=(original[0] > original[1]) != (copy[0] > copy[1]),
            variant=1,
        )
    return streets


def _lookalikes(settings: TownSettings) -> list[tuple[tuple[Corner, Corner], tuple[Corner, Corner]]]:
    """Pairs (mapped street, other street) in driving direction: first streets new to the live lap, then mapped ones."""
    mapping = _edges(parse_route(settings.mapping_route, settings))
    live = _edges(parse_route(settings.live_route, settings))
    mapped = {frozenset(edge) for edge in mapping}
    driven = {frozenset(edge) for edge in live}
    new = [edge for edge in live if frozenset(edge) not in mapped]
    originals = [edge for edge in mapping if frozenset(edge) not in driven] + [edge for edge in mapping if frozenset(edge) in driven]
    pairs: list[tuple[tuple[Corner, Corner], tuple[Corner, Corner]]] = []
    taken: set[frozenset[Corner]] = set()
    kinds = _choose_block_kinds(settings)
    for copy in new + mapping[::-1]:
        for original in originals:
            if len(pairs) == settings.lookalike_streets:
                return pairs
            sides = {frozenset(original), frozenset(copy)}
            if len(sides) == 2 and not sides & taken and not any(_beside_open_block(edge, kinds) for edge in (original, copy)):
                pairs.append((original, copy))
                taken |= sides
    return pairs


def _edges(route: list[Corner]) -> list[tuple[Corner, Corner]]:
    return list(dict.fromkeys(zip(route[:-1], route[1:], strict=True)))


def _beside_open_block(edge: tuple[Corner, Corner], kinds: dict[Corner, str]) -> bool:
    a, b = min(edge), max(edge)
    other = (a[0], a[1] - 1) if a[1] == b[1] else (a[0] - 1, a[1])
    return a in kinds or other in kinds


def _choose_block_kinds(settings: TownSettings) -> dict[Corner, str]:
    """One park in a town of two or more inner blocks, a church square in one of four or more."""
    inner = [(column, row) for column in range(settings.columns - 1) for row in range(settings.rows - 1)]
    rng = np.random.default_rng([settings.seed, 3])
    order = rng.permutation(len(inner))
    kinds: dict[Corner, str] = {}
    if len(inner) >= 2:
        kinds[inner[order[0]]] = "park"
    if len(inner) >= 4:
        kinds[inner[order[1]]] = "church"
    return kinds


def _lay_block(
    settings: TownSettings,
    corners: dict[Corner, np.ndarray],
    streets: dict[tuple[Corner, Corner], Street],
    ring: list[Corner],
    kind: str,
) -> Block:
    sides = [(ring[k], ring[(k + 1) % 4]) for k in range(4)]
    ways = [streets[min(side), max(side)] for side in sides]
    outer = inset(np.stack([corners[c] for c in ring]), [way.half_width_m for way in ways])
    shortest = min(float(np.linalg.norm(outer[k] - outer[(k + 1) % 4])) for k in range(4))
    inner = inset(outer, [min(LOT_DEPTH_M, shortest / 3)] * 4)
    lots: list[Lot] = []
    if kind == "houses":
        for k, (side, way) in enumerate(zip(sides, ways, strict=True)):
            driven = all(0 <= c[0] < settings.columns and 0 <= c[1] < settings.rows for c in side)
            along = (side[0] < side[1]) != way.reversed_design  # the block's side runs the way the design runs
            lots += _lay_lots(settings, outer[[k, (k + 1) % 4]], inner[[k, (k + 1) % 4]], way, along, driven)
    return Block(outer, inner, kind, tuple(lots))


def _lay_lots(settings: TownSettings, front: np.ndarray, rear: np.ndarray, way: Street, along: bool, driven: bool) -> list[Lot]:
    length = float(np.linalg.norm(front[1] - front[0]))
    hand = 0 if along else 1
    rng = np.random.default_rng([settings.seed, 4, way.design, hand])
    n = max(1, round(length / way.character.lot_width_m))
    shares = np.ones(n) if way.character.uniform else rng.uniform(0.75, 1.3, n)
    cuts = np.concatenate([[0.0], np.cumsum(shares) / shares.sum()])
    lots = []
    for i in range(n):
        a, b = (cuts[i], cuts[i + 1]) if along else (1 - cuts[i + 1], 1 - cuts[i])
        at: Callable[[np.ndarray, float], np.ndarray] = lambda line, t: line[0] + t * (line[1] - line[0])  # noqa: E731
        footprint = np.stack([at(front, a), at(front, b), at(rear, b), at(rear, a)])
        is_yard = rng.random() < 0.06 and 0 < i < n - 1 and not way.character.uniform
        shared = int(rng.integers(SHARED_DESIGNS))
        # In a terrace every third house is the same.
        seed = (settings.seed, 5, way.design, hand, i % 3 if way.character.uniform else i) if driven else (settings.seed, 6, shared)
        character = way.character if driven else random_character(np.random.default_rng([settings.seed, 7, shared]))
        lots.append(Lot(footprint, "yard" if is_yard else "house", seed, character, COPIES * way.variant + i if driven else 0))
    return lots


def church_footprint(block: Block) -> np.ndarray:
    """Footprint of the church in the middle of its square, (4, 2) counter-clockwise."""
    return block.outer.mean(axis=0) + np.array([[-6.0, -10.0], [6.0, -10.0], [6.0, 10.0], [-6.0, 10.0]])


def inset(polygon: np.ndarray, distances_m: list[float]) -> np.ndarray:
    """Move each side of a counter-clockwise polygon (N, 2) inwards by its own distance."""
    n = len(polygon)
    direction = np.roll(polygon, -1, axis=0) - polygon
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    inward = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    base = polygon + inward * np.asarray(distances_m)[:, None]
    corners = np.empty_like(polygon)
    for k in range(n):  # corner k is where side k-1 meets side k
        a, da, b, db = base[k - 1], direction[k - 1], base[k], direction[k]
        t = ((b[0] - a[0]) * db[1] - (b[1] - a[1]) * db[0]) / (da[0] * db[1] - da[1] * db[0])
        corners[k] = a + t * da
    return corners
