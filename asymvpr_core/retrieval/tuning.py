"""Choose an index: build kinds, measure them against exact search on made-up queries, take what the settings ask for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from asymvpr_core.config import IndexKind, IndexSettings
from asymvpr_core.errors import RetrievalError
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.exact_search import search_exactly
from asymvpr_core.retrieval.gallery_index import GalleryIndex, Trial
from asymvpr_core.retrieval.index import check_matrix, finite_chunks, search
from asymvpr_core.retrieval.recipes import RECIPES, build, check_applicable, ladder, predicted_bytes, refinement

# Exact search of so many bytes takes about 6 ms at 10 GB/s, a tenth of what a light query network takes for the frame.
EXACT_BYTES = 64 << 20
_HIGH_DIMENSION = 1024  # above, codes of all dimensions cost more than a projection
_MANY_ROWS, _VERY_MANY_ROWS = 20_000, 200_000
_TIMED_QUERIES = 30
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class ChosenIndex:
    """The index that was chosen, what of it goes into the file (None: nothing), and everything that was measured."""

    index: GalleryIndex
    stored: Any
    trials: list[Trial]
    note: str


def preferred_kinds(rows: int, dimension: int, itemsize: int, memory_bytes: float, refine: str) -> list[IndexKind]:
    """The kinds that suit a gallery of this size and fit the memory, best first, by the measurements of docs/artefacts.md.

    Small galleries: exact. Above, at full dimension: rabitq, which needs no training; with tens of
    thousands of keyframes its scan of all codes costs more than a graph, and with hundreds of thousands
    the graph's links cost more than product codes. At few dimensions product codes from the start.
    """
    if rows * dimension * itemsize <= min(EXACT_BYTES, memory_bytes):  # as `exact_suffices`
        return ["exact"]
    order: list[IndexKind]
    if dimension <= _HIGH_DIMENSION:
        order = ["pq", "hnsw", "rabitq", "ivfpq", "sq8"] if rows <= _VERY_MANY_ROWS else ["pq", "ivfpq", "hnsw", "rabitq", "sq8"]
    elif rows <= _MANY_ROWS:
        order = ["rabitq", "hnsw", "pq", "sq8"]
    elif rows <= _VERY_MANY_ROWS:
        order = ["hnsw", "rabitq", "pq", "sq8"]
    else:
        order = ["pq", "ivfpq", "rabitq", "hnsw", "sq8"]
    if itemsize > 2:
        order.append("float16")
    everything: list[IndexKind] = [*order, "exact"]
    fitting = [kind for kind in everything if _needed_bytes(kind, rows, dimension, itemsize, refine, memory_bytes) <= memory_bytes]
    return [kind for kind in fitting if _applicable(kind, rows, dimension)]


def exact_suffices(descriptors: np.ndarray, settings: IndexSettings) -> bool:
    """Whether a scan of all descriptors is quick enough and fits the memory, so that no other kind is tried."""
    return descriptors.nbytes <= min(EXACT_BYTES, settings.memory_mb * MEGABYTE)


def _needed_bytes(kind: IndexKind, rows: int, dimension: int, itemsize: int, refine: str, memory_bytes: float) -> int:
    return predicted_bytes(kind, rows, dimension, itemsize, refinement(kind, refine, rows, dimension, memory_bytes))


def made_up_queries(descriptors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, D) float32 unit vectors that resemble query descriptors of revisits: none of them is in the gallery.

    Each is a keyframe, or a point between a keyframe and the next one, plus a disturbance that brings the
    cosine to about 0.8: half of it is the difference of two other keyframes, as another view or light
    would move the descriptor among those that occur, half is noise in all dimensions.
    """
    random = np.random.default_rng(seed)
    rows = random.integers(0, len(descriptors), count)
    neighbours = np.minimum(rows + 1, len(descriptors) - 1)
    others = random.integers(0, len(descriptors), (2, count))

    def take(indices: np.ndarray) -> np.ndarray:
        used, back = np.unique(indices, return_inverse=True)
        read: np.ndarray = next(finite_chunks(descriptors[used], count + 1))[back.reshape(-1)]
        return read

    share = random.uniform(0.0, 0.5, (count, 1)) * random.integers(0, 2, (count, 1))
    view = _unit((1 - share) * take(rows) + share * take(neighbours))
    disturbance = _unit(take(others[0]) - take(others[1])) + _unit(random.standard_normal(view.shape))
    return _unit(view + 0.75 * _unit(disturbance)).astype(np.float32)


