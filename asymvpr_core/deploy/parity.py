"""How near an exported file comes to the trained network: cosines on real pictures, and Recall@1 on their views."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from asymvpr_core.config import AugmentationSettings, CellSettings
from asymvpr_core.deploy.model_folder import FilePrecision, Parity, RuntimeName, Variant
from asymvpr_core.deploy.onnxruntime_session import OnnxRuntimeSession
from asymvpr_core.deploy.openvino_session import OpenVinoSession, computes_bf16, why_no_openvino
from asymvpr_core.deploy.session import Session, cosines
from asymvpr_core.errors import ArtefactError, ImageError, MemoryBankError
from asymvpr_core.gallery.several import AnyGallery
from asymvpr_core.manifest import Manifest
from asymvpr_core.memory.cells import gallery_places
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.progress import Progress, silent
from asymvpr_core.training.data import GalleryImages

_LOG = logging.getLogger(__name__)
Way = tuple[RuntimeName, str]


@dataclass(frozen=True)
class Pictures:
    """Resized pictures `(N, H, W, 3)` as the graph takes them, and what they are: "gallery" or "noise"."""

    inputs: np.ndarray
    source: str

    @staticmethod
    def of_gallery(gallery: AnyGallery | None, preprocess: Preprocess, count: int, *, apart_from: int = 0) -> Pictures:
        """`count` pictures spread over a gallery, or seeded noise where the gallery or its pictures are gone.

        Args:
            apart_from: leave out, where enough others remain, the pictures that a call with this `count` gives.
        """
        if gallery is not None:
            rest = np.arange(len(gallery))
            if apart_from:
                others = np.setdiff1d(rest, _spread(rest, apart_from))
                rest = others if len(others) else rest
            try:
                inputs = [preprocess.resize(gallery.read_image(int(index))) for index in _spread(rest, count)]
                return Pictures(np.stack(inputs), "gallery")
            except ImageError as error:
                _LOG.warning("parity is measured on noise: %s", error)
        noise = np.random.default_rng(0).integers(0, 256, (count, preprocess.height, preprocess.width, 3))
        return Pictures(noise.astype(preprocess.resize_dtype), "noise")


@dataclass(frozen=True)
class Views:
    """Augmented gallery pictures, what torch makes of them, and the search that judges both.

    A view is found when the best match among all gallery descriptors is of its own place. The picture that it
    was made of is in the gallery: the number says what a variant loses, not how good the network is.
    """

    inputs: np.ndarray
    places: np.ndarray
    gallery_places: np.ndarray
    gallery_descriptors: np.ndarray

    @staticmethod
    def of_gallery(
        gallery: AnyGallery | None, run: Manifest, preprocess: Preprocess, searched: AnyGallery | None, count: int
    ) -> Views | None:
        """Views of `count` pictures spread over the run's gallery; None where it or its pictures are gone, or none are wanted."""
        if gallery is None or searched is None or count == 0 or len(searched) != len(gallery):
            return None
        try:
            augmentation = AugmentationSettings.model_validate(run.settings.get("augmentation", {}))
            cells = CellSettings.model_validate(run.settings.get("cells", {}))
            seed = int(run.settings.get("seed", 0))
        except (ValueError, TypeError) as error:  # pydantic's is a ValueError
            raise ArtefactError(
                "the manifest of the run holds settings that no training has: augmentation, cells or seed",
                remedy="train it again with 'asymvpr train'",
            ) from error
        try:
            places = gallery_places(gallery, cells)
        except MemoryBankError as error:  # the run had places of its own, from a bank
            _LOG.warning("Recall@1 of the variants is not measured: %s", error)
            return None
        images = GalleryImages(gallery, places, preprocess, augmentation, seed=seed)
        chosen = _spread(np.arange(len(gallery)), count)
        try:
            # An epoch that no training reaches: views that it has not seen.
            inputs = np.stack([preprocess.resize(images.picture((2**31, int(index)))) for index in chosen])
        except ImageError as error:
            _LOG.warning("Recall@1 of the variants is not measured: %s", error)
            return None
        return Views(inputs, places[chosen], places, np.asarray(searched.descriptors[:], dtype=np.float32))

    def recall_at_1(self, descriptors: np.ndarray) -> float:
        """Share of the views whose best match is of their place, for their (N, D) descriptors."""
        best = (descriptors @ self.gallery_descriptors.T).argmax(axis=1)
        return float((self.gallery_places[best] == self.places).mean())


class ParityCheck:
    """The trained network's answers, and the comparison of files with them.

    Args:
        network: the trained network, (1, 3, H, W) float32 to (1, D).
        tolerances: smallest cosine by precision.
    """

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, pictures: Pictures, views: Views | None, tolerances: dict[str, float],
        progress: Progress = silent,
    ):  # fmt: skip
        self._pictures, self._views, self._tolerances, self._progress = pictures, views, tolerances, progress

        def by_torch(one: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                result: np.ndarray = network(torch.from_numpy(preprocess.normalise(one[0])[np.newaxis])).numpy()
            return result

        self.expected = _describe(by_torch, pictures.inputs, progress, "describe with torch")
        self._by_torch = by_torch
        self._torch_recall: float | None = None

    def compare(self, folder: Path, variant: Variant, way: Way, *, recall: bool = True) -> Parity:
        """Parity of one file in one runtime and precision; with Recall@1 where `recall` and the precision is not fp32.

        Raises:
            DeployError: the runtime refuses the file.
        """
        runtime, precision = way
        session = load(folder / variant.file, runtime, precision)
        label = f"check {variant.file} in {runtime} {precision}"
        found = cosines(_describe(session.run, self._pictures.inputs, self._progress, label), self.expected)
        found_share, torch_share, count = None, None, 0
        if recall and precision != "fp32" and self._views is not None:
            found_share = self._views.recall_at_1(_describe(session.run, self._views.inputs, self._progress, f"{label}, Recall@1"))
            torch_share, count = self._recall_of_torch(self._views), len(self._views.inputs)
        smallest = float(found.min()) if np.isfinite(found).all() else -1.0
        return Parity(
            file=variant.file, runtime=runtime, precision=precision, tolerance=self._tolerances[precision], images=len(found),
            min_cosine=smallest, mean_cosine=float(np.nan_to_num(found, nan=-1.0).mean()),
            recall_at_1=found_share, torch_recall_at_1=torch_share, recall_views=count,
        )  # fmt: skip

    def _recall_of_torch(self, views: Views) -> float:
        if self._torch_recall is None:
            self._torch_recall = views.recall_at_1(_describe(self._by_torch, views.inputs, self._progress, "Recall@1 of torch"))
        return self._torch_recall


def ways_to_run(variant: Variant) -> Iterator[Way]:
    """The runtimes and precisions of this machine in which a file will be run, and has to be compared."""
    own: FilePrecision = variant.precision
    if variant.format == "onnx":
        yield "onnxruntime", own
    if why_no_openvino() is None:
        yield "openvino", own
        if own == "fp32" and computes_bf16():
            yield "openvino", "bf16"


def load(path: Path, runtime: RuntimeName, precision: str) -> Session:
    """A file in one runtime, on one thread: torch's are in this process too, and the two pools would wait for each other."""
    if runtime == "openvino":
        return OpenVinoSession.open(path, precision, 1)
    return OnnxRuntimeSession.open(path, "cpu", precision, 1)


def _describe(run: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, progress: Progress, label: str) -> np.ndarray:
    """(N, D): one picture at a time, as the robot does it."""
    return np.concatenate([run(one[np.newaxis]) for one in progress(inputs, label, len(inputs))])


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of `indices`, evenly spread."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, count).astype(int))]
