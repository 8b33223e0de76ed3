"""Exact search against a brute-force numpy search, and what it refuses."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from asymvpr_core.errors import RetrievalError
from asymvpr_core.retrieval import index as index_module
from asymvpr_core.retrieval.index import build_index, read_index, search, write_index


def _unit_rows(n: int, dimension: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_search_equals_brute_force(dtype):
    gallery, queries = _unit_rows(200, 24, 0, dtype), _unit_rows(17, 24, 1)
    scores, indices = search(build_index(gallery), queries, 7)
    similarity = queries.astype(np.float64) @ gallery.astype(np.float64).T
    expected = np.argsort(-similarity, axis=1)[:, :7]
    assert (indices == expected).all()
    np.testing.assert_allclose(scores, np.take_along_axis(similarity, expected, axis=1), atol=1e-6)
    assert scores.dtype == np.float32 and indices.dtype == np.int64


def test_rows_keep_their_numbers_over_chunks_of_a_memory_map(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_CHUNK", 7)
    np.save(tmp_path / "descriptors.npy", _unit_rows(50, 8, 2))
    descriptors = np.load(tmp_path / "descriptors.npy", mmap_mode="r")
    _, indices = search(build_index(descriptors), np.asarray(descriptors), 1)
    assert indices[:, 0].tolist() == list(range(50))


def test_k_is_clipped_to_the_gallery():
    scores, indices = search(build_index(_unit_rows(3, 8, 0)), _unit_rows(2, 8, 1), 10)
    assert scores.shape == indices.shape == (2, 3)
    assert [sorted(row) for row in indices.tolist()] == [[0, 1, 2], [0, 1, 2]]


def test_written_index_answers_the_same(tmp_path):
    gallery, queries = _unit_rows(30, 8, 0), _unit_rows(4, 8, 1)
    index = build_index(gallery)
    write_index(index, tmp_path / "index.faiss")
    for written, direct in zip(search(read_index(tmp_path / "index.faiss"), queries, 5), search(index, queries, 5), strict=True):
        np.testing.assert_array_equal(written, direct)


@pytest.mark.parametrize(
    ("queries", "k", "words"),
    [
        (np.zeros((1, 9), np.float32), 1, "9-D, the index holds 8-D"),
        (np.zeros(8, np.float32), 1, r"shape \(8,\)"),
        (np.zeros((1, 8), np.float32), 0, "k is 0"),
        (np.full((1, 8), np.nan, np.float32), 1, "not finite"),
    ],
)
def test_bad_queries_are_refused(queries, k, words):
    with pytest.raises(RetrievalError, match=words):
        search(build_index(_unit_rows(3, 8, 0)), queries, k)


def test_empty_index_is_refused():
    with pytest.raises(RetrievalError, match="empty"):
        search(build_index(np.zeros((0, 8), np.float32)), np.zeros((1, 8), np.float32), 1)


def test_gallery_descriptor_that_is_not_finite_is_named():
    gallery = _unit_rows(5, 8, 0)
    gallery[3, 2] = np.inf
    with pytest.raises(RetrievalError, match="descriptor 3 "):
        build_index(gallery)
    with pytest.raises(RetrievalError, match="shape"):
        build_index(np.zeros(8, np.float32))


def test_damaged_index_files_are_refused(tmp_path):
    path = tmp_path / "index.faiss"
    with pytest.raises(RetrievalError, match="missing"):
        read_index(path)
    write_index(build_index(_unit_rows(30, 8, 0)), path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:10], whole[: len(whole) // 2], b"XXXX" + whole[4:]):
        path.write_bytes(damaged)
        with pytest.raises(RetrievalError, match=f"{path.name} is damaged"):
            read_index(path)


def test_index_of_another_metric_is_refused(tmp_path):
    faiss.write_index(faiss.IndexFlatL2(8), str(tmp_path / "index.faiss"))
    with pytest.raises(RetrievalError, match="inner product"):
        read_index(tmp_path / "index.faiss")


def test_unwritable_index_is_one_clear_error(tmp_path):
    with pytest.raises(RetrievalError, match="cannot be written"):
        write_index(build_index(_unit_rows(3, 8, 0)), tmp_path / "missing" / "index.faiss")


def test_search_caps_its_threads_in_any_thread_and_restores_them():
    class Recorder:
        ntotal, d = 3, 8
        threads: list[int] = []

        def search(self, queries, k):
            self.threads.append(faiss.omp_get_max_threads())
            return np.zeros((1, k), np.float32), np.zeros((1, k), np.int64)

    after = []

    def work():
        faiss.omp_set_num_threads(5)
        search(Recorder(), np.zeros((1, 8), np.float32), 1, threads=2)
        after.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert Recorder.threads == [2] and after == [5]


def test_a_faiss_that_is_too_old_is_refused_with_the_remedy():
    """Debian's 1.7.3 has neither; what is installed here has all."""
    index_module.check_faiss(faiss)
    old = SimpleNamespace(__version__="1.7.3", IO_FLAG_MMAP_IFC=1)
    with pytest.raises(RetrievalError, match=r"FAISS 1\.7\.3 .* lacks IndexRaBitQ, MaybeOwnedVectorUInt8; expected 1\.11 .*pip install"):
        index_module.check_faiss(old)
