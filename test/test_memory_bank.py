"""Places from cells or ids, and their statistics against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from asymvpr_core.config import CellSettings
from asymvpr_core.errors import ArtefactError, MemoryBankError
from asymvpr_core.memory.bank import MemoryBank, build_memory_bank
from asymvpr_core.memory.cells import assign_places
from asymvpr_core.types import Keyframe, Pose


def keyframe(x: float, y: float, heading_deg: float | None = 0.0, place_id: int | None = None) -> Keyframe:
    return Keyframe(name=f"{x}_{y}", pose=Pose((x, y, 0.0)), heading_deg=heading_deg, place_id=place_id)


def test_cells_split_by_position_and_heading():
    frames = [keyframe(1, 1), keyframe(4, 4), keyframe(6, 1), keyframe(1, 1, 90), keyframe(1, 1, 350), keyframe(-1, 1)]
    places = assign_places(frames, CellSettings(cell_size_m=5, heading_sectors=4))
    same = places[:, None] == places[None, :]
    expected = np.eye(6, dtype=bool)
    for a, b in [(0, 1), (0, 4), (1, 4)]:  # one cell, headings 0° and 350° in one sector
        expected[a, b] = expected[b, a] = True
    assert np.array_equal(same, expected)
    assert sorted(set(places)) == list(range(4))


def test_an_unknown_heading_leaves_position_alone():
    frames = [keyframe(1, 1, 0), keyframe(1, 1, None), keyframe(9, 1, 180)]
    assert len(set(assign_places(frames, CellSettings(cell_size_m=5)))) == 2


def test_place_ids_win_over_cells():
    frames = [keyframe(0, 0, place_id=70_001), keyframe(500, 0, place_id=70_001), keyframe(0, 0, place_id=3)]
    places = assign_places(frames, CellSettings())
    assert places[0] == places[1] != places[2]


def test_keyframes_without_position_are_refused():
    with pytest.raises(MemoryBankError, match="neither place id nor position, the first lost"):
        assign_places([keyframe(0, 0), Keyframe(name="lost")], CellSettings())
    with pytest.raises(MemoryBankError, match="no keyframes"):
        assign_places([], CellSettings())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_bank_equals_brute_force_for_any_chunk_and_order(dtype, chunk_size):
    rng = np.random.default_rng(0)
    places = np.concatenate([np.arange(9), rng.integers(0, 9, 191)])
    descriptors = (rng.normal(size=(200, 16)) + 50 * (places[:, None] == 4)).astype(dtype)  # place 4 far from zero: cancellation
    order = rng.permutation(200)
    bank = build_memory_bank(descriptors[order], places[order], chunk_size)
    for place in range(9):
        rows = descriptors[places == place].astype(np.float64)
        np.testing.assert_allclose(bank.centroids[place], rows.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(bank.variances[place], rows.var(0), rtol=1e-5, atol=1e-9)
        assert bank.counts[place] == len(rows)


def test_a_place_with_one_image_has_zero_variance():
    bank = build_memory_bank(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 8.0]], np.float32), np.array([0, 1, 1]))
    assert np.array_equal(bank.variances[0], [0, 0])
    assert np.array_equal(bank.variances[1], [1, 4])  # population variance
    assert np.array_equal(bank.centroids, [[1, 2], [4, 6]])  # a plain mean, not re-normalised


def test_bad_descriptors_and_places_are_refused():
    good = np.ones((4, 3), np.float32)
    broken = good.copy()
    broken[2, 1] = np.nan
    with pytest.raises(MemoryBankError, match="descriptor 2 is not finite"):
        build_memory_bank(broken, np.zeros(4, np.int64))
    with pytest.raises(MemoryBankError, match="place 1 has no images"):
        build_memory_bank(good, np.array([0, 0, 2, 2]))
    with pytest.raises(MemoryBankError, match="expected"):
        build_memory_bank(good, np.zeros(3, np.int64))


def test_saved_bank_is_read_back_and_a_truncated_one_refused(tmp_path):
    bank = build_memory_bank(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.array([0, 0, 1, 1, 2, 2]))
    bank.save(tmp_path / "bank.npz")
    again = MemoryBank.load(tmp_path / "bank.npz")
    assert np.array_equal(again.centroids, bank.centroids) and np.array_equal(again.places, bank.places)
    (tmp_path / "bank.npz").write_bytes((tmp_path / "bank.npz").read_bytes()[:100])
    with pytest.raises(ArtefactError, match="bank.npz cannot be read"):
        MemoryBank.load(tmp_path / "bank.npz")
