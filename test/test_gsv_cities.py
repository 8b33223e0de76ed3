"""GSV-Cities: names, global place ids, and what is refused."""

from __future__ import annotations

import pytest
from made_up_benchmarks import gsv_cities, write_rows

from asymvpr_core.config import SourceSettings
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.gsv_cities import CITIES, COLUMNS, GsvCitiesDataset, gsv_image_name
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import DatasetError


def test_place_ids_are_global_and_small_places_are_left_out(tmp_path):
    dataset = open_source(gsv_cities(tmp_path))
    # Of the authors' list, in its order; then the others.
    assert dataset.cities == ("OSL", "London", "Atlantis")
    assert [record.place_id for record in dataset.records] == [7] * 5 + [100_007] * 4 + [200_001] * 4
    assert (dataset.layout, dataset.missing) == ("gsv_cities", ())
    first = dataset.records[1]
    assert first.name == "Images/OSL/OSL_0000007_2011_02_009_59.98_10.75_pano_7_1.jpg"
    assert (first.heading_deg, first.lat_lon_deg) == (9.0, (59.98, 10.75))
    assert [image.shape for _, image in dataset.read_images([0, 12])] == [(8, 12, 3)] * 2
    # The cities lie in zones 32, 30 and 30: two of them share a zone and still never match.
    found = find_positives(dataset.records, dataset.records, 25.0)
    assert found.counts.tolist() == [5] * 5 + [4] * 8


def test_cities_and_smallest_place_can_be_chosen(tmp_path):
    root = gsv_cities(tmp_path)
    dataset = open_source(root, SourceSettings(cities=("London", "OSL"), min_images_per_place=1))
    assert [record.place_id for record in dataset.records] == [7] * 4 + [8] * 3 + [100_007] * 5
    with pytest.raises(DatasetError, match=r"Paris\.csv cannot be read: No such file.*; check the path, and the names of the cities"):
        GsvCitiesDataset(root, ["Paris"])
    with pytest.raises(DatasetError, match="no place of .* has 6 images"):
        GsvCitiesDataset(root, min_images_per_place=6)


def test_numbers_are_written_as_the_authors_code_wrote_them():
    row = {"place_id": "1300042", "year": "2009", "month": "7", "northdeg": "5", "city_id": "PRS", "panoid": "_a-b"}
    name = gsv_image_name({**row, "lat": "48.850", "lon": "2.0e0"})
    assert name == "Images/PRS/PRS_0000042_2009_07_005_48.85_2.0__a-b.jpg"
    assert gsv_image_name({**row, "lat": "48.8512345678901", "lon": "-0.00001"}).endswith("_48.8512345678901_-1e-05__a-b.jpg")
    assert len(set(CITIES)) == 23


def test_listed_and_absent(tmp_path):
    root = gsv_cities(tmp_path)
    absent = sorted((root / "Images/London").glob("*_0000007_*"))[:2]
    for image in absent:
        image.unlink()
    with pytest.raises(DatasetError, match=r"2 of 16 images of the tables of .* are absent: Images/London/London_0000007_2010"):
        open_source(root)
    dataset = open_source(root, allow_missing=True)
    assert dataset.missing == tuple(f"Images/London/{image.name}" for image in absent)
    assert {record.place_id for record in dataset.records} == {7, 200_001}  # two images are no place any more


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (COLUMNS[:-1], ("1", "2010", "1", "0", "X", "5", "6"), "lacks the columns panoid; it has place_id"),
        (COLUMNS, ("1", "2010", "1", "0", "X", "nan", "6", "p"), "line 2: latitude nan, longitude 6; expected degrees"),
        (COLUMNS, ("1", "2010", "1", "0", "X", "139.7", "35.6", "p"), "line 2: latitude 139.7.*; the columns lat and lon look swapped"),
        (COLUMNS, ("1", "2010", "1", "north", "X", "5", "6", "p"), "line 2: invalid literal .*'north'; expected whole numbers"),
        (COLUMNS, ("", "2010", "1", "0", "X", "5", "6", "p"), "line 2: .*; expected whole numbers"),
    ],
)
def test_malformed_tables(tmp_path, columns, row, message):
    (tmp_path / "Images").mkdir()
    write_rows(tmp_path / "Dataframes" / "X.csv", columns, [row])
    with pytest.raises(DatasetError, match=message):
        open_source(tmp_path)


def test_no_tables(tmp_path):
    for folder in ("Images", "Dataframes"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DatasetError, match="Dataframes holds no tables"):
        open_source(tmp_path)
    write_rows(tmp_path / "Dataframes" / "X.csv", COLUMNS, [("1", "2010", "1", "0", "X", "5", "6", "p")] * 2)
    with pytest.raises(DatasetError, match="list images twice: Images/X/X_0000001_2010_01_000_5.0_6.0_p.jpg"):
        open_source(tmp_path)