def choose_index(descriptors: np.ndarray, settings: IndexSettings, *, every_kind: bool = False, progress: Progress = silent) -> ChosenIndex:
    """Build the index that `settings` ask for, with the quickest search parameters that reach the recall.

    With kind auto, the kinds of `preferred_kinds` are tried in their order until one reaches the recall, so
    that the result depends on no clock; with `every_kind`, all that fit are measured and the quickest of those
    that reach the recall is taken. A kind that is asked for by name is built or refused, never replaced.

    Raises:
        RetrievalError: it does not fit the memory (saying what would), does not reach the recall, needs
            more keyframes; or a descriptor that is not finite.
    """
    check_matrix(descriptors)
    rows, dimension, itemsize = len(descriptors), int(descriptors.shape[1]), descriptors.dtype.itemsize
    if rows == 0:
        return ChosenIndex(GalleryIndex("exact", None, descriptors, {}, "descriptors"), None, [], "no keyframes")
    kinds = _kinds(rows, dimension, itemsize, settings, every_kind)
    if kinds == ["exact"] and not every_kind and settings.kind == "auto":
        size = rows * dimension * itemsize / MEGABYTE
        note = f"exact search of all {size:.1f} MB" + ("" if size * MEGABYTE <= EXACT_BYTES else ", because no other kind can be used")
        return ChosenIndex(GalleryIndex("exact", None, descriptors, {}, "descriptors"), None, [], note)
    queries = made_up_queries(descriptors, settings.queries, settings.seed)
    _, truth = search_exactly(descriptors, queries, settings.k, threads=settings.threads)
    trials: list[Trial] = []
    best: tuple[Trial, Any] | None = None
    for kind in progress(kinds, "index kinds", len(kinds)):
        reached, stored = _measure_kind(kind, descriptors, settings, queries, truth, trials)
        if reached is not None and (best is None or reached.milliseconds < best[0].milliseconds):
            best = (reached, stored)
        if best is not None and not every_kind:
            break
    if best is None:
        highest = max(trials, key=lambda trial: trial.recall_at_k)
        raise RetrievalError(
            f"an index of kind {highest.kind} finds {highest.recall_at_k:.3f} of the {settings.k} nearest, the most of {', '.join(kinds)}; "
            f"{highest.recall_at_k_bound:.3f} is certain after {settings.queries} queries",
            expected=f"at least {settings.recall:g}", remedy="lower --recall, raise --memory-mb, or leave --kind out",
        )  # fmt: skip
    chosen, stored = best
    index = GalleryIndex(
        chosen.kind, stored, descriptors, chosen.parameters, _resolved(chosen.kind, descriptors, settings).refine, tuned_k=settings.k
    )
    return ChosenIndex(index, stored, trials, _note(chosen, trials, settings))


def _kinds(rows: int, dimension: int, itemsize: int, settings: IndexSettings, every_kind: bool) -> list[IndexKind]:
    """The kinds to build. Raises RetrievalError where none fits."""
    memory = settings.memory_mb * MEGABYTE
    needed = {kind: _needed_bytes(kind, rows, dimension, itemsize, settings.refine, memory) for kind in RECIPES}
    usable = {kind: size for kind, size in needed.items() if _applicable(kind, rows, dimension)}
    fitting = sorted((kind for kind, size in usable.items() if size <= memory), key=lambda kind: usable[kind])
    if settings.kind != "auto":
        check_applicable(settings.kind, rows, dimension)
        if needed[settings.kind] > memory:
            rest = ", ".join(f"{kind} ({usable[kind] / MEGABYTE:.1f} MB)" for kind in fitting) or "none of the others"
            raise RetrievalError(
                f"an index of kind {settings.kind} of {rows} x {dimension} needs {needed[settings.kind] / MEGABYTE:.1f} MB",
                expected=f"at most memory_mb, {settings.memory_mb:g} MB", remedy=f"raise --memory-mb, or take what fits: {rest}",
            )  # fmt: skip
        return [settings.kind]
    if not fitting:
        least = min(usable, key=lambda kind: usable[kind])
        raise RetrievalError(
            f"the smallest index of {rows} x {dimension}, of kind {least}, needs {usable[least] / MEGABYTE:.1f} MB",
            expected=f"at most memory_mb, {settings.memory_mb:g} MB",
            remedy="raise --memory-mb, or make a smaller gallery with 'asymvpr gallery project'",
        )
    if every_kind:
        return [kind for kind in RECIPES if kind in fitting and not (kind == "float16" and itemsize == 2)]
    return preferred_kinds(rows, dimension, itemsize, memory, settings.refine)


