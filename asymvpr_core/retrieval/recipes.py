"""The kinds of search index: what each is made of, what it costs, and how it is built with FAISS::

    | kind | what is searched | bytes a vector (D-dimensional, P = 512 where D > 1024, else D) |
    | exact | the stored descriptors through the memory map | nothing beside them |
    | float16 | a float16 copy, where the descriptors are float32 | 2 D |
    | sq8 | 8-bit scalars (every dimension its range) | D |
    | rabitq | one bit a dimension (RaBitQ, Gao & Long, SIGMOD 2024) | D / 8 + 8 |
    | hnsw | a graph of 8-bit P-D vectors (HNSW, Malkov & Yashunin, TPAMI 2020) | P + 272 |
    | pq | 4-bit product codes of P-D vectors (André et al., TPAMI 2021) | P / 8 |
    | ivfpq | the same in inverted lists, of which the nearest are read | P / 8 + 8 |

All but the first two find candidates, which are ranked again with the stored descriptors or with an
8-bit copy in the index, D bytes a vector more (`refinement`). RaBitQ is the plain one: its FastScan loses the
neighbours above about 2048 dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from asymvpr_core.config import IndexKind, IndexSettings
from asymvpr_core.errors import RetrievalError
from asymvpr_core.retrieval.index import finite_chunks, view_index

Parameters = dict[str, int]  # of a search, by FAISS's names: k_factor_rf, efSearch, nprobe

_REDUCE_ABOVE, _REDUCED = 1024, 512  # dimensions: below, a projection costs what it saves
_PCA_ROWS = 2048  # the Gram matrix of so many rows takes seconds; FAISS's own PCA does not finish at 8448-D
_TRAINING_ROWS = 16384
_BLOCK_BYTES = 64 << 20  # descriptors converted to float32 at a time
_LINKS, _EF_CONSTRUCTION = 32, 80  # of HNSW
_ROWS_PER_LIST = 39  # FAISS's least for a centroid of k-means


@dataclass(frozen=True)
class Recipe:
    """One kind of index.

    `ladder` holds search parameters from the quickest to the most thorough; the first that reaches
    the recall asked for is taken. `min_rows` is what training needs.
    """

    kind: IndexKind
    summary: str
    ladder: tuple[Parameters, ...]
    min_rows: int = 1
    reduces: bool = False  # searches P-D vectors
    refines: bool = True


def _k_factors(*factors: int) -> tuple[Parameters, ...]:
    return tuple({"k_factor_rf": factor} for factor in factors)


RECIPES: dict[IndexKind, Recipe] = {
    recipe.kind: recipe
    for recipe in (
        Recipe("exact", "all stored descriptors", ({},), refines=False),
        Recipe("float16", "all descriptors, as float16", ({},), refines=False),
        Recipe("sq8", "all descriptors, as 8-bit numbers, ranked again", _k_factors(2, 4, 10, 20)),
        Recipe("rabitq", "one bit a dimension, ranked again", _k_factors(4, 10, 20, 40, 100, 200)),
        Recipe(
            "hnsw", "a graph of 8-bit vectors, ranked again",
            tuple({"efSearch": n, "k_factor_rf": f} for n, f in ((64, 4), (64, 10), (128, 10), (256, 20), (512, 40), (1024, 100))),
            min_rows=64, reduces=True,
        ),
        Recipe("pq", "4-bit product codes, ranked again", _k_factors(4, 10, 20, 40, 100, 200), min_rows=640, reduces=True),
        Recipe(
            "ivfpq", "4-bit product codes in inverted lists, ranked again",
            tuple({"nprobe": n, "k_factor_rf": f} for n, f in ((8, 10), (16, 20), (32, 40), (64, 40), (128, 100), (512, 200))),
            min_rows=640, reduces=True,
        ),
    )
}  # fmt: skip


def reduced_dimension(dimension: int) -> int:
    """P: the dimension that graphs and product codes search in; a multiple of 4, as the codes need."""
    return _REDUCED if dimension > _REDUCE_ABOVE else dimension - dimension % 4


def refinement(kind: IndexKind, refine: str, rows: int, dimension: int, memory_bytes: float) -> str:
    """What the candidates of a kind are ranked again with, "descriptors" or "sq8", where `refine` may leave it open ("auto").

    An 8-bit copy beside the one-bit codes of many dimensions: a search then reads D + D / 8 + 8 bytes a vector and not the
    stored descriptors. With few dimensions the copy loses neighbours, and a graph or product codes are chosen for
    galleries of which such a copy would be the largest part of the memory.
    """
    if refine != "auto":
        return refine
    fits = predicted_bytes(kind, rows, dimension, 4, "sq8") <= memory_bytes
    return "sq8" if kind == "rabitq" and dimension > _REDUCE_ABOVE and fits else "descriptors"


def predicted_bytes(kind: IndexKind, rows: int, dimension: int, itemsize: int, refine: str) -> int:
    """Memory that a search of this kind needs at hand, in bytes: the index, or all descriptors where there is none.

    With `refine` "descriptors", a search reads besides those rows of the stored descriptors that it ranks again.
    """
    recipe, reduced = RECIPES[kind], reduced_dimension(dimension)
    each = {
        "exact": itemsize * dimension, "float16": 2 * dimension, "sq8": dimension, "rabitq": math.ceil(dimension / 8) + 8,
        "hnsw": reduced + 8 * _LINKS + 16, "pq": reduced / 8, "ivfpq": reduced / 8 + 8,
    }[kind]  # fmt: skip
    if recipe.refines and refine == "sq8" and kind != "sq8":
        each += dimension
    once = 4 * dimension * reduced if recipe.reduces and reduced != dimension else 0
    once += 64 * reduced if kind in ("pq", "ivfpq") else 0  # 16 centroids a code
    once += 4 * reduced * _lists(rows) if kind == "ivfpq" else 0
    return int(rows * each) + once


def check_applicable(kind: IndexKind, rows: int, dimension: int) -> None:
    """Raise RetrievalError where a gallery is too small for this kind, or its dimension."""
    recipe = RECIPES[kind]
    if rows < recipe.min_rows:
        raise RetrievalError(
            f"the gallery has {rows} keyframes",
            expected=f"at least {recipe.min_rows} for an index of kind {kind}",
            remedy="take kind exact",
        )
    if dimension < 8 and kind not in ("exact", "float16", "sq8"):
        raise RetrievalError(f"{dimension}-D descriptors", expected=f"at least 8-D for an index of kind {kind}", remedy="take kind exact")


def build(kind: IndexKind, descriptors: np.ndarray, settings: IndexSettings) -> faiss.Index | None:
    """Train and fill what the index file of this kind holds; None for exact, which has none.

    The same descriptors, settings and FAISS give the same index, except for hnsw with several threads. `settings.refine` is
    what `refinement` gave.

    Args:
        descriptors: (N, D) float16 or float32, L2-normalised, memory-mapped perhaps; read a few times in blocks.

    Raises:
        RetrievalError: too few rows or dimensions, or a descriptor that is not finite.
    """
    rows, dimension = descriptors.shape
    check_applicable(kind, rows, dimension)
    if kind == "exact":
        return None
    previous = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(settings.threads)
    try:
        index = _empty(kind, rows, dimension, settings)
        if RECIPES[kind].reduces and reduced_dimension(dimension) != dimension:
            index = faiss.IndexPreTransform(_principal_directions(descriptors, reduced_dimension(dimension), settings.seed), index)
        index.train(_sample(descriptors, _TRAINING_ROWS, settings.seed))
        if RECIPES[kind].refines and settings.refine == "sq8" and kind != "sq8":
            copy = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            copy.train(_sample(descriptors, _TRAINING_ROWS, settings.seed))
            index = faiss.IndexRefine(index, copy)
        for block in finite_chunks(descriptors, max(1, _BLOCK_BYTES // (4 * dimension))):
            index.add(block)
        return index
    finally:
        faiss.omp_set_num_threads(previous)


def compose(kind: IndexKind, index: faiss.Index | None, descriptors: np.ndarray, refine: str) -> tuple[faiss.Index, list[Any]]:
    """The index that is searched, made of the file's and the stored descriptors; and what has to stay alive with it."""
    view = view_index(descriptors)
    if index is None:
        return view, [descriptors, view]
    # With refine "sq8", the file holds both stages, and sq8 itself has nothing finer to be ranked with.
    if not RECIPES[kind].refines or refine == "sq8":
        return index, [descriptors, index]
    return faiss.IndexRefine(index, view), [descriptors, view, index]


