"""What can stand on either side of an evaluation, each with a name to show and an identity to cache by."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import EvaluationError, ImageError, NetworkError
from asymvpr_core.evaluation.descriptor_cache import DescriptorCache, Shelf
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.progress import Progress, silent
from asymvpr_core.types import ImageRecord

_BATCH = 16
_GB = 1e9


class Encoder(Protocol):
    """What describes images: `deploy.runtime.QueryModel`, or `gallery.encoder.GalleryEncoder`."""

    @property
    def dimension(self) -> int: ...

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """What the encoder takes for one (H, W, 3) uint8 RGB image."""
        ...

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        """(B, D) float32, L2-normalised, from stacked images that `prepare` has made."""
        ...


class Images(Protocol):
    """Images that can be read as files: a `Dataset`, or the pictures of a gallery."""

    @property
    def records(self) -> list[ImageRecord]: ...

    def read_encoded(self, indices: list[int]) -> Iterator[tuple[int, bytes]]: ...

    def read_images(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]: ...


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder, its name in reports, and everything that its descriptors depend on, as JSON values."""

    name: str
    encoder: Encoder
    identity: dict[str, Any]

    @staticmethod
    def of_model(model: QueryModel, name: str | None = None) -> NamedEncoder:
        """An exported query model."""
        manifest = model.manifest
        identity = {
            "kind": "query model",
            "model_sha256": {name: manifest.files[name].sha256 for name in model.variant.files},
            "runtime": [model.report.version, model.report.choice.provider, model.report.choice.precision],
            "preprocess": model.preprocess.model_dump(mode="json"),
            "gallery_network": manifest.gallery_network.model_dump(mode="json"),
        }
        return NamedEncoder(name or model.path.name, model, identity)

    @staticmethod
    def of_gallery(gallery: Gallery, threads: int, weights: Path | None = None) -> NamedEncoder:
        """The network that made a gallery, with the gallery's projection. Raises as `GalleryEncoder.open`."""
        from asymvpr_core.gallery.encoder import GalleryEncoder  # torch: not needed where models only are compared

        network = gallery.manifest.gallery_network
        identity = {"kind": "gallery network", **network.model_dump(mode="json")}
        return NamedEncoder(network.name, GalleryEncoder.open(gallery, threads, weights), identity)

    @staticmethod
    def of_network(name: str, threads: int, weights: Path | None = None) -> NamedEncoder:
        """A registered network as it is, without projection.

        Raises:
            NetworkError: unknown name, weights that are missing or do not fit, or an aggregator without weights.
        """
        from asymvpr_core.gallery.encoder import GalleryEncoder
        from asymvpr_core.networks.cpu import prepare_cpu
        from asymvpr_core.networks.loading import load_network

        prepare_cpu(threads)
        try:
            network = load_network(name, weights)
        except NetworkError as error:
            # Beside several networks --weights would not say whose they are.
            remedy = None if error.remedy is None else error.remedy.replace("--weights FILE", f"--network {name}=FILE")
            raise NetworkError(error.found, expected=error.expected, remedy=remedy) from error
        if network.report.random_aggregator:
            raise NetworkError(
                f"{network.spec.name} would be evaluated with a random aggregator: its weights are those of the backbone only",
                expected="a trained network", remedy=f"give a weights file of the whole network, --network {name}=FILE",
            )  # fmt: skip
        probe = GalleryEncoder(network, None, 0)
        dimension = int(probe.encode(_probe_picture()).shape[0])
        identity = {
            "kind": "network",
            "name": network.spec.name,
            "weights_sha256": network.weights_sha256,
            "preprocess": network.spec.preprocess.model_dump(mode="json"),
        }
        shown = network.spec.name if weights is None else f"{network.spec.name} of {Path(weights).name}"
        return NamedEncoder(shown, GalleryEncoder(network, None, dimension), identity)

    def cache_identity(self) -> dict[str, Any]:
        """`identity` and the checksum of what the encoder makes of a fixed picture.

        The checksum stands for what no manifest names: the code of the network and of the decoder,
        the runtime and its version. Where one of them changes a bit, nothing old is found any more.
        """
        _, jpeg = cv2.imencode(".jpg", _probe_picture())
        inputs = self.encoder.prepare(decode_image(jpeg.tobytes(), "probe"))[np.newaxis]
        descriptor = np.ascontiguousarray(self.encoder.encode_batch(inputs)[0], dtype=np.float32)
        return {**self.identity, "probe_sha256": hashlib.sha256(descriptor.tobytes()).hexdigest()}


