"""The growing index against a naive search over everything that was added so far."""

from __future__ import annotations

import numpy as np
import pytest
from descriptor_gallery import unit_rows

from asymvpr_core.errors import RetrievalError
from asymvpr_core.retrieval.growing import GrowingIndex
from asymvpr_core.retrieval.index import search


def naive(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One cosine at a time, ordered by (cosine descending, index ascending)."""
    scores, indices = [], []
    for query in queries:
        cosines = [float(np.dot(query.astype(np.float64), row.astype(np.float64))) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: (-cosines[i], i))[:k]
        scores.append([cosines[i] for i in order])
        indices.append(order)
    return np.array(scores), np.array(indices)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("capacity", [1, 7, 1000])
def test_search_equals_a_naive_search_at_every_size(dtype, capacity):
    rows, queries = unit_rows(40, 24, 0), unit_rows(3, 24, 1)
    index = GrowingIndex(24, capacity, dtype=dtype)
    for count in range(1, 41):
        assert index.append(rows[count - 1]) == count - 1
        if count in (1, 5, 7, 8, 14, 40):
            scores, indices = search(index, queries, 6)
            expected, order = naive(rows[:count].astype(dtype), queries, 6)
            np.testing.assert_array_equal(indices, order)
            np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert len(index) == index.ntotal == 40 and index.nbytes == 40 * 24 * np.dtype(dtype).itemsize


def test_many_rows_at_once_are_the_same_as_one_by_one():
    rows, queries = unit_rows(23, 8, 0), unit_rows(4, 8, 1)
    together, single = GrowingIndex(8, 5), GrowingIndex(8, 5)
    assert [together.append(rows[:2]), together.append(rows[2:])] == [0, 2]
    for row in rows:
        single.append(row)
    for a, b in zip(search(together, queries, 9), search(single, queries, 9), strict=True):
        np.testing.assert_array_equal(a, b)


def test_of_equal_scores_the_smaller_index_comes_first():
    row, other = unit_rows(1, 16, 3), unit_rows(1, 16, 4)
    for capacity in (4, 100):
        index = GrowingIndex(16, capacity)
        index.append(np.repeat(other, 40, axis=0))
        index.append(np.repeat(row, 11, axis=0))
        assert search(index, row, 6)[1][0].tolist() == [40, 41, 42, 43, 44, 45]
        assert search(index, row, 13)[1][0].tolist() == [*range(40, 51), 0, 1]


def test_a_stored_descriptor_is_given_back_and_all_can_be_forgotten():
    rows = unit_rows(6, 8, 0)
    index = GrowingIndex(8, 4)
    index.append(rows)
    np.testing.assert_allclose(index.descriptor(5), rows[5], atol=1e-3)
    index.clear()
    assert len(index) == 0 and index.append(rows[0]) == 0
    with pytest.raises(RetrievalError, match="no descriptor 1; expected 0 to 0"):
        index.descriptor(1)


def test_what_does_not_belong_into_the_index_is_refused_and_changes_nothing():
    index = GrowingIndex(8)
    with pytest.raises(RetrievalError, match=r"shape \(9,\); expected \(8,\)"):
        index.append(np.zeros(9, np.float32))
    with pytest.raises(RetrievalError, match="not finite"):
        index.append(np.array([np.nan] * 8))
    with pytest.raises(RetrievalError, match="the index is empty"):
        search(index, np.zeros((1, 8), np.float32), 1)
    with pytest.raises(RetrievalError, match="dimension 0"):
        GrowingIndex(0)
    assert len(index) == 0
