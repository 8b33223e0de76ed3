"""GSV-Cities: names, global place ids, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_benchmarks import gsv_cities, write_rows
from test_cli import run

from asymvpr_core.config import SourceSettings, TrainSettings
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.gsv_cities import CITIES, COLUMNS, GsvCitiesDataset, gsv_image_name
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import DatasetError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import read_manifest
from asymvpr_core.memory.bank import MemoryBank
from asymvpr_core.memory.store import StoredBank
from asymvpr_core.training.run import train


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


@pytest.mark.slow
def test_from_the_folder_to_a_trained_run_the_place_ids_are_the_places(tmp_path):
    """Gallery, bank and training by their commands; cells as large as the earth would make one place of everything."""
    config = tmp_path / "settings.yaml"
    cells = "cells: {cell_size_m: 1.0e+7, heading_sectors: 1}"
    config.write_text(
        "gallery: {network: efficientnet_lite2_gem, projection_dim: 4, threads: 1}\n"
        f"bank: {{{cells}}}\n"
        "train: {query_network: efficientnet_lite0_gem_64px, epochs: 1, batch_size: 4, alignment_copies: 0, frozen_share: 1.0, "
        f"validation_share: 0.25, validation_views: 1, workers: 0, threads: 1, accelerator: cpu, {cells}}}\n"
    )
    root = gsv_cities(tmp_path / "gsv")
    for words in (
        ("gallery", "build", root, "--out", tmp_path / "gallery"),
        ("bank", "build", tmp_path / "gallery", "--out", tmp_path / "bank"),
        ("train", tmp_path / "gallery", "--bank", tmp_path / "bank", "--out", tmp_path / "run"),
    ):
        assert run(*words, "--config", config)[0] == 0
    gallery, bank = Gallery.open(tmp_path / "gallery"), StoredBank.open(tmp_path / "bank").bank
    place_ids = np.array([keyframe.place_id for keyframe in gallery.keyframes])
    assert np.unique(place_ids).tolist() == [7, 100_007, 200_001]
    np.testing.assert_array_equal(bank.places, np.searchsorted([7, 100_007, 200_001], place_ids))
    assert bank.counts.tolist() == [5, 4, 4]
    for place, place_id in enumerate((7, 100_007, 200_001)):
        own = np.asarray(gallery.descriptors, np.float64)[place_ids == place_id]
        np.testing.assert_allclose(bank.centroids[place], own.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(bank.variances[place], own.var(axis=0), atol=1e-6)
    manifest = read_manifest(tmp_path / "run", "run")
    assert (manifest.details["places"], manifest.details["training_images"], manifest.details["validation_images"]) == (3, 10, 3)
    assert manifest.details["fine_tuning"]["val_recall_at_1"] is not None
    # Without a stored bank the training makes the same one.
    train(tmp_path / "gallery", TrainSettings.model_validate(manifest.settings | {"epochs": 0}), tmp_path / "own")
    np.testing.assert_allclose(MemoryBank.load(tmp_path / "own" / "bank.npz").centroids, bank.centroids, atol=1e-7)


def test_no_tables(tmp_path):
    for folder in ("Images", "Dataframes"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DatasetError, match="Dataframes holds no tables"):
        open_source(tmp_path)
    write_rows(tmp_path / "Dataframes" / "X.csv", COLUMNS, [("1", "2010", "1", "0", "X", "5", "6", "p")] * 2)
    with pytest.raises(DatasetError, match="list images twice: Images/X/X_0000001_2010_01_000_5.0_6.0_p.jpg"):
        open_source(tmp_path)
