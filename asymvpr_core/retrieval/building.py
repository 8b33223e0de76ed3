"""Build the index of a gallery on disk, or build it anew: `asymvpr gallery build` and `asymvpr index build`."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.config import IndexSettings
from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.store import DESCRIPTORS, Gallery
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.gallery_index import IndexManifest, save_index
from asymvpr_core.retrieval.tuning import choose_index


def index_gallery(
    gallery_path: Path, settings: IndexSettings, *, every_kind: bool = False, verify: bool = False, progress: Progress = silent
) -> IndexManifest:
    """Choose and build an index of the gallery's descriptors and write it into its folder; gives what was written.

    The index before stays valid until the new one is complete, also when this is killed. Of a gallery that an
    earlier version wrote, the file `index.faiss` stays where its manifest lists it, and is not used.

    Args:
        every_kind: with kind auto, measure all kinds that fit the memory and take the quickest.
        verify: test the descriptors' checksum first; not needed for those written just now.

    Raises:
        ArtefactError: damaged gallery, folder that cannot be written, or another process writing an index there.
        RetrievalError: as `choose_index`.
    """
    gallery = Gallery.open(gallery_path, verify=verify)
    if DESCRIPTORS not in gallery.manifest.files:
        raise ArtefactError(f"the manifest of gallery {gallery_path} does not list {DESCRIPTORS}", remedy="rebuild the gallery")
    chosen = choose_index(gallery.descriptors, settings, every_kind=every_kind, progress=progress)
    return save_index(
        gallery.path, chosen.index.kind, chosen.stored, chosen.index.parameters, chosen.index.refine,
        descriptors=gallery.descriptors, descriptors_sha256=gallery.manifest.files[DESCRIPTORS].sha256,
        pair_id=gallery.manifest.gallery_network.pair_id, settings=settings.model_dump(mode="json"), trials=chosen.trials, note=chosen.note,
    )  # fmt: skip
