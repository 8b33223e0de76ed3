"""What one system answered to every query, beside what would have been right: the arrays behind every metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from asymvpr_core.errors import EvaluationError
from asymvpr_core.types import ImageRecord

_MOST_CONDITIONS = 24  # more different ones than this are remarks on single images, no conditions


@dataclass(frozen=True)
class Predictions:
    """Ranked answers of one system with their ground truth; row i belongs to query i.

    `scores` (Q, K) float, best first, and `indices` (Q, K) int, gallery indices; -inf and -1 where a query
    has fewer answers. `positives[i]` are the gallery indices that would be correct; None where there is no
    ground truth, and then nothing that judges an answer can be asked. `distances_m` (Q,) leads from the query
    to its best match; NaN where unknown. `conditions` names the condition of each query.

    Raises:
        EvaluationError: no queries, lengths that differ, NaN scores, or scores that rise along a row.
    """

    name: str
    scores: np.ndarray
    indices: np.ndarray
    positives: Sequence[np.ndarray] | None
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

    @property
    def judged(self) -> bool:
        """Whether there is a ground truth."""
        return self.positives is not None

    @property
    def ground_truth(self) -> Sequence[np.ndarray]:
        """`positives`, which must be known.

        Raises:
            EvaluationError: there is no ground truth.
        """
        if self.positives is None:
            raise EvaluationError(f"{self.name} has no ground truth, so no answer can be judged", expected="predictions that are judged")
        return self.positives

    @cached_property
    def hits(self) -> np.ndarray:
        """(Q, K) bool: answer j of query i is correct."""
        rows = zip(self.indices, self.ground_truth, strict=True)
        return np.array([np.isin(row, positive) for row, positive in rows], dtype=bool).reshape(self.indices.shape)

    @cached_property
    def evaluable(self) -> np.ndarray:
        """(Q,) bool: the gallery holds a correct match."""
        return np.array([len(positive) > 0 for positive in self.ground_truth], dtype=bool)

    @property
    def correct(self) -> np.ndarray:
        """(Q,) bool: the best answer is correct."""
        return self.hits[:, 0]

    def subset(self, rows: np.ndarray, name: str) -> Predictions:
        """The predictions of some queries, by their numbers."""
        return Predictions(
            name, self.scores[rows], self.indices[rows],
            None if self.positives is None else [self.positives[i] for i in rows.tolist()], self.distances_m[rows],
            None if self.conditions is None else [self.conditions[i] for i in rows.tolist()],
        )  # fmt: skip


def conditions_of(records: Sequence[ImageRecord]) -> tuple[str, ...] | None:
    """The condition of each image, "(none)" where it has none; None where no image has one, or nearly each its own."""
    conditions = [record.condition for record in records]
    different = set(conditions)
    if different <= {""} or len(different) > _MOST_CONDITIONS:
        return None
    return tuple(condition or "(none)" for condition in conditions)
