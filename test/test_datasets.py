"""Folders of named images and csv tables: real files through the loaders, and malformed ones."""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.datasets.source import open_source
from asymvpr_core.datasets.table import CsvDataset
from asymvpr_core.datasets.utm import UtmZone
from asymvpr_core.errors import DatasetError, ImageError

FULL_NAME = "@302818.48@5787827.87@31@U@52.2055679@0.1142114@pano7@2@450@1@2@17.5@20240131@sunny@.jpg"
SHORT_NAME = "@302900.00@5787900.50@@@@@frame0001@.jpg"


def write_image(path: Path, value: int = 100) -> bytes:
    """Write a grey picture and give its bytes."""
    data = cv2.imencode(path.suffix, np.full((12, 16, 3), value, np.uint8))[1].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def write_table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_folder_reads_positions_headings_and_bytes(tmp_path):
    written = {name: write_image(tmp_path / name, 10 * i) for i, name in enumerate([f"b/{FULL_NAME}", f"a/{SHORT_NAME}"])}
    dataset = open_source(tmp_path)
    assert (dataset.layout, dataset.root) == ("folder", tmp_path)
    assert [r.name for r in dataset.records] == [f"a/{SHORT_NAME}", f"b/{FULL_NAME}"]
    short, full = dataset.records
    assert short.pose.position == (302900.0, 5787900.5, 0.0)
    assert (short.heading_deg, short.lat_lon_deg, short.stamp_ns) == (None, None, None)
    assert full.heading_deg == 90.0  # 450 degrees
    assert full.pose.heading_deg == pytest.approx(90.0)
    assert full.pose.position[:2] == (302818.48, 5787827.87)
    assert full.lat_lon_deg == (52.2055679, 0.1142114)
    assert dict(dataset.read_encoded([0, 1])) == {i: written[r.name] for i, r in enumerate(dataset.records)}
    [(index, image)] = dataset.read_images([1])
    assert index == 1
    np.testing.assert_array_equal(image, np.zeros((12, 16, 3), np.uint8))


@pytest.mark.parametrize(
    ("names", "map_frame"),
    [
        (["@1@2@31@U@.jpg", "@3@4@31@U@.jpg"], "utm31U"),
        (["@1@2@31@U@.jpg", "@3@4@31@V@.jpg", "@5@6@31@V@.jpg"], "utm31V"),
        (["@500000@6000000@31@U@.jpg", "@500000@6000000@33@U@.jpg", "@500001@6000000@33@U@.jpg"], "utm33U+31U"),
        (["@1@2@99@I@.jpg", "@3@4@99@I@.jpg"], "utm99I"),
        (["@1@2@31@U@.jpg", "@3@4@.jpg"], "utm"),
        (["@1@2@.jpg"], "utm"),
        (["@1@2@@@.png"], "utm"),
    ],
)
def test_folder_map_frame(tmp_path, names, map_frame):
    for name in names:
        write_image(tmp_path / name)
    assert FolderDataset(tmp_path).map_frame == map_frame


def test_folder_ignores_other_files_and_hidden_ones(tmp_path):
    write_image(tmp_path / SHORT_NAME)
    write_image(tmp_path / ".thumbnails" / "x.jpg")
    write_image(tmp_path / "._hidden.jpg")
    (tmp_path / "README.md").write_text("words")
    assert [r.name for r in FolderDataset(tmp_path).records] == [SHORT_NAME]


def test_folder_lists_the_first_names_without_position(tmp_path):
    write_image(tmp_path / SHORT_NAME)
    for name in ["0.jpg", "1.jpg", "@x@5@.jpg", "@nan@5@.jpg", "@1@.jpg", "9.png", "@inf@1@.jpg"]:
        write_image(tmp_path / name)
    with pytest.raises(DatasetError) as caught:
        FolderDataset(tmp_path)
    message = str(caught.value)
    assert "7 of 8 images" in message
    assert "0.jpg, 1.jpg, 9.png, @1@.jpg, @inf@1@.jpg and 2 more" in message
    assert "@utm_e@utm_n@zone@letter" in message


