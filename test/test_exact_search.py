"""Chunked exact search: equal to brute force, whatever the chunk size, the ties and the proposals."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from asymvpr_core.errors import RetrievalError
from asymvpr_core.retrieval import exact_search
from asymvpr_core.retrieval.exact_search import search_exactly


def unit_rows(count: int, dimension: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(descriptors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All scores in float64, sorted by score and then by index, one query at a time."""
    scores, indices = [], []
    for query in queries:
        products = [float(np.sum(row.astype(np.float64) * query.astype(np.float64))) for row in descriptors]
        order = sorted(range(len(products)), key=lambda i: (-products[i], i))[:k]
        scores.append([products[i] for i in order])
        indices.append(order)
    return np.array(scores, dtype=np.float32), np.array(indices)


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equals_brute_force_for_every_chunk_size(chunk_rows, dtype):
    descriptors, queries = unit_rows(150, 24, 0).astype(dtype), unit_rows(9, 24, 1)
    scores, indices = search_exactly(descriptors, queries, 12, chunk_rows=chunk_rows)
    expected_scores, expected_indices = brute_force(descriptors, queries, 12)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)
    assert scores.dtype == np.float32 and indices.dtype == np.int64


@pytest.mark.parametrize("chunk_rows", [1, 3, 10, 16, 64, 200])
def test_equal_rows_come_in_the_order_of_their_indices(chunk_rows):
    # Five different rows, each there forty times, shuffled: every answer is a tie.
    descriptors = unit_rows(5, 33, 2)[np.random.default_rng(3).integers(0, 5, 200)]
    queries = np.concatenate([unit_rows(4, 33, 4), descriptors[:2]])
    _, indices = search_exactly(descriptors, queries, 60, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(indices, brute_force(descriptors, queries, 60)[1])


def test_near_ties_below_the_precision_of_float32_are_told_apart():
    # Rows that differ in the last bit of one number: a float32 sum cannot order them.
    descriptors = np.repeat(unit_rows(1, 64, 5), 40, axis=0)
    descriptors[np.arange(40), np.random.default_rng(6).integers(0, 64, 40)] *= np.float32(1 + 2**-23)
    queries = unit_rows(3, 64, 7)
    for chunk_rows in (3, 8, 40):
        np.testing.assert_array_equal(
            search_exactly(descriptors, queries, 5, chunk_rows=chunk_rows)[1], brute_force(descriptors, queries, 5)[1]
        )


def test_reads_a_memory_map_and_clips_k(tmp_path):
    descriptors, queries = unit_rows(30, 8, 8).astype(np.float16), unit_rows(2, 8, 9)
    np.save(tmp_path / "descriptors.npy", descriptors)
    mapped = np.load(tmp_path / "descriptors.npy", mmap_mode="r")
    scores, indices = search_exactly(mapped, queries, 100, chunk_rows=4)
    assert scores.shape == indices.shape == (2, 30)
    np.testing.assert_array_equal(indices, brute_force(descriptors, queries, 30)[1])
    assert search_exactly(mapped, queries[:0], 3)[0].shape == (0, 3)


def test_a_memory_map_is_read_once_and_its_pages_are_given_back(tmp_path):
    rows = 4096
    np.save(tmp_path / "descriptors.npy", unit_rows(rows, 512, 8))  # 8 MiB
    mapped = np.load(tmp_path / "descriptors.npy", mmap_mode="r")
    held: list[int] = []

    def watched(queries, chunk, k):
        held.append(_mapped_kib(tmp_path / "descriptors.npy"))
        return exact_search._on_cpu(1)(queries, chunk, k)

    search_exactly(mapped, unit_rows(3, 512, 9), 5, chunk_rows=256, propose=watched)
    # A chunk is 512 KiB; the kernel maps some pages around each that is touched, and whole large pages at most.
    assert len(held) == 16 and max(held) <= 4096 and _mapped_kib(tmp_path / "descriptors.npy") == 0
    assert np.isfinite(mapped).all()  # still readable


def _mapped_kib(path) -> int:
    """How much of a mapped file counts as memory of this process."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.rstrip().endswith(str(path)):
            found = True
        elif found and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError(f"{path} is not mapped")


def test_one_row_is_the_answer_to_everything():
    scores, indices = search_exactly(unit_rows(1, 8, 0), unit_rows(3, 8, 1), 10)
    assert scores.shape == (3, 1) and indices.tolist() == [[0], [0], [0]]


def test_agrees_with_the_index_of_the_robot_where_nothing_ties():
    descriptors, queries = unit_rows(500, 32, 10), unit_rows(20, 32, 11)
    index = faiss.IndexFlatIP(32)
    index.add(descriptors)
    expected_scores, expected_indices = index.search(queries, 10)
    scores, indices = search_exactly(descriptors, queries, 10, chunk_rows=77)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_chunks_are_never_larger_than_asked_and_cover_every_row():
    sizes: list[int] = []

    def counted(queries, rows, k):
        sizes.append(len(rows))
        return exact_search._on_cpu(1)(queries, rows, k)

    search_exactly(unit_rows(100, 16, 0), unit_rows(1, 16, 1), 1, chunk_rows=30, propose=counted)
    assert sizes == [30, 30, 30, 10]


def test_a_gpu_is_used_where_faiss_has_one(monkeypatch):
    # No GPU here: a stand-in with the signature of faiss.knn_gpu answers, with the rounding of another device.
    calls = []

    def knn_gpu(resources, queries, rows, k, metric):
        calls.append((resources, k))
        scores, indices = faiss.knn(queries, rows, k, metric=metric)
        return scores + np.random.default_rng(len(calls)).normal(scale=1e-7, size=scores.shape).astype(np.float32), indices

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    descriptors, queries = unit_rows(120, 16, 12), unit_rows(5, 16, 13)
    _, indices = search_exactly(descriptors, queries, 7, chunk_rows=50)
    np.testing.assert_array_equal(indices, brute_force(descriptors, queries, 7)[1])
    assert calls and {resources for resources, _ in calls} == {"resources"}
    calls.clear()
    monkeypatch.setattr(exact_search, "_MOST_ON_GPU", 4)  # beyond what a GPU gives, the CPU answers
    np.testing.assert_array_equal(search_exactly(descriptors, queries, 7)[1], indices)
    assert not calls
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    search_exactly(descriptors, queries, 2)
    assert not calls


@pytest.mark.parametrize(
    ("descriptors", "queries", "k", "words"),
    [
        (np.zeros((0, 4), np.float32), np.zeros((1, 4), np.float32), 1, r"shape \(0, 4\); expected \(N, D\)"),
        (np.zeros((3, 4), np.float32), np.zeros((1, 5), np.float32), 1, r"shape \(1, 5\); expected \(Q, 4\)"),
        (np.zeros((3, 4), np.float32), np.zeros((1, 4), np.float32), 0, "k is 0; expected k >= 1"),
        (np.zeros((3, 4), np.float32), np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32), 1, "query descriptor 1 is not finite"),
        (np.array([[0.0], [1.0], [np.inf]], np.float32), np.zeros((1, 1), np.float32), 1, "gallery descriptor 2 is not finite"),
    ],
)
def test_bad_input_is_refused(descriptors, queries, k, words):
    with pytest.raises(RetrievalError, match=words):
        search_exactly(descriptors, queries, k, chunk_rows=2)
