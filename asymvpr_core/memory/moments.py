"""Mean and variance of the descriptors of every place, in one sequential pass with bounded memory.

A place has an accumulator only between its first and its last image. In a gallery in recording order
few places are open at a time; in random order nearly all are, and where they exceed the memory budget
the places are divided over several passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from asymvpr_core.errors import ArtefactError, MemoryBankError
from asymvpr_core.memory.rows import Rows, read_rows
from asymvpr_core.progress import Progress, silent

_CHUNK_BYTES = 64 << 20  # read at a time
_RUN_ROWS = 256  # rows of one place in float64 at a time: a parked robot's place may hold thousands


@dataclass
class Moments:
    """Statistics of the rows of one place so far, in float64: their number, their mean (D,) and the sum
    of squared deviations from it (D,).
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of(rows: np.ndarray) -> Moments:
        """Of (n, D) rows of any floating type, n ≥ 1."""
        wide = rows.astype(np.float64)
        if len(wide) == 1:
            return Moments(1, wide[0], np.zeros(wide.shape[1]))
        mean = wide.sum(axis=0) / len(wide)
        with np.errstate(invalid="ignore"):  # ∞ − ∞: the caller refuses a mean that is not finite
            wide -= mean
        return Moments(len(wide), mean, np.einsum("nd,nd->d", wide, wide))

    def merge(self, other: Moments) -> None:
        """Take in other rows: Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983."""
        total = self.count + other.count
        delta = other.mean - self.mean
        self.squares += other.squares
        self.squares += delta**2 * (self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """(D,) population variance."""
        return self.squares / self.count


Emit = Callable[[int, Moments], None]


@dataclass
class PassState:
    """Where the pass is: everything before row `next_row` of pass `pass_index` of `passes` is in `open` or was emitted."""

    passes: int = 0
    pass_index: int = 0
    next_row: int = 0
    open: dict[int, Moments] = field(default_factory=dict)

    def save(self, file: BinaryIO) -> None:
        """Write as .npy arrays one after the other, without a second copy of the accumulators.

        They stay in float64, so that a resumed pass gives the same numbers.
        """
        counts = [moments.count for moments in self.open.values()]
        for values in ([self.passes, self.pass_index, self.next_row], list(self.open), counts):
            np.lib.format.write_array(file, np.array(values, dtype=np.int64), allow_pickle=False)
        dimension = next((len(moments.mean) for moments in self.open.values()), 0)
        header = {"descr": "<f8", "fortran_order": False, "shape": (len(counts), 2, dimension)}
        np.lib.format.write_array_header_2_0(file, header)
        for moments in self.open.values():
            file.write(moments.mean.astype("<f8", copy=False).tobytes())
            file.write(moments.squares.astype("<f8", copy=False).tobytes())

    @staticmethod
    def load(path: Path) -> PassState:
        """Read what `save` wrote. Raises ArtefactError when it is damaged."""
        try:
            with open(path, "rb") as file:
                position, places, counts, sums = (np.lib.format.read_array(file, allow_pickle=False) for _ in range(4))
            passes, pass_index, next_row = (int(number) for number in position)
            moments = (Moments(int(count), mean, squares) for count, (mean, squares) in zip(counts, sums, strict=True))
            return PassState(passes, pass_index, next_row, dict(zip((int(place) for place in places), moments, strict=True)))
        except (OSError, ValueError, EOFError) as error:
            raise ArtefactError(f"{path} cannot be read: {error}", remedy=f"remove {path.parent} to start anew") from error


def check_places(descriptors: Rows, places: np.ndarray) -> np.ndarray:
    """Number of images of every place, (M,) int64.

    Raises:
        MemoryBankError: lengths differ, no descriptors, a negative index, or a place without images.
    """
    if descriptors.ndim != 2 or places.shape != (len(descriptors),):
        raise MemoryBankError(f"descriptors have shape {descriptors.shape}, places {places.shape}", expected="(N, D) and (N,)")
    if len(places) == 0 or places.min() < 0:
        raise MemoryBankError("there are no descriptors, or a negative place index", expected="N >= 1 and places in 0 … M−1")
    counts = np.bincount(places)
    if (counts == 0).any():
        raise MemoryBankError(f"place {int(np.argmin(counts))} has no images", expected="place indices without gaps")
    return counts.astype(np.int64)


def stream_moments(
    descriptors: Rows,
    places: np.ndarray,
    emit: Emit,
    *,
    chunk_size: int | None = None,
    memory_bytes: int = 2 << 30,
    state: PassState | None = None,
    checkpoint: Callable[[PassState], None] | None = None,
    checkpoint_rows: int = 65536,
    progress: Progress = silent,
) -> None:
    """Hand the moments of every place to `emit`, each place once, as soon as its last image has been read.

    Neither chunk size nor order changes the result beyond float64 rounding. Memory: the accumulators of
    the open places, 16·D bytes each, at most `memory_bytes`, and one chunk; whatever N.

    Args:
        descriptors: (N, D) float16 or float32, may be a memory map.
        places: (N,) int64, checked by `check_places`.
        chunk_size: rows read at a time; None: 64 MB.
        state: where a killed pass was, from its last `checkpoint`.
        checkpoint: called about every `checkpoint_rows` rows; what was emitted before belongs to it.

    Raises:
        MemoryBankError: naming the first descriptor that is not finite.
    """
    chunk_size = chunk_size or max(1, _CHUNK_BYTES // max(1, descriptors.shape[1] * descriptors.itemsize))
    schedule = _Schedule(places, chunk_size)
    state = state or PassState()
    if state.passes == 0:
        state.passes = schedule.passes_within(memory_bytes // (16 * descriptors.shape[1]))
    pass_of_place = schedule.pass_of_place(state.passes)
    since_checkpoint = 0
    for pass_index in range(state.pass_index, state.passes):
        first_row = state.next_row if pass_index == state.pass_index else 0
        chunks = schedule.chunks(pass_of_place, pass_index, first_row)
        what = "place statistics" if state.passes == 1 else f"place statistics, pass {pass_index + 1} of {state.passes}"
        for start in progress(chunks, what, len(chunks)):
            stop = min(start + chunk_size, len(places))
            rows = read_rows(descriptors, start, stop)
            _take_in(rows, places[start:stop], pass_of_place, pass_index, state.open, schedule.counts, emit, descriptors)
            state.pass_index, state.next_row = pass_index, stop
            since_checkpoint += stop - start
            if checkpoint is not None and since_checkpoint >= checkpoint_rows:
                checkpoint(state)
                since_checkpoint = 0


def _take_in(
    rows: np.ndarray,
    places: np.ndarray,
    pass_of_place: np.ndarray,
    pass_index: int,
    open_places: dict[int, Moments],
    counts: np.ndarray,
    emit: Emit,
    descriptors: Rows,
) -> None:
    """Add a chunk, place by place: a loop over places was five times as fast as numpy's reduceat over all of them."""
    order = np.argsort(places, kind="stable")
    grouped = places[order]
    starts = np.flatnonzero(np.append(True, grouped[1:] != grouped[:-1]))
    for first, last in zip(starts, np.append(starts[1:], len(grouped)), strict=True):
        place = int(grouped[first])
        if pass_of_place[place] != pass_index:
            continue
        for part in range(first, last, _RUN_ROWS):
            moments = Moments.of(rows[order[part : min(part + _RUN_ROWS, last)]])
            if not math.isfinite(float(moments.mean.sum())):
                raise not_finite(descriptors)
            if place in open_places:
                open_places[place].merge(moments)
            else:
                open_places[place] = moments
        if open_places[place].count == counts[place]:
            emit(place, open_places.pop(place))


def not_finite(descriptors: Rows) -> MemoryBankError:
    """The error that names the first row with a NaN or an infinity."""
    step = max(1, _CHUNK_BYTES // max(1, descriptors.shape[1] * descriptors.itemsize))
    for start in range(0, len(descriptors), step):
        finite = np.isfinite(read_rows(descriptors, start, start + step)).all(axis=1)
        if not finite.all():
            return MemoryBankError(f"descriptor {start + int(np.argmin(finite))} is not finite", remedy="build the gallery again")
    return MemoryBankError("the sum of a place's descriptors overflows", expected="L2-normalised descriptors")


class _Schedule:
    """Which chunks hold which places, and how many places are open at a time."""

    def __init__(self, places: np.ndarray, chunk_size: int):
        self._places, self._chunk_size = places, chunk_size
        self.counts = np.bincount(places)
        order = np.argsort(places, kind="stable")
        ends = np.cumsum(self.counts)
        self._first_row = order[ends - self.counts]
        self._last_row = order[ends - 1]

    def pass_of_place(self, passes: int) -> np.ndarray:
        """(M,) the pass in which each place is accumulated, dividing them in order of appearance."""
        rank = np.empty(len(self.counts), dtype=np.int64)
        rank[np.argsort(self._first_row, kind="stable")] = np.arange(len(rank))
        return rank * passes // len(rank)

    def passes_within(self, most_open: int) -> int:
        """The smallest number of passes in which no more than `most_open` places are open between chunks."""
        passes = 1
        while passes < len(self.counts):
            peak = max(self._peak(np.flatnonzero(self.pass_of_place(passes) == index)) for index in range(passes))
            if peak <= max(most_open, 1):
                break
            passes = max(passes + 1, math.ceil(passes * peak / max(most_open, 1)))
        return min(passes, len(self.counts))

    def _peak(self, members: np.ndarray) -> int:
        changes = np.zeros(len(self._places) // self._chunk_size + 2, dtype=np.int64)
        first, last = self._first_row[members] // self._chunk_size, self._last_row[members] // self._chunk_size
        np.add.at(changes, first[first < last], 1)
        np.add.at(changes, last[first < last], -1)
        return int(np.cumsum(changes).max())

    def chunks(self, pass_of_place: np.ndarray, pass_index: int, first_row: int) -> list[int]:
        """First rows of the chunks from `first_row` on that hold a place of the pass."""
        starts = range(first_row, len(self._places), self._chunk_size)
        if not pass_of_place.any():  # one pass
            return list(starts)
        needed = pass_of_place[self._places] == pass_index
        return [start for start in starts if needed[start : start + self._chunk_size].any()]