def _measure_kind(
    kind: IndexKind, descriptors: np.ndarray, settings: IndexSettings, queries: np.ndarray, truth: np.ndarray, trials: list[Trial]
) -> tuple[Trial | None, Any]:
    """Build a kind and climb its ladder until the recall is reached; returns that rung, if any, and what the file would hold."""
    settings = _resolved(kind, descriptors, settings)
    begin = time.perf_counter()
    stored = build(kind, descriptors, settings)
    measured = measure_ladder(kind, stored, descriptors, settings, queries, truth, build_seconds=time.perf_counter() - begin)
    trials += measured
    memory = measured[0].memory_bytes
    fits = memory <= settings.memory_mb * MEGABYTE  # what was built decides, the prediction only saves the time
    if not fits and settings.kind == kind:
        raise RetrievalError(
            f"the index of kind {kind} came out at {memory / MEGABYTE:.1f} MB", expected=f"at most memory_mb, {settings.memory_mb:g} MB",
            remedy="raise --memory-mb",
        )  # fmt: skip
    return (measured[-1] if fits and reaches(measured[-1], settings) else None), stored


def measure_ladder(
    kind: IndexKind, stored: Any, descriptors: np.ndarray, settings: IndexSettings, queries: np.ndarray, truth: np.ndarray, *,
    build_seconds: float,
) -> list[Trial]:  # fmt: skip
    """Search with the parameters of a kind's ladder, from the quickest on, until the recall is reached; the last one does, or none.

    Args:
        stored: what `build` gave; None for kind exact.
        settings: `refine` as `refinement` resolves it.
        queries, truth: (Q, D) and their exact neighbours (Q, k).
    """
    memory = descriptors.nbytes if stored is None else len(faiss.serialize_index(stored))
    trials = []
    for parameters in ladder(kind, len(descriptors), settings.refine):
        index = GalleryIndex(kind, stored, descriptors, parameters, settings.refine, tuned_k=settings.k)
        _, found = search(index, queries, settings.k, settings.threads)
        shares = recalls(found, truth, settings.k)
        trials.append(
            Trial(
                kind=kind, parameters=parameters, memory_bytes=memory, bytes_per_vector=memory / len(descriptors),
                milliseconds=1e3 * median_seconds(index, queries, settings.k), recall_at_1=recall(found, truth, 1),
                recall_at_k=float(shares.mean()), recall_at_k_bound=_lower_bound(shares), build_seconds=build_seconds,
            )
        )  # fmt: skip
        if reaches(trials[-1], settings):
            break
    return trials


def reaches(trial: Trial, settings: IndexSettings) -> bool:
    """Whether the recall asked for is reached, with the certainty that so many queries allow."""
    return (trial.recall_at_k if trial.recall_at_k_bound is None else trial.recall_at_k_bound) >= settings.recall


def _lower_bound(shares: np.ndarray) -> float:
    """One-sided 95 % bound of the mean: by the mean itself, recall on other queries could as well be below what was asked for."""
    return float(shares.mean() - 1.645 * shares.std() / math.sqrt(len(shares)))


def _resolved(kind: IndexKind, descriptors: np.ndarray, settings: IndexSettings) -> IndexSettings:
    """The settings with `refine` as it is for this kind."""
    rows, dimension = descriptors.shape
    refine = refinement(kind, settings.refine, rows, dimension, settings.memory_mb * MEGABYTE)
    return settings.model_copy(update={"refine": refine})


def recall(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Mean share of the k exact neighbours, `truth` (Q, >= k), that are among the first k of `found` (Q, >= k)."""
    return float(recalls(found, truth, k).mean())


def recalls(found: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """(Q,) the same share for each query."""
    k = min(k, truth.shape[1])
    return np.array([len(np.intersect1d(a[:k], b[:k])) for a, b in zip(found, truth, strict=True)]) / k


def median_seconds(index: Any, queries: np.ndarray, k: int) -> float:
    """Median time of one query with one thread, as the robot asks."""
    times = []
    for query in _repeat(queries, _TIMED_QUERIES):
        begin = time.perf_counter()
        search(index, query[np.newaxis], k)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _repeat(queries: np.ndarray, count: int) -> Iterable[np.ndarray]:
    return (queries[i % len(queries)] for i in range(count))


def _note(chosen: Trial, trials: list[Trial], settings: IndexSettings) -> str:
    kinds = dict.fromkeys(trial.kind for trial in trials)
    missed = {
        kind: max(t.recall_at_k for t in trials if t.kind == kind)
        for kind in kinds
        if not any(reaches(t, settings) for t in trials if t.kind == kind)
    }
    text = f"{chosen.kind}: recall@{settings.k} {chosen.recall_at_k:.3f} on {settings.queries} made-up queries"
    if missed and settings.kind == "auto":
        text += "; not reached by " + ", ".join(f"{kind} ({value:.3f})" for kind, value in missed.items())
    return text


def _applicable(kind: IndexKind, rows: int, dimension: int) -> bool:
    try:
        check_applicable(kind, rows, dimension)
    except RetrievalError:
        return False
    return True


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
