"""Nearest-neighbour search among gallery descriptors (FAISS, cosine of L2-normalised vectors): the call, and exact indexes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from asymvpr_core.errors import RetrievalError

_CHUNK = 65536  # rows converted to float32 at a time: descriptors may be a memory map larger than memory
_SLACK = 8  # rows beyond k: more of them with one and the same score are rare
_REMEDY = "build it anew with 'asymvpr index build'"
# What FAISS may allocate for one list when it reads an index, in sizes of its file. It counts a table of inverted lists with product
# codes that it makes itself (not for inner products, but it counts it): 16 P bytes a list here, beside the 4 P of its centroid in the file.
_TIMES_FILE = 4
_LIMITS = threading.Lock()  # those of FAISS hold for the process, and galleries are opened beside frames
_NEEDED = ("IndexRaBitQ", "MaybeOwnedVectorUInt8", "IO_FLAG_MMAP_IFC")  # came with FAISS 1.11


def check_faiss(module: Any) -> None:
    """Raise RetrievalError where the installed FAISS is too old: distributions ship versions without what is used here."""
    missing = [name for name in _NEEDED if not hasattr(module, name)]
    if missing:
        raise RetrievalError(
            f"FAISS {getattr(module, '__version__', 'of unknown version')} is installed, which lacks {', '.join(missing)}",
            expected="1.11 or newer", remedy="pip install --upgrade 'faiss-cpu>=1.11'",
        )  # fmt: skip


check_faiss(faiss)


class SearchIndex(Protocol):
    """What is searched: a FAISS index, `GalleryIndex`, `GrowingIndex`. Row i of the descriptors has index i."""

    @property
    def d(self) -> int:
        """Dimension of the descriptors."""
        ...

    @property
    def ntotal(self) -> int:
        """Number of descriptors."""
        ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) float32 descending and indices (Q, k) int64, for (Q, d) contiguous float32 queries."""
        ...


