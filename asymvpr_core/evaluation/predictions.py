"""What one system answered to every query, beside what would have been right: the arrays behind every metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from asymvpr_core.errors import EvaluationError

_NOTE = 14  # of name.split("@"): the last field of VPR-datasets-downloader's names says "night", "winter", …
_MOST_CONDITIONS = 24  # more different notes than this are remarks on single images, no conditions


@dataclass(frozen=True)
class Predictions:
    """Ranked answers of one system with their ground truth; row i belongs to query i.

    `scores` (Q, K) float, best first, and `indices` (Q, K) int, gallery indices; -inf and -1 where a query
    has fewer answers. `positives[i]` are the gallery indices that would be correct. `distances_m` (Q,) leads
    from the query to its best match; NaN where unknown. `conditions` names the condition of each query.

    Raises:
        EvaluationError: no queries, lengths that differ, NaN scores, or scores that rise along a row.
    """

    name: str
    scores: np.ndarray
    indices: np.ndarray
    positives: Sequence[np.ndarray]
    distances_m: np.ndarray
    conditions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape != self.indices.shape or 0 in self.scores.shape:
            raise EvaluationError(
                f"{self.name} has scores of shape {self.scores.shape} and indices of shape {self.indices.shape}",
                expected="(Q, K) both, with at least one query and one answer", remedy="check that the query set holds images",
            )  # fmt: skip
        count = len(self.scores)
        for what, values in (("positives", self.positives), ("distances", self.distances_m), ("conditions", self.conditions)):
            if values is not None and len(values) != count:
                raise EvaluationError(f"{self.name} has {count} queries, and {what} for {len(values)}", expected="the same queries")
        nan = np.isnan(self.scores).any(axis=1)
        if nan.any():
            raise EvaluationError(
                f"{self.name} has a score that is NaN, the first at query {int(np.argmax(nan))}", expected="numbers",
                remedy="check the descriptors for images that a network cannot describe",
            )  # fmt: skip
        rising = (self.scores[:, 1:] > self.scores[:, :-1]).any(axis=1)  # -inf after -inf does not rise
        if rising.any():
            raise EvaluationError(
                f"{self.name} has scores that are not sorted, the first at query {int(np.argmax(rising))}", expected="the best answer first"
            )

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def hits(self) -> np.ndarray:
        """(Q, K) bool: answer j of query i is correct."""
        rows = zip(self.indices, self.positives, strict=True)
        return np.array([np.isin(row, positive) for row, positive in rows], dtype=bool).reshape(self.indices.shape)

    @cached_property
    def evaluable(self) -> np.ndarray:
        """(Q,) bool: the gallery holds a correct match."""
        return np.array([len(positive) > 0 for positive in self.positives], dtype=bool)

    @property
    def correct(self) -> np.ndarray:
        """(Q,) bool: the best answer is correct."""
        return self.hits[:, 0]

    def subset(self, rows: np.ndarray, name: str) -> Predictions:
        """The predictions of some queries, by their numbers."""
        return Predictions(
            name, self.scores[rows], self.indices[rows], [self.positives[i] for i in rows.tolist()], self.distances_m[rows],
            None if self.conditions is None else [self.conditions[i] for i in rows.tolist()],
        )  # fmt: skip


def conditions_from_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """The condition of each image by the note in its name, "(none)" where it is empty; None where names carry no conditions.

    The note is the last of the fields of `@utm_e@utm_n@…@timestamp@note@.jpg`, the naming of VPR-datasets-downloader.
    """
    fields = [name.rpartition("/")[2].split("@") for name in names]
    notes = [parts[_NOTE].strip() if len(parts) > _NOTE + 1 else "" for parts in fields]
    different = set(notes)
    if different <= {""} or len(different) > _MOST_CONDITIONS:
        return None
    return tuple(note or "(none)" for note in notes)
