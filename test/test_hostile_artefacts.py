"""A gallery or bank from a stranger who can write checksums: no code runs, nothing outside is read, and no memory goes for what it says."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import faiss
import numpy as np
import pytest
from descriptor_gallery import make_gallery as make_described_gallery
from descriptor_gallery import unit_rows
from memory_limit import refusal_within
from picture_files import encoded, noise
from test_damaged_images import jpeg_of_declared_size
from test_fuzz_artefacts import seal, vouch_for
from tiny_artefacts import DIMENSION, make_model, make_picture, make_street

from asymvpr_core.arrays import load_arrays, open_array
from asymvpr_core.config import BankSettings, IndexSettings, MatcherSettings
from asymvpr_core.datasets.gsv_cities import COLUMNS as GSV_COLUMNS
from asymvpr_core.datasets.gsv_cities import GsvCitiesDataset
from asymvpr_core.errors import ArtefactError, AsymvprError, DatasetError, RetrievalError, SettingsError
from asymvpr_core.gallery.store import DESCRIPTORS, KEYFRAMES, Gallery, decode_thumbnail, encode_thumbnail
from asymvpr_core.manifest import MANIFEST_NAME, read_manifest
from asymvpr_core.memory.store import FACTOR_OFFSETS, PLACES, StoredBank, build_bank
from asymvpr_core.networks.projection import Projection
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.calibration import CALIBRATION, read_calibration
from asymvpr_core.retrieval.gallery_index import INDEX, open_index
from asymvpr_core.retrieval.index import read_index
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.settings_files import make_settings
from asymvpr_core.types import QueryFrame


@pytest.fixture
def street(tmp_path: Path) -> Path:
    return make_street(tmp_path / "gallery", 4)


def put(folder: Path, name: str, data: bytes) -> None:
    """Write a file of an artefact, with size and checksum in its manifest."""
    (folder / name).write_bytes(data)
    vouch_for(folder, folder / name)


def npy_header(shape: tuple[int, ...], descr: str = "<f4", version: int = 1) -> bytes:
    """The header of an .npy file that declares an array; none of its bytes."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


# Declared sizes


@pytest.mark.parametrize(
    "header",
    [
        npy_header((10**15, DIMENSION)), npy_header((2**62, 4)), npy_header((2**63, 2**63)), npy_header((-1, DIMENSION)),
        npy_header((0, 10**30)), npy_header((10**10,), "|S0"), npy_header((4, DIMENSION), "|O"), npy_header((4, DIMENSION), "<f4", 3),
        b"\x93NUMPY\x01\0\xff\xff" + b"-" * 65_535, b"\x93NUMPY\x01\0\x09\0'''''''''", b"\x93NUMPY\x01\0\x20\0" + b"(" * 32, b"",
        b"\x93NUMPY\x02\0\xff\xff\xff\xff", b"PK\x03\x04" + bytes(40), b"\x80\x04cos\nsystem\n.",
    ],
    ids=range(15),
)  # fmt: skip
def test_arrays_that_declare_more_than_they_hold_are_refused_by_name(street: Path, header: bytes):
    put(street, DESCRIPTORS, header + bytes(100))
    with pytest.raises(ArtefactError, match=r"gallery/descriptors\.npy "):
        Gallery.open(street)