def search(index: SearchIndex, queries: np.ndarray, k: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Give the k best gallery rows of every query: scores (Q, k) float32 descending, indices (Q, k) int64.

    k is clipped to the number of gallery rows.

    Args:
        queries: (Q, D) float32, L2-normalised.
        k: neighbours per query, >= 1.
        threads: OpenMP threads of the search.

    Raises:
        RetrievalError: empty index, k < 1, another dimension, or a query or a gallery descriptor that is not finite.
    """
    count = int(index.ntotal)
    if count == 0:
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
        scores, indices = index.search(queries, min(k, count))
    finally:
        faiss.omp_set_num_threads(previous)
    # FAISS leaves out rows that compare with nothing, and -1 would be taken for the last keyframe.
    if (indices < 0).any() or not np.isfinite(scores).all():
        raise RetrievalError("the gallery holds descriptors that are not finite", remedy="rebuild with 'asymvpr gallery build'")
    return scores, indices


def search_with_ties(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`index.search(queries, k)` of an exact FAISS index, in which of equal scores the smaller index comes first, k <= ntotal.

    FAISS keeps any of the rows whose score equals the k-th, so more are asked for until all of them are there.
    """
    asked = min(int(index.ntotal), k + _SLACK)
    scores, indices = index.search(queries, asked)
    while asked < index.ntotal and (scores[:, -1] == scores[:, k - 1]).any():
        asked = min(int(index.ntotal), 4 * asked)
        scores, indices = index.search(queries, asked)
    return in_order(scores, indices, k)


def in_order(scores: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k columns of (Q, >= k) scores and indices, scores descending, of equal ones the smaller index first."""
    if (scores[:, :-1] > scores[:, 1:]).all():  # as FAISS nearly always gives them: sorting would cost more than small searches do
        return scores[:, :k], indices[:, :k]
    order = np.lexsort((indices, -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)


def build_index(descriptors: np.ndarray) -> faiss.Index:
    """Give an exact inner-product index with a float32 copy of the descriptors; row i of `descriptors` has index i.

    Args:
        descriptors: (N, D) float16 or float32, L2-normalised; may be memory-mapped; N may be 0.

    Raises:
        RetrievalError: not a matrix, or a descriptor that is not finite.
    """
    check_matrix(descriptors)
    index = faiss.IndexFlatIP(int(descriptors.shape[1]))
    for chunk in finite_chunks(descriptors, _CHUNK):
        index.add(chunk)
    return index


def view_index(descriptors: np.ndarray) -> faiss.Index:
    """Give an exact inner-product index that reads `descriptors` where they are, a memory map perhaps: nothing is copied.

    The caller keeps `descriptors` alive as long as the index. Float16 descriptors are multiplied in float32.

    Raises:
        RetrievalError: not a matrix of float16 or float32 whose rows lie one behind the other.
    """
    check_matrix(descriptors)
    dimension = int(descriptors.shape[1])
    index: Any
    if descriptors.dtype == np.float32:
        index = faiss.IndexFlatIP(dimension)
    elif descriptors.dtype == np.float16:
        index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        raise RetrievalError(f"gallery descriptors are {descriptors.dtype}", expected="float16 or float32")
    if not descriptors.flags.c_contiguous:
        raise RetrievalError("gallery descriptors do not lie row by row", remedy="rebuild with 'asymvpr gallery build'")
    if len(descriptors):
        raw = descriptors.view(np.uint8).reshape(-1)
        # An empty vector has no owner, and a view without one never frees what it shows.
        vector: Any = faiss.MaybeOwnedVectorUInt8
        index.codes = vector.create_view(faiss.swig_ptr(raw), raw.nbytes, vector().owner)
        index.ntotal = len(descriptors)
    return index


def check_matrix(descriptors: np.ndarray) -> None:
    """Raise RetrievalError unless `descriptors` is (N, D) with D >= 1."""
    if descriptors.ndim != 2 or descriptors.shape[1] == 0:
        raise RetrievalError(f"gallery descriptors have shape {descriptors.shape}", expected="(N, D) with D >= 1")


def finite_chunks(descriptors: np.ndarray, rows: int) -> Any:
    """Yield the descriptors as float32, `rows` at a time. Raises RetrievalError naming the first one that is not finite."""
    for start in range(0, len(descriptors), rows):
        chunk = np.ascontiguousarray(descriptors[start : start + rows], dtype=np.float32)
        finite = np.isfinite(chunk).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise RetrievalError(f"gallery descriptor {row} is not finite", remedy="rebuild with 'asymvpr gallery build'")
        yield chunk


def write_index(index: faiss.Index, path: Path) -> None:
    """Write an index to `path`.

    Raises:
        RetrievalError: the file cannot be written (permissions, disk full).
    """
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise RetrievalError(f"index {path} cannot be written", remedy="free space, or check the permissions of the folder") from error


@contextmanager
def _no_more_than(file_bytes: int) -> Iterator[None]:
    """Keep FAISS from allocating much more for any list of an index than its file holds: it would fill what a header declares with zeros.

    FAISS has these limits since 1.14, for the process; before that, only the checksum stands between the file and memory.
    """
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        yield
        return
    with _LIMITS:
        previous = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(max(_TIMES_FILE * file_bytes, 1))
        faiss.set_deserialization_loop_limit(max(file_bytes, 1))
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(previous[0])
            faiss.set_deserialization_loop_limit(previous[1])


def read_index(path: Path, *, mapped: bool = True) -> faiss.Index:
    """Open what `write_index` wrote, its vectors and graphs through a memory map, or in memory, where vectors can be added.

    Raises:
        RetrievalError: missing, truncated or damaged, or not an inner-product index.
    """
    if not Path(path).is_file():
        raise RetrievalError(f"index {path} is missing", remedy=_REMEDY)
    try:
        with _no_more_than(Path(path).stat().st_size):
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except (RuntimeError, MemoryError) as error:
        raise RetrievalError(f"index {path} is damaged", remedy=_REMEDY) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise RetrievalError(f"index {path} has metric {index.metric_type}", expected="inner product (0)", remedy=_REMEDY)
    return index
