"""Exact nearest-neighbour search among gallery descriptors (FAISS, cosine of L2-normalised vectors)."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from asymvpr_core.errors import RetrievalError

_CHUNK = 65536  # rows converted to float32 at a time: descriptors may be a memory map larger than memory


def build_index(descriptors: np.ndarray) -> faiss.Index:
    """Give an exact inner-product index; row i of `descriptors` has index i.

    Args:
        descriptors: (N, D) float16 or float32, L2-normalised; may be memory-mapped; N may be 0.

    Raises:
        RetrievalError: not a matrix, or a descriptor that is not finite.
    """
    if descriptors.ndim != 2 or descriptors.shape[1] == 0:
        raise RetrievalError(f"gallery descriptors have shape {descriptors.shape}", expected="(N, D) with D >= 1")
    index = faiss.IndexFlatIP(int(descriptors.shape[1]))
    for start in range(0, len(descriptors), _CHUNK):
        chunk = np.ascontiguousarray(descriptors[start : start + _CHUNK], dtype=np.float32)
        finite = np.isfinite(chunk).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise RetrievalError(f"gallery descriptor {row} is not finite", remedy="rebuild with 'asymvpr gallery build'")
        index.add(chunk)
    return index


def write_index(index: faiss.Index, path: Path) -> None:
    """Write an index to `path`.

    Raises:
        RetrievalError: the file cannot be written (permissions, disk full).
    """
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise RetrievalError(f"index {path} cannot be written", remedy="free space or give another --out") from error


def read_index(path: Path) -> faiss.Index:
    """Read what `write_index` wrote.

    Raises:
        RetrievalError: missing, truncated or damaged, or not an inner-product index.
    """
    remedy = "restore the file or rebuild with 'asymvpr gallery build'"
    if not Path(path).is_file():
        raise RetrievalError(f"index {path} is missing", remedy=remedy)
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        raise RetrievalError(f"index {path} is damaged", remedy=remedy) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise RetrievalError(f"index {path} has metric {index.metric_type}", expected="inner product (0)", remedy=remedy)
    return index


def search(index: faiss.Index, queries: np.ndarray, k: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Give the k best gallery rows of every query: scores (Q, k) float32 descending, indices (Q, k) int64.

    k is clipped to the number of gallery rows.

    Args:
        queries: (Q, D) float32, L2-normalised.
        k: neighbours per query, >= 1.
        threads: OpenMP threads of the search.

    Raises:
        RetrievalError: empty index, k < 1, another dimension, or a query that is not finite.
    """
    if index.ntotal == 0:
        raise RetrievalError("the index is empty", expected="at least one descriptor", remedy="build the gallery from a source with images")
    if k < 1:
        raise RetrievalError(f"k is {k}", expected="k >= 1")
    if queries.ndim != 2 or queries.shape[1] != index.d:
        found = f"{queries.shape[1]}-D" if queries.ndim == 2 else f"of shape {queries.shape}"
        raise RetrievalError(
            f"query descriptors are {found}, the index holds {index.d}-D descriptors", expected=f"(Q, {index.d})",
            remedy="use the query model that was trained for this gallery, or rebuild with 'asymvpr gallery build'",
        )  # fmt: skip
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if not np.isfinite(queries).all():
        raise RetrievalError("a query descriptor is not finite", remedy="check the query model with 'asymvpr export'")
    # OpenMP keeps this number per calling thread, so setting it once at import would not reach a
    # worker thread. All cores by default, contended by the network, cost 45 times the search.
    previous = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        scores, indices = index.search(queries, min(k, int(index.ntotal)))
    finally:
        faiss.omp_set_num_threads(previous)
    return scores, indices
