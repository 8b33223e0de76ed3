"""An exact index that grows while it is searched: the keyframes of the running session."""

from __future__ import annotations

from typing import Any, Literal

import faiss
import numpy as np

from asymvpr_core.errors import RetrievalError
from asymvpr_core.retrieval.index import search_with_ties


class GrowingIndex:
    """Exact cosine search among descriptors that are added one by one. Not thread-safe.

    Has what `retrieval.index.search` and the matcher need of an index: `ntotal`, `d` and `search`.
    The descriptors lie in blocks, of which only the last one grows: adding one costs the same at any
    size, without the pause in which a single array would be copied to a larger one.
    """

    def __init__(self, dimension: int, capacity: int = 1024, *, dtype: Literal["float16", "float32"] = "float16"):
        """An empty index of `dimension`-D descriptors.

        Args:
            capacity: descriptors of one block, not a limit.
            dtype: float16 halves memory and time; it changes a cosine by less than 1e-3, usually by 1e-5.

        Raises:
            RetrievalError: dimension or capacity below 1.
        """
        if dimension < 1 or capacity < 1:
            raise RetrievalError(f"a growing index of dimension {dimension} and capacity {capacity}", expected="both at least 1")
        self.d, self.dtype = dimension, dtype
        self._capacity = capacity
        self._blocks: list[Any] = []  # faiss.Index; all but the last hold `capacity` rows

    @property
    def ntotal(self) -> int:
        """Number of descriptors."""
        return self._capacity * max(0, len(self._blocks) - 1) + (int(self._blocks[-1].ntotal) if self._blocks else 0)

    def __len__(self) -> int:
        return self.ntotal

    @property
    def nbytes(self) -> int:
        """Memory of the descriptors in bytes."""
        return self.ntotal * self.d * (2 if self.dtype == "float16" else 4)

    def append(self, descriptors: np.ndarray) -> int:
        """Add (D,) or (R, D) L2-normalised descriptors at the end; returns the index of the first of them.

        Raises:
            RetrievalError: another dimension, or a value that is not finite; nothing is added then.
        """
        rows = np.atleast_2d(np.ascontiguousarray(descriptors, dtype=np.float32))
        if rows.ndim != 2 or rows.shape[1] != self.d:
            raise RetrievalError(
                f"descriptors of shape {np.shape(descriptors)}", expected=f"({self.d},) or (R, {self.d})",
                remedy="add descriptors of one query model only",
            )  # fmt: skip
        if not np.isfinite(rows).all():
            raise RetrievalError("a descriptor to add is not finite", remedy="check the query model and its image")
        first = self.ntotal
        while len(rows):
            if not self._blocks or self._blocks[-1].ntotal == self._capacity:
                self._blocks.append(self._new_block())
            room = self._capacity - int(self._blocks[-1].ntotal)
            self._blocks[-1].add(rows[:room])
            rows = rows[room:]
        return first

    def descriptor(self, index: int) -> np.ndarray:
        """(D,) float32 descriptor `index`, as stored.

        Raises:
            RetrievalError: no such index.
        """
        if not 0 <= index < self.ntotal:
            raise RetrievalError(f"there is no descriptor {index}", expected=f"0 to {self.ntotal - 1}")
        row: np.ndarray = self._blocks[index // self._capacity].reconstruct(index % self._capacity)
        return row

    def clear(self) -> None:
        """Forget all descriptors."""
        self._blocks.clear()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best descriptors of every query: scores (Q, k) descending, indices (Q, k); of equal scores the smaller index first.

        Call it through `retrieval.index.search`, which checks the queries, clips k and caps the threads.
        Places beyond the number of descriptors have score -inf and index -1.
        """
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        indices = np.full((len(queries), k), -1, dtype=np.int64)
        for number, block in enumerate(self._blocks):
            found, rows = search_with_ties(block, queries, min(k, int(block.ntotal)))
            # Rows of later blocks come behind those found before, so that a stable sort keeps the order of equal scores.
            scores, indices = np.hstack([scores, found]), np.hstack([indices, rows + number * self._capacity])
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, indices = np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)
        return scores, indices

    def _new_block(self) -> Any:
        if self.dtype == "float32":
            return faiss.IndexFlatIP(self.d)
        return faiss.IndexScalarQuantizer(self.d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
