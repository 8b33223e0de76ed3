"""Train a query network against a gallery: bank, alignment, fine-tuning, one run folder."""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.gallery.several import AnyGallery, open_galleries
from asymvpr_core.manifest import GalleryNetworkIdentity, read_manifest, sha256_of, write_manifest
from asymvpr_core.memory.bank import MemoryBank, build_memory_bank
from asymvpr_core.memory.cells import gallery_places
from asymvpr_core.memory.origin import gallery_digest, origin
from asymvpr_core.memory.store import StoredBank
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import load_network
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import build_resumably
from asymvpr_core.training import hardware
from asymvpr_core.training.cached_views import cache_views
from asymvpr_core.training.fit import CHECKPOINTS, TENSORBOARD, TrainingImages, fine_tune
from asymvpr_core.training.objective import make_objective
from asymvpr_core.training.records import METRICS
from asymvpr_core.training.start import align_network

_LOG = logging.getLogger(__name__)

WEIGHTS, BANK, SETTINGS = "weights.safetensors", "bank.npz", "settings.yaml"


def train(
    gallery_path: Path | Sequence[Path],
    settings: TrainSettings,
    out: Path,
    *,
    weights: Path | None = None,
    bank: Path | None = None,
    neighbours: Path | None = None,
    features: Path | None = None,
    hold_out: bool = False,
    progress: Progress = silent,
) -> Path:
    """Train against a gallery, or against several of one pair together, and write the run folder `out`; returns `out`.

    The gallery network is not needed: only the gallery's images, descriptors and places are used.
    A killed run continues from its last finished epoch when the same command is given again.
    The run's weights are those of the best epoch by recall on held-out images, where the start
    counts as epoch 0: fine-tuning that makes the held-out recall worse is not kept, and without a
    place of two images, where nothing can be held out, there is none.

    Args:
        gallery_path: of several, places of different galleries are different places.
        bank: a stored bank of this gallery (of these, in this order), whose places and statistics are used; None: computed here.
        neighbours: neighbour lists of this gallery for CSD, ROP and D3still; None: inside the batch.
        hold_out: leave out the validation images also where there are no epochs, to have the start of a training that holds them out.
        features: a folder where runs that start alike share the light network's features; None: each has its own.

    Raises:
        ArtefactError: gallery, bank or lists damaged or not of one another, `out` exists or is in use or cannot be written.
        MemoryBankError, TrainingError: the gallery cannot be trained on (one place in all, …).
        ImageError: naming a training image that cannot be read.
    """
    gallery = open_galleries(gallery_path)
    spec = network_spec(settings.query_network)  # a misspelt name is refused before anything is written
    if not spec.preprocess.is_static:
        raise TrainingError(f"{spec.name} takes pictures of any size", expected="a query network of one input size")
    hardware.accelerator(settings)
    prepare_cpu(settings.threads)
    sources = _Sources(gallery, bank, neighbours, weights, features, hold_out)
    if hardware.rank() > 0:  # started by torchrun: the first process writes, the others only compute
        _train(sources, settings, Path(out).with_name(Path(out).name + ".partial"), silent)
        return Path(out)

    def build(work: Path, staging: Path) -> None:
        network, used, details = _train(sources, settings, work, progress)
        _write(staging, work, sources, settings, network, used, details)

    return build_resumably(out, {**sources.identity(), "settings": settings.model_dump(mode="json")}, build)


@dataclass(frozen=True)
class _Sources:
    """What a run is made from."""

    gallery: AnyGallery
    bank: Path | None
    neighbours: Path | None
    weights: Path | None
    features: Path | None
    hold_out: bool

    def identity(self) -> dict[str, Any]:
        """Checksums of everything that the run depends on beside its settings."""
        identity: dict[str, Any] = {"gallery": gallery_digest(self.gallery)}
        if self.bank is not None:
            identity["bank"] = read_manifest(self.bank, "bank").manifest_sha256
        if self.neighbours is not None:
            identity["neighbours"] = read_manifest(self.neighbours, "neighbours").manifest_sha256
        if self.weights is not None:
            identity["weights"] = sha256_of(self.weights)
        if self.hold_out:
            identity["hold_out"] = True
        return identity

    def inputs(self) -> dict[str, Any]:
        """The `inputs` of the run's manifest: the paths, and the checksums of `identity`."""
        paths = {"bank": self.bank, "neighbours": self.neighbours, "weights": self.weights}
        given = {name: str(path.resolve()) for name, path in paths.items() if path is not None}
        identity = self.identity()
        return {**origin(self.gallery), **given, **{f"{name}_sha256": identity[name] for name in given}}

    def memory_bank(self, settings: TrainSettings) -> MemoryBank:
        """The stored bank, or the one of the settings' cells.

        Raises:
            ArtefactError: a damaged bank, or one of another gallery.
            MemoryBankError: descriptors that are not finite.
            TrainingError: one place in all.
        """
        if self.bank is not None:
            stored = StoredBank.open(self.bank)
            stored.check_gallery(self.gallery)
            bank = stored.bank
        else:
            bank = build_memory_bank(self.gallery.descriptors, gallery_places(self.gallery, settings.cells), rank=settings.covariance_rank)
        if len(bank.counts) < 2:
            raise TrainingError("the gallery has one place in all", expected="at least two", remedy="use smaller cells or a larger gallery")
        return bank


