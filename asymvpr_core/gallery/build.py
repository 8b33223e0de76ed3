"""Build a gallery: describe every image with the heavy network, in chunks that survive a kill."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from asymvpr_core.config import GallerySettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import ArtefactError, GalleryError
from asymvpr_core.gallery.store import DESCRIPTORS, IMAGES, INDEX, KEYFRAMES, PROJECTION, write_keyframes
from asymvpr_core.manifest import GalleryNetworkIdentity, read_manifest, verify_files, write_manifest
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.projection import Projection, fit_projection
from asymvpr_core.networks.registry import LoadedNetwork, load_network
from asymvpr_core.preprocess import decode_image
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import build_resumably, save_piece
from asymvpr_core.retrieval.index import build_index, write_index


def build_gallery(
    source: Dataset,
    settings: GallerySettings,
    out: Path,
    *,
    projection_from: Path | None = None,
    weights: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Describe all images of `source` and write the gallery `out`; returns `out`.

    A killed build continues where it was when the same command is given again: chunks lie in
    `<out>.partial` and are used only when images, network and settings are the same.

    Args:
        projection_from: a gallery of the same network whose projection is re-used, so that a
            query model trained against that gallery serves this one too.
        weights: a weights file instead of the installed package's.

    Raises:
        GalleryError: no images, or descriptors that are not finite.
        ArtefactError: `out` exists, cannot be written, is being built by another process, or
            holds a partial build of something else; or `projection_from` does not fit.
        ImageError, NetworkError: naming the image or the weights.
    """
    if not source.records:
        raise GalleryError(f"{source.root} holds no images", remedy="give a source with images")
    prepare_cpu(settings.threads)
    network = load_network(settings.network, weights)
    borrowed = None if projection_from is None else _borrow_projection(Path(projection_from), network)

    def build(work: Path, staging: Path) -> None:
        features = _describe(source, settings, network, work, progress)
        _write(staging, source, settings, features, borrowed)
        if source.layout == "bag":
            shutil.copytree(work / IMAGES, staging / IMAGES, copy_function=_link_or_copy)
        _write_manifest(staging, source, settings, network)

    return build_resumably(out, _fingerprint(source, settings, network, borrowed), build)


def _describe(source: Dataset, settings: GallerySettings, network: LoadedNetwork, work: Path, progress: Progress) -> np.ndarray:
    """Features before the projection, (N, C) float32, chunk by chunk on disk."""
    count, size = len(source.records), settings.chunk_size
    (work / "chunks").mkdir(exist_ok=True)
    chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    done = [_chunk_path(work, chunk).exists() for chunk in chunks]
    todo = [index for chunk, ready in zip(chunks, done, strict=True) if not ready for index in chunk]
    waiting: list[np.ndarray] = []
    features: list[np.ndarray] = []
    frames = progress(source.read_encoded(todo), f"describe with {settings.network}", count, count - len(todo))
    for index, data in frames:
        if source.layout == "bag":
            _keep_image(work / IMAGES / source.records[index].name, data)
        waiting.append(network.spec.preprocess(decode_image(data, source.records[index].name)))
        chunk_ends = (index + 1) % size == 0 or index + 1 == count
        if len(waiting) == settings.batch_size or chunk_ends:
            features.append(_forward(network, np.stack(waiting), source.records[index].name))
            waiting = []
        if chunk_ends:
            chunk = chunks[index // size]
            _save_chunk(_chunk_path(work, chunk), np.concatenate(features), len(chunk))
            features = []
    return np.concatenate([np.load(_chunk_path(work, chunk), allow_pickle=False) for chunk in chunks])


def _forward(network: LoadedNetwork, inputs: np.ndarray, name: str) -> np.ndarray:
    with torch.inference_mode():
        features = network.module(torch.from_numpy(inputs)).numpy()
    if not np.isfinite(features).all():
        raise GalleryError(f"{network.spec.name} gives descriptors that are not finite near image {name}", remedy="check the weights file")
    return features


def _chunk_path(work: Path, chunk: range) -> Path:
    return work / "chunks" / f"{chunk.start:09d}.npy"


def _save_chunk(path: Path, features: np.ndarray, expected: int) -> None:
    if len(features) != expected:
        raise GalleryError(f"chunk {path.name} has {len(features)} descriptors", expected=str(expected), remedy="report this as a bug")
    save_piece(path, lambda file: np.save(file, features, allow_pickle=False))


def _keep_image(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _write(staging: Path, source: Dataset, settings: GallerySettings, features: np.ndarray, borrowed: Projection | None) -> None:
    projection = borrowed
    if projection is None and settings.projection_dim is not None:
        projection = fit_projection(features, settings.projection_dim, settings.whitening)
    descriptors = features if projection is None else projection(features)
    descriptors = descriptors.astype(settings.descriptor_dtype)
    if projection is not None:
        projection.save(staging / PROJECTION)
    np.save(staging / DESCRIPTORS, descriptors, allow_pickle=False)
    write_keyframes(staging / KEYFRAMES, source.records)
    write_index(build_index(descriptors), staging / INDEX)


def _write_manifest(staging: Path, source: Dataset, settings: GallerySettings, network: LoadedNetwork) -> None:
    projection = staging / PROJECTION
    in_gallery = source.layout == "bag"
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
        versions={"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__},
        details={"map_frame": source.map_frame, "keyframes": len(source.records), "images_in_gallery": in_gallery},
    )  # fmt: skip


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
        "settings": settings.model_dump(mode="json"),
        "projection": None if borrowed is None else borrowed.sha256,
    }