def test_names_that_are_not_utf8_are_refused(tmp_path):
    folder = tmp_path / "images"
    data = write_image(folder / SHORT_NAME)
    (folder / os.fsdecode(b"@302900.00@5787900.50@@@@@\xff@.jpg")).write_bytes(data)
    with pytest.raises(DatasetError, match="1 of 2 images in .* have names that are not UTF-8") as caught:
        open_source(folder)
    str(caught.value).encode()  # the message itself can be printed
    folder.rename(tmp_path / os.fsdecode(b"\xfe"))
    with pytest.raises(DatasetError, match="the path .* is not UTF-8"):
        open_source(tmp_path / os.fsdecode(b"\xfe"))


def test_empty_missing_and_unknown_sources(tmp_path):
    with pytest.raises(DatasetError, match="holds no images; expected files named @utm_e"):
        open_source(tmp_path)
    with pytest.raises(DatasetError, match="there is no .*absent; expected a folder of images"):
        open_source(tmp_path / "absent")
    with pytest.raises(DatasetError, match="there is no folder"):
        FolderDataset(tmp_path / "absent")
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(DatasetError, match=r"words\.txt is of no known kind; expected a folder"):
        open_source(tmp_path / "words.txt")


def test_folder_image_that_is_truncated_or_vanishes(tmp_path):
    data = write_image(tmp_path / SHORT_NAME)
    dataset = FolderDataset(tmp_path)
    (tmp_path / SHORT_NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="frame0001.*truncated JPEG"):
        list(dataset.read_images([0]))
    (tmp_path / SHORT_NAME).unlink()
    with pytest.raises(ImageError, match="frame0001.*cannot be read"):
        list(dataset.read_encoded([0]))


def test_csv_with_poses(tmp_path):
    write_image(tmp_path / "images" / "a.png", 3)
    write_image(tmp_path / "images" / "b.png", 4)
    half = math.sqrt(0.5)
    path = write_table(
        tmp_path / "poses.csv",
        "image,x,y,z,qx,qy,qz,qw,stamp,place_id,remark",
        f"images/b.png, 1.5,2,3,0,0,{half},{half},1700000000.123456789,42,anything",
        "images/a.png,0,0,0,0,0,0,1,,,",
        "",
    )
    dataset = open_source(path)
    assert (dataset.layout, dataset.map_frame, dataset.root) == ("csv", "map", tmp_path)
    b, a = dataset.records
    assert (b.name, b.stamp_ns, b.place_id, b.pose.position) == ("images/b.png", 1_700_000_000_123_456_789, 42, (1.5, 2.0, 3.0))
    assert math.cos(math.radians(b.heading_deg)) == pytest.approx(1.0)  # facing +y
    assert (a.stamp_ns, a.place_id, a.heading_deg) == (None, None, 90.0)
    assert [(i, int(image[0, 0, 0])) for i, image in dataset.read_images([0, 1])] == [(0, 4), (1, 3)]


def test_csv_with_latitude_and_longitude_is_projected_to_one_utm_zone(tmp_path):
    # The position of FULL_NAME, and one 100 m of longitude to the west across the zone border at 0 degrees.
    for name in "ab":
        write_image(tmp_path / f"{name}.jpg")
    path = write_table(tmp_path / "t.csv", "\ufeffimage,lat,lon,heading", "a.jpg,52.2055679,0.1142114,-90", "b.jpg,52.2055679,-0.001,")
    dataset = CsvDataset(path)
    a, b = dataset.records
    assert dataset.map_frame == "utm31U"
    assert a.pose.position[:2] == pytest.approx((302818.48, 5787827.87), abs=0.01)
    assert (a.heading_deg, b.heading_deg) == (270.0, None)
    assert a.pose.heading_deg == pytest.approx(270.0)
    east_m = a.pose.position[0] - b.pose.position[0]
    assert east_m == pytest.approx(math.radians(0.1152114) * 6_391_000 * math.cos(math.radians(52.2055679)), rel=2e-3)


