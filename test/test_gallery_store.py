"""The gallery on disk: what was written is read back, and what is wrong is refused by name."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_artefacts import DIMENSION, make_gallery, make_picture, make_street

from asymvpr_core.errors import ArtefactError, ImageError
from asymvpr_core.gallery.store import COLUMNS, DESCRIPTORS, KEYFRAMES, Gallery, read_keyframes, write_keyframes
from asymvpr_core.manifest import digest_of, sha256_of
from asymvpr_core.types import Keyframe, Pose

FULL = Keyframe(
    name="front/12.jpg",
    pose=Pose((1.5, -2.25, 0.125), (0.0, 0.0, math.sin(0.3), math.cos(0.3))),
    heading_deg=33.5,
    stamp_ns=1_700_000_000_123_456_789,
    camera="front",
    lat_lon_deg=(50.12345678, -8.5),
    place_id=7,
)
BARE = Keyframe(name="unknown, with a comma.jpg")


@pytest.fixture
def street(tmp_path: Path) -> Path:
    return make_street(tmp_path / "gallery", n_keyframes=4, spacing_m=2.0)


def rewrite(gallery: Path, name: str, data: bytes) -> None:
    """Replace a file and its checksum: the content is wrong, the manifest agrees with it."""
    (gallery / name).write_bytes(data)
    edit_manifest(gallery, lambda raw: raw["files"].update({name: {"bytes": len(data), "sha256": sha256_of(gallery / name)}}))


def edit_manifest(gallery: Path, edit: Callable[[dict], object]) -> None:
    """Change the manifest on purpose: its own checksum goes along."""
    path = gallery / "manifest.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps({**raw, "manifest_sha256": digest_of(raw)}))


def test_keyframes_round_trip(tmp_path: Path):
    write_keyframes(tmp_path / KEYFRAMES, [FULL, BARE])
    full, bare = read_keyframes(tmp_path / KEYFRAMES)
    assert bare == BARE
    assert full.pose is not None and FULL.pose is not None
    assert full.pose.position == FULL.pose.position
    assert full.pose.quaternion == pytest.approx(FULL.pose.quaternion, abs=1e-9)
    assert (full.name, full.heading_deg, full.stamp_ns, full.camera, full.lat_lon_deg, full.place_id) == (
        "front/12.jpg", 33.5, 1_700_000_000_123_456_789, "front", (50.12345678, -8.5), 7,
    )  # fmt: skip


def test_keyframes_is_a_table_that_other_programs_read(tmp_path: Path):
    write_keyframes(tmp_path / KEYFRAMES, [FULL])
    with open(tmp_path / KEYFRAMES, newline="") as file:
        row = next(csv.DictReader(file))
    assert tuple(row) == COLUMNS
    assert (row["index"], row["x"], row["stamp_ns"], row["place_id"]) == ("0", "1.5000", "1700000000123456789", "7")


def test_open_gives_what_was_written(street: Path):
    gallery = Gallery.open(street)
    assert len(gallery) == 4
    assert gallery.map_frame == "map"
    assert gallery.descriptors.shape == (4, DIMENSION)
    assert isinstance(gallery.descriptors, np.memmap)  # a large gallery is not read into memory
    np.testing.assert_allclose(np.linalg.norm(gallery.descriptors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(gallery.positions, [[0, 0, 0], [2, 0, 0], [4, 0, 0], [6, 0, 0]])
    assert np.array_equal(gallery.read_image(2), make_picture(2))


def test_a_keyframe_without_pose_has_no_position(tmp_path: Path):
    gallery = Gallery.open(make_gallery(tmp_path / "gallery", [make_picture(0)], [Pose((1.0, 2.0, 3.0))]))
    nowhere = Gallery(gallery.path, gallery.manifest, gallery.descriptors, [Keyframe("a"), *gallery.keyframes])
    assert np.isnan(nowhere.positions[0]).all()
    assert nowhere.positions[1].tolist() == [1.0, 2.0, 3.0]


def test_an_empty_gallery_opens(tmp_path: Path):
    gallery = Gallery.open(make_gallery(tmp_path / "gallery", [], []))
    assert len(gallery) == 0
    assert gallery.positions.shape == (0, 3)


def test_pictures_of_a_folder_source_stay_there(tmp_path: Path, street: Path):
    edit_manifest(street, lambda raw: raw["details"].update(images_in_gallery=False))
    edit_manifest(street, lambda raw: raw["inputs"].update(source=str(tmp_path / "elsewhere")))
    gallery = Gallery.open(street)
    assert gallery.image_path(1) == tmp_path / "elsewhere" / gallery.keyframes[1].name
    with pytest.raises(ImageError, match="elsewhere"):
        gallery.read_image(1)


@pytest.mark.parametrize("name", [DESCRIPTORS, KEYFRAMES])
def test_a_flipped_byte_is_found_and_named(street: Path, name: str):
    data = bytearray((street / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (street / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{name} is damaged"):
        Gallery.open(street)


@pytest.mark.parametrize("name", [DESCRIPTORS, KEYFRAMES])
def test_a_missing_file_is_named(street: Path, name: str):
    (street / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name} is missing"):
        Gallery.open(street)


@pytest.mark.parametrize("name", ["map_frame", "images_in_gallery"])
def test_a_manifest_that_lacks_what_a_gallery_says_of_itself_is_refused(street: Path, name: str):
    edit_manifest(street, lambda raw: raw["details"].pop(name))
    with pytest.raises(ArtefactError, match="does not say its map_frame and images_in_gallery; rebuild"):
        Gallery.open(street)


def test_a_gallery_without_pictures_must_name_its_source(street: Path):
    edit_manifest(street, lambda raw: (raw["details"].update(images_in_gallery=False), raw["inputs"].clear()))
    with pytest.raises(ArtefactError, match="does not name its source"):
        Gallery.open(street)


@pytest.mark.parametrize("data", [b"", b"not numpy"])
def test_descriptors_that_are_no_array_are_refused(street: Path, data: bytes):
    rewrite(street, DESCRIPTORS, data)
    with pytest.raises(ArtefactError, match=r"descriptors\.npy cannot be read"):
        Gallery.open(street)


def test_pickled_descriptors_are_never_loaded(street: Path):
    np.save(street / DESCRIPTORS, np.array([{"code": "runs"}], dtype=object), allow_pickle=True)
    rewrite(street, DESCRIPTORS, (street / DESCRIPTORS).read_bytes())
    with pytest.raises(ArtefactError, match=r"descriptors\.npy cannot be read"):
        Gallery.open(street)


def test_one_descriptor_too_few_is_refused(street: Path):
    np.save(street / DESCRIPTORS, np.zeros((3, DIMENSION), np.float32))
    rewrite(street, DESCRIPTORS, (street / DESCRIPTORS).read_bytes())
    with pytest.raises(ArtefactError, match=rf"shape \(3, {DIMENSION}\); expected \(4, {DIMENSION}\)"):
        Gallery.open(street)


@pytest.mark.parametrize(
    ("line", "mention"),
    [
        ("0,../../etc/passwd" + "," * 13, "leaves its folder"),
        ("0,/etc/passwd" + "," * 13, "leaves its folder"),
        ("0,a.jpg,,,east,0,0,0,0,0,1,,,,", "could not convert"),
        ("0,a.jpg,,soon" + "," * 11, "invalid literal"),
        ("0,a.jpg", "damaged near row 0"),
        ("0,a.jpg" + "," * 20, "damaged near row 0"),
    ],
)
def test_damaged_rows_are_refused(tmp_path: Path, line: str, mention: str):
    (tmp_path / KEYFRAMES).write_text(",".join(COLUMNS) + "\n" + line + "\n")
    with pytest.raises(ArtefactError, match=mention):
        read_keyframes(tmp_path / KEYFRAMES)


@pytest.mark.parametrize("text", ["", "id,name\n"])
def test_another_table_is_refused(tmp_path: Path, text: str):
    (tmp_path / KEYFRAMES).write_text(text)
    with pytest.raises(ArtefactError, match=r"has columns .*expected index, name, camera"):
        read_keyframes(tmp_path / KEYFRAMES)
