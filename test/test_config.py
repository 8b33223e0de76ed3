"""Settings: flag over file over default, and nothing misspelt is silently ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from asymvpr_core import config
from asymvpr_core.config import SECTIONS, EvaluationSettings, GallerySettings, MatcherSettings, Settings, SourceSettings, TrainSettings
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.errors import SettingsError
from asymvpr_core.settings_files import make_settings

ALL_KINDS = [
    kind
    for kind in (*vars(config).values(), TownSettings)
    if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Settings
]


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_flag_beats_file_beats_default(tmp_path: Path):
    file = write(tmp_path, "train: {epochs: 3, gamma: 7.0}\n")
    settings = make_settings(TrainSettings, file, epochs=9, gamma=None)
    assert settings.epochs == 9
    assert settings.gamma == 7.0
    assert settings.batch_size == TrainSettings().batch_size


def test_each_stage_reads_its_own_section(tmp_path: Path):
    file = write(tmp_path, "train: {threads: 3}\ngallery: {threads: 4}\nruntime: {threads: 5}\n")
    assert make_settings(TrainSettings, file).threads == 3
    assert make_settings(GallerySettings, file).threads == 4
    assert make_settings(MatcherSettings, file) == MatcherSettings()


def test_null_in_the_file_is_a_value(tmp_path: Path):
    file = write(tmp_path, "gallery: {projection_dim: null}\nsource: {keyframes: null}\n")
    assert make_settings(GallerySettings, file).projection_dim is None
    assert make_settings(SourceSettings, file).keyframes is None


def test_empty_file_means_defaults(tmp_path: Path):
    assert make_settings(GallerySettings, write(tmp_path, "# nothing yet\n")) == GallerySettings()


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("gallery: {netwrok: x}\n", "unknown setting 'netwrok'"),
        ("train: {cells: {cell_size: 3}}\n", "unknown setting 'cells.cell_size'"),  # at depth
        ("train: {epochs: 3}\ntraining: {epochs: 3}\n", "unknown section 'training'"),
        ("epochs: 3\n", "unknown section 'epochs'"),
        ("train: {epochs: many}\n", "setting 'epochs' is 'many'"),
        ("train: {epochs: -1}\n", "setting 'epochs' is -1"),
        ("train: {loss: triplet}\n", "'d3still' or 'symmetric'"),
        ("train: {3: 4}\n", "'3'"),
        ("train: 7\n", "section 'train' is 7"),
        ("- train\n", "holds a list"),
        ("train: {epochs: [1\n", "is not YAML"),
        ("train: {learning_rate: .inf}\n", "setting 'learning_rate' is inf: input should be a finite number"),
        ("train: {seed: 4294967296}\n", "less than 4294967296"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text: str, mention: str):
    # Read for the gallery: a wrong section of another stage is refused all the same.
    with pytest.raises(SettingsError) as caught:
        make_settings(GallerySettings, write(tmp_path, text))
    assert mention in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_setting_lists_the_known():
    with pytest.raises(SettingsError, match="known: radius_m, max_yaw_deg, ignore_ring_m, k"):
        make_settings(EvaluationSettings, radius=3.0)
    with pytest.raises(SettingsError, match="known: cell_size_m, heading_sectors$"):
        make_settings(TrainSettings, cells={"cell_size": 3.0})
    with pytest.raises(SettingsError, match="known: min_distance_m, min_yaw_deg, min_interval_s, max_pose_gap_s$"):
        make_settings(SourceSettings, keyframes={"distance": 3.0})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "settings.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"settings\.yaml is no text file; expected a YAML file in UTF-8"):
        make_settings(GallerySettings, tmp_path / "settings.yaml")


def test_unreadable_file_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"missing\.yaml cannot be read"):
        make_settings(GallerySettings, tmp_path / "missing.yaml")


def test_k_must_be_positive():
    with pytest.raises(SettingsError, match=r"setting 'k\.1' is 0"):
        make_settings(EvaluationSettings, k=(1, 0))
    with pytest.raises(SettingsError, match=r"setting 'k\.0' is 0: input should be greater than 0$"):  # and not "k is too short" as well
        make_settings(EvaluationSettings, k=(0,))


def test_settings_cannot_be_changed_later():
    settings = TrainSettings()
    with pytest.raises(ValidationError):
        settings.epochs = 4


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_valid_default_and_a_description(kind: type[Settings]):
    kind()
    for name, field in kind.model_fields.items():
        is_group = isinstance(field.default, Settings)
        assert field.description or is_group, f"{kind.__name__}.{name} has no description"


@pytest.mark.parametrize("kind", SECTIONS.values(), ids=SECTIONS.keys())
def test_saved_settings_can_be_read_again(kind: type[Settings]):
    # Manifests hold settings as JSON; a run is repeated from them.
    assert kind.model_validate(kind().model_dump(mode="json")) == kind()


def test_a_recipe_lies_beneath_the_file_and_the_flags(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("train: {batch_size: 16}\n")
    recipe = make_settings(TrainSettings, recipe="small_site")
    assert recipe.batch_size != TrainSettings().batch_size and recipe.epochs != TrainSettings().epochs
    both = make_settings(TrainSettings, file, recipe="small_site", gamma=2.5)
    assert (both.batch_size, both.gamma, both.epochs) == (16, 2.5, recipe.epochs)
    with pytest.raises(SettingsError, match="unknown recipe 'none'; known recipes: small_site"):
        make_settings(TrainSettings, recipe="none")
