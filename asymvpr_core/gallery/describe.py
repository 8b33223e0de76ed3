"""Features of all images of a dataset, chunk by chunk on disk: what a killed build continues from."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from asymvpr_core.config import GallerySettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import GalleryError, ImageError
from asymvpr_core.gallery.store import IMAGES
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.networks.loading import LoadedNetwork
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.progress import Progress
from asymvpr_core.resumable import save_piece

Item = tuple[int, np.ndarray | ImageError]

_SHOWN = 5  # unreadable images in an error message


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
    count, size = len(source.records), settings.chunk_size
    (work / "chunks").mkdir(exist_ok=True)
    chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    done = {chunk.start for chunk in chunks if _is_done(_path(work, chunk))}
    todo = [index for chunk in chunks if chunk.start not in done for index in chunk]
    prepared = _prefetched(_prepared(source, todo, network.spec.preprocess, work), settings.batch_size)
    inputs = progress(prepared, f"describe with {settings.network}", count, count - len(todo))
    for chunk in chunks:
        if chunk.start not in done:
            _describe_chunk(islice(inputs, len(chunk)), chunk, source, network, settings.batch_size, _path(work, chunk))
    return _collect(source, [(chunk, _path(work, chunk)) for chunk in chunks], work)


def report_unreadable(described: Description, count: int, skip: bool) -> None:
    """Refuse to go on with unreadable images unless `skip`.

    Raises:
        GalleryError: naming the first ones with their reasons; or not one image could be read.
    """
    unreadable = described.unreadable
    if not described.kept:
        raise GalleryError(f"none of {count} images can be read; the first: {next(iter(unreadable.values()))}", remedy="check the source")
    if unreadable and not skip:
        shown = "; ".join(list(unreadable.values())[:_SHOWN])
        more = f"; and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
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


def _prepared(source: Dataset, todo: list[int], preprocess: Preprocess, work: Path) -> Generator[Item, None, None]:
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
            path.write_bytes(data)
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


def _describe_chunk(inputs: Iterator[Item], chunk: range, source: Dataset, network: LoadedNetwork, batch_size: int, path: Path) -> None:
    features: list[np.ndarray] = []
    kept: list[int] = []
    errors: dict[str, str] = {}
    waiting: list[np.ndarray] = []
    for index, item in inputs:
        if isinstance(item, ImageError):
            errors[str(index)] = str(item)
            continue
        if waiting and (len(waiting) == batch_size or waiting[0].shape != item.shape):  # pictures of one size make a batch
            features.append(_forward(network, waiting, source.records[kept[-1]].name))
            waiting = []
        waiting.append(item)
        kept.append(index)
    if waiting:
        features.append(_forward(network, waiting, source.records[kept[-1]].name))
    rows = np.concatenate(features) if features else np.empty((0, network.spec.dimension), np.float32)
    # The names of unreadable images first: features without them would pass for a whole chunk.
    save_piece(path.with_suffix(".json"), lambda file: file.write(json.dumps({"kept": kept, "errors": errors}).encode()))
    save_piece(path, lambda file: np.save(file, rows, allow_pickle=False))


def _forward(network: LoadedNetwork, inputs: list[np.ndarray], name: str) -> np.ndarray:
    with torch.inference_mode():
        features = network.module(torch.from_numpy(np.stack(inputs))).numpy()
    if not np.isfinite(features).all():
        raise GalleryError(f"{network.spec.name} gives descriptors that are not finite near image {name}", remedy="check the weights file")
    return features


def _path(work: Path, chunk: range) -> Path:
    return work / "chunks" / f"{chunk.start:09d}.npy"


def _is_done(path: Path) -> bool:
    return path.exists() and not _bookkeeping(path)["errors"]


def _bookkeeping(path: Path) -> dict[str, dict[str, str]]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _collect(source: Dataset, chunks: list[tuple[range, Path]], work: Path) -> Description:
    """All chunks as one memory-mapped array; no more than a chunk is in memory."""
    kept: list[int] = []
    unreadable: dict[str, str] = {}
    for _, path in chunks:
        record = _bookkeeping(path)
        kept += [int(index) for index in record["kept"]]
        unreadable |= {source.records[int(index)].name: reason for index, reason in record["errors"].items()}
    width = np.load(chunks[0][1], mmap_mode="r", allow_pickle=False).shape[1]
    if not kept:
        return Description(np.empty((0, width), np.float32), kept, unreadable)
    features = np.lib.format.open_memmap(work / "features.npy", mode="w+", dtype=np.float32, shape=(len(kept), width))
    row = 0
    for _, path in chunks:
        block = np.load(path, allow_pickle=False)
        features[row : row + len(block)] = block
        row += len(block)
    return Description(features, kept, unreadable)
