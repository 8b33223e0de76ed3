"""What `asymvpr dataset info` says: counts by hand, and a warning for everything that is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from made_up_benchmarks import gsv_cities, line_name, msls, numbered, seasons, utm_name, vpr_folders, write_image, write_rows
from small_bags import drive
from test_cli import refused, run

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark_source import open_benchmark, open_pair
from asymvpr_core.datasets.dataset_report import describe_benchmark, describe_dataset
from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.datasets.identical_files import identical_files
from asymvpr_core.datasets.table import CsvDataset


def described(path, **settings):
    return describe_benchmark(open_benchmark(path, BenchmarkSettings(allow_missing=True, **settings)))


def test_counts_of_a_benchmark(tmp_path):
    report = described(vpr_folders(tmp_path / "set"))
    database, queries = report.sides
    assert (database.images, queries.images) == (10, 3)
    assert (database.extent_m, queries.extent_m) == ((0.0, 90.0), (0.0, 1000.0))
    assert (database.areas, database.with_heading, database.without_position) == (1, 10, 0)
    assert queries.conditions == {"day": 1, "night": 2}
    truth = report.ground_truth
    assert (truth.pairs, truth.min, truth.max, truth.queries_without) == (8, 0, 5, 1)
    assert truth.mean == pytest.approx(8 / 3)
    assert truth.first_without == (line_name(1000, "night", "270"),)
    assert (database.duplicates, queries.duplicates, report.queries_in_database) == (0, 0, 0)
    assert report.warnings == ()
    text = "\n".join(report.lines())
    for line in (
        "set test, layout vpr_folders", "10 images, 10 with heading", "0 m x 90 m in frame utm", "day 1, night 2", "within 25 m (",
        "8 in all; a query has 2.67 on average, 0 to 5", f"1 queries have no correct match: {line_name(1000, 'night', '270')}",
    ):  # fmt: skip
        assert line in text


def test_copies_within_and_across_the_sides(tmp_path):
    root = vpr_folders(tmp_path) / "images/test"
    images = sorted((root / "database").iterdir())
    for target in (images[1], images[2], images[3]):
        shutil.copy(images[0], target)
    shutil.copy(images[0], next((root / "queries").iterdir()))
    report = described(tmp_path)
    assert (report.sides[0].duplicates, report.sides[1].duplicates, report.queries_in_database) == (3, 0, 1)
    assert "database: 3 images are copies of another one, byte for byte" in report.warnings
    assert any(warning.startswith("1 queries are files of the database too") for warning in report.warnings)
    unread = describe_benchmark(open_benchmark(tmp_path), compare_files=False)
    assert (unread.sides[0].duplicates, unread.queries_in_database) == (None, None)


def test_files_of_equal_size_are_compared_by_their_bytes(tmp_path):
    contents = [b"aa", b"ab", b"aa", b"c", b"ab", b"aa"]
    paths = [tmp_path / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert identical_files([*paths, tmp_path / "absent"]) == [[0, 2, 5], [1, 4]]


def test_absent_images_are_counted_and_named(tmp_path):
    root = msls(tmp_path)
    for i in (0, 1):
        (root / f"train_val/sf/database/images/sf-database-{i}.jpg").unlink()
    report = described(root)
    assert (report.sides[0].missing, report.sides[0].images) == (2, 8)
    assert any("database: 2 images are listed and absent: sf/database/images/sf-database-0.jpg" in warning for warning in report.warnings)
    assert any("4 queries and 8 database images; msls val (740) is published with 740 and 18871" in warning for warning in report.warnings)
    assert report.sides[0].areas == 2


def test_one_database_image_and_no_match_at_all(tmp_path):
    write_image(tmp_path / "images/test/database" / line_name(0))
    write_image(tmp_path / "images/test/queries" / line_name(500))
    warnings = described(tmp_path).warnings
    assert any("the database is one image" in warning for warning in warnings)
    assert any("no query has a correct match" in warning for warning in warnings)


def test_benchmarks_without_positions(tmp_path):
    pairs = described(seasons(tmp_path / "nordland", 20), version="patch_netvlad")
    assert pairs.sides[0].extent_m is None and pairs.sides[0].without_position == 20
    assert pairs.ground_truth.max == 15
    assert not any("position" in warning for warning in pairs.warnings)
    for side in ("database", "queries"):
        numbered(tmp_path / "plain" / side, 2)
    plain = described(tmp_path / "plain")
    assert plain.ground_truth is None
    assert any("no ground truth: predictions only" in line for line in plain.lines())


def test_places_and_areas_of_gsv_cities(tmp_path):
    code, text, _ = run("dataset", "info", gsv_cities(tmp_path))
    assert code == 0
    assert "13 images, 3 places, 13 with heading; layout gsv_cities" in text
    assert "3 areas, the largest 0 m x 0 m in frame utm" in text


def write_csv(folder, name, rows):
    for i in range(len(rows)):
        write_image(folder / name / f"{i}.png")
    return write_rows(folder / f"{name}.csv", ["image", "lat", "lon"], [(f"{name}/{i}.png", lat, lon) for i, (lat, lon) in enumerate(rows)])


def test_rows_with_latitude_and_longitude_swapped(tmp_path):
    path = write_csv(tmp_path, "t", [(45.0, 7.0), (45.0, 7.001), (7.0, 45.0), (45.0, 7.002), (45.001, 7.0)])
    report = describe_dataset(CsvDataset(path))
    assert report.warnings == (
        "1 images lie far from the others, and among them with latitude and longitude swapped; "
        "the first is t/2.png: exchange the two there",
    )
    assert report.sides[0].areas == 2
    assert describe_dataset(CsvDataset(write_csv(tmp_path, "u", [(45.0, 7.0), (45.5, 7.1)]))).warnings == ()


def test_one_side_with_latitude_and_longitude_swapped(tmp_path):
    database = write_csv(tmp_path, "database", [(45.0, 7.0), (45.0, 7.001)])
    queries = write_csv(tmp_path, "queries", [(7.0, 45.0)])
    warnings = describe_benchmark(open_pair(database, queries)).warnings
    assert any("the queries lie far from the database, and among it with latitude and longitude swapped" in warning for warning in warnings)


def test_names_whose_utm_and_degrees_disagree(tmp_path):
    def with_degrees(folder, lat, lon):
        for i in range(3):
            fields = utm_name(48.0, 11.0 + i * 1e-4, pano=str(i)).split("@")
            fields[5:7] = [f"{lat + i * 1e-4:.7f}" if lat < 40 else f"{lat:.7f}", f"{lon:.7f}"]
            write_image(folder / "@".join(fields))
        return describe_dataset(FolderDataset(folder)).warnings

    assert with_degrees(tmp_path / "right", 48.0, 11.0) == ()
    [warning] = with_degrees(tmp_path / "swapped", 11.0, 48.0)
    assert "latitude and longitude are swapped in the names" in warning
    [warning] = with_degrees(tmp_path / "far", 49.0, 11.0)
    assert "are 111." in warning and "km apart (median)" in warning


def test_positions_over_thousands_of_kilometres(tmp_path):
    for i in range(2):
        write_image(tmp_path / "map" / f"@{2000 * i}@{5_000_000 * i}@.jpg")
        write_image(tmp_path / "line" / f"@0@{5_000_000 * i}@.jpg")
    [warning] = describe_dataset(FolderDataset(tmp_path / "map")).warnings
    assert describe_dataset(FolderDataset(tmp_path / "line")).warnings == ()
    assert warning == "images: positions cover 2 km x 5000 km: are easting and northing, or latitude and longitude, swapped?"


def test_info_on_the_command_line(tmp_path):
    root = vpr_folders(tmp_path / "set")
    code, text, _ = run("dataset", "info", root, "--radius-m", "10", "--skip-files")
    assert code == 0 and "within 10 m (horizontal distance) of the query" in text and "duplicates" not in text
    code, text, _ = run("dataset", "info", root, "--json")
    report = json.loads(text)
    assert code == 0 and report["sides"][1]["conditions"] == {"day": 1, "night": 2}
    assert report["ground_truth"]["queries_without"] == 1
    code, text, _ = run("dataset", "info", root / "images/test/queries", "--json")
    assert json.loads(text)["sides"][0]["role"] == "images"
    code, text, _ = run("dataset", "info", root, "--layout", "folder", "--json")
    assert json.loads(text)["sides"][0]["images"] == 13
    (tmp_path / "settings.yaml").write_text("benchmark: {radius_m: 5.0}\n")
    assert "within 5 m" in run("dataset", "info", root, "--config", tmp_path / "settings.yaml")[1]


def test_info_of_a_bag(tmp_path):
    code, text, _ = run("dataset", "info", drive(tmp_path / "bag"), "--pose-topic", "/ground_truth/pose")
    assert code == 0
    assert "layout bag" in text and "in frame map" in text and "duplicates" not in text
    assert "has 2 pose topics" in refused("dataset", "info", tmp_path / "bag")
    for side in ("database", "queries"):
        drive(tmp_path / "two" / side)
    code, text, _ = run("dataset", "info", tmp_path / "two", "--pose-topic", "/ground_truth/pose", "--radius-m", "1.5")
    # Keyframes a metre apart at 0, 1, 2 and 3 m.
    assert code == 0 and "layout two_sources" in text and "10 in all; a query has 2.50 on average, 2 to 3" in text


def test_info_refuses_in_one_line(tmp_path):
    assert "there is no " in refused("dataset", "info", tmp_path / "absent")
    assert "holds no images" in refused("dataset", "info", tmp_path)
    assert "there is no layout 'pits'; known layouts: vpr_folders" in refused("dataset", "info", tmp_path, "--layout", "pits")
    assert "has no split 'val'; it has test" in refused("dataset", "info", vpr_folders(tmp_path), "--split", "val")


def test_layouts_are_listed():
    code, text, _ = run("dataset", "layouts")
    assert code == 0
    names = [line.split()[0] for line in text.splitlines()]
    expected = ["vpr_folders", "msls", "nordland", "amstertime", "sped", "two_sources", "bag", "csv", "folder", "gsv_cities"]
    assert names == expected
    assert "(versions: 740, 11k)" in text
    assert [row["layout"] for row in json.loads(run("dataset", "layouts", "--json")[1])] == expected