def test_an_array_of_ten_to_the_fifteen_costs_no_memory(tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(npy_header((10**15,)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy_header((10**9,)) + bytes(100))
    imports = "from pathlib import Path\nfrom asymvpr_core.arrays import load_arrays, open_array"
    for call in (f"open_array(Path('{tmp_path}/a.npy'), 'x')", f"load_arrays(Path('{tmp_path}/a.npz'), ('a',), 'x')"):
        assert "a.np" in refusal_within(50, imports, call)


def test_a_zip_bomb_costs_no_memory(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w", force_zip64=True) as file:
        file.write(npy_header((100 << 20,)))
        for _ in range(100):
            file.write(bytes(4 << 20))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    imports = "from pathlib import Path\nfrom asymvpr_core.arrays import load_arrays"
    said = refusal_within(50, imports, f"load_arrays(Path('{tmp_path}/bomb.npz'), ('a',), 'x')")
    assert "bomb.npz would become 4194" in said and "expected at most" in said


def test_a_zip_whose_directory_lies_about_a_size_is_refused(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 20, np.float32))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24  # of the uncompressed size in the central directory
    assert struct.unpack_from("<I", data, place)[0] == (4 << 20) + 128
    struct.pack_into("<I", data, place, 1000)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"a\.npz cannot be read"):
        load_arrays(tmp_path / "a.npz", ("a",), "x")


def test_arrays_of_a_projection_are_never_unpickled(tmp_path: Path):
    np.savez(tmp_path / "projection.npz", mean=np.array([{"code": "runs"}], dtype=object), matrix=np.zeros((2, 2), np.float32))
    with pytest.raises(ArtefactError, match=r"projection\.npz cannot be read: it holds pickled objects"):
        Projection.load(tmp_path / "projection.npz")


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_that_declares_absurd_sizes_costs_no_memory(tmp_path: Path, kind: str):
    vectors = unit_rows(300, 16)
    index = faiss.index_factory(16, "HNSW8" if kind == "hnsw" else "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    whole = tmp_path / "whole.faiss"
    faiss.write_index(index, str(whole))
    data, refused = whole.read_bytes(), 0
    # Eight bytes in which one of the lengths is: everywhere where a small number stands.
    places = [place for place in range(0, len(data) - 8) if 0 < int.from_bytes(data[place : place + 8], "little") <= 20_000][:40]
    paths = []
    for number, place in enumerate(places):
        for length in (10**9, 2**38):
            path = tmp_path / f"{kind}_{number}_{length}.faiss"
            path.write_bytes(data[:place] + struct.pack("<q", length) + data[place + 8 :])
            paths.append(str(path))
    code = f"""
from asymvpr_core.errors import RetrievalError
refused = 0
for path in {paths!r}:
    try:
        read_index(path)
    except RetrievalError as error:
        assert path in str(error)
        refused += 1
raise RetrievalError(f"{{refused}} refused")"""
    imports = "from asymvpr_core.retrieval.index import read_index"
    refused = int(refusal_within(200, imports, "exec(" + repr(code) + ")").split()[0])
    assert refused >= 10
    assert read_index(whole).ntotal == 300  # and the limits are not in the way of a whole one


def test_a_thumbnail_that_is_a_bomb_is_refused_by_its_header():
    small = encode_thumbnail(make_picture(1), 320)
    assert decode_thumbnail(small, "x").shape == (120, 160)
    place = small.index(b"\xff\xc0") + 5
    for height, width in ((65_000, 65_000), (1, 5000), (0, 5)):
        bomb = small[:place] + struct.pack(">HH", height, width) + small[place + 4 :]
        with pytest.raises(ArtefactError, match=f"thumbnail image thumbnails/00000001.jpg is {width} x {height}"):
            decode_thumbnail(bomb, "thumbnails/00000001.jpg")
    with pytest.raises(ArtefactError, match="thumbnail image x"):
        decode_thumbnail(encoded(noise(8, 8), "PNG"), "x")


def test_a_picture_that_is_a_bomb_is_refused_by_its_header(street: Path):
    gallery = Gallery.open(street)
    put(street, str(gallery.image_path(0).relative_to(street)), jpeg_of_declared_size(65_000, 65_000))
    gallery = Gallery.open(street)
    with pytest.raises(DatasetError, match=r"00000\.png is 65000 x 65000; expected at most"):
        gallery.read_image(0)


# JSON and YAML


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [60, 990, 100_000])
@pytest.mark.parametrize("name", [MANIFEST_NAME, INDEX, CALIBRATION])
def test_json_that_is_nested_too_deep_is_refused_by_name(street: Path, name: str, depth: int, opening: str):
    gallery = Gallery.open(street)
    text = opening * depth + "1" + {"[": "]", '{"a":': "}"}[opening] * depth
    (street / name).write_text('{"details": ' + text + "}")
    read = {
        MANIFEST_NAME: lambda: read_manifest(street, "gallery"),
        INDEX: lambda: open_index(gallery),
        CALIBRATION: lambda: read_calibration(street),
    }
    with pytest.raises(ArtefactError, match=f"gallery/{name} is damaged: nested more than 50 deep"):
        read[name]()


@pytest.mark.parametrize("name", [MANIFEST_NAME, INDEX, CALIBRATION])
def test_a_pipe_or_a_device_in_place_of_json_is_refused(street: Path, name: str):
    gallery = Gallery.open(street)
    (street / name).unlink(missing_ok=True)
    os.mkfifo(street / name)
    read = {
        MANIFEST_NAME: lambda: read_manifest(street, "gallery"),
        INDEX: lambda: open_index(gallery),
        CALIBRATION: lambda: read_calibration(street),
    }
    with pytest.raises(ArtefactError, match=f"gallery/{name} is no regular file"):
        read[name]()
    (street / name).unlink()
    (street / name).symlink_to("/dev/zero")
    with pytest.raises(ArtefactError, match=f"gallery/{name} is a link to /dev/zero, outside its folder"):
        read[name]()


def test_aliases_that_stand_for_gigabytes_are_refused(tmp_path: Path):
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (tmp_path / "laughs.yaml").write_text("\n".join([*lines, "evaluation: {k: *a29}"]))
    (tmp_path / "circle.yaml").write_text("evaluation: &a {k: [*a, *a, *a]}")
    imports = "from pathlib import Path\nfrom asymvpr_core.config import EvaluationSettings\n"
    imports += "from asymvpr_core.settings_files import make_settings"
    for name in ("laughs", "circle"):
        said = refusal_within(50, imports, f"make_settings(EvaluationSettings, Path('{tmp_path}/{name}.yaml'))")
        assert f"{name}.yaml has more than 10000 parts once its aliases are put in" in said


def test_aliases_that_save_typing_are_read(tmp_path: Path):
    from asymvpr_core.config import EvaluationSettings

    (tmp_path / "s.yaml").write_text("evaluation: {k: &k [1, 5]}\ntrain: {epochs: 3}\n")
    assert make_settings(EvaluationSettings, tmp_path / "s.yaml").k == (1, 5)


def test_yaml_tags_make_no_objects(tmp_path: Path):
    from asymvpr_core.config import EvaluationSettings

    for tag in ("!!python/object/apply:os.system [touch ran]", "!!python/name:os.system x", "!!python/object/new:type []"):
        (tmp_path / "s.yaml").write_text(f"evaluation: {{k: {tag}}}")
        with pytest.raises(SettingsError, match=r"s\.yaml is not YAML: could not determine a constructor"):
            make_settings(EvaluationSettings, tmp_path / "s.yaml")


# Names and links


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..", ".", "", "a\0b"])
def test_a_manifest_that_lists_a_file_outside_is_refused(street: Path, name: str):
    content = json.loads((street / MANIFEST_NAME).read_text())
    content["files"][name] = content["files"].pop(DESCRIPTORS)
    seal(street / MANIFEST_NAME, content)
    with pytest.raises(ArtefactError, match=rf"gallery/{MANIFEST_NAME} lists '.*', a path outside its folder; do not use this artefact"):
        read_manifest(street, "gallery")


@pytest.mark.parametrize("name", [DESCRIPTORS, KEYFRAMES])
def test_a_file_that_is_a_link_to_outside_is_refused_although_its_checksum_is_right(street: Path, name: str):
    secret = street.parent / "secret"
    (street / name).rename(secret)
    (street / name).symlink_to(secret)
    with pytest.raises(ArtefactError, match=rf"gallery/{name} is a link to .*secret, outside its folder; expected the file itself"):
        Gallery.open(street)
    (street / name).unlink()
    (street / name).symlink_to(street / name)
    with pytest.raises(ArtefactError, match=rf"gallery/{name}'? (cannot be read|is missing)"):
        Gallery.open(street)


def test_a_folder_that_is_a_link_to_outside_is_refused(street: Path):
    (street / "images").rename(street.parent / "elsewhere")
    (street / "images").symlink_to(street.parent / "elsewhere")
    with pytest.raises(ArtefactError, match=r"\.png is a link to .*elsewhere.*, outside its folder"):
        Gallery.open(street).read_image(0)


def test_a_gallery_may_itself_be_reached_through_a_link(street: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(street)
    gallery = Gallery.open(tmp_path / "link")
    assert gallery.read_image(1).shape == (120, 160, 3)


@pytest.mark.parametrize("name", ["../../a.jpg", "/a.jpg", "a\\..\\b.jpg", "a\0.jpg", ""])
def test_keyframes_that_name_pictures_outside_are_refused(street: Path, name: str):
    lines = (street / KEYFRAMES).read_text().splitlines()
    fields = lines[1].split(",")
    put(street, KEYFRAMES, "\n".join([lines[0], ",".join([fields[0], name, *fields[2:]]), *lines[2:]]).encode())
    with pytest.raises(ArtefactError, match=r"keyframes\.csv is damaged near row 0: (image name '.*' leaves its folder|line contains NUL)"):
        Gallery.open(street)


@pytest.mark.parametrize(("column", "value"), [("city_id", "../../.."), ("panoid", "/../../../x")])
def test_a_table_of_gsv_cities_that_names_pictures_outside_is_refused(tmp_path: Path, column: str, value: str):
    row = dict.fromkeys(GSV_COLUMNS, "1") | {"city_id": "Bangkok", "lat": "13.5", "lon": "100.5", "panoid": "p", column: value}
    (tmp_path / "Images").mkdir()
    (tmp_path / "Dataframes").mkdir()
    (tmp_path / "Dataframes" / "Bangkok.csv").write_text(",".join(GSV_COLUMNS) + "\n" + ",".join(row[name] for name in GSV_COLUMNS) + "\n")
    with pytest.raises(DatasetError, match="names images outside of"):
        GsvCitiesDataset(tmp_path, min_images_per_place=1)


# Numbers that lead elsewhere


@pytest.mark.parametrize("fields", [("nan", "0", "0"), ("inf", "0", "0"), ("1e308", "1e308", "1e308")])
def test_keyframes_at_no_place_are_refused(street: Path, fields: tuple[str, str, str]):
    lines = (street / KEYFRAMES).read_text().splitlines()
    row = lines[1].split(",")
    put(street, KEYFRAMES, "\n".join([lines[0], ",".join([*row[:4], *fields, *row[7:]]), *lines[2:]]).encode())
    with pytest.raises(ArtefactError, match=r"keyframes\.csv is damaged near row 0: position .* no rigid transform"):
        Gallery.open(street)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_descriptors_that_are_no_numbers_match_nothing(street: Path, tmp_path: Path, value: float):
    descriptors = np.load(street / DESCRIPTORS)
    descriptors[:] = value
    file = io.BytesIO()
    np.save(file, descriptors)
    put(street, DESCRIPTORS, file.getvalue())
    recogniser = PlaceRecogniser.open(street, make_model(tmp_path / "model"), MatcherSettings(sequence="off"))
    try:
        result = recogniser.process(make_picture(1), QueryFrame(1)).prior
    except AsymvprError as error:
        assert "not finite" in str(error)
    else:
        assert not result.accepted and all(0 <= candidate.keyframe_index < 4 for candidate in result.candidates)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i4", "<c8", "<U1", "|b1", "<M8[s]"])
def test_descriptors_of_another_type_are_refused(street: Path, dtype: str):
    file = io.BytesIO()
    np.save(file, np.zeros((4, DIMENSION), dtype))
    put(street, DESCRIPTORS, file.getvalue())
    with pytest.raises(ArtefactError, match=r"descriptors\.npy is of type .*; expected float16 or float32, row by row"):
        Gallery.open(street)


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("counts.npy", np.zeros((), np.int64), "counts.npy is int64 of shape"),
        ("counts.npy", np.full(10, 4.0), "counts.npy is float64 of shape"),
        ("centroids.npy", np.zeros((10, 16), np.int8), "centroids.npy is int8 of shape"),
        (PLACES, np.full(40, 99), "places.npy does not number the places"),
        (PLACES, np.full(40, -1), "places.npy does not number the places"),
        (PLACES, np.zeros(40, np.int64), "places.npy does not number the places"),
        (FACTOR_OFFSETS, np.array([0, 9, *range(2, 10), 20]), "factor_offsets.npy does not increase from 0"),
        (FACTOR_OFFSETS, np.zeros((0,), np.int64), "have shapes"),
    ],
)
def test_a_bank_whose_numbers_lead_out_of_its_arrays_is_refused(tmp_path: Path, name: str, array: np.ndarray, says: str):
    gallery = make_described_gallery(tmp_path / "gallery", unit_rows(40, 16), np.arange(40) // 4)
    bank = build_bank(gallery, BankSettings(rank=2), tmp_path / "bank")
    StoredBank.open(bank)
    file = io.BytesIO()
    np.save(file, array)
    put(bank, name, file.getvalue())
    with pytest.raises(ArtefactError, match=says):
        StoredBank.open(bank)


def test_an_index_file_that_is_a_link_to_outside_is_refused(tmp_path: Path):
    gallery = make_described_gallery(tmp_path / "gallery", unit_rows(100, 16), np.arange(100) // 4)
    index_gallery(gallery, IndexSettings(kind="hnsw"))
    (file,) = gallery.glob("index-*.faiss")
    file.rename(tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(ArtefactError, match=r"index-.*faiss is a link to .*secret, outside its folder"):
        open_index(Gallery.open(gallery))


def test_an_index_of_another_kind_than_its_manifest_says_is_refused(tmp_path: Path):
    gallery = make_described_gallery(tmp_path / "gallery", unit_rows(100, 16), np.arange(100) // 4)
    index_gallery(gallery, IndexSettings(kind="hnsw"))
    (path,) = gallery.glob("index-*.faiss")
    faiss.write_index(faiss.index_factory(16, "Flat", faiss.METRIC_L2), str(path))
    vouch_for(gallery, path)
    with pytest.raises((ArtefactError, RetrievalError), match="index-"):
        open_index(Gallery.open(gallery))


def test_the_size_of_the_file_is_what_an_open_array_is_checked_against(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(open_array(tmp_path / "a.npy", "x"), np.arange(12).reshape(3, 4))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-1])
    with pytest.raises(ArtefactError, match=r"declares an array of shape \(3, 4\), 48 bytes, and the file has 175; x"):
        open_array(tmp_path / "a.npy", "x")
