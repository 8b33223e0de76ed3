"""New images for a finished gallery: described as its own were, behind them; what it had before stays readable until the end."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.config import GallerySettings, IndexSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import ArtefactError, GalleryError
from asymvpr_core.gallery.build import gallery_versions, write_descriptors, write_thumbnails
from asymvpr_core.gallery.describe import Description, describe, report_unreadable
from asymvpr_core.gallery.encoder import GalleryEncoder
from asymvpr_core.gallery.store import IMAGES, KEYFRAMES, PROJECTION, THUMBNAILS, Gallery, write_keyframes
from asymvpr_core.manifest import write_manifest
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import build_resumably, clear_replaced, link_or_copy, replace_resumably
from asymvpr_core.retrieval.building import extend_index, index_gallery
from asymvpr_core.retrieval.calibration import CALIBRATION
from asymvpr_core.retrieval.gallery_index import locked_gallery
from asymvpr_core.types import ImageRecord


class _NewImages:
    """The images of a dataset that a gallery does not hold yet, in their order; satisfies `Dataset`."""

    def __init__(self, source: Dataset, indices: list[int]):
        self.source, self.indices = source, indices
        self.root, self.layout, self.map_frame = source.root, source.layout, source.map_frame
        self.records: list[ImageRecord] = [source.records[index] for index in indices]

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]:
        found = self.source.read_encoded([self.indices[index] for index in indices])
        return ((index, data) for index, (_, data) in zip(indices, found, strict=True))

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        found = self.source.read_images([self.indices[index] for index in indices])
        return ((index, image) for index, (_, image) in zip(indices, found, strict=True))


def append_to_gallery(
    gallery_path: Path,
    source: Dataset,
    *,
    out: Path | None = None,
    weights: Path | None = None,
    skip_unreadable: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
    index: IndexSettings | None = None,
    progress: Progress = silent,
) -> Path:
    """Describe the images of `source` that the gallery does not hold and put them behind its keyframes; returns the gallery's folder.

    The gallery is replaced in one step when everything is complete. Until then, and after a kill at any moment,
    the old one can be opened; the same command continues where a killed one was. Its pair stays, so that its query
    models serve the larger gallery. Banks, neighbour lists and calibrations are of the smaller one, and are refused
    from then on with the command that makes them anew.

    Args:
        out: a new folder for the larger gallery; None: in the place of the old one.
        weights: the weights file that the gallery was built with, where it is not the released one.
        skip_unreadable: as in `build_gallery`.
        batch_size, threads: of the forward pass; None: as the gallery was built.
        index: None: the index is extended without training (`retrieval.building.extend_index`); otherwise built anew.

    Raises:
        GalleryError: nothing new, places with ids of their own, unreadable images, or descriptors that are not finite.
        ArtefactError: a damaged gallery, one that was not described from images, other weights or pre-processing
            than the gallery's, poses in another frame, another process that writes to the gallery, or, without
            `out`, a file system that cannot exchange two folders.
        RetrievalError: an index has to be built anew and cannot be.
    """
    gallery_path = Path(gallery_path)
    if out is None:
        clear_replaced(gallery_path)
    gallery = Gallery.open(gallery_path)
    new = _new_images(gallery, source)
    # Before torch is asked for anything: a command that cannot work says so at once.
    changed = {"batch_size": batch_size, "threads": threads}
    settings = _settings_of(gallery).model_copy(update={name: value for name, value in changed.items() if value is not None})
    prepare_cpu(settings.threads)
    encoder = GalleryEncoder.open(gallery, settings.threads, weights)
    _check_preprocess(gallery, encoder)

    def build(work: Path, staging: Path) -> None:
        described = describe(new, settings, encoder.network, work, progress)
        report_unreadable(described, len(new.records), skip_unreadable, work)
        write_descriptors(staging, described.features, encoder.projection, str(gallery.descriptors.dtype), before=gallery.descriptors)
        if encoder.projection is not None:  # the old file: the numbers are the same, its checksum covers time stamps too
            (staging / PROJECTION).unlink()
            link_or_copy(gallery.path / PROJECTION, staging / PROJECTION)
        write_keyframes(staging / KEYFRAMES, [*gallery.keyframes, *(new.records[i] for i in described.kept)])
        _add_pictures(staging, work, gallery, new, described, progress)
        _write_manifest(staging, gallery, new, described)
        if index is None:
            extend_index(gallery, staging, progress=progress)
        else:
            index_gallery(staging, index, progress=progress)
        if (gallery.path / CALIBRATION).is_file():  # stays readable, and says itself that it is of the smaller gallery
            shutil.copy2(gallery.path / CALIBRATION, staging / CALIBRATION)

    fingerprint = {
        "gallery": gallery.digest, "source": str(source.root.resolve()),
        "images": hashlib.sha256(repr(new.records).encode()).hexdigest(), "settings": settings.model_dump(mode="json"),
    }  # fmt: skip
    with locked_gallery(gallery.path) if out is None else nullcontext():
        return replace_resumably(gallery.path, fingerprint, build) if out is None else build_resumably(out, fingerprint, build)


def _new_images(gallery: Gallery, source: Dataset) -> _NewImages:
    """What there is to describe. Raises GalleryError, ArtefactError where it does not belong to the gallery, or is there already."""
    details, layout = gallery.manifest.details, gallery.manifest.inputs.get("layout")
    if layout == "session":
        raise ArtefactError(
            f"gallery {gallery.path} was saved by a session: its descriptors are the query model's",
            remedy="build a gallery from the session's bag with 'asymvpr gallery build', and append to that",
        )
    if "projected_from" in details:
        raise ArtefactError(
            f"gallery {gallery.path} was made by 'asymvpr gallery project' from {details['projected_from'].get('gallery')}",
            expected="a gallery that was described from images",
            remedy=f"append to that one, and project it again with --projection-from {gallery.path}",
        )
    if source.map_frame != gallery.map_frame:
        raise ArtefactError(
            f"the poses of {source.root} are in frame '{source.map_frame}', those of gallery {gallery.path} in '{gallery.map_frame}'",
            expected="one map frame",
            remedy="give the poses in the gallery's frame (--trajectory), or make a gallery of its own and search both as one",
        )
    root = str(source.root.resolve())
    held = {(gallery.part_of(i).source, keyframe.name) for i, keyframe in enumerate(gallery.keyframes)}
    in_gallery = {keyframe.name for i, keyframe in enumerate(gallery.keyframes) if gallery.part_of(i).images_in_gallery}
    indices = [i for i, record in enumerate(source.records) if (root, record.name) not in held]
    if not indices:
        raise GalleryError(
            f"gallery {gallery.path} holds all {len(source.records)} images of {source.root} already",
            remedy="give a source with new images",
        )
    if any(k.place_id is not None for k in gallery.keyframes) or any(source.records[i].place_id is not None for i in indices):
        raise GalleryError(
            f"the places of gallery {gallery.path} or of {source.root} have ids, and one id may mean two places",
            remedy="build one gallery from all images with 'asymvpr gallery build', or give several galleries to the training",
        )
    twice = next((source.records[i].name for i in indices if source.layout == "bag" and source.records[i].name in in_gallery), None)
    if twice is not None:
        raise GalleryError(
            f"gallery {gallery.path} holds a picture {twice} of another bag than {source.root}",
            expected="stamps of its own for every image",
            remedy="build a gallery of its own, and search both as one",
        )
    return _NewImages(source, indices)


def _settings_of(gallery: Gallery) -> GallerySettings:
    """The settings that the gallery was built with, as far as describing images needs them."""
    known = {name: value for name, value in gallery.manifest.settings.items() if name in GallerySettings.model_fields}
    return GallerySettings.model_validate(known | {"network": gallery.gallery_network.name})


def _check_preprocess(gallery: Gallery, encoder: GalleryEncoder) -> None:
    ours, theirs = encoder.preprocess.model_dump(mode="json"), gallery.gallery_network.preprocess
    if ours != theirs:
        different = ", ".join(name for name in ours if ours[name] != theirs.get(name)) or "more settings"
        raise ArtefactError(
            f"{gallery.gallery_network.name} pre-processes with another {different} than when gallery {gallery.path} was built",
            remedy="build the gallery anew with 'asymvpr gallery build'",
        )


def _add_pictures(
    staging: Path, work: Path, gallery: Gallery, new: _NewImages, described: Description, progress: Progress
) -> None:  # fmt: skip
    if gallery.holds_images:
        shutil.copytree(gallery.path / IMAGES, staging / IMAGES, copy_function=link_or_copy)
    if new.layout == "bag":
        half_written = shutil.ignore_patterns(".*.partial")
        shutil.copytree(work / IMAGES, staging / IMAGES, copy_function=link_or_copy, dirs_exist_ok=True, ignore=half_written)
    if gallery.has_thumbnails:
        side_px = int(gallery.manifest.settings.get("thumbnail_side_px") or 0)
        shutil.copytree(gallery.path / THUMBNAILS, staging / THUMBNAILS, copy_function=link_or_copy)
        write_thumbnails(staging, new, described.kept, side_px, progress, first=len(gallery))


def _write_manifest(staging: Path, gallery: Gallery, new: _NewImages, described: Description) -> None:
    manifest = gallery.manifest
    part: dict[str, Any] = {
        "source": str(new.root.resolve()), "layout": new.layout, "first_keyframe": len(gallery), "keyframes": len(described.kept),
        "images_in_gallery": new.layout == "bag",
    }  # fmt: skip
    skipped = manifest.details.get("skipped_images", {}) | described.unreadable
    write_manifest(
        staging, "gallery", manifest.gallery_network,
        settings=manifest.settings,
        inputs=manifest.inputs | {"appended": [*manifest.inputs.get("appended", []), part]},
        versions=gallery_versions(),
        details=manifest.details | {
            "keyframes": len(gallery) + len(described.kept), "index": True, "skipped_images": dict(sorted(skipped.items())),
        },
    )  # fmt: skip
