"""Train a query network against a gallery: bank, alignment, fine-tuning, one run folder."""

from __future__ import annotations

import logging
import pickle
import platform
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import write_manifest
from asymvpr_core.memory.bank import MemoryBank, build_memory_bank
from asymvpr_core.memory.cells import assign_places
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import load_network
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.progress import Progress, silent
from asymvpr_core.resumable import build_resumably, save_piece
from asymvpr_core.training.alignment import align
from asymvpr_core.training.data import EpochSampler, GalleryImages, ImageLoader, fixed_views
from asymvpr_core.training.module import AsymmetricModule

# Epoch numbers of the augmentation apart from those of the fine-tuning: the same pictures at every validation.
_ALIGNMENT_EPOCH, _VALIDATION_EPOCH = 1_000_000, 2_000_000

_LOG = logging.getLogger(__name__)

WEIGHTS, BANK, SETTINGS, METRICS = "weights.safetensors", "bank.npz", "settings.yaml", "metrics.csv"


def train(gallery_path: Path, settings: TrainSettings, out: Path, *, weights: Path | None = None, progress: Progress = silent) -> Path:
    """Train against the gallery and write the run folder `out`; returns `out`.

    The gallery network is not needed: only the gallery's images, descriptors and places are used.
    A killed run continues from its last finished epoch when the same command is given again.
    The run's weights are those of the best epoch by recall on held-out images, where the start
    counts as epoch 0: fine-tuning that makes the held-out recall worse is not kept, and without a
    place of two images, where nothing can be held out, there is none.

    Raises:
        ArtefactError: gallery damaged, `out` exists or is in use or cannot be written.
        MemoryBankError, TrainingError: the gallery cannot be trained on (one place in all, …).
        ImageError: naming a training image that cannot be read.
    """
    gallery = Gallery.open(gallery_path)
    spec = network_spec(settings.query_network)  # a misspelt name is refused before anything is written
    if not spec.preprocess.is_static:
        raise TrainingError(f"{spec.name} takes pictures of any size", expected="a query network of one input size")
    prepare_cpu(settings.threads)

    def build(work: Path, staging: Path) -> None:
        network, bank, details = _train(gallery, settings, work, weights, progress)
        _write(staging, work, gallery, settings, network, bank, details)

    fingerprint = {"gallery": _gallery_digest(gallery), "settings": settings.model_dump(mode="json")}
    return build_resumably(out, fingerprint, build)


def _gallery_digest(gallery: Gallery) -> str:
    return "-".join(gallery.manifest.files[name].sha256[:16] for name in ("descriptors.npy", "keyframes.csv"))


def _train(
    gallery: Gallery, settings: TrainSettings, work: Path, weights: Path | None, progress: Progress
) -> tuple[QueryNetwork, MemoryBank, dict[str, Any]]:
    places = assign_places(gallery.keyframes, settings.cells)
    bank = build_memory_bank(gallery.descriptors, places)
    if len(bank.counts) < 2:
        raise TrainingError("the gallery has one place in all", expected="at least two", remedy="use smaller cells or a larger gallery")
    training, validation = _split(places, settings)
    lightning.seed_everything(settings.seed, verbose=False)
    network = QueryNetwork.from_pretrained(
        load_network(settings.query_network, weights, seed=settings.seed), gallery.manifest.gallery_network.dimension, settings.seed
    )
    details: dict[str, Any] = {"places": len(bank.counts), "training_images": len(training), "validation_images": len(validation)}
    if settings.init == "aligned":
        if not network.has_linear_head:
            raise TrainingError(
                f"{network.spec.name} has the gallery's {network.spec.dimension} dimensions itself and no linear layer to align",
                remedy="give --init random, or a gallery with a projection",
            )
        details["alignment"] = _align(network, gallery, bank, training, settings, work, progress)
    if settings.epochs > 0 and settings.validation_share > 0 and len(validation) == 0:
        # Four unchecked epochs cost such galleries 3.0 and 4.5 points of Recall@1 (docs/results.md).
        details["fine_tuning"] = {"epoch": 0, "skipped": "no place has two images, so that no image can be held out"}
        _LOG.warning(
            "fine-tuning is skipped: no place has two images, so that no epoch could be compared with the start; "
            "use larger cells, or set validation_share to 0 to fine-tune unchecked"
        )
    elif settings.epochs > 0:
        details["fine_tuning"] = _fine_tune(network, gallery, bank, training, validation, settings, work, progress)
    return network, bank, details