@pytest.mark.parametrize(
    ("lat", "lon", "name"),
    [
        (52.2, 0.1, "31U"),
        (-33.9, 151.2, "56H"),
        (60.4, 5.3, "32V"),
        (78.2, 15.6, "33X"),
        (0.0, -180.0, "1N"),
        (84.0, 179.99, "60X"),
        (-80, 180, "1C"),
    ],
)
def test_utm_zones(lat, lon, name):
    assert UtmZone.at(lat, lon).name == name


def test_utm_south_of_the_equator_has_false_northing():
    easting, northing = UtmZone.at(-33.9, 151.2).project(-33.9, 151.2)
    assert (easting, northing) == pytest.approx((333_568, 6_247_454), abs=300)


POSE_HEADER = "image,x,y,z,qx,qy,qz,qw"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,x,y,z", "a.jpg,0,0,0"], "lacks the columns qx, qy, qz, qw; it has image, x, y, z; expected image,x,y,z,qx"),
        (["image,lat", "a.jpg,0"], "lacks the columns lon; it has image, lat"),
        (["path,lat,lon", "a.jpg,0,0"], "lacks the columns image"),
        (["image,lat,lon,lat", "a.jpg,0,0,0"], "has a column twice"),
        ([""], "lacks the columns image, x.*it has"),
        ([POSE_HEADER], "lists no images"),
        ([POSE_HEADER, "a.jpg,0,nan,0,0,0,0,1"], "line 2: y is 'nan'; expected a finite number"),
        ([POSE_HEADER, "a.jpg,0,0,0,0,0,0,1", "a.jpg,,0,0,0,0,0,1"], "line 3: x is ''; expected a finite number"),
        ([POSE_HEADER, "a.jpg,0,0,0,0,0,0,0"], "line 2 has quaternion .* norm 0; expected a unit quaternion"),
        ([POSE_HEADER, "a.jpg,0,0,0,0,0,0"], "line 2 has 7 fields; expected 8"),
        ([POSE_HEADER, "../a.jpg,0,0,0,0,0,0,1"], r"line 2: image is '\.\./a\.jpg'; expected a path"),
        ([POSE_HEADER, "/etc/a.jpg,0,0,0,0,0,0,1"], "line 2: image is '/etc/a.jpg'; expected a path"),
        ([POSE_HEADER, "b/../../a.jpg,0,0,0,0,0,0,1"], "expected a path"),
        ([POSE_HEADER, ",0,0,0,0,0,0,1"], "line 2: image is ''"),
        ([POSE_HEADER, "a.jpg,0,0,0,0,0,0,1", "./a.jpg,0,0,0,0,0,0,1"], "lists images twice: a.jpg"),
        (["image,lat,lon", "a.jpg,151.2,-33.9"], "latitude 151.2, longitude -33.9; .*; the columns lat and lon look swapped: exchange"),
        ([POSE_HEADER, "a.jpg,0,0,0,0,0,0,1", "c.jpg,0,0,0,0,0,0,1"], "1 of 2 images .* are absent: c.jpg; expected"),
        (["image,lat,lon", "a.jpg,91,0"], "line 2: latitude 91, longitude 0; expected degrees"),
        (["image,lat,lon", "a.jpg,nan,0"], "line 2: lat is 'nan'"),
        (["image,lat,lon,heading", "a.jpg,0,0,north"], "line 2: heading is 'north'"),
        ([POSE_HEADER + ",stamp", "a.jpg,0,0,0,0,0,0,1,1700000000123456789"], "line 2: stamp is '17.*expected seconds"),
        ([POSE_HEADER + ",stamp", "a.jpg,0,0,0,0,0,0,1,noon"], "line 2: stamp is 'noon'; expected seconds"),
        ([POSE_HEADER + ",place_id", "a.jpg,0,0,0,0,0,0,1,1.5"], "line 2: place_id is '1.5'; expected a whole number"),
    ],
)
def test_malformed_csv_is_one_clear_error(tmp_path, lines, message):
    write_image(tmp_path / "data" / "a.jpg")
    write_image(tmp_path / "a.jpg")
    path = write_table(tmp_path / "data" / "t.csv", *lines)
    with pytest.raises(DatasetError, match=message) as caught:
        CsvDataset(path)
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        CsvDataset(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DatasetError, match="is no csv"):
        open_source(tmp_path / "binary.csv")
