"""The memory bank on disk: built from a gallery, resumable, read through memory maps.

Folder: `manifest.json`, `centroids.npy` and `variances.npy` (M, D), `counts.npy` (M,), `places.npy` (N,),
and with a rank `factors.npy` (R, D) and `factor_offsets.npy` (M + 1,).
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.arrays import open_array
from asymvpr_core.config import BankSettings
from asymvpr_core.errors import ArtefactError, MemoryBankError
from asymvpr_core.gallery.several import AnyGallery, open_galleries
from asymvpr_core.manifest import Manifest, read_manifest, verify_files, write_manifest
from asymvpr_core.memory.bank import MemoryBank, remaining_variance
from asymvpr_core.memory.cells import gallery_places
from asymvpr_core.memory.low_rank import factor_offsets, low_rank_moments
from asymvpr_core.memory.moments import Moments, PassState, check_places, stream_moments
from asymvpr_core.memory.origin import check_origin, gallery_digest, origin
from asymvpr_core.memory.spread import mean_spread
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import build_resumably, link_or_copy, save_piece
from asymvpr_core.row_file import RowFile

CENTROIDS, VARIANCES, COUNTS, PLACES = "centroids.npy", "variances.npy", "counts.npy", "places.npy"
FACTORS, FACTOR_OFFSETS = "factors.npy", "factor_offsets.npy"
_STATE = "state"
_REMEDY = "rebuild with 'asymvpr bank build'"

_PLACES_BETWEEN_CHECKPOINTS = 4096


@dataclass(frozen=True)
class StoredBank:
    """A verified bank, open for reading: the arrays of `bank` are memory maps."""

    path: Path
    manifest: Manifest
    bank: MemoryBank

    @property
    def mean_spread(self) -> float | None:
        """Mean of gᵀΣ_p g over the images of places with several, computed when the bank was built; None without such a place."""
        value = self.manifest.details.get("mean_spread")
        return None if value is None else float(value)

    @staticmethod
    def open(path: Path, *, verify: bool = True) -> StoredBank:
        """Open a bank; with `verify`, the checksums of all its files are tested first.

        Raises:
            ArtefactError: missing, unfinished, damaged (naming the file), or inconsistent.
        """
        path = Path(path)
        manifest = read_manifest(path, "bank")
        verify_files(path, manifest, None if verify else [])
        bank = _open_arrays(path, FACTORS in manifest.files)
        _check_types(path, bank)
        m, d = len(bank.counts), manifest.gallery_network.dimension
        shapes = [array.shape for array in (bank.centroids, bank.variances, bank.counts, bank.places)]
        expected: list[tuple[int, ...]] = [(m, d), (m, d), (m,), (int(bank.counts.sum()),)]
        if bank.factors is not None and bank.factor_offsets is not None:
            shapes += [bank.factors.shape, bank.factor_offsets.shape]
            expected += [(int(bank.factor_offsets[-1]) if bank.factor_offsets.size else 0, d), (m + 1,)]
        if shapes != expected:
            raise ArtefactError(f"the arrays of bank {path} have shapes {shapes}", expected=f"{expected}", remedy=_REMEDY)
        _check_numbering(path, bank)
        return StoredBank(path, manifest, bank)

    def check_gallery(self, gallery: AnyGallery) -> None:
        """Refuse a gallery, or several, whose descriptors or keyframes are not those that the bank was made from.

        Raises:
            ArtefactError: naming both.
        """
        check_origin(self.manifest, self.path, gallery, "asymvpr bank build")


def build_bank(gallery_path: Path | Sequence[Path], settings: BankSettings, out: Path, *, progress: Progress = silent) -> Path:
    """Compute the place statistics of a gallery, or of several as one, and write the bank `out`; returns `out`.

    Places of different galleries are different places, numbered one gallery after another.
    A killed build continues where it was when the same command is given again, and gives the same numbers.

    Raises:
        ArtefactError: gallery damaged, or several not of one pair, `out` exists, cannot be written, or is in use.
        MemoryBankError: no places can be made, one place in all, a descriptor that is not finite.
    """
    gallery = open_galleries(gallery_path)
    places = gallery_places(gallery, settings.cells)
    counts = check_places(gallery.descriptors, places)
    if len(counts) < 2:
        raise MemoryBankError("the gallery has one place in all", expected="at least two", remedy="use smaller cells or a larger gallery")

    def build(work: Path, staging: Path) -> None:
        try:
            (_diagonal if settings.rank == 0 else _low_rank)(gallery, places, settings, work, progress)
            for name in (CENTROIDS, VARIANCES, FACTORS):
                if (work / name).exists():
                    link_or_copy(work / name, staging / name)
            np.save(staging / COUNTS, counts, allow_pickle=False)
            np.save(staging / PLACES, places, allow_pickle=False)
            if settings.rank > 0:
                np.save(staging / FACTOR_OFFSETS, factor_offsets(counts, settings.rank), allow_pickle=False)
            _write_manifest(staging, gallery, settings)
        except BaseException:
            if not (work / _STATE).exists():  # nothing that a second run could use
                _remove_work(work)
            raise

    # The budget is left out: it changes no number.
    fingerprint: dict[str, Any] = {
        "gallery": gallery_digest(gallery),
        "places": hashlib.sha256(places.tobytes()).hexdigest(),
        "settings": settings.model_dump(mode="json", exclude={"memory_gb"}),
    }
    return build_resumably(out, fingerprint, build)


def _diagonal(gallery: AnyGallery, places: np.ndarray, settings: BankSettings, work: Path, progress: Progress) -> None:
    state = _resume(work, CENTROIDS, VARIANCES)
    centroids, variances = _row_files(gallery, places, settings, work)

    def emit(place: int, moments: Moments) -> None:
        centroids.write(place, moments.mean)
        variances.write(place, moments.variance)

    def checkpoint(state: PassState) -> None:
        centroids.flush()
        variances.flush()  # what the state does not hold any more must be on the disk before it
        save_piece(work / _STATE, state.save)

    stream_moments(
        gallery.descriptors, places, emit,
        memory_bytes=int(settings.memory_gb * 1e9), state=state, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    for file in (centroids, variances):
        file.close()


def _low_rank(gallery: AnyGallery, places: np.ndarray, settings: BankSettings, work: Path, progress: Progress) -> None:
    first_place = _resume(work, CENTROIDS, VARIANCES, FACTORS).next_row
    offsets = factor_offsets(np.bincount(places), settings.rank)
    centroids, variances = _row_files(gallery, places, settings, work)
    dtype = np.dtype(settings.dtype)
    factors = RowFile(work / FACTORS, (int(offsets[-1]), gallery.descriptors.shape[1]), dtype)
    files = (centroids, variances, factors)

    def emit(place: int, moments: Moments, own: np.ndarray) -> None:
        stored = own.astype(dtype)
        centroids.write(place, moments.mean)
        variances.write(place, remaining_variance(moments, stored))
        factors.write(int(offsets[place]), stored)
        if (place + 1) % _PLACES_BETWEEN_CHECKPOINTS == 0:
            for file in files:
                file.flush()
            save_piece(work / _STATE, PassState(next_row=place + 1).save)

    low_rank_moments(
        gallery.descriptors, places, settings.rank, emit,
        memory_bytes=int(settings.memory_gb * 1e9), first_place=first_place, progress=progress,
    )  # fmt: skip
    for file in files:
        file.close()


def _resume(work: Path, *files: str) -> PassState:
    """Where the killed build was; the beginning where there was none, or where one of its files is gone."""
    if all((work / name).exists() for name in (_STATE, *files)):
        return PassState.load(work / _STATE)
    _remove_work(work)
    return PassState()


def _remove_work(work: Path) -> None:
    for name in (_STATE, CENTROIDS, VARIANCES, FACTORS):
        (work / name).unlink(missing_ok=True)


def _row_files(gallery: AnyGallery, places: np.ndarray, settings: BankSettings, work: Path) -> tuple[RowFile, RowFile]:
    shape = (int(places.max()) + 1, gallery.descriptors.shape[1])
    # Variances of high-dimensional unit vectors are near 1e-6, where float16 has lost most of its digits.
    return RowFile(work / CENTROIDS, shape, np.dtype(settings.dtype)), RowFile(work / VARIANCES, shape, np.float32)


def _open_arrays(folder: Path, with_factors: bool) -> MemoryBank:
    names = (CENTROIDS, VARIANCES, COUNTS, PLACES, *((FACTORS, FACTOR_OFFSETS) if with_factors else ()))
    return MemoryBank(*(open_array(folder / name, _REMEDY) for name in names))


def _check_types(path: Path, bank: MemoryBank) -> None:
    """Refuse arrays of other types and numbers of axes than a build writes."""
    numbers = {CENTROIDS: bank.centroids, VARIANCES: bank.variances, FACTORS: bank.factors}
    whole = {COUNTS: bank.counts, PLACES: bank.places, FACTOR_OFFSETS: bank.factor_offsets}
    for arrays, types, axes in ((numbers, "f", 2), (whole, "iu", 1)):
        for name, array in arrays.items():
            if array is not None and (array.dtype.kind not in types or array.ndim != axes):
                raise ArtefactError(
                    f"{path / name} is {array.dtype} of shape {array.shape}",
                    expected=f"{'floating-point' if types == 'f' else 'whole'} numbers with {axes} axes", remedy=_REMEDY,
                )  # fmt: skip


def _check_numbering(path: Path, bank: MemoryBank) -> None:
    """Refuse places and factors whose numbers lead out of the arrays, or are not what they are counted as."""
    places = np.asarray(bank.places)
    inside = places.size == 0 or (int(places.min()) >= 0 and int(places.max()) < len(bank.counts))
    if not inside or not np.array_equal(np.bincount(places.astype(np.int64), minlength=len(bank.counts)), bank.counts):
        raise ArtefactError(f"{path / PLACES} does not number the places that {COUNTS} counts", remedy=_REMEDY)
    offsets = bank.factor_offsets
    if offsets is not None and (int(offsets[0]) != 0 or (np.diff(offsets) < 0).any()):
        raise ArtefactError(f"{path / FACTOR_OFFSETS} does not increase from 0", remedy=_REMEDY)


def _write_manifest(staging: Path, gallery: AnyGallery, settings: BankSettings) -> None:
    bank = _open_arrays(staging, settings.rank > 0)
    write_manifest(
        staging, "bank", gallery.gallery_network,
        settings=settings.model_dump(mode="json"), inputs=origin(gallery),
        versions={"python": platform.python_version(), "numpy": np.__version__},
        details={
            "places": len(bank.counts), "images": len(bank.places), "places_with_one_image": int((bank.counts == 1).sum()),
            "mean_spread": mean_spread(bank) if (bank.counts >= 2).any() else None,
        },
    )  # fmt: skip
