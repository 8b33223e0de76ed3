"""Random text where csv, TUM, YAML and names of pictures are expected: read, or refused with an asymvpr error, never another one."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from asymvpr_core.config import SECTIONS, EvaluationSettings
from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.datasets.gsv_cities import COLUMNS as GSV_COLUMNS
from asymvpr_core.datasets.gsv_cities import GsvCitiesDataset
from asymvpr_core.datasets.image_names import parse_name
from asymvpr_core.datasets.table import CsvDataset
from asymvpr_core.datasets.trajectory import read_tum
from asymvpr_core.errors import AsymvprError, DatasetError, SettingsError
from asymvpr_core.evaluation.recorded import read_recording
from asymvpr_core.gallery.store import COLUMNS, read_keyframes
from asymvpr_core.settings_files import make_settings

# What a parser may trip over, beside text of all kinds.
ODD = (
    "", " ", "0", "-1", "1e308", "-1e309", "nan", "inf", "-Infinity", "1_0", "٣", "0x10", "1,5", "9" * 400, "1e999999999", "a.jpg", "b.jpg",
    "../a.jpg", "/a.jpg", "..", "a\0.jpg", "\ufeff", "\"", "'", "é.jpg", "1700000000.5", "9223372036854775807", "-9223372036854775809",
    "84.0", "-80.0", "180", "10" * 30, "1e400", "sNaN",
)  # fmt: skip
fields = st.one_of(st.sampled_from(ODD), st.sampled_from(ODD), st.floats().map(repr), st.integers().map(str), st.text(max_size=8))
values = st.one_of(st.floats(-100.0, 100.0).map(repr), fields)


def tables(columns: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    """csv files with about these columns, right or wrong; sometimes bytes that are none."""
    heads = st.one_of(st.just(list(columns)), st.permutations(columns), st.lists(st.one_of(st.sampled_from(columns), fields), max_size=9))

    @st.composite
    def table(draw: st.DrawFn) -> bytes:
        head = list(draw(heads))
        text = io.StringIO()
        writer = csv.writer(text, escapechar="\\")  # before Python 3.11 a null byte cannot be written without one
        writer.writerow(head)
        for _ in range(draw(st.integers(0, 3))):
            row = [draw(fields if name in ("image", "name", "camera", "panoid") else values) for name in head]
            writer.writerow(row[: len(row) - draw(st.sampled_from([0, 0, 0, 1]))])
        return text.getvalue().encode(errors="surrogatepass")

    return st.one_of(table(), table(), st.binary(max_size=60))


def only_asymvpr_errors(call: Callable[[], Any], kind: type[AsymvprError], path: Path) -> Any:
    """What the call gives; None where it refuses in one line that names the file."""
    try:
        return call()
    except kind as error:
        assert any(str(place) in str(error) for place in (path, path.parent, path.parent.parent))
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    return folder


@given(
    content=st.one_of(
        tables(("image", "x", "y", "z", "qx", "qy", "qz", "qw", "stamp", "place_id")), tables(("image", "lat", "lon", "heading"))
    )
)
def test_a_dataset_csv(folder: Path, content: bytes):
    path = folder / "set.csv"
    path.write_bytes(content)
    dataset = only_asymvpr_errors(lambda: CsvDataset(path), DatasetError, path)
    if dataset is not None:
        assert {record.name for record in dataset.records} <= {"a.jpg", "b.jpg"}


@given(content=tables(GSV_COLUMNS))
def test_a_table_of_gsv_cities(folder: Path, content: bytes):
    root = folder / "gsv"
    (root / "Images").mkdir(parents=True, exist_ok=True)
    (root / "Dataframes").mkdir(exist_ok=True)
    path = root / "Dataframes" / "Bangkok.csv"
    path.write_bytes(content)
    only_asymvpr_errors(lambda: GsvCitiesDataset(root, min_images_per_place=1), DatasetError, path)


@given(content=tables(COLUMNS))
def test_the_keyframes_of_a_gallery(folder: Path, content: bytes):
    path = folder / "keyframes.csv"
    path.write_bytes(content)
    for keyframe in only_asymvpr_errors(lambda: read_keyframes(path), AsymvprError, path) or ():
        assert not keyframe.name.startswith("/") and ".." not in keyframe.name.split("/")
        if keyframe.pose is not None:
            keyframe.pose.heading_deg  # noqa: B018 - a pose that is no rotation would fail here


@given(lines=st.one_of(st.lists(st.lists(values, min_size=7, max_size=9).map(" ".join), max_size=4).map("\n".join), st.text(max_size=60)))
@example(lines="1e999999999 0 0 0 0 0 0 1")
@example(lines="1e999999 0 0 0 0 0 0 1")
@example(lines="sNaN 0 0 0 0 0 0 1")
def test_a_tum_trajectory(folder: Path, lines: str):
    path = folder / "poses.tum"
    path.write_bytes(lines.encode(errors="surrogatepass"))
    trajectory = only_asymvpr_errors(lambda: read_tum(path), DatasetError, path)
    if trajectory is not None:
        trajectory.at(int(trajectory.stamps_ns[0]) + 1, 1.0)


@given(parts=st.lists(values, max_size=16))
def test_a_name_of_a_picture(parts: list[str]):
    named = parse_name("@" + "@".join(parts) + "@.jpg")
    assert named is None or all(abs(value) < float("inf") for value in named.xy_m)


@given(parts=st.lists(values.filter(lambda text: "/" not in text and "\0" not in text), min_size=2, max_size=9))
def test_a_folder_of_named_pictures(folder: Path, parts: list[str]):
    root = folder / "named"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    name = "@" + "@".join(parts) + "@.jpg"
    if len(name.encode(errors="surrogatepass")) < 250 and not any("\ud800" <= character <= "\udfff" for character in name):
        (root / name).touch()
        only_asymvpr_errors(lambda: FolderDataset(root), DatasetError, root / name)


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.sampled_from(ODD))
trees = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)), max_leaves=6
)
KEYS = sorted({key for section in SECTIONS.values() for key in section.model_fields})
sections = st.dictionaries(
    st.sampled_from(sorted(SECTIONS)), st.one_of(st.dictionaries(st.sampled_from(KEYS), trees, max_size=3), trees), max_size=3
)


@given(content=st.one_of(sections.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)), st.text(max_size=60)))
@example(content="train: 2001-99-99")
@example(content="train: !!int 0b")
@example(content="train: !!python/object/apply:os.system [true]")
@example(content="evaluation: " + "[" * 5000)
@example(content="evaluation: &a [*a]")
@example(content="{evaluation: {k: " + "9" * 5000 + "}}")
@example(content="? [a]\n: b")
@example(content="train: {epochs: 12:30:99999999999}")
def test_a_settings_file(folder: Path, content: str):
    path = folder / "settings.yaml"
    path.write_bytes(content.encode(errors="surrogatepass"))
    only_asymvpr_errors(lambda: make_settings(EvaluationSettings, path), SettingsError, path)


@given(content=st.one_of(st.lists(trees.map(lambda tree: yaml.safe_dump(tree)), max_size=3).map("\n".join), st.text(max_size=40)))
@example(content="[" * 100_000)
@example(content='{"topic": "a", "stamp_ns": ' + "9" * 5000 + "}")
def test_a_recording_of_matches(folder: Path, content: str):
    path = folder / "matches.jsonl"
    path.write_bytes(content.encode(errors="surrogatepass"))
    only_asymvpr_errors(lambda: read_recording(path), AsymvprError, path)
