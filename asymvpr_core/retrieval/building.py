"""Build the index of a gallery on disk, build it anew, or extend it: `asymvpr gallery build`, `index build`, `gallery append`."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.config import IndexSettings
from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.store import DESCRIPTORS, Gallery
from asymvpr_core.manifest import read_manifest
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.exact_search import search_exactly
from asymvpr_core.retrieval.gallery_index import IndexManifest, locked_gallery, read_index_file, read_index_manifest, save_index
from asymvpr_core.retrieval.index import finite_chunks
from asymvpr_core.retrieval.tuning import MEGABYTE, choose_index, exact_suffices, made_up_queries, measure_ladder, preferred_kinds, reaches

_ROWS_AT_ONCE = 4096


def index_gallery(
    gallery_path: Path,
    settings: IndexSettings,
    *,
    every_kind: bool = False,
    verify: bool = False,
    why: str = "",
    progress: Progress = silent,
) -> IndexManifest:
    """Choose and build an index of the gallery's descriptors and write it into its folder; gives what was written.

    The index before stays valid until the new one is complete, also when this is killed. Of a gallery that an
    earlier version wrote, the file `index.faiss` stays where its manifest lists it, and is not used.

    Args:
        every_kind: with kind auto, measure all kinds that fit the memory and take the quickest.
        verify: test the descriptors' checksum first; not needed for those written just now.
        why: why it is built, for the note that `index info` shows.

    Raises:
        ArtefactError: damaged gallery, folder that cannot be written, or another process writing an index there.
        RetrievalError: as `choose_index`.
    """
    read_manifest(gallery_path, "gallery")  # a folder that is none is refused as such
    with locked_gallery(Path(gallery_path)):  # from the start: two measurements at once would disturb each other, and one be for nothing
        return _index_gallery(gallery_path, settings, every_kind, verify, why, progress)


def _index_gallery(
    gallery_path: Path, settings: IndexSettings, every_kind: bool, verify: bool, why: str, progress: Progress
) -> IndexManifest:  # fmt: skip
    gallery = Gallery.open(gallery_path, verify=verify)
    if DESCRIPTORS not in gallery.manifest.files:
        raise ArtefactError(f"the manifest of gallery {gallery_path} does not list {DESCRIPTORS}", remedy="rebuild the gallery")
    chosen = choose_index(gallery.descriptors, settings, every_kind=every_kind, progress=progress)
    return save_index(
        gallery.path, chosen.index.kind, chosen.stored, chosen.index.parameters, chosen.index.refine,
        descriptors=gallery.descriptors, descriptors_sha256=gallery.manifest.files[DESCRIPTORS].sha256,
        pair_id=gallery.manifest.gallery_network.pair_id, settings=settings.model_dump(mode="json"), trials=chosen.trials,
        note=f"{chosen.note}; {why}" if why else chosen.note,
    )  # fmt: skip


def extend_index(before: Gallery, gallery_path: Path, *, progress: Progress = silent) -> IndexManifest:
    """Write into a gallery the index of `before`, whose keyframes are its first ones, extended by the others; gives what was written.

    Nothing is trained again: codes, ranges, projection and lists stay those of the old keyframes, and the new ones are
    added to them. Recall is then measured anew, with as thorough search parameters as it takes. Where no parameters
    reach it, the index has outgrown its memory, or exact search has become slow, an index is built anew by the
    settings of the old one; the note says which of them happened.

    Raises:
        ArtefactError: the old index is damaged, or of other descriptors.
        RetrievalError: an index has to be built anew and cannot be, as `choose_index`.
    """
    old = read_index_manifest(before)
    if old is None:
        return index_gallery(gallery_path, IndexSettings(), why=f"gallery {before.path} had none", progress=progress)
    gallery = Gallery.open(gallery_path, verify=False)
    descriptors, added = gallery.descriptors, len(gallery) - len(before)
    settings = IndexSettings.model_validate(old.settings | {"refine": old.refine})
    trials, index = [], None
    note = f"{old.kind}: exact search of all {descriptors.nbytes / MEGABYTE:.1f} MB"
    if old.kind == "exact":
        if settings.kind == "auto" and not exact_suffices(descriptors, settings):
            asked = IndexSettings.model_validate(old.settings)
            return index_gallery(
                gallery_path, asked, why=f"{added} keyframes made the gallery too large for exact search", progress=progress
            )
    else:
        index = read_index_file(before, old, mapped=False)
        for chunk in progress(finite_chunks(descriptors[len(before) :], _ROWS_AT_ONCE), "extend the index", -(-added // _ROWS_AT_ONCE)):
            index.add(chunk)
        queries = made_up_queries(descriptors, settings.queries, settings.seed)
        _, truth = search_exactly(descriptors, queries, settings.k, threads=settings.threads)
        trials = measure_ladder(old.kind, index, descriptors, settings, queries, truth, build_seconds=0.0)
        best, refused = trials[-1], ""
        if not reaches(best, settings):
            refused = f"extended by {added} keyframes it found {best.recall_at_k:.3f} of the {settings.k} nearest"
        elif best.memory_bytes > settings.memory_mb * MEGABYTE:
            refused = f"extended by {added} keyframes it took {best.memory_bytes / MEGABYTE:.1f} of {settings.memory_mb:g} MB"
        if refused:
            return index_gallery(
                gallery_path, IndexSettings.model_validate(old.settings), why=f"trained anew, since {refused}", progress=progress
            )
        note = f"{old.kind}: recall@{settings.k} {best.recall_at_k:.3f} on {settings.queries} made-up queries"
        note += f"; extended by {added} keyframes, without training"
        first = preferred_kinds(len(gallery), int(descriptors.shape[1]), descriptors.dtype.itemsize, settings.memory_mb * MEGABYTE, "auto")[
            :1
        ]
        if settings.kind == "auto" and first and first[0] != old.kind:
            note += f"; 'asymvpr index build' would try {first[0]} first at this size"
    return save_index(
        gallery.path, old.kind, index, trials[-1].parameters if trials else old.parameters, old.refine,
        descriptors=descriptors, descriptors_sha256=gallery.manifest.files[DESCRIPTORS].sha256, pair_id=old.pair_id,
        settings=old.settings, trials=trials, note=note,
    )  # fmt: skip