def _split(places: np.ndarray, settings: TrainSettings) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices for training and for validation: at most one image of a place that has others.

    Whole places would not do: on a dense map the nearest neighbours of a held-out place lie in the next
    cell and are found instead, whatever the network (docs/results.md).
    """
    order = np.random.default_rng(settings.seed).permutation(len(places))
    _, first = np.unique(places[order], return_index=True)
    candidates = order[np.sort(first)]  # one image of every place, in random order
    candidates = candidates[np.bincount(places)[places[candidates]] >= 2]
    wanted = round(settings.validation_share * len(places)) if settings.epochs > 0 else 0
    held_out = np.sort(candidates[:wanted])
    return np.setdiff1d(np.arange(len(places)), held_out), held_out


def _align(
    network: QueryNetwork, gallery: Gallery, bank: MemoryBank, training: np.ndarray, settings: TrainSettings, work: Path, progress: Progress
) -> dict[str, float]:
    cache = work / "features.npy"
    if not cache.exists():
        features = _pooled_features(network, gallery, bank, training, settings, progress)
        save_piece(cache, lambda file: np.save(file, features, allow_pickle=False))
    features = np.load(cache, allow_pickle=False)
    copies = len(features) // len(training)
    rows = np.tile(training, copies)
    alignment = align(features, np.asarray(gallery.descriptors[rows]), bank.places[rows], seed=settings.seed, progress=progress)
    network.set_head(alignment.weight, alignment.bias)
    return {"ridge": alignment.ridge, "held_out_cosine": alignment.held_out_cosine, "copies": copies}


def _pooled_features(
    network: QueryNetwork, gallery: Gallery, bank: MemoryBank, training: np.ndarray, settings: TrainSettings, progress: Progress
) -> np.ndarray:
    """(copies·N, C): features of the training images as they are, then of augmented copies of them."""
    plain = GalleryImages(gallery, bank.places, network.spec.preprocess)
    augmented = GalleryImages(gallery, bank.places, network.spec.preprocess, settings.augmentation, settings.seed)
    network.eval()
    rows = []
    for copy in range(1 + settings.alignment_copies):
        loader = ImageLoader(
            plain if copy == 0 else augmented,
            batch_size=settings.batch_size,
            sampler=fixed_views(training, first_epoch=_ALIGNMENT_EPOCH + copy),
            num_workers=settings.workers,
        )
        what = "align" if copy == 0 else f"align, augmented copy {copy}"
        with torch.inference_mode():
            rows += [network.encoder(images).numpy() for images, _, _ in progress(loader, what, len(loader))]
    return np.concatenate(rows)


def _fine_tune(
    network: QueryNetwork, gallery: Gallery, bank: MemoryBank, training: np.ndarray, validation: np.ndarray,
    settings: TrainSettings, work: Path, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    network.freeze(settings.frozen_share)
    preprocess = network.spec.preprocess
    train_loader = ImageLoader(
        GalleryImages(gallery, bank.places, preprocess, settings.augmentation, settings.seed),
        batch_size=settings.batch_size, sampler=EpochSampler(training, settings.seed),
        num_workers=settings.workers, persistent_workers=settings.workers > 0, drop_last=len(training) > settings.batch_size,
    )  # fmt: skip
    validation_loader = ImageLoader(
        GalleryImages(gallery, bank.places, preprocess, settings.augmentation, settings.seed),
        batch_size=settings.batch_size, sampler=fixed_views(validation, first_epoch=_VALIDATION_EPOCH, views=settings.validation_views),
        num_workers=settings.workers, persistent_workers=settings.workers > 0,
    )  # fmt: skip
    descriptors = np.array(gallery.descriptors, dtype=np.float32)
    module = AsymmetricModule(network, bank, descriptors, settings, steps=settings.epochs * len(train_loader))
    checkpoints = work / "checkpoints"
    keep = ModelCheckpoint(
        checkpoints, filename="best", monitor="val_recall_at_1" if len(validation) else None, mode="max", enable_version_counter=False,
    )  # fmt: skip
    # Of its own: with save_last, `keep` would renew it only when an epoch is the best so far. After `keep`, whose state it holds.
    newest = ModelCheckpoint(checkpoints, filename="last", monitor="epoch", mode="max", enable_version_counter=False)
    bar = _ProgressCallback(progress, settings.epochs * len(train_loader))
    trainer = _trainer(settings, work, [keep, newest, bar])
    with _interruptible():
        before = trainer.validate(module, validation_loader, verbose=False)[0] if len(validation) else {}
        start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        last = _whole_checkpoint(checkpoints / "last.ckpt")
        trainer.fit(module, train_loader, validation_loader if len(validation) else None, ckpt_path=last)
    return _choose(network, start, before, keep, checkpoints)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM arrive as KeyboardInterrupt: Lightning makes a silent exit of them, after SIGTERM with code 0."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning ignores further ones
        raise KeyboardInterrupt from error


def _whole_checkpoint(path: Path) -> Path | None:
    """The checkpoint to continue from; None where there is none, or where a kill or a full disk left a part of one."""
    if not path.exists():
        return None
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        _LOG.warning("%s is damaged, fine-tuning begins anew: %s", path, error)
        return None
    return path


def _trainer(settings: TrainSettings, work: Path, callbacks: list[Any]) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # devices and model tables are no news to our users
    warnings.filterwarnings("ignore", module="lightning.*")  # hints about worker counts, on machines with two cores
    return lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=settings.epochs, callbacks=callbacks,
        logger=[CSVLogger(work, name="", version="csv"), TensorBoardLogger(work, name="", version="tensorboard")],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=0,
    )  # fmt: skip


def _choose(
    network: QueryNetwork, start: dict[str, torch.Tensor], before: dict[str, float], keep: ModelCheckpoint, checkpoints: Path
) -> dict[str, Any]:
    """Put the best weights into `network`: the best epoch's, or the start's when no epoch was better."""
    path = checkpoints / ("best.ckpt" if before else "last.ckpt")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    after = None if keep.best_model_score is None else float(keep.best_model_score)
    report = {"epoch": int(saved["epoch"]) + 1, "val_recall_at_1": after}
    if before:
        report["val_recall_at_1_before"] = before["val_recall_at_1"]
    if after is not None and before and after < before["val_recall_at_1"]:
        network.load_state_dict(start)
        return {**report, "epoch": 0}
    prefix = "network."
    network.load_state_dict({n.removeprefix(prefix): t for n, t in saved["state_dict"].items() if n.startswith(prefix)})
    return report


class _ProgressCallback(lightning.Callback):
    """Hands Lightning's steps to the command line's progress bar."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total = progress, total

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        steps = range(trainer.global_step, self._total + 1)
        self._bar = self._progress(steps, "fine-tune", self._total, trainer.global_step)
        next(self._bar, None)

    def on_train_batch_end(self, *_: Any) -> None:
        next(self._bar, None)

    def on_train_end(self, *_: Any) -> None:
        for _step in self._bar:  # lets the bar close
            break


def _write(
    staging: Path, work: Path, gallery: Gallery, settings: TrainSettings, network: QueryNetwork, bank: MemoryBank, details: dict[str, Any]
) -> None:
    network.save(staging / WEIGHTS)
    bank.save(staging / BANK)
    (staging / SETTINGS).write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    for name in ("checkpoints", "tensorboard"):
        if (work / name).exists():
            shutil.copytree(work / name, staging / name)
    if (work / "csv" / METRICS).exists():
        shutil.copy2(work / "csv" / METRICS, staging / METRICS)
    write_manifest(
        staging, "run", gallery.manifest.gallery_network,
        settings=settings.model_dump(mode="json"),
        inputs={"gallery": str(gallery.path.resolve()), "gallery_digest": _gallery_digest(gallery)},
        versions={"python": platform.python_version(), "torch": torch.__version__, "lightning": lightning.__version__},
        details={**details, "query_network": network.spec.name, "preprocess": network.spec.preprocess.model_dump(mode="json")},
    )  # fmt: skip
