"""Every benchmark layout on a small made-up tree: what is read, what is correct, what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import REPOSITORY
from made_up_benchmarks import line_name, msls, msls_city, numbered, seasons, utm_name, vpr_folders, write_image, write_rows
from small_bags import drive

from asymvpr_core.config import BenchmarkSettings, SourceSettings
from asymvpr_core.datasets import benchmark_source
from asymvpr_core.datasets.benchmark_source import known_layouts, open_benchmark, open_pair, recognised_layouts, register_layout
from asymvpr_core.datasets.match_rules import FrameWindow
from asymvpr_core.errors import BagError, DatasetError


def opened(path, **settings):
    return open_benchmark(path, BenchmarkSettings(**settings))


def matches(benchmark) -> list[list[int]]:
    return [row.tolist() for row in benchmark.positives]


def images_are_read(benchmark) -> None:
    for side in (benchmark.database, benchmark.queries):
        decoded = list(side.read_images(list(range(len(side.records)))))
        assert [index for index, _ in decoded] == list(range(len(side.records)))
        assert all(image.shape == (8, 12, 3) for _, image in decoded)
        assert [data for _, data in side.read_encoded([0])] == [(side.root / side.records[0].name).read_bytes()]


# VPR-datasets-downloader folders


def test_vpr_folders(tmp_path):
    benchmark = opened(vpr_folders(tmp_path / "st_lucia"))
    assert (benchmark.name, benchmark.layout, benchmark.split, benchmark.version) == ("st_lucia", "vpr_folders", "test", "")
    assert benchmark.title == "st_lucia test"
    assert benchmark.rule_text == "database image within 25 m (horizontal distance) of the query"
    assert matches(benchmark) == [[0, 1, 2], [3, 4, 5, 6, 7], []]  # 47 m: 30 to 70
    assert [record.condition for record in benchmark.queries.records] == ["day", "night", "night"]
    images_are_read(benchmark)


def test_vpr_folders_with_another_radius_and_a_yaw_limit(tmp_path):
    benchmark = opened(vpr_folders(tmp_path), radius_m=10.0, max_yaw_deg=45.0)
    assert benchmark.rule_text == "database image within 10 m (horizontal distance) of the query and within 45 deg of its heading"
    assert matches(benchmark) == [[0, 1], [], []]  # the queries by night look the other way


def test_the_path_may_be_the_dataset_its_images_or_a_split(tmp_path):
    root = vpr_folders(vpr_folders(tmp_path / "pitts30k"), "val")
    assert opened(root).split == "test"
    assert opened(root, split="val").split == "val"
    assert opened(root / "images").title == "pitts30k test"
    assert opened(root / "images" / "val").title == "pitts30k val"
    assert opened(root).published.queries == 6816
    assert opened(root, split="val").published is None
    with pytest.raises(DatasetError, match="has no split 'train'; it has test, val; expected database or gallery and queries"):
        opened(root, split="train")


def test_several_query_folders_are_versions(tmp_path):
    root = vpr_folders(
        vpr_folders(tmp_path / "svox", queries="queries_night", database="gallery"), queries="queries_sun", database="gallery"
    )
    assert opened(root, version="sun").title == "svox test (sun)"
    with pytest.raises(DatasetError, match="has the query folders queries_night, queries_sun; name one with --version: night, sun"):
        opened(root)
    with pytest.raises(DatasetError, match="queries_sun, none of version 'rain'"):
        opened(root, version="rain")
    shutil.rmtree(root / "images" / "test" / "queries_sun")
    assert opened(root).version == "night"


def test_both_sides_of_vpr_folders_share_one_frame(tmp_path):
    # The database lies west of the border of zones 31 and 32, the queries east of it.
    for i in range(3):
        write_image(tmp_path / "images/test/database" / utm_name(52.0, 5.99995 - i * 2.5e-4))
    write_image(tmp_path / "images/test/queries" / utm_name(52.0, 6.00005))
    benchmark = opened(tmp_path)
    assert benchmark.database.map_frame == benchmark.queries.map_frame == "utm31U"
    names = [record.name.split("@")[6] for record in benchmark.database.records]
    near = [i for i, lon in enumerate(names) if float(lon) > 5.9996]
    assert matches(benchmark) == [near] and len(near) == 2


def test_names_that_do_not_parse_are_listed(tmp_path):
    root = vpr_folders(tmp_path)
    for i in range(7):
        write_image(root / "images/test/queries" / f"@x{i}@2@.jpg")
    with pytest.raises(DatasetError, match=r"7 of 10 images .* carry no position.*: @x0@2@.jpg, .*, @x4@2@.jpg and 2 more"):
        opened(root)


# MSLS


def test_msls_740_is_subtask_all_without_panoramas_city_by_city(tmp_path):
    benchmark = opened(msls(tmp_path))
    assert (benchmark.title, benchmark.layout) == ("msls val (740)", "msls")
    assert benchmark.rule_text == "database image within 25 m (horizontal distance) of the query, in the same city"
    assert [record.name for record in benchmark.queries.records] == [
        f"{city}/query/images/{city}-query-{i}.jpg" for city in ("cph", "sf") for i in (0, 3)
    ]
    assert len(benchmark.database.records) == 10
    assert matches(benchmark) == [[0, 1, 2], [], [5, 6, 7], []]
    assert [record.condition for record in benchmark.queries.records] == [
        "day_forward_cph", "night_forward_cph", "day_forward_sf", "night_forward_sf",
    ]  # fmt: skip
    assert benchmark.queries.records[0].heading_deg == 40.0
    assert (benchmark.published.queries, benchmark.published.database) == (740, 18871)
    assert benchmark.database.map_frame == benchmark.queries.map_frame == "utm33U+10S"
    images_are_read(benchmark)


def test_msls_11k_keeps_every_query_and_pools_the_cities(tmp_path):
    benchmark = opened(msls(tmp_path), version="11k")
    assert benchmark.title == "msls val (11k)"
    assert benchmark.rule_text == "database image within 25 m (horizontal distance) of the query"
    assert [record.name[-5] for record in benchmark.queries.records] == ["0", "1", "3", "0", "1", "3"]
    assert matches(benchmark)[1] == [0, 1, 2, 3, 4]
    assert benchmark.published is None


def test_msls_train_and_test(tmp_path):
    root = msls(tmp_path)
    train = opened(root, split="train")
    assert train.title == "msls train"
    assert {record.name.partition("/")[0] for record in train.queries.records} == {"zurich"}
    assert len(train.queries.records) == 3  # no subtask in training
    msls_city(root, "miami", 25.8, -80.2, "test")
    test = opened(root, split="test")
    assert test.rule is None and test.rule_text == "no ground truth: predictions only"
    assert len(test.queries.records) == 3 and test.queries.records[0].pose is None
    with pytest.raises(DatasetError, match="msls test has no ground truth, so no query can be judged"):
        _ = test.positives
    with pytest.raises(DatasetError, match="has no split 'dev'; expected train, val or test"):
        opened(root, split="dev")
    with pytest.raises(DatasetError, match="layout msls has no version '12k'; expected one of 740, 11k"):
        opened(root, version="12k")


def test_msls_matches_stay_within_a_city_even_where_positions_coincide(tmp_path):
    # Two "cities" at one place: the rule of version 740 keeps them apart, that of 11k does not.
    msls_city(tmp_path, "cph", 55.67, 12.57)
    msls_city(tmp_path, "sf", 55.67, 12.57)
    assert matches(opened(tmp_path))[0] == [0, 1, 2]
    assert matches(opened(tmp_path, version="11k"))[0] == [0, 1, 2, 5, 6, 7]


def test_msls_that_is_incomplete(tmp_path):
    root = msls(tmp_path)
    (root / "train_val/sf/query/images/sf-query-0.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 4 images of the tables of .* are absent: sf/query/images/sf-query-0\.jpg; expected"):
        opened(root)
    benchmark = opened(root, allow_missing=True)
    assert benchmark.missing == ("sf/query/images/sf-query-0.jpg",)
    assert matches(benchmark) == [[0, 1, 2], [], []]
    raw = root / "train_val/cph/query/raw.csv"
    raw.write_text(raw.read_text().replace("cph-query-1", "other"))
    with pytest.raises(DatasetError, match=r"raw\.csv lists other images than subtask_index\.csv"):
        opened(root, allow_missing=True)
    raw.write_text("key,lon\n")
    with pytest.raises(DatasetError, match=r"raw\.csv lacks the columns lat, ca, pano; it has key, lon"):
        opened(root)
    raw.unlink()
    with pytest.raises(DatasetError, match=r"raw\.csv cannot be read: No such file"):
        opened(root)
    shutil.rmtree(root / "train_val/sf")
    with pytest.raises(DatasetError, match="lacks the cities sf; it has cph, zurich"):
        opened(root)


def test_msls_position_that_is_no_number(tmp_path):
    table = msls(tmp_path) / "train_val/cph/database/postprocessed.csv"
    table.write_text(table.read_text().replace(table.read_text().splitlines()[1].split(",")[2], "nan", 1))
    with pytest.raises(DatasetError, match="key cph-database-0: .*'easting': 'nan'.*; expected finite numbers"):
        opened(tmp_path)


# Nordland


def nordland_rule(frames: int, step: int, half_width: int) -> list[list[int]]:
    return [[j for j in range(frames) if abs(step * i - j) <= half_width] for i in range(-(-frames // step))]


@pytest.mark.parametrize(("version", "step", "half_width"), [("star", 10, 1), ("patch_netvlad", 1, 7), ("downloader", 1, 10)])
def test_nordland_has_three_rules(tmp_path, version, step, half_width):
    benchmark = opened(seasons(tmp_path, 33), version=version)
    assert benchmark.title == f"nordland ({version})"
    assert len(benchmark.queries.records) == -(-33 // step)
    assert matches(benchmark) == nordland_rule(33, step, half_width)
    assert benchmark.rule_text == f"database image at most {half_width} frame{'s' * (half_width > 1)} from the query's"
    assert {record.condition for record in benchmark.queries.records} == {"winter"}
    assert benchmark.published.queries == -(-27592 // step)
    images_are_read(benchmark)


def test_nordland_star_is_the_default_and_that_of_vpr_bench(tmp_path):
    numbered(tmp_path / "ref", 25)
    numbered(tmp_path / "query", 3)
    assert matches(opened(tmp_path)) == [[0, 1], [9, 10, 11], [19, 20, 21]]
    assert opened(tmp_path).title == "nordland (star)"
    with pytest.raises(DatasetError, match="has the folders ref and query of VPR-Bench; expected summer and winter"):
        opened(tmp_path, version="downloader")
    write_image(tmp_path / "query" / "9999.jpg")
    with pytest.raises(DatasetError, match="holds 4 queries and 25 references; expected 3 queries"):
        opened(tmp_path, layout="nordland")


def test_nordland_reads_the_clean_frames_only(tmp_path):
    root = seasons(tmp_path, 30)
    write_image(root / "summer" / "images-00000.png")
    with pytest.raises(DatasetError, match="holds 31 frames of summer and 30 of winter; expected the same frames of both; put cleanImage"):
        opened(root)
    (root / "cleanImageNames.txt").write_text("".join(f"images-{i + 202:05d}.png\n" for i in range(0, 30, 2)))
    benchmark = opened(root, version="patch_netvlad")
    assert len(benchmark.queries.records) == len(benchmark.database.records) == 15
    assert benchmark.queries.records[1].name == "images-00204.png"
    (root / "cleanImageNames.txt").write_text("other.png")
    with pytest.raises(DatasetError, match="lists none of the images beside it"):
        opened(root)


def test_published_rules_as_positions_are_windows_of_frames():
    """Radius 10 with unit steps along both axes; 25 m with steps of 25/10.5 m, cut to one decimal as in the names; 27592 frames."""
    from asymvpr_core.datasets.ground_truth import positives_within

    frames = np.arange(27592)
    steps = np.floor(frames * (25 / 10.5) * 10) / 10
    for positions, radius_m, half_width in (
        (np.stack([frames, frames], axis=1).astype(float), 10.0, 7),
        (np.stack([np.zeros_like(steps), steps], axis=1), 25.0, 10),
    ):
        by_distance = positives_within(positions, positions, radius_m)
        by_frame = FrameWindow(half_width, frames, frames).positives([], [])
        assert (by_distance.offsets == by_frame.offsets).all()
        assert (by_distance.indices == by_frame.indices).all()


def test_radius_and_split_are_refused_where_frames_or_pairs_count(tmp_path):
    root = seasons(tmp_path, 11)
    with pytest.raises(DatasetError, match="takes no radius_m, '25.0' was given: version star counts frames; leave --radius-m"):
        opened(root, radius_m=25.0)
    with pytest.raises(DatasetError, match="layout nordland takes no split"):
        opened(root, split="test")


# Pairs


def test_amstertime_pairs_by_name(tmp_path):
    numbered(tmp_path / "new", 4, ".png")
    numbered(tmp_path / "old", 3)
    write_image(tmp_path / "old" / "1230.jpg")
    benchmark = opened(tmp_path)
    assert (benchmark.title, benchmark.published.queries) == ("amstertime", 1231)
    assert benchmark.database.root.name == "new" and benchmark.queries.root.name == "old"
    assert matches(benchmark) == [[0], [1], [2], []]  # a query whose partner is missing stays
    assert benchmark.rule_text == "database image of the query's pair, which has its name"
    images_are_read(benchmark)
    write_image(tmp_path / "old" / "0001.png")
    with pytest.raises(DatasetError, match="holds 0001 with more than one suffix; expected each name once"):
        opened(tmp_path)


def test_sped_is_the_identity(tmp_path):
    numbered(tmp_path / "ref", 5)
    numbered(tmp_path / "query", 5)
    benchmark = opened(tmp_path)
    assert (benchmark.title, benchmark.published.database) == ("sped", 607)
    assert benchmark.queries.root.name == "query"
    assert matches(benchmark) == [[0], [1], [2], [3], [4]]
    images_are_read(benchmark)
    with pytest.raises(DatasetError, match="layout sped takes no version"):
        opened(tmp_path, version="x")


# Two sources of your own


def test_two_folders_without_positions_are_for_predictions_only(tmp_path):
    numbered(tmp_path / "database", 3)
    numbered(tmp_path / "queries", 2)
    benchmark = opened(tmp_path)
    assert (benchmark.layout, benchmark.rule) == ("two_sources", None)
    assert len(benchmark.database.records) == 3
    images_are_read(benchmark)
    with pytest.raises(DatasetError, match="takes no radius_m, '5.0' was given: .* has no positions.csv"):
        opened(tmp_path, radius_m=5.0)


def test_two_folders_with_a_csv_of_positions(tmp_path):
    numbered(tmp_path / "database", 3)
    numbered(tmp_path / "queries", 2)
    rows = [("database/0000.jpg", 10.0, 50.0), ("database/0002.jpg", 10.0001, 50.0), ("queries/0001.jpg", 10.0001, 50.0)]
    write_rows(tmp_path / "positions.csv", ["image", "lat", "lon"], rows)
    benchmark = opened(tmp_path, radius_m=5.0)
    assert [record.name for record in benchmark.database.records] == ["database/0000.jpg", "database/0002.jpg"]
    assert matches(benchmark) == [[1]]
    images_are_read(benchmark)
    write_rows(tmp_path / "positions.csv", ["image", "lat", "lon"], rows[:2])
    with pytest.raises(DatasetError, match="lists no image of queries/; expected image names such as queries/0001.jpg"):
        opened(tmp_path)


def test_two_csv(tmp_path):
    numbered(tmp_path / "a", 3)
    header = ["image", "x", "y", "z", "qx", "qy", "qz", "qw"]
    write_rows(tmp_path / "database.csv", header, [(f"a/000{i}.jpg", 20 * i, 0, 0, 0, 0, 0, 1) for i in range(2)])
    write_rows(tmp_path / "queries.csv", header, [("a/0002.jpg", 30, 0, 0, 0, 0, 0, 1)])
    assert matches(opened(tmp_path)) == [[1]]
    write_rows(tmp_path / "queries.csv", header, [("a/0003.jpg", 30, 0, 0, 0, 0, 0, 1)])
    with pytest.raises(DatasetError, match="1 of 1 images of .*queries.csv are absent"):
        opened(tmp_path, allow_missing=True)  # none is left
    write_rows(tmp_path / "queries.csv", header, [])
    with pytest.raises(DatasetError, match="queries.csv lists no images"):  # zero queries
        opened(tmp_path)


def test_two_bags(tmp_path):
    for side in ("database", "queries"):
        drive(tmp_path / side, frames=11)
    with pytest.raises(BagError, match="has 2 pose topics"):
        opened(tmp_path)
    source = SourceSettings(pose_topic="/ground_truth/pose", keyframes=None)
    benchmark = open_pair(tmp_path / "database", tmp_path / "queries", BenchmarkSettings(radius_m=0.25), source)
    assert matches(benchmark)[4] == [3, 4, 5]  # 0.2 m a frame
    assert benchmark.database.layout == "bag"


def test_pair_of_different_kinds_needs_one_frame(tmp_path):
    numbered(tmp_path / "a", 1)
    poses = write_rows(tmp_path / "a.csv", ["image", "x", "y", "z", "qx", "qy", "qz", "qw"], [("a/0000.jpg", 0, 0, 0, 0, 0, 0, 1)])
    write_image(tmp_path / "named" / utm_name(52.0, 5.0))
    with pytest.raises(DatasetError, match="the database has positions in frame 'map', the queries in frame 'utm31U'"):
        open_pair(poses, tmp_path / "named")


# One image, none, and the layouts as such


def test_one_database_image_is_a_benchmark(tmp_path):
    write_image(tmp_path / "images/test/database" / line_name(0))
    write_image(tmp_path / "images/test/queries" / line_name(5))
    assert matches(opened(tmp_path)) == [[0]]


def test_no_queries_and_no_database(tmp_path):
    root = vpr_folders(tmp_path)
    for image in (root / "images/test/queries").iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match="queries holds no images"):
        opened(root)
    (tmp_path / "sped" / "query").mkdir(parents=True)
    numbered(tmp_path / "sped" / "ref", 2)
    with pytest.raises(DatasetError, match="query holds no images"):
        opened(tmp_path / "sped", layout="sped")


def test_a_path_without_a_benchmark_lists_the_layouts(tmp_path):
    with pytest.raises(DatasetError, match="no layout recognises .*; expected one of vpr_folders: images/.*; two_sources: .*--layout"):
        opened(tmp_path)
    with pytest.raises(DatasetError, match="there is no folder .*absent"):
        opened(tmp_path / "absent")
    with pytest.raises(DatasetError, match="there is no layout 'pits'; known layouts: vpr_folders, msls"):
        opened(tmp_path, layout="pits")


def test_a_path_of_two_layouts_names_both(tmp_path):
    numbered(tmp_path / "database", 3)
    numbered(tmp_path / "queries", 2)
    numbered(tmp_path / "new", 4)
    numbered(tmp_path / "old", 4)
    with pytest.raises(DatasetError, match="could be read by the layouts amstertime, two_sources; choose one with --layout"):
        opened(tmp_path)
    assert opened(tmp_path, layout="amstertime").layout == "amstertime"


def test_no_layout_takes_the_folders_of_another(tmp_path):
    trees = {
        "vpr_folders": vpr_folders(tmp_path / "a"),
        "msls": msls(tmp_path / "b"),
        "nordland": seasons(tmp_path / "c", 11),
        "amstertime": tmp_path / "d",
        "sped": tmp_path / "e",
        "two_sources": tmp_path / "f",
    }
    for folder in ("d/old", "d/new", "e/ref", "e/query", "f/database", "f/queries"):
        numbered(tmp_path / folder, 2)
    assert set(trees) == {layout.name for layout in known_layouts()}
    for name, path in trees.items():
        assert [layout.name for layout in recognised_layouts(path)] == [name]


@pytest.fixture
def own_layout(tmp_path, monkeypatch):
    """A benchmark in the layout of examples/my_layout.py, which is importable and forgotten afterwards."""
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    monkeypatch.setattr(benchmark_source, "_LAYOUTS", dict(benchmark_source._LAYOUTS))
    root = tmp_path / "own"
    numbered(root / "images", 3)
    (root / "database.txt").write_text("images/0000.jpg 0 0\nimages/0001.jpg 30 0\n")
    (root / "queries.txt").write_text("images/0002.jpg 20 0\n")
    return root


def test_a_layout_of_your_own_by_its_import_path(own_layout):
    with pytest.raises(DatasetError, match="no layout recognises"):
        opened(own_layout)
    benchmark = opened(own_layout, layout="my_layout:LAYOUT")
    assert matches(benchmark) == [[0, 1]]
    images_are_read(benchmark)
    assert opened(own_layout, radius_m=15.0).layout == "my_layout"  # known and recognised from now on
    assert matches(opened(own_layout, radius_m=15.0)) == [[1]]


def test_a_layout_of_your_own_registered(own_layout):
    import my_layout

    register_layout(my_layout.LAYOUT)
    register_layout(my_layout.LAYOUT)
    assert opened(own_layout, layout="my_layout").title == "own"
    with pytest.raises(DatasetError, match="there is a layout 'sped' already: query/"):
        register_layout(my_layout.LAYOUT.__class__("sped", "other", lambda path: False, my_layout.open_my_layout))
    (own_layout / "queries.txt").write_text("images/0002.jpg north 0\n")
    with pytest.raises(DatasetError, match="line 1 is 'images/0002.jpg north 0'; expected image x y"):
        opened(own_layout)
    (own_layout / "queries.txt").write_text("images/0002.jpg nan 0\n")
    with pytest.raises(DatasetError, match=r"query image images/0002.jpg is at \(nan, 0\); expected finite metres"):
        _ = opened(own_layout).positives
    (own_layout / "queries.txt").write_text("images/0009.jpg 0 0\n")
    with pytest.raises(DatasetError, match="1 of 1 images of queries.txt are absent"):
        opened(own_layout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:LAYOUT", "cannot be imported: No module named 'no_such_module'"),
        ("my_layout:OTHER", "cannot be imported: .*OTHER"),
        ("my_layout:open_my_layout", "is a function; expected a Layout"),
    ],
)
def test_a_layout_that_cannot_be_imported(own_layout, name, message):
    with pytest.raises(DatasetError, match=message):
        opened(own_layout, layout=name)
