"""Exact neighbour lists of a gallery, which CSD, ROP and D3still train with: brute force, resumable.

The cost grows with N²: this is what the memory bank spares. Folder: `manifest.json`,
`neighbours.npy` (N, k) int32, `similarities.npy` (N, k) float32.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from asymvpr_core.arrays import open_array
from asymvpr_core.config import NeighbourSettings
from asymvpr_core.errors import ArtefactError, MemoryBankError
from asymvpr_core.gallery.several import AnyGallery, galleries_of, open_galleries
from asymvpr_core.manifest import Manifest, read_manifest, verify_files, write_manifest
from asymvpr_core.memory.moments import not_finite
from asymvpr_core.memory.origin import check_origin, gallery_digest, named, origin
from asymvpr_core.memory.rows import Rows, read_rows
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import build_resumably, save_piece

NEIGHBOURS, SIMILARITIES = "neighbours.npy", "similarities.npy"
_REMEDY = "make them anew with 'asymvpr bank neighbours'"


@dataclass(frozen=True)
class NeighbourLists:
    """Verified lists: row i of `neighbours` (N, k) int32 are the gallery indices nearest to image i, the
    image itself first, then in descending order of `similarities` (N, k) float32. Both are memory maps.
    """

    path: Path
    manifest: Manifest
    neighbours: np.ndarray
    similarities: np.ndarray

    @staticmethod
    def open(path: Path, *, verify: bool = True) -> NeighbourLists:
        """Open lists; with `verify`, their checksums are tested first.

        Raises:
            ArtefactError: missing, unfinished, damaged (naming the file), or inconsistent.
        """
        path = Path(path)
        manifest = read_manifest(path, "neighbours")
        verify_files(path, manifest, None if verify else [])
        neighbours, similarities = (open_array(path / name, _REMEDY) for name in (NEIGHBOURS, SIMILARITIES))
        if neighbours.ndim != 2 or neighbours.shape[1] == 0 or similarities.shape != neighbours.shape:
            shapes = f"{neighbours.shape} and {similarities.shape}"
            raise ArtefactError(f"the lists of {path} have shapes {shapes}", expected="(N, k) twice, k >= 1", remedy=_REMEDY)
        return NeighbourLists(path, manifest, neighbours, similarities)

    def check_gallery(self, gallery: AnyGallery) -> None:
        """Refuse a gallery that the lists were not made from. Raises ArtefactError naming both."""
        check_origin(self.manifest, self.path, gallery, "asymvpr bank neighbours")


def build_neighbours(gallery_path: Path | Sequence[Path], settings: NeighbourSettings, out: Path, *, progress: Progress = silent) -> Path:
    """Search every descriptor of a gallery, or of several as one, among all and write the lists `out`; returns `out`.

    A killed search continues with the next piece when the same command is given again.

    Raises:
        ArtefactError: gallery damaged, or several not of one pair, `out` exists, cannot be written, or is in use.
        MemoryBankError: k larger than the gallery, or a descriptor that is not finite.
    """
    gallery = open_galleries(gallery_path)
    count, dimension = gallery.descriptors.shape
    if settings.k > count:
        images = f"the {count} images of {named([one.path for one in galleries_of(gallery)])}"
        raise MemoryBankError(f"k is {settings.k}", expected=f"at most {images}", remedy="give a smaller --k")
    budget_rows = int(settings.memory_gb * 1e9) // (4 * dimension)
    size = max(1, min(settings.chunk_size, budget_rows // 2))
    gallery_rows = max(1, (budget_rows - size) // 2)  # in float32 and as read

    def build(work: Path, staging: Path) -> None:
        starts = range(0, count, size)
        done = [start for start in starts if _piece(work, start).exists()]
        todo = [start for start in starts if not _piece(work, start).exists()]
        for start in progress(todo, f"{settings.k} neighbours of every image", len(starts), len(done)):
            with _threads(settings.threads):
                lists = _search(gallery.descriptors, start, min(start + size, count), settings.k, gallery_rows)
            save_piece(_piece(work, start), lambda file, lists=lists: np.save(file, lists, allow_pickle=False))  # type: ignore[misc]
        pieces = [np.load(_piece(work, start), allow_pickle=False) for start in starts]
        np.save(staging / NEIGHBOURS, np.concatenate([piece["index"] for piece in pieces]), allow_pickle=False)
        np.save(staging / SIMILARITIES, np.concatenate([piece["similarity"] for piece in pieces]), allow_pickle=False)
        write_manifest(
            staging, "neighbours", gallery.gallery_network,
            settings=settings.model_dump(mode="json"), inputs=origin(gallery),
            versions={"python": platform.python_version(), "numpy": np.__version__, "faiss": faiss.__version__},
            details={"images": count, "k": settings.k},
        )  # fmt: skip

    fingerprint: dict[str, Any] = {"gallery": gallery_digest(gallery), "k": settings.k, "images in a piece": size}
    return build_resumably(out, fingerprint, build)


def _search(descriptors: Rows, start: int, stop: int, k: int, gallery_rows: int) -> np.ndarray:
    """(stop − start, k) pairs of `index` and `similarity`, of the descriptors from `start` to `stop`."""
    queries = _finite_rows(descriptors, start, stop)
    scores = np.zeros((len(queries), 0), np.float32)
    indices = np.zeros((len(queries), 0), np.int64)
    for first in range(0, len(descriptors), gallery_rows):
        rows = _finite_rows(descriptors, first, first + gallery_rows)
        new_scores, new_indices = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, new_scores], axis=1)
        indices = np.concatenate([indices, new_indices + first], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, indices = np.take_along_axis(scores, best, axis=1), np.take_along_axis(indices, best, axis=1)
    lists = np.empty(scores.shape, dtype=[("index", np.int32), ("similarity", np.float32)])
    lists["index"], lists["similarity"] = _itself_first(indices, scores, np.arange(start, stop), (queries**2).sum(axis=1))
    return lists


def _itself_first(indices: np.ndarray, scores: np.ndarray, own: np.ndarray, own_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every list with the image itself in front: it may come after copies of itself, or not at all where there are more than k."""
    is_own = indices == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True  # the last one makes room
    order = np.argsort(~is_own, axis=1, kind="stable")
    indices, scores = np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1)
    indices[:, 0], scores[:, 0] = own, own_scores
    return indices, scores


def _finite_rows(descriptors: Rows, start: int, stop: int) -> np.ndarray:
    rows = np.ascontiguousarray(read_rows(descriptors, start, stop), dtype=np.float32)
    if not np.isfinite(rows).all():
        raise not_finite(descriptors)
    return rows


@contextmanager
def _threads(count: int) -> Iterator[None]:
    previous = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(previous)


def _piece(work: Path, start: int) -> Path:
    return work / f"{start:09d}.npy"
