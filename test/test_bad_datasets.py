"""What is wrong with a dataset, through every command that reads one: one line on stderr, exit 1, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_benchmarks import line_name
from test_cli import refused, run
from tiny_artefacts import encode_jpeg, make_model, make_picture, make_street, revisit

POSES = "image,x,y,z,qx,qy,qz,qw"
NETWORK = ["--network", "efficientnet_lite0_gem", "--threads", "1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: ten pictures, and a csv `good.csv` of them, 2 m apart."""
    monkeypatch.chdir(tmp_path)
    for i in range(10):
        Path(f"{i}.jpg").write_bytes(encode_jpeg(make_picture(i)))
    table("good.csv", POSES, *[f"{i}.jpg,{2 * i},0,0,0,0,0,1" for i in range(10)])
    return tmp_path


def table(name: str, *lines: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def named(folder: str, *names: str) -> str:
    for i, name in enumerate(names):
        (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(encode_jpeg(make_picture(i)))
    return folder


def missing_columns() -> tuple[str, list[str]]:
    return table("bad.csv", "image,x,y", "0.jpg,0,0"), ["lacks the columns z, qx, qy, qz, qw; it has image, x, y"]


def missing_longitude() -> tuple[str, list[str]]:
    return table("bad.csv", "image,lat", "0.jpg,48"), ["lacks the columns lon; it has image, lat"]


def nan_coordinates() -> tuple[str, list[str]]:
    return table("bad.csv", POSES, "0.jpg,0,0,0,0,0,0,1", "1.jpg,nan,0,0,0,0,0,1"), ["line 3: x is 'nan'; expected a finite number"]


def nan_latitude() -> tuple[str, list[str]]:
    return table("bad.csv", "image,lat,lon", "0.jpg,NaN,11"), ["line 2: lat is 'NaN'"]


def swapped_beyond_utm() -> tuple[str, list[str]]:
    return table("bad.csv", "image,lat,lon", "0.jpg,151.2,-33.9"), ["lat and lon look swapped: exchange their names"]


def names_that_do_not_parse() -> tuple[str, list[str]]:
    names = [f"picture{i}.jpg" for i in range(7)]
    return named("bad", line_name(1.0), *names), ["7 of 8 images", *names[:5], "and 2 more", "@utm_e@utm_n@"]


def names_that_are_nan() -> tuple[str, list[str]]:
    return named("bad", "@nan@5@.jpg"), ["1 of 1 images", "@nan@5@.jpg"]


def images_listed_but_absent() -> tuple[str, list[str]]:
    rows = [f"gone{i}.jpg,0,0,0,0,0,0,1" for i in range(7)]
    return table("bad.csv", POSES, *rows), ["7 of 7 images", "gone0.jpg, gone1.jpg, gone2.jpg, gone3.jpg, gone4.jpg and 2 more"]


def no_rows() -> tuple[str, list[str]]:
    return table("bad.csv", POSES), ["lists no images"]


def no_images() -> tuple[str, list[str]]:
    Path("bad").mkdir()
    return "bad", ["holds no images"]


def nothing_there() -> tuple[str, list[str]]:
    return "bad", ["there is no bad"]


BAD = [
    missing_columns, missing_longitude, nan_coordinates, nan_latitude, swapped_beyond_utm, names_that_do_not_parse, names_that_are_nan,
    images_listed_but_absent, no_rows, no_images, nothing_there,
]  # fmt: skip


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_every_command_refuses_in_one_line(make: Callable[[], tuple[str, list[str]]]):
    path, words = make()
    before = sorted(Path.cwd().iterdir())
    commands = [
        ["dataset", "info", path],
        ["gallery", "build", path, "--out", "out"],
        ["evaluate", "pairs", "--database", "good.csv", "--queries", path, *NETWORK, "--out", "out"],
        ["evaluate", "pairs", "--database", path, "--queries", "good.csv", *NETWORK, "--out", "out"],
    ]
    for command in commands:
        error = refused(*command)
        assert all(word in error for word in words), error
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_gallery_refuses_the_queries(make: Callable[[], tuple[str, list[str]]]):
    make_street(Path("map"), n_keyframes=3)
    make_model(Path("model"))
    path, words = make()
    for what in ("recall", "pairs"):
        error = refused("evaluate", what, "--gallery", "map", "--queries", path, "--model", "model", "--out", "out")
        assert all(word in error for word in words), error
    assert not Path("out").exists()


def test_zero_queries_of_a_benchmark():
    named("set/database", line_name(0.0), line_name(10.0))
    Path("set/queries").mkdir()
    evaluate = ["evaluate", "pairs", "--benchmark", "set", *NETWORK, "--out", "out"]
    for command in (["dataset", "info", "set"], evaluate):
        assert "set/queries holds no images" in refused(*command)


def test_one_side_swapped_explains_why_nothing_matches():
    table("database.csv", "image,lat,lon", *[f"{i}.jpg,48.{i},11.5" for i in range(5)])
    table("queries.csv", "image,lat,lon", *[f"{i}.jpg,11.5,48.{i}" for i in range(5)])
    error = refused("evaluate", "pairs", "--database", "database.csv", "--queries", "queries.csv", *NETWORK, "--out", "out")
    assert "none of 5 queries has a correct match" in error and "latitude and longitude swapped: exchange the columns" in error
    code, stdout, _ = run("dataset", "info", ".", "--layout", "two_sources")
    assert code == 0 and "warning: the queries lie far from the database, and among it with latitude and longitude swapped" in stdout


def test_swapped_rows_are_warned_of():
    rows = [f"{i}.jpg,48.{i},11.5" for i in range(9)]
    table("database.csv", "image,lat,lon", *rows, "9.jpg,11.5,48.0")
    table("queries.csv", "image,lat,lon", *rows)
    code, stdout, stderr = run(
        "evaluate",
        "pairs",
        "--database",
        "database.csv",
        "--queries",
        "queries.csv",
        *NETWORK,
        "--bootstrap-resamples",
        "0",
        "--out",
        "out",
    )
    assert code == 0, stderr
    (warning,) = json.loads(Path("out/metrics.json").read_text())["warnings"]
    assert "1 images lie far from the others" in warning and "the first is 9.jpg" in warning
    printed = "".join(stdout.split())
    assert "".join(warning.split()) in printed and warning in Path("out/report.html").read_text()


def test_one_database_image_and_a_k_beyond_it():
    """Defined, and said: not an error."""
    table("one.csv", POSES, "0.jpg,0,0,0,0,0,0,1")
    Path("again.jpg").write_bytes(encode_jpeg(revisit(make_picture(0))))
    table("queries.csv", POSES, "again.jpg,1,0,0,0,0,0,1", "1.jpg,500,0,0,0,0,0,1")
    code, stdout, stderr = run("evaluate", "pairs", "--database", "one.csv", "--queries", "queries.csv", *NETWORK, "--out", "out")
    assert code == 0, stderr
    metrics = json.loads(Path("out/metrics.json").read_text())
    (system,) = metrics["systems"].values()
    assert set(system["recall_at_k"].values()) == {1.0} and system["n_without_positive"] == 1
    assert [warning.partition(":")[0] for warning in metrics["warnings"]] == [
        "the database is one image", "K = 10 is larger than the 1 images that are searched",
    ]  # fmt: skip
    assert "warning: the database is one image" in stdout
    table("database.csv", POSES, "0.jpg,0,0,0,0,0,0,1")
    code, stdout, _ = run("dataset", "info", ".", "--layout", "two_sources")
    assert code == 0 and "warning: the database is one image" in stdout
    code, _, stderr = run("gallery", "build", "one.csv", *NETWORK, "--out", "map")
    assert code == 1 and stderr.splitlines()[-1].startswith("asymvpr: a projection cannot be fitted on 1 image")
    code, _, stderr = run("gallery", "build", "one.csv", *NETWORK, "--projection-dim", "0", "--out", "other_map")
    assert code == 0, stderr