def _train(sources: _Sources, settings: TrainSettings, work: Path, progress: Progress) -> tuple[QueryNetwork, MemoryBank, dict[str, Any]]:
    gallery = sources.gallery
    started = time.perf_counter()
    bank = sources.memory_bank(settings)
    seconds = {"bank": time.perf_counter() - started}
    places = np.asarray(bank.places)
    images = TrainingImages(gallery, places, *_split(places, settings, hold_out=sources.hold_out or settings.epochs > 0))
    objective = make_objective(settings, gallery, bank, sources.neighbours)
    lightning.seed_everything(settings.seed, verbose=False)
    network = QueryNetwork.from_pretrained(
        load_network(settings.query_network, sources.weights, seed=settings.seed), gallery.gallery_network.dimension,
        settings.seed, gated=settings.init == "aligned",
    )  # fmt: skip
    counts = {"places": len(bank.counts), "training_images": len(images.training), "validation_images": len(images.validation)}
    details: dict[str, Any] = {**counts, "gamma": objective.gamma}
    folder, views = sources.features or work, None
    if settings.cached_views > 0:
        started = time.perf_counter()
        views = cache_views(network, images, settings, folder, progress)
        seconds["views"] = time.perf_counter() - started
    if settings.init == "aligned" and hardware.rank() == 0:
        started = time.perf_counter()
        details["alignment"] = align_network(network, images, settings, folder, progress, views)
        seconds["alignment"] = time.perf_counter() - started
    if settings.epochs > 0 and settings.validation_share > 0 and len(images.validation) == 0:
        # Four unchecked epochs cost such galleries 3.0 and 4.5 points of Recall@1 (docs/results.md).
        details["fine_tuning"] = {"epoch": 0, "skipped": "no place has two images, so that no image can be held out"}
        _LOG.warning(
            "fine-tuning is skipped: no place has two images, so that no epoch could be compared with the start; "
            "use larger cells, or set validation_share to 0 to fine-tune unchecked"
        )
    elif settings.epochs > 0:
        started = time.perf_counter()
        details["fine_tuning"] = fine_tune(network, objective, images, settings, work, progress, views)
        seconds["fine_tuning"] = time.perf_counter() - started
    return network, bank, {**details, "seconds": seconds}


def _split(places: np.ndarray, settings: TrainSettings, *, hold_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices for training and for validation: at most one image of a place that has others.

    Whole places would not do: on a dense map the nearest neighbours of a held-out place lie in the next
    cell and are found instead, whatever the network (docs/results.md).
    """
    order = np.random.default_rng(settings.seed).permutation(len(places))
    _, first = np.unique(places[order], return_index=True)
    candidates = order[np.sort(first)]  # one image of every place, in random order
    candidates = candidates[np.bincount(places)[places[candidates]] >= 2]
    wanted = min(round(settings.validation_share * len(places)), settings.max_validation_images) if hold_out else 0
    held_out = np.sort(candidates[:wanted])
    return np.setdiff1d(np.arange(len(places)), held_out), held_out


def _write(
    staging: Path, work: Path, sources: _Sources, settings: TrainSettings, network: QueryNetwork, bank: MemoryBank, details: dict[str, Any]
) -> None:
    gallery = sources.gallery
    network.save(staging / WEIGHTS)
    if sources.bank is None:
        bank.save(staging / BANK)
    (staging / SETTINGS).write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    for name in (CHECKPOINTS, TENSORBOARD):
        if (work / name).exists():
            shutil.copytree(work / name, staging / name)
    if (work / METRICS).exists():
        shutil.copy2(work / METRICS, staging / METRICS)
    write_manifest(
        staging, "run", _identity(staging, gallery, settings, network),
        settings=settings.model_dump(mode="json"),
        inputs=sources.inputs(),
        versions={"python": platform.python_version(), "torch": torch.__version__, "lightning": lightning.__version__},
        details={
            **details, "query_network": network.spec.name, "gated": network.is_gated,
            "preprocess": network.spec.preprocess.model_dump(mode="json"),
        },
    )  # fmt: skip


def _identity(staging: Path, gallery: AnyGallery, settings: TrainSettings, network: QueryNetwork) -> GalleryNetworkIdentity:
    """What the run's descriptors are comparable with: the gallery's, or after a symmetric training only their own."""
    theirs = gallery.gallery_network
    if settings.loss != "symmetric" or settings.epochs == 0:
        return theirs
    return GalleryNetworkIdentity(
        name=f"{network.spec.name}, symmetric", weights_sha256=sha256_of(staging / WEIGHTS),
        preprocess=network.spec.preprocess.model_dump(mode="json"), projection_sha256=None, dimension=theirs.dimension,
    )  # fmt: skip
