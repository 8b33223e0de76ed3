"""Places from cells or ids, and their statistics against brute force."""

from __future__ import annotations

import contextlib
import os
import tracemalloc

import numpy as np
import pytest

from asymvpr_core.config import CellSettings
from asymvpr_core.errors import ArtefactError, MemoryBankError
from asymvpr_core.memory.bank import MemoryBank, build_memory_bank
from asymvpr_core.memory.cells import assign_places
from asymvpr_core.memory.low_rank import place_factors
from asymvpr_core.memory.moments import Moments, PassState, stream_moments
from asymvpr_core.memory.rows import read_rows
from asymvpr_core.memory.spread import augmentation_exponent, mean_spread, relative_gamma, scaled_gamma
from asymvpr_core.row_file import RowFile
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


def brute_force(descriptors: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
    """The (D, D) population covariance of every place, in float64."""
    groups = [descriptors[places == place].astype(np.float64) for place in range(places.max() + 1)]
    return [(g - g.mean(0)).T @ (g - g.mean(0)) / len(g) for g in groups]


def scattered(count: int, m: int, dimension: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors and places in random order; place 0 has one image."""
    rng = np.random.default_rng(seed)
    places = np.concatenate([np.arange(m), rng.integers(1, m, count - m)])
    return (rng.normal(size=(count, dimension)) / np.sqrt(dimension)).astype(np.float32), rng.permutation(places)


@pytest.mark.parametrize("open_places", [1, 3, 1000])
@pytest.mark.parametrize("chunk_size", [1, 16, 1000])
def test_a_small_memory_budget_costs_passes_and_no_accuracy(chunk_size, open_places):
    descriptors, places = scattered(300, 25, 8)
    reference = build_memory_bank(descriptors, places)
    bank = build_memory_bank(descriptors, places, chunk_size, memory_bytes=open_places * 16 * 8)
    np.testing.assert_allclose(bank.centroids, reference.centroids, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bank.variances, reference.variances, rtol=1e-6, atol=1e-12)


def test_no_more_places_are_open_than_the_budget_allows():
    descriptors, places = scattered(400, 40, 8)
    most, passes = [], set()

    def look(state: PassState) -> None:
        most.append(len(state.open))
        passes.add(state.pass_index)

    emitted: list[int] = []
    stream_moments(
        descriptors, places, lambda place, moments: emitted.append(place), chunk_size=5, memory_bytes=6 * 16 * 8,
        checkpoint=look, checkpoint_rows=1,
    )  # fmt: skip
    assert sorted(emitted) == list(range(40))  # each place once
    assert max(most) <= 6 < 40 and len(passes) >= 40 / 6
    most.clear()
    stream_moments(descriptors, np.sort(places), lambda place, moments: None, chunk_size=5, checkpoint=look, checkpoint_rows=1)
    assert max(most) <= 1  # in the order of the places


def test_order_changes_nothing_beyond_rounding_in_float64():
    descriptors, places = scattered(500, 12, 16)
    results = []
    for seed, chunk_size in ((0, 7), (1, 64), (2, 500)):
        order = np.random.default_rng(seed).permutation(500)
        moments: dict[int, Moments] = {}
        stream_moments(descriptors[order], places[order], moments.__setitem__, chunk_size=chunk_size)
        results.append(moments)
    for place in range(12):
        for other in results[1:]:
            np.testing.assert_allclose(other[place].mean, results[0][place].mean, rtol=0, atol=1e-15)
            np.testing.assert_allclose(other[place].variance, results[0][place].variance, rtol=1e-12, atol=0)


def test_a_pass_continues_from_its_saved_state_to_the_same_numbers(tmp_path):
    descriptors, places = scattered(300, 20, 8)

    class Killed(Exception):
        pass

    def run(state: PassState | None, stop_after: int) -> tuple[dict[int, np.ndarray], int]:
        """Moments that were emitted, and how many checkpoints there were, until the kill."""
        emitted: dict[int, np.ndarray] = {}
        count = 0

        def checkpoint(state: PassState) -> None:
            nonlocal count
            count += 1
            with open(tmp_path / "state", "wb") as file:
                state.save(file)
            if count == stop_after:
                raise Killed

        with contextlib.suppress(Killed):
            stream_moments(
                descriptors, places, lambda place, m: emitted.update({place: np.concatenate([m.mean, m.squares])}),
                chunk_size=10, memory_bytes=7 * 16 * 8, state=state, checkpoint=checkpoint, checkpoint_rows=20,
            )  # fmt: skip
        return emitted, count

    whole, checkpoints = run(None, -1)
    assert checkpoints > 10 and len(whole) == 20
    for stop_after in (1, 5, checkpoints - 1):
        before, _ = run(None, stop_after)
        after, _ = run(PassState.load(tmp_path / "state"), -1)
        assert not before.keys() & after.keys()  # the kill came right at the checkpoint
        assert all(np.array_equal(whole[place], (before | after)[place]) for place in range(20))


def test_a_damaged_state_is_named(tmp_path):
    with open(tmp_path / "state", "wb") as file:
        PassState(1, 0, 8, {3: Moments(2, np.ones(4), np.ones(4))}).save(file)
    content = (tmp_path / "state").read_bytes()
    again = PassState.load(tmp_path / "state")
    assert (again.passes, again.next_row, again.open[3].count, list(again.open[3].squares)) == (1, 8, 2, [1, 1, 1, 1])
    for damaged in (content[:-1], content[:300], b""):
        (tmp_path / "state").write_bytes(damaged)
        with pytest.raises(ArtefactError, match="state cannot be read.*to start anew"):
            PassState.load(tmp_path / "state")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dimension", [5, 40])  # places have more, and fewer, images than dimensions
def test_full_rank_is_the_true_covariance(dtype, dimension):
    descriptors, places = scattered(120, 6, dimension)
    descriptors = descriptors.astype(dtype)
    bank = build_memory_bank(descriptors, places, rank=119)
    q = np.random.default_rng(1).normal(size=(30, dimension))
    for place, covariance in enumerate(brute_force(descriptors, places)):
        own = bank.factors[bank.factor_offsets[place] : bank.factor_offsets[place + 1]].astype(np.float64)
        assert len(own) == bank.counts[place] - 1
        ours = (q**2) @ bank.variances[place] + ((q @ own.T) ** 2).sum(1)
        np.testing.assert_allclose(ours, np.einsum("nd,de,ne->n", q, covariance, q), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_low_rank_keeps_the_diagonal_and_the_leading_directions(rank):
    descriptors, places = scattered(80, 5, 12)
    bank = build_memory_bank(descriptors, places, rank=rank)
    diagonal = build_memory_bank(descriptors, places)
    assert np.array_equal(np.diff(bank.factor_offsets), np.minimum(rank, bank.counts - 1))
    for place, covariance in enumerate(brute_force(descriptors, places)):
        own = bank.factors[bank.factor_offsets[place] : bank.factor_offsets[place + 1]].astype(np.float64)
        np.testing.assert_allclose(bank.variances[place] + (own**2).sum(0), diagonal.variances[place], rtol=1e-5, atol=1e-9)
        assert (bank.variances[place] >= 0).all()
        largest = np.linalg.eigvalsh(covariance)[::-1][: len(own)]
        np.testing.assert_allclose((own**2).sum(1), largest, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(own @ own.T, np.diag(largest), atol=1e-6)  # orthogonal
    assert np.array_equal(bank.centroids, diagonal.centroids)
    assert (bank.variances[0] == 0).all() and bank.factor_offsets[1] == 0  # one image


def test_identical_images_give_factors_of_zero():
    _, factors = place_factors(np.ones((4, 3), np.float32), 2)
    assert np.array_equal(factors, np.zeros((2, 3)))


def test_a_place_that_does_not_fit_is_refused_for_low_rank_only():
    descriptors, places = scattered(100, 3, 8)
    with pytest.raises(MemoryBankError, match=r"place \d has \d+ images .* expected at most 10 .* use smaller cells"):
        build_memory_bank(descriptors, places, rank=2, memory_bytes=10 * 16 * 8)
    build_memory_bank(descriptors, places, memory_bytes=10 * 16 * 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_first_bad_descriptor_is_named_whatever_the_order(bad, rank):
    descriptors, places = scattered(60, 5, 4)
    descriptors[[17, 41], [1, 3]] = bad
    with pytest.raises(MemoryBankError, match="descriptor 17 is not finite"):
        build_memory_bank(descriptors, places, 8, rank=rank, memory_bytes=40 * 16 * 4)


def test_a_saved_bank_keeps_its_factors(tmp_path):
    bank = build_memory_bank(*scattered(40, 4, 6), rank=2)
    bank.save(tmp_path / "bank.npz")
    again = MemoryBank.load(tmp_path / "bank.npz")
    assert np.array_equal(again.factors, bank.factors) and np.array_equal(again.factor_offsets, bank.factor_offsets)


@pytest.mark.parametrize("rank", [0, 1, 100])
def test_mean_spread_is_the_mean_over_the_images_of_places_with_several(rank):
    descriptors, places = scattered(90, 6, 7)
    values = []
    bank = build_memory_bank(descriptors, places, rank=rank)
    for row, place in zip(descriptors.astype(np.float64), places, strict=True):
        if bank.counts[place] > 1:
            own = np.zeros((0, 7)) if bank.factors is None else bank.factors[bank.factor_offsets[place] : bank.factor_offsets[place + 1]]
            values.append(float(row**2 @ bank.variances[place] + ((own @ row) ** 2).sum()))
    assert len(values) == 89
    assert mean_spread(bank) == pytest.approx(np.mean(values), rel=1e-5)


def test_relative_gamma_makes_the_exponent_the_same_at_any_dimension():
    gammas = []
    for dimension in (16, 512):
        bank = build_memory_bank(*scattered(90, 6, dimension))
        gammas.append(relative_gamma(bank, 0.1, 0.05))
        assert augmentation_exponent(mean_spread(bank), gammas[-1], 0.05) == pytest.approx(0.1)
    assert gammas[1] > 8 * gammas[0]
    assert scaled_gamma(bank, 0.1, 0.05, "relative") == gammas[1] and scaled_gamma(bank, 15.0, 0.05, "paper") == 15.0
    assert relative_gamma(bank, 0.0, 0.05) == 0


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(MemoryBankError, match="no place has two images"):
        mean_spread(build_memory_bank(np.eye(3, dtype=np.float32), np.arange(3)))
    with pytest.raises(MemoryBankError, match="the same descriptor"):
        relative_gamma(build_memory_bank(np.ones((4, 3), np.float32), np.array([0, 0, 1, 1])), 0.1, 0.05)
    with pytest.raises(MemoryBankError, match="expected"):
        relative_gamma(build_memory_bank(*scattered(20, 3, 4)), -1.0, 0.05)


def test_rows_of_a_map_are_read_whatever_it_is(tmp_path):
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.save(tmp_path / "rows.npy", array)
    np.save(tmp_path / "columns.npy", np.asfortranarray(array))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for source, expected in (
        (array, array), (mapped, array), (mapped[4:], array[4:]), (mapped[::2], array[::2]), (mapped[:, 1:], array[:, 1:]),
        (np.load(tmp_path / "columns.npy", mmap_mode="r"), array),
    ):  # fmt: skip
        assert np.array_equal(read_rows(source, 2, 6), expected[2:6])
        assert np.array_equal(read_rows(source, 5, 99), expected[5:])
    assert type(read_rows(mapped, 2, 6)) is np.ndarray
    os.truncate(tmp_path / "rows.npy", 200)
    with pytest.raises(MemoryBankError, match="rows.npy ends before row 20"):
        read_rows(mapped, 0, 20)


def test_a_row_file_is_an_ordinary_array_and_can_be_opened_again(tmp_path):
    file = RowFile(tmp_path / "a.npy", (4, 3), np.float16)
    file.write(2, np.array([1.0, 2.0, 3.0]))
    file.close()
    file = RowFile(tmp_path / "a.npy", (4, 3), np.float16)
    file.write(0, np.array([[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]))
    file.write(3, np.zeros((0, 3)))
    file.close()
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.array([[4, 5, 6], [7, 8, 9], [1, 2, 3], [0, 0, 0]], np.float16))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Eight times the images of a map on disk, the same number of places."""
    peaks = []
    for count in (2_000, 16_000):
        path = tmp_path / f"{count}.npy"
        np.save(path, np.random.default_rng(0).normal(size=(count, 64)).astype(np.float16))
        mapped, places = np.load(path, mmap_mode="r"), np.arange(count) % 50
        tracemalloc.start()
        stream_moments(mapped, places, lambda place, moments: None, chunk_size=500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < (16_000 - 2_000) * 64  # half of what the added rows take; the schedule's few numbers an image remain
