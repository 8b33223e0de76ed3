"""One map frame for positions of several UTM zones, and correct matches across a zone's border."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_datasets import write_image, write_table

from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.datasets.geographic import share_frame
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.table import CsvDataset
from asymvpr_core.datasets.utm import UtmFrame, UtmZone
from asymvpr_core.errors import DatasetError

EARTH_M = 6_371_000.0


def image_name(lat: float, lon: float, pano_id: str) -> str:
    """The name that VPR-datasets-downloader gives an image: UTM of its own zone, two decimals."""
    zone = UtmZone.at(lat, lon)
    easting, northing = zone.project(lat, lon)
    return f"@{easting:.2f}@{northing:.2f}@{zone.number:02d}@{zone.letter}@{lat:.7f}@{lon:.7f}@{pano_id}@@@@@@@@.jpg"


def great_circle_m(a: tuple[float, float], b: tuple[float, float]) -> float:
    (lat_a, lon_a), (lat_b, lon_b) = (tuple(map(math.radians, p)) for p in (a, b))
    h = math.sin((lat_b - lat_a) / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_M * math.asin(math.sqrt(h))


def write_grid(folder, lat: float, lon: float, side: int, step_deg: float) -> list[tuple[float, float]]:
    """Images on a grid around a position; their positions in the order of the sorted names."""
    named = {}
    for i in range(side):
        for j in range(side):
            at = (lat + (i - side // 2) * step_deg, lon + (j - side // 2 + 0.25) * step_deg)
            named[image_name(*at, f"{i}_{j}")] = at
    for name in named:
        write_image(folder / name)
    return [named[name] for name in sorted(named)]


@pytest.mark.parametrize(
    ("lat", "lon", "frame"),
    [
        (52.0, 6.0, "utm32U"),  # the border of zones 31 and 32
        (0.0, 33.0, "utm36N"),  # the equator: northings jump by 10 000 km
        (60.0, 3.0, "utm32V"),  # Norway, where zone 32 is wider
        (10.0, 180.0, "utm1P"),  # the date line
    ],
)
def test_matches_across_the_border_of_a_zone(tmp_path, lat, lon, frame):
    places = write_grid(tmp_path, lat, lon, 7, 0.0002)
    dataset = FolderDataset(tmp_path)
    assert dataset.map_frame == frame
    found = [p.tolist() for p in find_positives(dataset.records, dataset.records, 25.0)]
    # 25 m falls between the rings of the grid everywhere here, so the sphere's 0.5 % does not matter.
    expected = [[j for j, other in enumerate(places) if great_circle_m(place, other) <= 25.0] for place in places]
    assert found == expected
    assert sum(map(len, expected)) > len(expected)


def test_cities_far_apart_keep_their_zones_and_never_match(tmp_path):
    # Longitudes one zone's width apart and more: the same easting and northing in zones 30, 32 and 56.
    for lon in (-3.0, 9.0, 153.0):
        for i in range(2 if lon != 9.0 else 3):
            write_image(tmp_path / image_name(48.0, lon + i * 1e-4, f"{lon}_{i}"))
    dataset = FolderDataset(tmp_path)
    assert dataset.map_frame == "utm32U+30U+56U"
    found = find_positives(dataset.records, dataset.records, 25.0)
    assert sorted(found.counts.tolist()) == [2, 2, 2, 2, 3, 3, 3]
    by_zone = {r.name.split("@")[3]: r.pose.position[0] for r in dataset.records if r.name.split("@")[7].endswith("_0")}
    assert by_zone["32"] == pytest.approx(500_000.0, abs=0.01)  # the largest area is not moved
    assert by_zone["30"] == pytest.approx(100_500_000.0, abs=0.01)
    assert by_zone["56"] == pytest.approx(200_500_000.0, abs=0.01)


def test_neighbouring_zones_without_images_near_their_border_stay_apart(tmp_path):
    for lon in (5.0, 5.1, 7.0):
        write_image(tmp_path / image_name(48.0, lon, "pano"))
    assert FolderDataset(tmp_path).map_frame == "utm31U+32U"


def test_one_zone_is_left_as_it_is():
    zones = [UtmZone(31, "U"), UtmZone(31, "V"), UtmZone(31, "V")]  # the band letter changes nothing
    xy = np.array([[500_000.0, 6_200_000.0], [1.0, 2.0], [3.0, 4.0]])
    frame = UtmFrame.of(zones, xy)
    assert (frame.name, frame.n_areas) == ("utm31V", 1)
    assert (frame.place(zones, xy) == xy).all()
    assert UtmFrame.of([], np.empty((0, 2))).name == "utm"


def test_names_of_several_zones_beside_names_without_one_are_refused(tmp_path):
    for name in (image_name(48.0, 5.0, "a"), image_name(48.0, 7.0, "b"), "@1.00@2.00@@@@@c@.jpg"):
        write_image(tmp_path / name)
    with pytest.raises(DatasetError, match=r"in 2 UTM zones, and 1 of 3 name none, the first @1\.00.*; expected zone and letter"):
        FolderDataset(tmp_path)


def test_zone_texts():
    assert UtmZone.parse("31", "u") == UtmZone(31, "U")
    for number, letter in (("", ""), ("0", "U"), ("61", "U"), ("31", "I"), ("31", "UU"), ("3.1", "U"), ("31", "")):
        assert UtmZone.parse(number, letter) is None


def write_csv(folder, name: str, rows: list[tuple[float, float]]):
    for i in range(len(rows)):
        write_image(folder / name / f"{i}.png")
    return write_table(folder / f"{name}.csv", "image,lat,lon", *[f"{name}/{i}.png,{lat},{lon}" for i, (lat, lon) in enumerate(rows)])


def test_two_csv_on_the_two_sides_of_a_border_share_one_frame(tmp_path):
    database = CsvDataset(write_csv(tmp_path, "database", [(52.0, 5.9999), (52.0, 5.9998)]))
    queries = CsvDataset(write_csv(tmp_path, "queries", [(52.0, 6.0001), (52.0, 6.01)]))
    assert (database.map_frame, queries.map_frame) == ("utm31U", "utm32U")
    share_frame(database, queries)
    assert database.map_frame == queries.map_frame == "utm31U"
    assert [p.tolist() for p in find_positives(queries.records, database.records, 15.0)] == [[0], []]
    before = [record.pose for record in database.records]
    share_frame(database, queries)
    assert [record.pose for record in database.records] == before


def test_frames_that_cannot_be_joined_are_named(tmp_path):
    pose = write_table(tmp_path / "poses.csv", "image,x,y,z,qx,qy,qz,qw", "database/0.png,0,0,0,0,0,0,1")
    queries = CsvDataset(write_csv(tmp_path, "database", [(52.0, 6.0)]))
    with pytest.raises(DatasetError, match="the database has positions in frame 'map', the queries in frame 'utm32U'; expected"):
        share_frame(CsvDataset(pose), queries)