def name_models(models: Sequence[QueryModel]) -> list[NamedEncoder]:
    """Query models by the shortest ends of their paths that tell them apart: "model", or "a/model" and "b/model".

    Raises:
        EvaluationError: one folder is given twice.
    """
    paths = [model.path.resolve() for model in models]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise EvaluationError(f"the query model {twice} is given twice", expected="different models", remedy="name each once")
    names = [path.name for path in paths]
    length = 1
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(path.parts[-length:]) for path in paths]
    return [NamedEncoder.of_model(model, name) for model, name in zip(models, names, strict=True)]


def _probe_picture() -> np.ndarray:
    patches = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(patches, (320, 240), interpolation=cv2.INTER_CUBIC)


def describe(
    images: Images,
    encoder: NamedEncoder,
    cache: DescriptorCache | None = None,
    progress: Progress = silent,
    what: str = "queries",
    *,
    scratch: Path | None = None,
    memory_gb: float = 1.0,
) -> np.ndarray:
    """(N, D) float32 descriptors of all `images`, in their order; those in the cache are not computed again.

    Args:
        scratch: folder on whose disk descriptors lie that take more than `memory_gb` [GB]: a file without a name,
            which is gone with the array, or with the process. None: always in memory.

    Raises:
        ImageError: an image that cannot be read, naming it.
        EvaluationError: a descriptor that is not finite, naming the image.
        ArtefactError: the cache cannot be read or written.
    """
    total, dimension = len(images.records), encoder.encoder.dimension
    shelf = None if cache is None else cache.shelf(encoder.cache_identity(), dimension)
    descriptors = _room(total, dimension, scratch, memory_gb)
    batch = _Batch(encoder, images.records, descriptors, shelf)
    everything = list(range(total))
    label = f"describing {what} with {encoder.name}"
    if shelf is None:
        for index, image in progress(images.read_images(everything), label, total):
            batch.add(index, b"", image)
    else:
        for index, data in progress(images.read_encoded(everything), label, total):
            digest = hashlib.sha256(data).digest()
            known = shelf.get(digest)
            if known is None:
                batch.add(index, digest, decode_image(data, images.records[index].name))
            else:
                descriptors[index] = known
    batch.finish()
    if shelf is not None:
        shelf.flush()
    descriptors.flags.writeable = False  # a search may give the pages of a map that it has read back at once
    return descriptors


def _room(total: int, dimension: int, scratch: Path | None, memory_gb: float) -> np.ndarray:
    """(total, dimension) float32 to be filled, in memory or in a file."""
    if scratch is None or not total or 4 * total * dimension <= memory_gb * _GB:
        return np.empty((total, dimension), dtype=np.float32)
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            return np.memmap(file, dtype=np.float32, mode="w+", shape=(total, dimension))
    except OSError as error:
        size = f"{4 * total * dimension / _GB:.1f} GB"
        raise EvaluationError(
            f"there is no room for {size} of descriptors beside {scratch}: {error.strerror}", remedy="free space or give another --out"
        ) from error


class _Batch:
    """Images on their way through the encoder, a few at a time."""

    def __init__(self, encoder: NamedEncoder, records: list[ImageRecord], descriptors: np.ndarray, shelf: Shelf | None):
        self.encoder, self.records, self.descriptors, self.shelf = encoder, records, descriptors, shelf
        self.waiting: list[tuple[int, bytes, np.ndarray]] = []

    def add(self, index: int, digest: bytes, image: np.ndarray) -> None:
        try:
            inputs = self.encoder.encoder.prepare(image)
        except ImageError as error:
            raise ImageError(f"image {self.records[index].name}: {error}") from error
        if self.waiting and self.waiting[0][2].shape != inputs.shape:  # pictures of one size make a batch
            self.finish()
        self.waiting.append((index, digest, inputs))
        if len(self.waiting) == _BATCH:
            self.finish()

    def finish(self) -> None:
        if not self.waiting:
            return
        encoded = self.encoder.encoder.encode_batch(np.stack([inputs for _, _, inputs in self.waiting]))
        for (index, digest, _), descriptor in zip(self.waiting, encoded, strict=True):
            if not np.isfinite(descriptor).all():
                raise EvaluationError(
                    f"{self.encoder.name} gives image {self.records[index].name} a descriptor that is not finite", expected="numbers",
                    remedy="check the image and the weights",
                )  # fmt: skip
            self.descriptors[index] = descriptor
            if self.shelf is not None:
                self.shelf.put(digest, descriptor)
        self.waiting = []
