"""The validation of a training: views of held-out images, searched among the gallery in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asymvpr_core.gallery.several import AnyGallery

_BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class Found:
    """Sums over the queries of this process: right best matches, cosines to the own gallery descriptors, and their number.

    `query_indices` and `best_indices` (Q,) are gallery indices: of the image that was shown, and of what was found.
    """

    correct: int
    cosines: float
    queries: int
    query_indices: np.ndarray
    best_indices: np.ndarray


class HeldOutSearch:
    """Searches described views among all gallery descriptors: the best must be of the view's own place.

    The view is augmented and imitates a revisit. The gallery's descriptors are read a block at a
    time, once for all queries.

    Args:
        places: (N,) place of every gallery image.
        symmetric: search among the light network's own descriptors of the gallery's images instead, which
            `add_references` brings.
    """

    def __init__(self, gallery: AnyGallery, places: np.ndarray, symmetric: bool = False):
        self._gallery, self._places, self.symmetric = gallery, places, symmetric
        self.found: Found | None = None
        self.start()

    def start(self) -> None:
        """Forget the queries of the last validation."""
        self._queries: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._references: list[Tensor] = []
        self._reference_indices: list[Tensor] = []
        self._cosines = 0.0

    def add_queries(self, descriptors: Tensor, own: Tensor, place: Tensor, index: Tensor) -> None:
        """Views as (B, D) descriptors, with their gallery descriptors, places and gallery indices."""
        self._queries.append(descriptors)
        self._indices.append(index)
        self._cosines += float((descriptors * own).sum())

    def add_references(self, descriptors: Tensor, index: Tensor) -> None:
        """Gallery images as the trained network describes them, for the symmetric search."""
        self._references.append(descriptors)
        self._reference_indices.append(index)

    def finish(self, device: torch.device) -> Found:
        """Search all queries; the result stays in `found` for the prediction boards."""
        if not self._queries:  # more processes than queries
            nothing = np.empty(0, np.int64)
            self.found = Found(0, 0.0, 0, nothing, nothing)
            return self.found
        queries = torch.cat(self._queries)
        best = torch.full((len(queries),), -torch.inf, device=device)
        nearest = torch.zeros(len(queries), dtype=torch.int64, device=device)
        for start, block in self._blocks(device):
            scores, rows = (queries @ block.T).max(dim=1)
            better = scores > best
            best, nearest = torch.where(better, scores, best), torch.where(better, rows + start, nearest)
        found = nearest.cpu().numpy()
        if self.symmetric:
            found = torch.cat(self._reference_indices).cpu().numpy()[found]
        indices = torch.cat(self._indices).cpu().numpy()
        correct = int((self._places[found] == self._places[indices]).sum())
        self.found = Found(correct, self._cosines, len(queries), indices, found)
        self.start()
        return self.found

    def _blocks(self, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        if self.symmetric:
            yield 0, torch.cat(self._references)
            return
        descriptors = self._gallery.descriptors
        rows = max(1, _BLOCK_BYTES // (4 * descriptors.shape[1]))
        for start in range(0, len(descriptors), rows):
            yield start, torch.from_numpy(np.array(descriptors[start : start + rows], dtype=np.float32)).to(device)
