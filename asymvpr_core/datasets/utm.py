"""UTM zones, and one map frame for positions that lie in several of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pyproj import Transformer
from scipy.spatial import cKDTree

_BANDS = "CDEFGHJKLMNPQRSTUVWX"  # eight degrees each from -80; X has twelve
# Areas farther apart are not joined: no radius of a correct match is as large.
_TOUCHING_M = 10_000.0
# Areas that are not joined are shifted apart by more than any two points of one zone can be.
_SHIFT_M = 100_000_000.0


@dataclass(frozen=True)
class UtmZone:
    """A UTM zone: number 1 to 60 and latitude band letter."""

    number: int
    letter: str

    @staticmethod
    def at(lat_deg: float, lon_deg: float) -> UtmZone:
        """Zone that contains a position, with the exceptions for Norway and Svalbard; latitude -80 to 84."""
        letter = _BANDS[min(int((lat_deg + 80.0) // 8.0), len(_BANDS) - 1)]
        number = int((lon_deg + 180.0) // 6.0) % 60 + 1
        if letter == "V" and 3.0 <= lon_deg < 12.0:
            number = 32
        elif letter == "X" and 0.0 <= lon_deg < 42.0:
            number = 31 + 2 * int((lon_deg + 3.0) // 12.0)
        return UtmZone(number, letter)

    @staticmethod
    def parse(number: str, letter: str) -> UtmZone | None:
        """Zone of the two texts ("31", "U"), or None where they name none."""
        letter = letter.strip().upper()
        if not number.strip().isdecimal() or not 1 <= int(number) <= 60 or letter not in tuple(_BANDS):
            return None
        return UtmZone(int(number), letter)

    @property
    def name(self) -> str:
        """Number and letter, for example "31U"."""
        return f"{self.number}{self.letter}"

    @property
    def epsg(self) -> int:
        """Code of its coordinate system on WGS84; the letter matters only as north or south of the equator."""
        return (32600 if self.letter >= "N" else 32700) + self.number

    def project(self, lat_deg: float, lon_deg: float) -> tuple[float, float]:
        """(easting, northing) in metres on WGS84, in this zone even where the position lies beside it."""
        return self._transformer.transform(lon_deg, lat_deg)

    def lat_lon(self, xy_m: np.ndarray) -> np.ndarray:
        """(N, 2) latitude and longitude [deg] of (N, 2) easting and northing [m] in this zone."""
        lon, lat = self._transformer.transform(xy_m[:, 0], xy_m[:, 1], direction="INVERSE")
        return np.stack([lat, lon], axis=1)

    @cached_property
    def _transformer(self) -> Transformer:
        return Transformer.from_crs(4326, self.epsg, always_xy=True)


@dataclass(frozen=True)
class UtmFrame:
    """One map frame for positions of several zones.

    Positions of one zone stay as they are. Zones whose images lie within 10 km of one another form an
    area, and are projected to the zone that holds most of its images. Areas that lie apart (the cities
    of a worldwide set) keep a zone each, and every area after the first is shifted eastward, by
    100 000 km times its number: distances within an area are metres, between areas always huge.

    `name` is "utm31U", or "utm10S+33U" with the zones of all areas, or "utm" where no zone is known.
    """

    name: str
    targets: dict[int, tuple[UtmZone, float]]  # EPSG code of a zone to the zone it is projected to, and the shift [m]

    @staticmethod
    def of(zones: Sequence[UtmZone], xy_m: np.ndarray) -> UtmFrame:
        """The frame of positions (N, 2) [m], each given in its own zone; none: "utm".

        Which zone leads depends on all positions, so give those of both sides of a comparison at once.
        """
        counts = Counter(zones)
        if not counts:
            return UtmFrame("utm", {})
        by_epsg: dict[int, UtmZone] = {}
        for zone, _ in counts.most_common():  # of equals the one that comes first
            by_epsg.setdefault(zone.epsg, zone)
        areas = _areas(by_epsg, zones, xy_m) if len(by_epsg) > 1 else [list(by_epsg.values())]
        targets = {zone.epsg: (area[0], i * _SHIFT_M) for i, area in enumerate(areas) for zone in area}
        return UtmFrame("utm" + "+".join(area[0].name for area in areas), targets)

    def place(self, zones: Sequence[UtmZone], xy_m: np.ndarray) -> np.ndarray:
        """(N, 2) float64 positions [m] in this frame of positions given each in its own zone."""
        placed = np.array(xy_m, dtype=np.float64)
        codes = _codes(zones)
        for zone in {zone.epsg: zone for zone in zones}.values():
            target, shift_m = self.targets.get(zone.epsg, (zone, 0.0))
            here = codes == zone.epsg
            if target.epsg != zone.epsg:
                lat_lon = zone.lat_lon(placed[here])
                placed[here] = np.stack(target.project(lat_lon[:, 0], lat_lon[:, 1]), axis=1)  # type: ignore[arg-type]
            placed[here, 0] += shift_m
        return placed

    @property
    def n_areas(self) -> int:
        """Number of areas that lie apart."""
        return max(1, len({target for target, _ in self.targets.values()}))


def area_numbers(xy_m: np.ndarray) -> np.ndarray:
    """(N,) int64: in which area of its `UtmFrame` each position (N, 2) [m] lies; 0 in every frame that has one area."""
    return np.round(xy_m[:, 0] / _SHIFT_M).astype(np.int64)


def _codes(zones: Sequence[UtmZone]) -> np.ndarray:
    of_zone = {zone: zone.epsg for zone in set(zones)}
    return np.array([of_zone[zone] for zone in zones], dtype=np.int32)


def _areas(by_epsg: dict[int, UtmZone], zones: Sequence[UtmZone], xy_m: np.ndarray) -> list[list[UtmZone]]:
    """The zones in groups that touch one another; in each, and among them, those with most images first."""
    codes = _codes(zones)
    points = {code: _on_sphere(zone.lat_lon(np.asarray(xy_m)[codes == code])) for code, zone in by_epsg.items()}
    areas: list[list[UtmZone]] = []
    for zone in by_epsg.values():
        near = [area for area in areas if any(_touch(zone, other, points) for other in area)]
        joined = [member for area in near for member in area]
        areas = [area for area in areas if area not in near] + [[*joined, zone]]
    order = {zone: i for i, zone in enumerate(by_epsg.values())}
    return sorted((sorted(area, key=order.__getitem__) for area in areas), key=lambda area: order[area[0]])


def _touch(a: UtmZone, b: UtmZone, points: dict[int, np.ndarray]) -> bool:
    # On Svalbard zones two numbers apart are neighbours.
    if min((a.number - b.number) % 60, (b.number - a.number) % 60) > 2:
        return False
    nearest, _ = cKDTree(points[a.epsg]).query(points[b.epsg], distance_upper_bound=_TOUCHING_M)
    return bool(np.isfinite(nearest).any())


def _on_sphere(lat_lon_deg: np.ndarray) -> np.ndarray:
    """(N, 3) metres: good to 0.5 %, for the question whether two areas touch."""
    lat, lon = np.radians(lat_lon_deg[:, 0]), np.radians(lat_lon_deg[:, 1])
    return 6_371_000.0 * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
