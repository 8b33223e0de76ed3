"""The correct matches of many queries in little memory: two arrays instead of a list of arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Positives(Sequence[np.ndarray]):
    """For each query the gallery images that are correct matches; reads like a list of arrays.

    `positives[i]` is (P_i,) int64: the gallery indices that are correct for query i, ascending, maybe none.
    `offsets` is (Q + 1,) int64 and `indices` (P,) int32 (int64 from 2^31 gallery images on):
    `indices[offsets[i]:offsets[i + 1]]` are those of query i. A list of arrays costs about 100 bytes
    a query and 8 a match; this costs 8 and 4.
    """

    def __init__(self, offsets: np.ndarray, indices: np.ndarray):
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.indices = np.asarray(indices)
        if self.offsets.ndim != 1 or not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != len(self.indices):
            raise ValueError("offsets must go from 0 to the number of indices")

    @staticmethod
    def from_lists(lists: Iterable[Sequence[int] | np.ndarray]) -> Positives:
        """The same from one sequence of indices a query, which need not be sorted."""
        arrays = [np.unique(np.asarray(row, dtype=np.int64)) for row in lists]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in arrays])]) if arrays else np.zeros(1, np.int64)
        return Positives(offsets, np.concatenate(arrays) if arrays else np.empty(0, np.int64))

    @property
    def counts(self) -> np.ndarray:
        """(Q,) int64: number of correct matches of each query."""
        return np.diff(self.offsets)

    @property
    def total(self) -> int:
        """Number of pairs of a query and a correct match."""
        return len(self.indices)

    def within_groups(self, query_groups: np.ndarray, gallery_groups: np.ndarray) -> Positives:
        """Only the pairs whose query (Q,) and gallery image (G,) carry the same group."""
        queries = np.repeat(np.arange(len(self)), self.counts)
        return self._where(np.asarray(query_groups)[queries] == np.asarray(gallery_groups)[self.indices])

    def _where(self, keep: np.ndarray) -> Positives:
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        return Positives(kept_before[self.offsets], self.indices[keep])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"query {index} of {len(self)}")
        return self.indices[self.offsets[position] : self.offsets[position + 1]].astype(np.int64)
