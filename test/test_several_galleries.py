"""Several galleries as one: rows, places, bank, neighbour lists and trainings of two are those of one gallery with all images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from descriptor_gallery import make_gallery, unit_rows
from safetensors.torch import load_file
from test_cli import misused, refused, run
from town_folder import make_folder

from asymvpr_core.config import BankSettings, CellSettings, GallerySettings, NeighbourSettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.parity import Pictures
from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.several import GallerySet, StackedRows, open_galleries
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import read_manifest
from asymvpr_core.memory.bank import MemoryBank
from asymvpr_core.memory.cells import gallery_places
from asymvpr_core.memory.neighbours import NeighbourLists, build_neighbours
from asymvpr_core.memory.origin import gallery_digest, origin_paths
from asymvpr_core.memory.rows import take_rows
from asymvpr_core.memory.store import StoredBank, build_bank
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.training.run import train

# Place ids of two galleries that name their places without knowledge of each other; both have a place 4.
NORTH, SOUTH = np.array([4, 9, 4, 9, 9]), np.array([4, 1, 1])
# Counted by hand: North has places 4, 9; South has 1, 4; numbered one gallery after the other.
TOGETHER = np.array([0, 1, 0, 1, 1, 3, 2, 2])
ROWS = unit_rows(8, 6)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [make_gallery(tmp_path / "north", ROWS[:5], NORTH), make_gallery(tmp_path / "south", ROWS[5:].astype(np.float16), SOUTH)]


def one_gallery(tmp_path: Path) -> Path:
    """The images of both, with the places that were counted by hand."""
    return make_gallery(tmp_path / "one", np.concatenate([ROWS[:5], ROWS[5:].astype(np.float16)]), TOGETHER)


def test_rows_are_those_of_the_parts_put_together(tmp_path: Path):
    parts = [unit_rows(3, 4), unit_rows(1, 4, seed=1).astype(np.float16), unit_rows(5, 4, seed=2)]
    stacked, whole = StackedRows(parts), np.concatenate(parts)
    assert stacked.shape == whole.shape and stacked.dtype == whole.dtype == np.float32 and len(stacked) == 9
    for rows in (slice(0, 9), slice(2, 5), slice(3, 4), slice(4, 4), slice(7, 100), 0, 3, 8, np.array([8, 3, 0, 3]), np.array([], int)):
        np.testing.assert_array_equal(stacked[rows], whole[rows])
        if isinstance(rows, np.ndarray):
            for array in (stacked, whole):
                np.testing.assert_array_equal(take_rows(array, rows), whole[rows])
    for outside in (9, -1, np.array([2, 9])):
        with pytest.raises(IndexError):
            stacked[outside]


def test_places_of_different_galleries_are_different_places(pair):
    both = open_galleries(pair)
    np.testing.assert_array_equal(gallery_places(both, CellSettings()), TOGETHER)
    assert [len(both), both.image_path(6).name, both.keyframes[6].place_id] == [8, "000001.png", 1]
    assert isinstance(open_galleries(pair[:1]), Gallery)  # one stays what it is


@pytest.mark.parametrize("rank", [0, 2])
def test_bank_and_lists_of_two_are_those_of_one_gallery_with_all_images(pair, tmp_path, rank):
    one = one_gallery(tmp_path)
    stored = StoredBank.open(build_bank(pair, BankSettings(rank=rank), tmp_path / "bank"))
    reference = StoredBank.open(build_bank(one, BankSettings(rank=rank), tmp_path / "reference"))
    for name in ("centroids", "variances", "counts", "places", "factors", "factor_offsets"):
        np.testing.assert_array_equal(getattr(stored.bank, name), getattr(reference.bank, name))
    np.testing.assert_array_equal(stored.bank.counts, [2, 3, 2, 1])
    np.testing.assert_allclose(stored.bank.centroids[2], ROWS[6:].astype(np.float16).mean(axis=0, dtype=np.float64), atol=1e-7)
    lists = NeighbourLists.open(build_neighbours(pair, NeighbourSettings(k=8, chunk_size=3), tmp_path / "lists"))
    expected = NeighbourLists.open(build_neighbours(one, NeighbourSettings(k=8), tmp_path / "expected"))
    np.testing.assert_array_equal(lists.neighbours, expected.neighbours)
    north, south = map(Gallery.open, pair)
    assert stored.manifest.inputs["galleries"] == [
        {"path": str(one.path.resolve()), "digest": gallery_digest(one)} for one in (north, south)
    ]
    for artefact in (stored, lists):
        artefact.check_gallery(open_galleries(pair))
        for others in (pair[:1], pair[::-1]):  # the order is that of the rows
            with pytest.raises(ArtefactError, match="computed from gallery .*north and .*south, whose .*make it anew with 'asymvpr bank"):
                artefact.check_gallery(open_galleries(others))


def test_a_descriptor_that_is_not_finite_is_found_in_any_of_them(pair, tmp_path):
    from asymvpr_core.errors import MemoryBankError

    rows = ROWS[5:].copy()
    rows[1, 0] = np.inf
    broken = make_gallery(tmp_path / "broken", rows, SOUTH)
    with pytest.raises(MemoryBankError, match="descriptor 6 is not finite"):
        build_bank([pair[0], broken], BankSettings(), tmp_path / "bank")


def test_galleries_that_do_not_belong_together_are_refused_by_name(pair, tmp_path):
    other = make_gallery(tmp_path / "other", unit_rows(4, 7), np.arange(4) // 2)
    with pytest.raises(ArtefactError, match=r"other was made by \(given, 7-D.*north by \(given, 6-D.*--projection-from .*north"):
        open_galleries([pair[0], other])
    with pytest.raises(ArtefactError, match="north holds the images of .*north; expected galleries of different images; give it once"):
        open_galleries([*pair, pair[0]])
    with pytest.raises(ArtefactError, match="no gallery is given"):
        open_galleries([])
    for command in ("bank build", "bank neighbours", "train", "align --query-network efficientnet_lite0_gem_64px"):
        assert "one pair" in refused(*command.split(), pair[0], other, "--out", tmp_path / "refused")
    assert not (tmp_path / "refused.partial").exists()
    assert "--compare takes one gallery, not 2" in misused(
        "train", *pair, "--compare", "aligned", "--queries", tmp_path, "--out", tmp_path / "refused"
    )


def test_the_commands_take_several(pair, tmp_path):
    code, text, _ = run("bank", "build", *pair, "--out", tmp_path / "bank")
    assert code == 0 and "places       4, 1 of them with one image" in text
    assert f"gallery      {pair[0]} and {pair[1]}" in text
    assert f"of every image of {pair[0]} and {pair[1]}" in run("bank", "neighbours", *pair, "--k", 2, "--out", tmp_path / "lists")[1]


SETTINGS = TrainSettings(
    query_network="efficientnet_lite0_gem_64px", epochs=2, batch_size=4, alignment_copies=1, frozen_share=0.8, validation_share=0.3,
    validation_views=2, workers=0, learning_rate=1e-3, threads=1, accelerator="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Two sites of four places at the same coordinates, the second with the projection of the first."""
    root = tmp_path_factory.mktemp("sites")
    settings = GallerySettings(projection_dim=6, threads=1)
    make_folder(root / "images" / "a", places=4, looks=2)
    make_folder(root / "images" / "b", places=4, looks=2, first_seed=40)
    a = build_gallery(open_source(root / "images" / "a"), settings, root / "gallery_a")
    b = build_gallery(open_source(root / "images" / "b"), settings, root / "gallery_b", projection_from=a)
    return a, b


