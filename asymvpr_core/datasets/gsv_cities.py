"""GSV-Cities: a training set of 23 cities whose images carry place ids."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from asymvpr_core.datasets.dataset import FileDataset
from asymvpr_core.datasets.geographic import geographic_frame, place_records
from asymvpr_core.datasets.image_files import only_existing
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord

COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
# The order of the authors' training code, which gives the places their global ids.
CITIES = (
    "Bangkok", "BuenosAires", "LosAngeles", "MexicoCity", "OSL", "Rome", "Barcelona", "Chicago", "Madrid", "Miami", "Phoenix", "TRT",
    "Boston", "Lisbon", "Medellin", "Minneapolis", "PRG", "WashingtonDC", "Brussels", "London", "Melbourne", "Osaka", "PRS",
)  # fmt: skip
_IDS_PER_CITY = 10**5


class GsvCitiesDataset(FileDataset):
    """The images of `Dataframes/{City}.csv` below `Images/{city_id}/`; satisfies `Dataset`.

    `place_id` is the city's own plus 100 000 times the city's place in the list of cities, as in the
    authors' training code; other code that lists the cities in another order gives other ids.
    Heading is `northdeg`. Positions are UTM, see `UtmFrame`: the cities lie apart. Places with fewer
    than `min_images_per_place` images are left out, after those that are absent. Sorted by city of
    the list, then as in the table.

    Args:
        cities: names of the tables; None: those of the authors' list that are there, then others by name.
        allow_missing: leave out images that are absent and list them in `missing`, instead of refusing.

    Raises:
        DatasetError: no tables, a city without one, columns missing, a field that is no such number, images listed but absent.
    """

    def __init__(self, path: Path, cities: Sequence[str] | None = None, min_images_per_place: int = 4, allow_missing: bool = False):
        root = Path(path)
        self.cities = tuple(cities) if cities is not None else _cities(root)
        listed = [record for i, city in enumerate(self.cities) for record in _read_city(root, city, i)]
        names = [record.name for record in listed]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DatasetError(f"the tables of {root} list images twice: {', '.join(twice[:5])}", expected="each image once")
        there, missing = only_existing(root, listed, f"the tables of {root}", allow_missing)
        images = Counter(record.place_id for record in there)
        records = [record for record in there if images[record.place_id] >= min_images_per_place]
        if not records:
            raise DatasetError(
                f"no place of {root} has {min_images_per_place} images", expected="places seen several times",
                remedy="lower min_images_per_place, or unpack more of Images",
            )  # fmt: skip
        frame = geographic_frame(records)
        super().__init__(root, "gsv_cities", frame.name, place_records(records, frame), missing)


def is_gsv_cities(path: Path) -> bool:
    """Whether `path` holds the two folders of GSV-Cities."""
    return (path / "Dataframes").is_dir() and (path / "Images").is_dir()


def gsv_image_name(row: dict[str, str]) -> str:
    """Path of a row's image below the root: every number as the table's reader prints it.

    The authors wrote the names with `str(float)`, and a table may say 51.50 or 5.15e1; so latitude
    and longitude go through float, and the place id keeps its last five digits.
    """
    city, place_id = row["city_id"], int(row["place_id"]) % _IDS_PER_CITY
    when = f"{int(row['year']):04d}_{int(row['month']):02d}_{int(row['northdeg']):03d}"
    return f"Images/{city}/{city}_{place_id:07d}_{when}_{float(row['lat'])}_{float(row['lon'])}_{row['panoid']}.jpg"


def _cities(root: Path) -> tuple[str, ...]:
    there = sorted(file.stem for file in (root / "Dataframes").glob("*.csv"))
    if not there:
        raise DatasetError(f"{root / 'Dataframes'} holds no tables", expected="one csv a city", remedy="check the path")
    return (*(city for city in CITIES if city in there), *(city for city in there if city not in CITIES))


def _read_city(root: Path, city: str, position: int) -> list[ImageRecord]:
    path = root / "Dataframes" / f"{city}.csv"
    records = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            found = [name for name in reader.fieldnames or ()]
            absent = [name for name in COLUMNS if name not in found]
            if absent:
                raise DatasetError(
                    f"{path} lacks the columns {', '.join(absent)}; it has {', '.join(found) or 'none'}", expected=",".join(COLUMNS)
                )
            for row in reader:
                records.append(_record({name: row[name] or "" for name in COLUMNS}, position, f"{path}, line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(f"{path} cannot be read: {reason}", remedy="check the path, and the names of the cities") from error
    return records


def _record(row: dict[str, str], position: int, where: str) -> ImageRecord:
    try:
        lat, lon, heading = float(row["lat"]), float(row["lon"]), int(row["northdeg"])
        name = gsv_image_name(row)
        place_id = int(row["place_id"]) + position * _IDS_PER_CITY
    except ValueError as error:
        raise DatasetError(f"{where}: {error}", expected="whole numbers, and lat and lon in degrees") from error
    if not (-80.0 <= lat <= 84.0 and -180.0 <= lon <= 180.0):  # false for NaN
        swapped = -80.0 <= lon <= 84.0 and -180.0 <= lat <= 180.0
        raise DatasetError(
            f"{where}: latitude {lat:g}, longitude {lon:g}", expected="degrees within UTM: -80..84 and -180..180",
            remedy="the columns lat and lon look swapped" if swapped else None,
        )  # fmt: skip
    return ImageRecord(name, None, float(heading % 360), lat_lon_deg=(lat, lon), place_id=place_id)
