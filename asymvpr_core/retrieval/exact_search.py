"""Exact nearest neighbours among descriptors on disk, in memory that does not depend on their number.

The descriptors may be a memory map of any size: they are read once, in chunks. FAISS proposes the
best rows of each chunk in float32, in which equal rows may score differently by where they lie in a
block. The proposed rows are scored again in float64, so that the answer, ties included, is the same
for every chunk size, library and device.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from asymvpr_core.errors import RetrievalError

# (queries (Q, D), rows (R, D), k) -> scores (Q, k) descending, row numbers (Q, k); float32 inner product.
Propose = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]

_CHUNK_BYTES = 128 << 20  # of one chunk as float32
_MOST_ON_GPU = 2048  # FAISS on a GPU gives no more neighbours
_SLACK = 8  # rows proposed beyond k: near ties seldom need a second question then


def search_exactly(
    descriptors: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    threads: int = 1,
    chunk_rows: int | None = None,
    propose: Propose | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Give the k best rows of every query: scores (Q, k) float32 descending, indices (Q, k) int64.

    Scores are inner products summed in float64, so cosines for L2-normalised vectors. Of equal scores
    the smaller index comes first. k is clipped to the number of rows.

    Args:
        descriptors: (N, D) float16 or float32; may be a memory map larger than memory.
        queries: (Q, D) float32.
        threads: OpenMP threads of FAISS.
        chunk_rows: rows read at a time; None: 128 MiB of float32.
        propose: what searches one chunk; None: FAISS, on a GPU where FAISS has one.

    Raises:
        RetrievalError: no rows, k < 1, dimensions that differ, or a value that is not finite.
    """
    _check(descriptors, queries, k)
    count, dimension = descriptors.shape
    k = min(k, count)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    rows = chunk_rows or max(1, _CHUNK_BYTES // (4 * dimension))
    ask = propose or (_on_gpu() if _gpus() else _on_cpu(threads))
    best = _Best(len(queries), k)
    for start in range(0, count, rows):
        chunk = np.ascontiguousarray(descriptors[start : start + rows], dtype=np.float32)
        finite = np.isfinite(chunk).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise RetrievalError(f"gallery descriptor {row} is not finite", remedy="rebuild with 'asymvpr gallery build'")
        _search_chunk(chunk, start, queries, best, ask)
        _release(descriptors)
    return best.scores.astype(np.float32), best.indices


class _Best:
    """The best rows so far of every query, ordered by (score descending, index ascending)."""

    def __init__(self, queries: int, k: int):
        self.scores = np.full((queries, k), -np.inf)
        self.indices = np.full((queries, k), -1, dtype=np.int64)

    def add(self, query: int, scores: np.ndarray, indices: np.ndarray) -> None:
        """Merge candidates; none of them may be there already."""
        scores = np.concatenate([self.scores[query], scores])
        indices = np.concatenate([self.indices[query], indices])
        # A place that is still empty has score -inf, so that its index -1 never comes before a row.
        order = np.lexsort((indices, -scores))[: self.scores.shape[1]]
        self.scores[query], self.indices[query] = scores[order], indices[order]


def _search_chunk(chunk: np.ndarray, start: int, queries: np.ndarray, best: _Best, ask: Propose) -> None:
    """Add the rows of one chunk; asks for more proposals until no row left out can belong to the answer."""
    k = best.scores.shape[1]
    # |float32 sum - exact sum| <= D u |q||g| / (1 - D u), u = 2^-24, whatever the order of summation
    # (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5 with the Cauchy-Schwarz inequality).
    unit = chunk.shape[1] * 2.0**-24
    longest = float(np.sqrt(np.einsum("nd,nd->n", chunk, chunk).max()))
    error = 1.01 * unit / (1 - unit) * longest * np.linalg.norm(queries, axis=1)
    waiting, asked, seen = np.arange(len(queries)), 0, [np.zeros(0, np.int64)] * len(queries)
    while len(waiting):
        asked = min(len(chunk), k + _SLACK if asked == 0 else 4 * asked)
        scores, rows = ask(queries[waiting], chunk, asked)
        # In later chunks most queries have nothing to gain, and no row needs to be looked at.
        hopeful = scores[:, 0] >= (best.scores[:, -1] - error)[waiting]
        unfinished = []
        for query, proposed, found in zip(waiting[hopeful].tolist(), scores[hopeful], rows[hopeful], strict=True):
            # What scores below the k-th best so far by more than the error cannot enter.
            near = proposed >= best.scores[query, -1] - error[query]
            new = np.setdiff1d(found[near], seen[query])
            seen[query] = np.union1d(seen[query], new)
            exact = (chunk[new].astype(np.float64) * queries[query].astype(np.float64)).sum(axis=1)
            best.add(query, exact, new + start)
            if asked < len(chunk) and proposed[-1] + error[query] >= best.scores[query, -1]:
                unfinished.append(query)
        waiting = np.array(unfinished, dtype=np.int64)


def _release(descriptors: np.ndarray) -> None:
    """Give the pages of a read-only memory map back: they are read once, and would count as memory of this process until the end."""
    base: Any = descriptors
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap) and not descriptors.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _gpus() -> int:
    """Number of GPUs that the installed FAISS can use; the CPU package has no such function or says 0."""
    count = getattr(faiss, "get_num_gpus", None)
    return int(count()) if count is not None and hasattr(faiss, "knn_gpu") else 0


def _on_gpu() -> Propose:
    resources = faiss.StandardGpuResources()

    def ask(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > _MOST_ON_GPU:
            return _on_cpu(1)(queries, rows, k)
        return faiss.knn_gpu(resources, queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)

    return ask


def _on_cpu(threads: int) -> Propose:
    def ask(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        # As in retrieval.index: OpenMP keeps this number per calling thread.
        previous = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(threads)
        try:
            return faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
        finally:
            faiss.omp_set_num_threads(previous)

    return ask


def _check(descriptors: np.ndarray, queries: np.ndarray, k: int) -> None:
    if descriptors.ndim != 2 or 0 in descriptors.shape:
        raise RetrievalError(
            f"gallery descriptors have shape {descriptors.shape}", expected="(N, D) with N, D >= 1",
            remedy="build the gallery from a source with images",
        )  # fmt: skip
    if k < 1:
        raise RetrievalError(f"k is {k}", expected="k >= 1")
    if queries.ndim != 2 or queries.shape[1] != descriptors.shape[1]:
        raise RetrievalError(
            f"query descriptors have shape {queries.shape}", expected=f"(Q, {descriptors.shape[1]}) as the gallery's",
            remedy="use the query model that was trained for this gallery",
        )  # fmt: skip
    finite = np.isfinite(queries).all(axis=1) if len(queries) else np.ones(0, bool)
    if not finite.all():
        raise RetrievalError(f"query descriptor {int(np.argmin(finite))} is not finite", remedy="check the query model and its image")