@pytest.mark.slow
def test_a_training_on_two_galleries_is_resumable_and_says_what_it_was_made_from(sites, tmp_path, monkeypatch):
    from asymvpr_core.training import module

    bank = build_bank(sites, BankSettings(), tmp_path / "bank")
    straight = train(sites, SETTINGS, tmp_path / "straight")
    manifest = read_manifest(straight, "run")
    assert [Path(one["path"]).name for one in manifest.inputs["galleries"]] == ["gallery_a", "gallery_b"]
    assert manifest.inputs["gallery_digest"] == gallery_digest(open_galleries(sites))
    # Both sites lie at the same coordinates: eight places, not four.
    assert manifest.details["places"] == 8
    own = MemoryBank.load(straight / "bank.npz")
    np.testing.assert_array_equal(own.places, np.arange(16) // 2)
    np.testing.assert_array_equal(own.centroids, StoredBank.open(bank).bank.centroids)

    original = module.AsymmetricModule.training_step

    def dying(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module.AsymmetricModule, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(sites, SETTINGS, tmp_path / "stopped", bank=bank)
    monkeypatch.undo()
    with pytest.raises(ArtefactError, match="differed in bank, gallery"):
        train(sites[0], SETTINGS, tmp_path / "stopped")
    resumed = train(sites, SETTINGS, tmp_path / "stopped", bank=bank)
    weights = [load_file(path / "weights.safetensors") for path in (straight, resumed)]
    assert all(torch.allclose(weights[0][name].float(), weights[1][name].float(), atol=1e-6) for name in weights[0])
    inputs = read_manifest(resumed, "run").inputs
    assert inputs["bank"] == str(bank.resolve()) and inputs["bank_sha256"] == read_manifest(bank, "bank").manifest_sha256
    with pytest.raises(ArtefactError, match="bank was computed from gallery"):
        train(sites[::-1], SETTINGS, tmp_path / "refused", bank=bank)
    both = open_galleries(origin_paths(manifest))  # the export compares on images of both
    pictures = Pictures.of_gallery(both, network_spec(SETTINGS.query_network).preprocess, 16)
    assert (pictures.source, len(np.unique(pictures.inputs.reshape(16, -1), axis=0))) == ("gallery", 16)


@pytest.mark.slow
def test_images_and_losses_come_from_the_gallery_they_belong_to(sites, tmp_path):
    both = open_galleries(sites)
    assert isinstance(both, GallerySet)
    copy = pickle.loads(pickle.dumps(both))  # as a loading process gets it
    for index in (0, 7, 8, 15):
        expected = Gallery.open(sites[index // 8]).read_image(index % 8)
        np.testing.assert_array_equal(both.read_image(index), expected)
        np.testing.assert_array_equal(copy.read_image(index), expected)
    lists = build_neighbours(sites, NeighbourSettings(k=3), tmp_path / "lists")
    changes = {"loss": "csd", "neighbours_k": 3, "epochs": 1, "workers": 1}
    trained = train(sites, SETTINGS.model_copy(update=changes), tmp_path / "csd", neighbours=lists)
    assert read_manifest(trained, "run").details["fine_tuning"]["val_recall_at_1"] is not None
