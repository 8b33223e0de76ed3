"""Build a gallery: describe every image with the heavy network, in chunks that survive a kill."""

from __future__ import annotations

import hashlib
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from asymvpr_core.config import EngineSettings, GallerySettings, IndexSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import ArtefactError, GalleryError
from asymvpr_core.gallery.describe import Description, describe, report_unreadable
from asymvpr_core.gallery.store import (
    DESCRIPTORS,
    IMAGES,
    KEYFRAMES,
    PROJECTION,
    THUMBNAILS,
    encode_thumbnail,
    thumbnail_name,
    write_keyframes,
)
from asymvpr_core.manifest import GalleryNetworkIdentity, read_manifest, verify_files, write_manifest
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import LoadedNetwork, load_network
from asymvpr_core.networks.projection import Projection, make_projection
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import build_resumably, link_or_copy
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.row_file import RowFile

_BLOCK = 4096  # rows copied at a time


def build_gallery(
    source: Dataset,
    settings: GallerySettings,
    out: Path,
    *,
    projection_from: Path | None = None,
    weights: Path | None = None,
    skip_unreadable: bool = False,
    engine: EngineSettings | None = None,
    index: IndexSettings | None = None,
    progress: Progress = silent,
) -> Path:
    """Describe all images of `source` and write the gallery `out`; returns `out`.

    A killed build continues where it was when the same command is given again: chunks lie in
    `<out>.partial` and are used only when images, network and settings are the same.

    Args:
        projection_from: a gallery of the same network whose projection is re-used, so that a
            query model trained against that gallery serves this one too.
        weights: a weights file instead of the released one.
        skip_unreadable: leave out images that cannot be read. Otherwise all images are described,
            the unreadable ones are reported, and no gallery is written; the work is kept.
        engine: where the images are described; None: in this process.
        index: how the search index is chosen; None: by size and dimension.

    Raises:
        GalleryError: no images, descriptors that are not finite, or unreadable images.
        RetrievalError: an index that the settings ask for cannot be made.
        ArtefactError: `out` exists, cannot be written, is being built by another process, or
            holds a partial build of something else; or `projection_from` does not fit.
        NetworkError: naming the weights.
    """
    if not source.records:
        raise GalleryError(f"{source.root} holds no images", remedy="give a source with images")
    prepare_cpu(settings.threads)
    network = load_network(settings.network, weights)
    borrowed = None if projection_from is None else _borrow_projection(Path(projection_from), network)

    def build(work: Path, staging: Path) -> None:
        described = _describe(source, settings, engine or EngineSettings(), network, weights, work, progress)
        report_unreadable(described, len(source.records), skip_unreadable, work)
        _write(staging, source, settings, network, described, borrowed)
        if source.layout == "bag":
            half_written = shutil.ignore_patterns(".*.partial")  # of a killed run, where the picture can no longer be read
            shutil.copytree(work / IMAGES, staging / IMAGES, copy_function=link_or_copy, ignore=half_written)
        if settings.thumbnail_side_px:
            write_thumbnails(staging, source, described.kept, settings.thumbnail_side_px, progress)
        _write_manifest(staging, source, settings, network, described)
        index_gallery(staging, index or IndexSettings(), progress=progress)

    return build_resumably(out, _fingerprint(source, settings, network, borrowed), build)


def _describe(
    source: Dataset, settings: GallerySettings, engine: EngineSettings, network: LoadedNetwork, weights: Path | None, work: Path,
    progress: Progress,
) -> Description:  # fmt: skip
    if engine.engine == "local":
        return describe(source, settings, network, work, progress)
    from asymvpr_core.gallery.distributed import describe_on_ray  # needs an optional package

    return describe_on_ray(source, settings, engine, network, weights, work, progress)


def _write(
    staging: Path, source: Dataset, settings: GallerySettings, network: LoadedNetwork, described: Description, borrowed: Projection | None
) -> None:
    projection = borrowed
    dimension = network.spec.projection_dim if settings.projection_dim == "auto" else settings.projection_dim
    if projection is None and dimension is not None:
        projection = make_projection(described.features, settings, int(dimension))
    write_descriptors(staging, described.features, projection, settings.descriptor_dtype)
    write_keyframes(staging / KEYFRAMES, [source.records[i] for i in described.kept])


