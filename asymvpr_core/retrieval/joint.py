"""Several galleries of one pair, searched as one; and what a robot matches against, whether it is one gallery or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from asymvpr_core.errors import ArtefactError, RetrievalError
from asymvpr_core.gallery.several import StackedRows, check_one_pair
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import GalleryNetworkIdentity
from asymvpr_core.retrieval.gallery_index import GalleryIndex, open_index
from asymvpr_core.retrieval.index import search
from asymvpr_core.rigid_transforms import compose
from asymvpr_core.types import Keyframe, Pose


@dataclass(frozen=True)
class JointGallery:
    """Galleries of one pair in a fixed order, whose keyframes are numbered through, and one index over them.

    It has what the matcher and a node need of a gallery (`path`, `keyframes`, `positions`, `descriptors`, pictures) and of an
    index (`ntotal`, `d`, `search`), so that `Matcher(joint, joint, settings)` matches against all of them.

    **Map frames.** A pose is a number without meaning in another frame, and the matcher compares and publishes
    poses. So the galleries have to share a map frame by name, or `transforms` has to give the pose of each other
    frame in that of the first gallery, `T_first_other`; the keyframes' poses are then given in the first one's.
    Galleries in frames that nobody related can be searched (`locate` says in which gallery a keyframe lies, which
    is what a robot asks that does not know in which of its maps it woke up), but `keyframes` refuses.
    """

    galleries: tuple[Gallery, ...]
    indexes: tuple[GalleryIndex, ...]
    transforms: Mapping[str, Pose]

    @staticmethod
    def open(
        paths: Sequence[Path], transforms: Mapping[str, Pose] | None = None, *, verify: bool | Literal["auto"] = "auto"
    ) -> JointGallery:
        """Open galleries and their indexes.

        Args:
            transforms: by map frame, the pose of that frame in the map frame of the first gallery.
            verify: as `Gallery.open`.

        Raises:
            ArtefactError: no gallery, the same one twice, one that is damaged, or galleries of different pairs.
            RetrievalError: as `open_index`.
        """
        if not paths:
            raise ArtefactError("no gallery was given", expected="at least one")
        resolved = [Path(path).resolve() for path in paths]
        twice = next((path for path in resolved if resolved.count(path) > 1), None)
        if twice is not None:
            raise ArtefactError(f"gallery {twice} was given twice", expected="different galleries")
        galleries = tuple(Gallery.open(Path(path), verify=verify) for path in paths)
        check_one_pair(galleries)
        return JointGallery(galleries, tuple(open_index(gallery) for gallery in galleries), dict(transforms or {}))

    def __len__(self) -> int:
        return self.ntotal

    @property
    def ntotal(self) -> int:
        """Keyframes of all galleries."""
        return int(self._starts[-1])

    @property
    def d(self) -> int:
        """Dimension of the descriptors."""
        return self.galleries[0].manifest.gallery_network.dimension

    @property
    def gallery_network(self) -> GalleryNetworkIdentity:
        """The pair of all of them."""
        return self.galleries[0].gallery_network

    @property
    def answered_exactly(self) -> int:
        """Queries for which an index found too few keyframes, of all galleries."""
        return sum(index.answered_exactly for index in self.indexes)

    @property
    def has_thumbnails(self) -> bool:
        """Whether every keyframe has a thumbnail."""
        return all(gallery.has_thumbnails for gallery in self.galleries)

    def read_thumbnail(self, index: int) -> np.ndarray:
        """As `Gallery.read_thumbnail`, by the joint number."""
        gallery, row = self.locate(index)
        return gallery.read_thumbnail(row)

    def read_image(self, index: int) -> np.ndarray:
        """As `Gallery.read_image`, by the joint number."""
        gallery, row = self.locate(index)
        return gallery.read_image(row)

    @property
    def path(self) -> str:
        """All paths, for messages."""
        return " + ".join(str(gallery.path) for gallery in self.galleries)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(gallery) for gallery in self.galleries)])

    def locate(self, index: int) -> tuple[Gallery, int]:
        """The gallery and the keyframe in it that the number `index` stands for.

        Raises:
            RetrievalError: no such number.
        """
        if not 0 <= index < self.ntotal:
            raise RetrievalError(f"there is no keyframe {index}", expected=f"0 to {self.ntotal - 1}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.galleries[number], index - int(self._starts[number])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best keyframes of all galleries for every query: scores (Q, k) descending, joint numbers (Q, k); k <= ntotal.

        Of equal scores the gallery that was given first comes first. Call it through `retrieval.index.search`.
        """
        scores, numbers = [], []
        for start, gallery, index in zip(self._starts[:-1].tolist(), self.galleries, self.indexes, strict=True):
            if len(gallery):
                found, rows = index.search(queries, min(k, len(gallery)))
                scores.append(found)
                numbers.append(rows + start)
        joined, rows = np.hstack(scores), np.hstack(numbers)
        order = np.argsort(-joined, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(joined, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def search_located(self, queries: np.ndarray, k: int, threads: int = 1) -> list[list[tuple[float, Gallery, int]]]:
        """For every query the k best as (score, gallery, keyframe in that gallery), best first. Raises as `retrieval.index.search`."""
        scores, numbers = search(self, queries, k, threads)
        return [[(float(s), *self.locate(int(n))) for s, n in zip(*row, strict=True)] for row in zip(scores, numbers, strict=True)]

    @property
    def map_frame(self) -> str:
        """The frame of the poses in `keyframes`: that of the first gallery. Raises RetrievalError as `keyframes`."""
        self._check_frames()
        return self.galleries[0].map_frame

    @cached_property
    def keyframes(self) -> list[Keyframe]:
        """All keyframes, in the order of the numbers, with their poses in the map frame of the first gallery.

        Raises:
            RetrievalError: a gallery whose map frame has another name and no transform.
        """
        self._check_frames()
        return [keyframe for gallery in self.galleries for keyframe in self._in_first_frame(gallery)]

    @cached_property
    def positions(self) -> np.ndarray:
        """(N, 3) float64, metres in the map frame of the first gallery; NaN where a keyframe has no pose."""
        return np.array([k.pose.position if k.pose else (np.nan,) * 3 for k in self.keyframes], dtype=np.float64).reshape(-1, 3)

    @cached_property
    def descriptors(self) -> StackedRows:
        """(N, D) descriptors in the order of the numbers; they stay where they are, and the rows that are asked for are read."""
        return StackedRows([gallery.descriptors for gallery in self.galleries])

    def _check_frames(self) -> None:
        first = self.galleries[0].map_frame
        for gallery in self.galleries:
            if gallery.map_frame != first and gallery.map_frame not in self.transforms:
                raise RetrievalError(
                    f"gallery {gallery.path} is in the map frame '{gallery.map_frame}', {self.galleries[0].path} in '{first}'",
                    expected="one map frame, or the transform between them",
                    remedy=f"give the pose of '{gallery.map_frame}' in '{first}', or match against one of them",
                )

    def _in_first_frame(self, gallery: Gallery) -> list[Keyframe]:
        if gallery.map_frame == self.galleries[0].map_frame:
            return gallery.keyframes
        T_first_other = self.transforms[gallery.map_frame]
        turn_deg = float(np.degrees(T_first_other.yaw_rad))
        return [
            replace(
                keyframe,
                pose=None if keyframe.pose is None else compose(T_first_other, keyframe.pose),
                heading_deg=None if keyframe.heading_deg is None else (keyframe.heading_deg - turn_deg) % 360.0,
            )
            for keyframe in gallery.keyframes
        ]


# What a robot matches against.
PriorGallery = Gallery | JointGallery


def open_prior(paths: Sequence[Path]) -> tuple[PriorGallery, GalleryIndex | JointGallery]:
    """Open one gallery with its index, or several as one, which are their own index; large files are verified behind the work.

    Raises:
        ArtefactError, RetrievalError: as `Gallery.open`, `open_index` and `JointGallery.open`; map frames that differ.
    """
    if len(paths) == 1:
        gallery = Gallery.open(Path(paths[0]), verify="auto")
        return gallery, open_index(gallery)
    joint = JointGallery.open(paths)
    _ = joint.map_frame  # refuses frames that nobody related
    return joint, joint


def galleries_in(prior: PriorGallery | None) -> tuple[Gallery, ...]:
    """The galleries that a robot matches against, in their order; none without a prior gallery."""
    if prior is None:
        return ()
    return prior.galleries if isinstance(prior, JointGallery) else (prior,)


@dataclass(frozen=True)
class PriorCondition:
    """How the search of the prior galleries goes, for diagnostics.

    `index` names the kinds of index in the galleries' order. `answered_exactly` counts the queries for which an
    index found too few keyframes, so that a scan of all descriptors had to answer. `verification` says how far the
    check of the galleries' files is, and what it found.
    """

    index: str = ""
    answered_exactly: int = 0
    verification: str = ""
    damage: str = ""

    @staticmethod
    def of(prior: PriorGallery | None, index: GalleryIndex | JointGallery | None) -> PriorCondition:
        """The condition now."""
        if prior is None or index is None:
            return PriorCondition()
        kinds = [one.kind for one in (index.indexes if isinstance(index, JointGallery) else (index,))]
        checks = [gallery.verification for gallery in galleries_in(prior)]
        running = [check for check in checks if check is not None and not check.finished]
        damage = "; ".join(check.damage for check in checks if check is not None and check.damage)
        verification = f"damaged: {damage}" if damage else f"{len(running)} of {len(checks)} running" if running else "passed"
        return PriorCondition(" + ".join(kinds), index.answered_exactly, verification, damage)
