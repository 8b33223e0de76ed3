"""Features of all images of a dataset, chunk by chunk on disk: what a killed build continues from."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asymvpr_core.config import GallerySettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import GalleryError, ImageError
from asymvpr_core.gallery.store import IMAGES
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.manifest import sha256_of, write_text_atomically
from asymvpr_core.networks.loading import LoadedNetwork
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.progress import Progress
from asymvpr_core.resumable import save_piece
from asymvpr_core.row_file import RowFile

Item = tuple[int, np.ndarray | ImageError]

_SHOWN = 5  # unreadable images in an error message
UNREADABLE = "unreadable.txt"  # in the work folder: all of them
_FEATURES = "features.npy"  # there too: the rows of all chunks

# Pixels of a batch of pictures in their own size: one of 12 million, as telephones take, needs some 2 GB in a ResNet-18.
_BATCH_PIXELS = 1 << 23


@dataclass(frozen=True)
class Description:
    """Features before the projection, (N, C) float32 memory-mapped; row i belongs to image `kept[i]` of the dataset.

    `unreadable` gives the name of each image that could not be read, with the reason.
    """

    features: np.ndarray
    kept: list[int]
    unreadable: dict[str, str]


def describe(source: Dataset, settings: GallerySettings, network: LoadedNetwork, work: Path, progress: Progress) -> Description:
    """Describe all images of `source`, continuing from the chunks that lie in `work`.

    An image that cannot be read does not end the work. Its chunk is done without it, and is done again
    by the next run, since the picture may have been repaired.

    Raises:
        GalleryError: descriptors that are not finite.
    """
    count = len(source.records)
    chunks = missing_chunks(source, settings, work)
    todo = [index for chunk in chunks for index in chunk]
    preprocess = network.spec.preprocess
    ahead = settings.batch_size if preprocess.is_static else 2  # pictures in their own size may be of 200 MB each
    prepared = _prefetched(prepared_inputs(source, todo, preprocess, work), ahead)
    inputs = progress(prepared, f"describe with {settings.network}", count, count - len(todo))
    for chunk in chunks:
        save_chunk(work, chunk, describe_chunk(islice(inputs, len(chunk)), source, network, settings.batch_size))
    return collect(source, settings, work)


def report_unreadable(described: Description, count: int, skip: bool, work: Path) -> None:
    """Refuse to go on with unreadable images unless `skip`; all of them with their reasons go to a text file in `work`.

    Raises:
        GalleryError: naming the first ones with their reasons, and the file; or not one image could be read.
    """
    unreadable = described.unreadable
    (work / UNREADABLE).unlink(missing_ok=True)
    if unreadable:
        write_text_atomically(work / UNREADABLE, "".join(f"{reason}\n" for reason in unreadable.values()))
    if not described.kept:
        raise GalleryError(f"none of {count} images can be read; the first: {next(iter(unreadable.values()))}", remedy="check the source")
    if unreadable and not skip:
        shown = "; ".join(list(unreadable.values())[:_SHOWN])
        more = f"; and {len(unreadable) - _SHOWN} more, all of them in {work / UNREADABLE}" if len(unreadable) > _SHOWN else ""
        raise GalleryError(
            f"{len(unreadable)} of {count} images cannot be read: {shown}{more}",
            remedy="repair them and give the same command again, or add --skip-unreadable; what was described is kept",
        )


def _encoded(source: Dataset, todo: list[int]) -> Iterator[tuple[int, bytes | ImageError]]:
    """(index, encoded picture or why it cannot be read): a reader that stops at an error is asked again for the rest."""
    at = 0
    while at < len(todo):
        try:
            for index, data in source.read_encoded(todo[at:]):
                at += 1
                yield index, data
        except ImageError as error:
            yield todo[at], error
            at += 1


def prepared_inputs(source: Dataset, todo: list[int], preprocess: Preprocess, work: Path) -> Generator[Item, None, None]:
    """(index, the network's input `(3, H, W)`, or why the image cannot be read), in order."""
    for index, data in _encoded(source, todo):
        name = source.records[index].name
        try:
            if isinstance(data, ImageError):
                raise data
            image = preprocess(decode_image(data, name))
        except ImageError as error:
            yield index, error
            continue
        if source.layout == "bag":
            path = work / IMAGES / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_piece(path, lambda file, data=data: file.write(data))  # type: ignore[misc]  # before its chunk counts as done
        yield index, image


def _prefetched(inputs: Generator[Item, None, None], ahead: int) -> Iterator[Item]:
    """The same items, read by a thread that is up to two batches of `ahead` in front, so that the network does not wait for the disk."""
    with ThreadPoolExecutor(1, thread_name_prefix="read_images") as reader:
        try:
            batch = reader.submit(lambda: list(islice(inputs, ahead)))
            while items := batch.result():
                batch = reader.submit(lambda: list(islice(inputs, ahead)))
                yield from items
        finally:
            reader.submit(inputs.close)  # by the thread that opened what it reads: SQLite insists on that


@dataclass(frozen=True)
class ChunkResult:
    """Features (n, C) float32 of the images `kept` (indices in the dataset), and why others could not be read, by index."""

    features: np.ndarray
    kept: list[int]
    errors: dict[int, str]


def describe_chunk(inputs: Iterator[Item], source: Dataset, network: LoadedNetwork, batch_size: int) -> ChunkResult:
    """Describe a chunk; the same images in the same batches, and so the same bits, whichever process does it.

    Raises:
        GalleryError: descriptors that are not finite.
    """
    features: list[np.ndarray] = []
    kept: list[int] = []
    errors: dict[int, str] = {}
    waiting: list[np.ndarray] = []
    for index, item in inputs:
        if isinstance(item, ImageError):
            errors[index] = str(item)
            continue
        # Pictures of one size make a batch.
        if waiting and (waiting[0].shape != item.shape or len(waiting) == _batch_of(item, network.spec.preprocess, batch_size)):
            features.append(_forward(network, waiting, source.records[kept[-1]].name))
            waiting = []
        waiting.append(item)
        kept.append(index)
    if waiting:
        features.append(_forward(network, waiting, source.records[kept[-1]].name))
    rows = np.concatenate(features) if features else np.empty((0, network.spec.dimension), np.float32)
    return ChunkResult(rows, kept, errors)


def _batch_of(item: np.ndarray, preprocess: Preprocess, batch_size: int) -> int:
    """How many inputs like `item` `(3, H, W)` make a batch: `batch_size`, or fewer where the pictures decide on the size and are large."""
    return batch_size if preprocess.is_static else max(1, min(batch_size, _BATCH_PIXELS // item[0].size))


def _forward(network: LoadedNetwork, inputs: list[np.ndarray], name: str) -> np.ndarray:
    with torch.inference_mode():
        features = network.module(torch.from_numpy(np.stack(inputs))).numpy()
    expected = (len(inputs), network.spec.dimension)
    if features.shape != expected:  # of a network of the user's own
        raise GalleryError(
            f"{network.spec.name} gives descriptors of shape {features.shape}",
            expected=f"{expected}, as its NetworkSpec says",
            remedy="correct its dimension or its build",
        )
    if not np.isfinite(features).all():
        raise GalleryError(f"{network.spec.name} gives descriptors that are not finite near image {name}", remedy="check the weights file")
    return features


def all_chunks(source: Dataset, settings: GallerySettings) -> list[range]:
    """Indices of the images of every chunk."""
    count, size = len(source.records), settings.chunk_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def missing_chunks(source: Dataset, settings: GallerySettings, work: Path) -> list[range]:
    """The chunks that are not in `work` yet, or are there without an image that could not be read."""
    (work / "chunks").mkdir(exist_ok=True)
    return [chunk for chunk in all_chunks(source, settings) if not _is_done(_path(work, chunk))]


def save_chunk(work: Path, chunk: range, result: ChunkResult) -> None:
    """Write a chunk so that it exists only when it is whole."""
    path, content = _path(work, chunk), io.BytesIO()
    np.save(content, result.features, allow_pickle=False)
    # The record first: features without it would pass for a chunk that has every image. Its checksum is that of the
    # features: what a disk damages between a kill and the next run must not end up in the gallery, sealed by its manifest.
    errors = {str(index): reason for index, reason in result.errors.items()}
    record = {"kept": result.kept, "errors": errors, "sha256": hashlib.sha256(content.getbuffer()).hexdigest()}
    save_piece(path.with_suffix(".json"), lambda file: file.write(json.dumps(record).encode()))
    save_piece(path, lambda file: file.write(content.getbuffer()))


def collect(source: Dataset, settings: GallerySettings, work: Path) -> Description:
    """All chunks as one memory-mapped array; no more than a chunk is in memory."""
    paths = [_path(work, chunk) for chunk in all_chunks(source, settings)]
    kept: list[int] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        record = _record(path)
        kept += [int(index) for index in record["kept"]]
        unreadable |= {source.records[int(index)].name: reason for index, reason in record["errors"].items()}
    width = np.load(paths[0], mmap_mode="r", allow_pickle=False).shape[1]
    if not kept:
        return Description(np.empty((0, width), np.float32), kept, unreadable)
    together, row = work / _FEATURES, 0
    together.unlink(missing_ok=True)  # of a killed run, perhaps with other images left out
    with RowFile(together, (len(kept), width), np.float32) as features:
        for path in paths:
            block = np.load(path, allow_pickle=False)
            features.write(row, block)
            row += len(block)
    return Description(np.load(together, mmap_mode="r", allow_pickle=False), kept, unreadable)


def _path(work: Path, chunk: range) -> Path:
    return work / "chunks" / f"{chunk.start:09d}.npy"


def _is_done(path: Path) -> bool:
    """Whether a chunk is there with every image and undamaged; otherwise it is described again."""
    try:
        record = _record(path)
        return not record["errors"] and record["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _record(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
