"""Latitude and longitude to UTM metres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pyproj import Transformer

_BANDS = "CDEFGHJKLMNPQRSTUVWX"  # eight degrees each from -80; X has twelve


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

    @property
    def name(self) -> str:
        """Number and letter, for example "31U"."""
        return f"{self.number}{self.letter}"

    def project(self, lat_deg: float, lon_deg: float) -> tuple[float, float]:
        """(easting, northing) in metres on WGS84, in this zone even where the position lies beside it."""
        return self._transformer.transform(lon_deg, lat_deg)

    @cached_property
    def _transformer(self) -> Transformer:
        epsg = (32600 if self.letter >= "N" else 32700) + self.number
        return Transformer.from_crs(4326, epsg, always_xy=True)