def set_parameters(index: faiss.Index, parameters: Parameters) -> None:
    """Set what a search of `index` uses from now on."""
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)


def ladder(kind: IndexKind, rows: int, refine: str) -> Iterator[Parameters]:
    """The search parameters worth trying for a gallery of so many rows, quickest first."""
    if kind == "sq8" and refine == "sq8":
        yield {}
        return
    for parameters in RECIPES[kind].ladder:
        if "nprobe" in parameters and parameters["nprobe"] > _lists(rows):
            yield parameters | {"nprobe": _lists(rows)}
            return
        yield parameters


def _lists(rows: int) -> int:
    """Inverted lists: 4 √N, FAISS's guideline, as far as the training rows reach."""
    return max(1, min(int(4 * math.sqrt(rows)), min(rows, _TRAINING_ROWS) // _ROWS_PER_LIST))


def _empty(kind: IndexKind, rows: int, dimension: int, settings: IndexSettings) -> faiss.Index:
    """The untrained index of a kind, without the projection before it."""
    product, reduced = faiss.METRIC_INNER_PRODUCT, reduced_dimension(dimension)
    if kind == "float16":
        return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, product)
    if kind == "sq8":
        return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, product)
    if kind == "rabitq":
        return faiss.IndexRaBitQ(dimension, product)
    index: Any
    if kind == "hnsw":
        graph: Any = faiss.IndexHNSWSQ  # its stub names another constructor
        index = graph(reduced, faiss.ScalarQuantizer.QT_8bit, _LINKS, product)
        index.hnsw.efConstruction = _EF_CONSTRUCTION
        return index
    if kind == "pq":
        index = faiss.IndexPQFastScan(reduced, reduced // 4, 4, product)
        index.pq.cp.seed = settings.seed
        return index
    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatIP(reduced), reduced, _lists(rows), reduced // 4, 4, product)
    index.cp.seed = index.pq.cp.seed = settings.seed
    return index


def _sample(descriptors: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All descriptors, or `most` of them drawn at random, as float32; all of them finite."""
    if len(descriptors) > most:
        rows = np.sort(np.random.default_rng(seed).choice(len(descriptors), most, replace=False))
        descriptors = descriptors[rows]
    return next(finite_chunks(descriptors, len(descriptors)))


def _principal_directions(descriptors: np.ndarray, dimension: int, seed: int) -> faiss.LinearTransform:
    """The projection on the leading directions of the second moment Σ g gᵀ, by the Gram matrix of a sample.

    Without the mean taken off: then the inner product of the projections is that of the vectors, as far as
    these lie in the span, where centring would add a term of its own for every gallery descriptor.
    """
    sample = _sample(descriptors, _PCA_ROWS, seed)
    if len(sample) < sample.shape[1]:
        moments, left = np.linalg.eigh(sample @ sample.T)
        directions = left[:, ::-1][:, :dimension].T @ sample
    else:
        moments, right = np.linalg.eigh(sample.T @ sample)
        directions = right[:, ::-1][:, :dimension].T
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    used = lengths > 1e-4 * lengths.max()  # beyond the rank of a small gallery: rounding noise, replaced by zeros
    matrix = np.zeros((dimension, sample.shape[1]), np.float32)
    matrix[: len(directions)] = np.where(used, directions / np.maximum(lengths, np.finfo(np.float32).tiny), 0.0)
    transform = faiss.LinearTransform(sample.shape[1], dimension, False)
    faiss.copy_array_to_vector(matrix.ravel(), transform.A)
    transform.is_trained = True
    return transform
