"""Correct matches of many queries: against naive loops, in chunks, and as the sequence that callers read."""

from __future__ import annotations

import numpy as np
import pytest

import asymvpr_core.datasets.ground_truth as ground_truth
from asymvpr_core.datasets.ground_truth import find_positives, positives_within
from asymvpr_core.datasets.positives import Positives
from asymvpr_core.types import ImageRecord, Pose


def naive(query_xy, gallery_xy, radius_m, headings=None):
    rows = []
    for q, xy in enumerate(query_xy):
        row = []
        for g, other in enumerate(gallery_xy):
            near = (xy[0] - other[0]) ** 2 + (xy[1] - other[1]) ** 2 <= radius_m**2
            if near and headings is not None:
                turn = abs(headings[0][q] - headings[1][g]) % 360
                near = min(turn, 360 - turn) <= headings[2]
            if near:
                row.append(g)
        rows.append(row)
    return rows


@pytest.mark.parametrize("pairs_in_work", [1, 7, 50, 1_000_000])
@pytest.mark.parametrize("with_headings", [False, True])
def test_chunks_give_what_a_loop_gives(monkeypatch, pairs_in_work, with_headings):
    monkeypatch.setattr(ground_truth, "_PAIRS_IN_WORK", pairs_in_work)
    random = np.random.default_rng(5)
    # Whole metres, repeated positions: many pairs lie exactly at the radius.
    query, gallery = random.integers(0, 40, (60, 2)).astype(float), random.integers(0, 40, (90, 2)).astype(float)
    headings = (random.integers(0, 360, 60).astype(float), random.integers(0, 360, 90).astype(float), 50.0) if with_headings else None
    found = positives_within(query, gallery, 5.0, headings)
    expected = naive(query, gallery, 5.0, headings)
    assert [p.tolist() for p in found] == expected
    assert found.counts.tolist() == [len(row) for row in expected]
    assert found.total == sum(map(len, expected)) > 60
    assert found.indices.dtype == np.int32
    assert min(map(len, expected)) == 0


def test_reads_like_a_list_of_arrays():
    found = Positives.from_lists([[2, 0], [], [1]])
    assert len(found) == 3 and found.total == 3
    assert [p.tolist() for p in found] == [[0, 2], [], [1]]
    assert found[-1].tolist() == [1] and found[0].dtype == np.int64
    assert [p.tolist() for p in found[1:]] == [[], [1]]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"query {index} of 3"):
            found[index]
    assert list(Positives.from_lists([])) == []
    with pytest.raises(ValueError, match="offsets"):
        Positives(np.array([0, 2]), np.array([1]))


def test_only_pairs_of_the_same_group():
    found = Positives.from_lists([[0, 1, 2], [0, 2], []])
    kept = found.within_groups(np.array([5, 6, 6]), np.array([5, 6, 5]))
    assert [p.tolist() for p in kept] == [[0, 2], [], []]


def test_records_of_a_million_neighbours_cost_two_arrays():
    # 1000 queries beside 1000 images each: as a list of arrays of int64 this would be 8 MB.
    place = [ImageRecord(str(i), Pose((0.0, 0.0, 0.0))) for i in range(1000)]
    found = find_positives(place, place, 1.0)
    assert found.total == 1_000_000
    assert found.indices.nbytes + found.offsets.nbytes == 4_000_000 + 8 * 1001
    assert (found[999] == np.arange(1000)).all()