def write_descriptors(
    staging: Path, features: np.ndarray, projection: Projection | None, dtype: str, *, before: np.ndarray | None = None
) -> None:
    """Write projection and descriptors of (N, C) features into the staging folder of a gallery, block by block.

    Args:
        before: (M, D) descriptors that stand in front of them, of the same type.

    Raises:
        GalleryError: a descriptor that is not finite.
    """
    dimension = features.shape[1] if projection is None else projection.dimension
    if projection is not None:
        projection.save(staging / PROJECTION)
    count = 0 if before is None else len(before)
    with RowFile(staging / DESCRIPTORS, (count + len(features), dimension), np.dtype(dtype)) as descriptors:
        for start in range(0, count, _BLOCK):
            descriptors.write(start, before[start : start + _BLOCK])  # type: ignore[index]
        row = count
        for block in [features] if projection is None else projection.blocks(features):
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                raise GalleryError(f"descriptor {row + int(np.argmin(finite))} is not finite", remedy="check the weights and that image")
            descriptors.write(row, block)
            row += len(block)


def write_thumbnails(staging: Path, source: Dataset, kept: list[int], side_px: int, progress: Progress, first: int = 0) -> None:
    """Write a thumbnail of every keyframe into the staging folder of a gallery; keyframe `first + i` is image `kept[i]` of the source."""
    (staging / THUMBNAILS).mkdir(exist_ok=True)
    images = progress(source.read_images(kept), "thumbnails", len(kept))
    for keyframe, (_, image) in enumerate(images, start=first):
        (staging / thumbnail_name(keyframe)).write_bytes(encode_thumbnail(image, side_px))


def _write_manifest(staging: Path, source: Dataset, settings: GallerySettings, network: LoadedNetwork, described: Description) -> None:
    projection = staging / PROJECTION
    identity = GalleryNetworkIdentity(
        name=network.spec.name,
        weights_sha256=network.weights_sha256,
        preprocess=network.spec.preprocess.model_dump(mode="json"),
        projection_sha256=Projection.load(projection).sha256 if projection.exists() else None,
        dimension=int(np.load(staging / DESCRIPTORS, mmap_mode="r", allow_pickle=False).shape[1]),
    )
    write_manifest(
        staging, "gallery", identity,
        settings=settings.model_dump(mode="json"),
        inputs={"source": str(source.root.resolve()), "layout": source.layout},
        versions=gallery_versions(),
        details={
            "map_frame": source.map_frame, "keyframes": len(described.kept), "images_in_gallery": source.layout == "bag",
            "thumbnails": settings.thumbnail_side_px > 0, "index": True,
            "skipped_images": dict(sorted(described.unreadable.items())),
            "weights": {"tensors": network.report.used, "ignored": network.report.ignored, "notes": list(network.report.notes)},
        },
    )  # fmt: skip


def gallery_versions() -> dict[str, str]:
    """Versions of what the numbers of a gallery depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__}


def _borrow_projection(gallery: Path, network: LoadedNetwork) -> Projection:
    manifest = read_manifest(gallery, "gallery")
    other = manifest.gallery_network
    if (other.name, other.weights_sha256) != (network.spec.name, network.weights_sha256):
        raise ArtefactError(
            f"gallery {gallery} was made by {other.name} (weights {other.weights_sha256[:12]})",
            expected=f"{network.spec.name} (weights {network.weights_sha256[:12]})",
            remedy="give a gallery of the same network to --projection-from",
        )
    if other.projection_sha256 is None:
        raise ArtefactError(f"gallery {gallery} has no projection", remedy="leave --projection-from out and give --projection-dim 0")
    verify_files(gallery, manifest, [PROJECTION])
    return Projection.load(gallery / PROJECTION)


def _fingerprint(source: Dataset, settings: GallerySettings, network: LoadedNetwork, borrowed: Projection | None) -> dict[str, Any]:
    """What must be equal for the chunks of a killed build to be used again."""
    return {
        "source": str(source.root.resolve()),
        "images": hashlib.sha256(repr(source.records).encode()).hexdigest(),
        "weights": network.weights_sha256,
        "preprocess": network.spec.preprocess.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "projection": None if borrowed is None else borrowed.sha256,
    }
