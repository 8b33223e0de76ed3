"""A smaller gallery from a gallery: its stored descriptors projected, without a second pass over the images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from asymvpr_core.config import IndexSettings, ProjectionSettings
from asymvpr_core.errors import ArtefactError, GalleryError
from asymvpr_core.gallery.build import gallery_versions, write_descriptors
from asymvpr_core.gallery.store import IMAGES, KEYFRAMES, PROJECTION, THUMBNAILS, Gallery
from asymvpr_core.manifest import new_folder, read_manifest, verify_files, write_manifest
from asymvpr_core.networks.projection import Projection, make_projection
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import link_or_copy
from asymvpr_core.retrieval.building import index_gallery


def project_gallery(
    gallery_path: Path, dimension: int, settings: ProjectionSettings, out: Path, *, projection_from: Path | None = None,
    index: IndexSettings | None = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Write the gallery `out`: the same keyframes with `dimension`-D descriptors; returns `out`.

    A query model trained against the large gallery serves the small one when it is exported with
    `projection_from=out`: training stays at full dimension, and the projection is folded into the model.

    Args:
        projection_from: another gallery that was projected like this; its projection is re-used, so
            that one query model serves both. `dimension` and `settings` are then not used.
        index: how the search index is chosen; None: by size and dimension.

    Raises:
        ArtefactError: damaged; `out` exists; the gallery has a projection already; or
            `projection_from` was projected from a gallery of another pair.
        GalleryError: the dimension is not below the gallery's, or too few images for it.
    """
    gallery = Gallery.open(gallery_path)
    identity = gallery.manifest.gallery_network
    if identity.projection_sha256 is not None:
        raise ArtefactError(
            f"gallery {gallery_path} is projected already, to {identity.dimension}-D",
            expected="a gallery of full descriptors",
            remedy="build it with --projection-dim 0, or build it anew with the dimension that you want",
        )
    projection = (
        _fit(gallery, dimension, settings) if projection_from is None else _borrow(Path(projection_from), identity.pair_id, gallery_path)
    )
    origin = {"gallery": str(gallery.path.resolve()), "pair": identity.pair_id, "kept_variance": _kept(gallery, projection)}
    how = settings.model_dump(mode="json", include=set(ProjectionSettings.model_fields)) | {"projection_dim": projection.dimension}
    with new_folder(out) as staging:
        write_descriptors(staging, gallery.descriptors, projection, str(gallery.descriptors.dtype))
        shutil.copy2(gallery.path / KEYFRAMES, staging / KEYFRAMES)
        if gallery.holds_images:
            shutil.copytree(gallery.path / IMAGES, staging / IMAGES, copy_function=link_or_copy)
        if gallery.has_thumbnails:
            shutil.copytree(gallery.path / THUMBNAILS, staging / THUMBNAILS, copy_function=link_or_copy)
        write_manifest(
            staging, "gallery",
            identity.model_copy(update={"projection_sha256": projection.sha256, "dimension": projection.dimension}),
            settings=gallery.manifest.settings | how,
            inputs=gallery.manifest.inputs,
            versions=gallery_versions(),
            details=gallery.manifest.details | {"projected_from": origin, "index": True},
        )  # fmt: skip
        index_gallery(staging, index or IndexSettings(), progress=progress)
    return out


def _fit(gallery: Gallery, dimension: int, settings: ProjectionSettings) -> Projection:
    full = gallery.manifest.gallery_network.dimension
    if not 1 <= dimension < full:
        raise GalleryError(f"a projection to {dimension} dimensions", expected=f"1 to {full - 1}, below the gallery's {full}")
    return make_projection(gallery.descriptors, settings, dimension)


def _borrow(other: Path, pair_id: str, gallery_path: Path) -> Projection:
    manifest = read_manifest(other, "gallery")
    origin = manifest.details.get("projected_from")
    if not isinstance(origin, dict) or origin.get("pair") != pair_id:
        raise ArtefactError(
            f"gallery {other} was not projected from descriptors like those of {gallery_path} (pair {pair_id})",
            remedy="give a gallery that 'asymvpr gallery project' made from the same network, weights and pre-processing",
        )
    verify_files(other, manifest, [PROJECTION])
    return Projection.load(other / PROJECTION)


def _kept(gallery: Gallery, projection: Projection) -> float:
    """Share of the descriptors' variance in the projection's span, over at most 4096 keyframes spread over the gallery."""
    rows = np.unique(np.linspace(0, len(gallery) - 1, min(len(gallery), 4096)).astype(int))
    centred = np.asarray(gallery.descriptors[rows], dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    basis = np.linalg.qr(projection.matrix.astype(np.float64))[0]
    total = float((centred**2).sum())
    return float(((centred @ basis) ** 2).sum()) / total if total > 0 else 1.0
