"""The rules by which benchmarks say that a database image is a correct match of a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.positives import Positives
from asymvpr_core.types import ImageRecord


class MatchRule(Protocol):
    """`text` says the rule in words and is printed with every result."""

    @property
    def text(self) -> str: ...

    def positives(self, queries: Sequence[ImageRecord], database: Sequence[ImageRecord]) -> Positives:
        """For each query the database images that are correct."""
        ...


@dataclass(frozen=True)
class WithinRadius:
    """Correct: at most `radius_m` away, and with a heading at most `max_yaw_deg` off where that is given.

    Where `groups` names a group for each query and each database image ("cph"), only images of the
    query's own group are correct. `image` is what the text calls the images among which is searched.
    """

    radius_m: float
    max_yaw_deg: float | None = None
    groups: tuple[Sequence[str], Sequence[str]] | None = None
    group_name: str = "group"
    image: str = "database image"

    @property
    def text(self) -> str:
        text = f"{self.image} within {self.radius_m:g} m (horizontal distance) of the query"
        if self.max_yaw_deg is not None:
            text += f" and within {self.max_yaw_deg:g} deg of its heading"
        return text if self.groups is None else f"{text}, in the same {self.group_name}"

    def positives(self, queries: Sequence[ImageRecord], database: Sequence[ImageRecord]) -> Positives:
        """As in `MatchRule`. Raises DatasetError for an image without position or, with a yaw limit, heading."""
        found = find_positives(queries, database, self.radius_m, self.max_yaw_deg)
        if self.groups is None:
            return found
        return found.within_groups(np.asarray(self.groups[0], dtype=str), np.asarray(self.groups[1], dtype=str))


@dataclass(frozen=True)
class FrameWindow:
    """Correct: at most `half_width` frames away in two recordings of one route that were aligned frame by frame.

    `query_frames` and `database_frames` are the frame number of each image, ascending.
    """

    half_width: int
    query_frames: np.ndarray = field(compare=False)
    database_frames: np.ndarray = field(compare=False)

    @property
    def text(self) -> str:
        return f"database image at most {self.half_width} frame{'s' * (self.half_width != 1)} from the query's"

    def positives(self, queries: Sequence[ImageRecord], database: Sequence[ImageRecord]) -> Positives:
        """As in `MatchRule`."""
        begin = np.searchsorted(self.database_frames, self.query_frames - self.half_width, side="left")
        end = np.searchsorted(self.database_frames, self.query_frames + self.half_width, side="right")
        offsets = np.concatenate([[0], np.cumsum(end - begin)])
        # Place p of query i, counted from its first match, is database image begin[i] + p.
        indices = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], end - begin)
        return Positives(offsets, indices.astype(np.int32))


@dataclass(frozen=True)
class SamePlace:
    """Correct: the same `place_id` as the query; `what` says what an id stands for."""

    what: str

    @property
    def text(self) -> str:
        return f"database image of {self.what}"

    def positives(self, queries: Sequence[ImageRecord], database: Sequence[ImageRecord]) -> Positives:
        """As in `MatchRule`."""
        of_place: dict[int | None, list[int]] = {}
        for index, record in enumerate(database):
            of_place.setdefault(record.place_id, []).append(index)
        return Positives.from_lists([] if query.place_id is None else of_place.get(query.place_id, []) for query in queries)
