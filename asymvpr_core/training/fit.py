"""The gradient steps of a training: Lightning's loop over a gallery's images, resumable, and the choice of the best epoch."""

from __future__ import annotations

import logging
import math
import pickle
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import Dataset

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.gallery.several import AnyGallery
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.progress import Progress
from asymvpr_core.training import hardware
from asymvpr_core.training.callbacks import AVERAGED, MovingAverage, PredictionBoards, ProgressCallback, StepClock
from asymvpr_core.training.data import GalleryImages, ImageLoader, Item
from asymvpr_core.training.module import AsymmetricModule
from asymvpr_core.training.objective import Objective
from asymvpr_core.training.records import METRICS, EpochTable, WholeCheckpoints
from asymvpr_core.training.samplers import PLAIN_EPOCH, EpochSampler, PlaceBatchSampler, ShareSampler, fixed_views
from asymvpr_core.training.validation import HeldOutSearch

if TYPE_CHECKING:
    from asymvpr_core.training.cached_views import CachedViews

CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"

# Epoch number of the augmentation apart from those of the fine-tuning: the same pictures at every validation.
_VALIDATION_EPOCH = 2_000_000

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingImages:
    """The images of a gallery, or of several: the place of each, and ascending indices of those to train on and of those held out."""

    gallery: AnyGallery
    places: np.ndarray
    training: np.ndarray
    validation: np.ndarray


def fine_tune(
    network: QueryNetwork, objective: Objective, images: TrainingImages, settings: TrainSettings, work: Path, progress: Progress,
    views: CachedViews | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train `network` in place and leave the best epoch's weights in it; returns what the run's manifest says of it.

    Continues from the checkpoint that a killed run left in `work`.

    Args:
        views: views of the images as the network's frozen stages see them; None: the images are read and augmented.

    Raises:
        ImageError: naming a training image that cannot be read.
        TrainingError: a loss that is not finite, or hardware that is not there.
        OSError: a checkpoint that cannot be written; the last finished epoch is kept.
    """
    network.freeze(settings.frozen_share)
    train_loader, validation_loaders, boards = _loaders(network, images, settings, views)
    steps = settings.epochs * math.ceil(len(train_loader) / settings.accumulate_batches)
    search = HeldOutSearch(images.gallery, images.places, symmetric=settings.loss == "symmetric")
    module = AsymmetricModule(network, objective, search, settings, steps, None if views is None else views.prefix)
    checkpoints = work / CHECKPOINTS
    validated = len(images.validation) > 0
    keep = ModelCheckpoint(
        checkpoints, filename="best", monitor="val_recall_at_1" if validated else None, mode="max", enable_version_counter=False,
    )  # fmt: skip
    # Of its own: with save_last, `keep` would renew it only when an epoch is the best so far. After `keep`, whose state it holds.
    newest = ModelCheckpoint(checkpoints, filename="last", monitor="epoch", mode="max", enable_version_counter=False)
    clock = StepClock()
    callbacks: list[Any] = [keep, newest, clock]
    if settings.ema_decay > 0:
        callbacks.insert(0, MovingAverage(settings.ema_decay))
    if validated and settings.boards > 0:
        callbacks.append(boards)
    if settings.devices == 1:  # a progress bar cannot be handed to spawned processes
        callbacks.append(ProgressCallback(progress, len(train_loader), settings.epochs))
    trainer = _trainer(settings, work, callbacks)
    with _interruptible(), _readable_errors():
        before = trainer.validate(module, validation_loaders, verbose=False)[0] if validated else {}
        start = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        trainer.callbacks.insert(0, EpochTable(work / METRICS, before))  # type: ignore[attr-defined]  # before the checkpoints, which hold it
        last = _whole_checkpoint(checkpoints / "last.ckpt")
        trainer.fit(module, train_loader, validation_loaders if validated else None, ckpt_path=last, weights_only=True)
    network.cpu()
    return {**_choose(network, start, before, checkpoints), "median_batch_s": clock.median_s}


def _loaders(
    network: QueryNetwork, images: TrainingImages, settings: TrainSettings, views: CachedViews | None
) -> tuple[ImageLoader, list[ImageLoader], PredictionBoards]:
    """Batches to train on, views of held-out images (and for the symmetric loss what they are searched among), and their boards."""
    preprocess, world = network.spec.preprocess, settings.devices * settings.num_nodes
    pictures = GalleryImages(images.gallery, images.places, preprocess, settings.augmentation, settings.seed)
    augmented: Dataset[Item] = pictures
    keys = fixed_views(images.validation, first_epoch=_VALIDATION_EPOCH, views=settings.validation_views)
    workers = settings.workers
    if views is not None:
        augmented, pictures, workers = views, views.pictures, 0  # a process apart would take longer to hand features over than to read them
        keys = views.view_keys(images.validation, 1, settings.validation_views)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    if settings.resolved_sampler == "places":
        batches = PlaceBatchSampler(images.training, images.places, settings.batch_size, settings.images_per_place, settings.seed, world)
        train_loader = ImageLoader(augmented, batch_sampler=batches, **options)
    else:
        order = EpochSampler(images.training, settings.seed, world)
        if len(order) == 0:
            raise TrainingError(f"{len(images.training)} images for {world} processes", expected="at least one each")
        train_loader = ImageLoader(
            augmented, batch_size=settings.batch_size, sampler=order, drop_last=len(order) > settings.batch_size, **options
        )
    loaders = [ImageLoader(augmented, batch_size=settings.batch_size, sampler=ShareSampler(keys, world), **options)]
    if settings.loss == "symmetric":
        plain = GalleryImages(images.gallery, images.places, preprocess) if views is None else views
        everything = fixed_views(np.arange(len(images.gallery)), first_epoch=PLAIN_EPOCH)
        loaders.append(ImageLoader(plain, batch_size=settings.batch_size, sampler=everything, **options))
    return train_loader, loaders, PredictionBoards(images.gallery, pictures, keys[::world], settings.boards)


def _trainer(settings: TrainSettings, work: Path, callbacks: list[Any]) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # devices and model tables are no news to our users
    warnings.filterwarnings("ignore", module="lightning.*")  # hints about worker counts, on machines with two cores
    return lightning.Trainer(
        accelerator=hardware.accelerator(settings), devices=settings.devices, num_nodes=settings.num_nodes,
        strategy=hardware.strategy(settings), precision="32-true" if settings.precision == "32" else settings.precision,
        max_epochs=settings.epochs, callbacks=callbacks, accumulate_grad_batches=settings.accumulate_batches,
        gradient_clip_val=settings.gradient_clip or None, use_distributed_sampler=False,
        logger=TensorBoardLogger(work, name="", version=TENSORBOARD), plugins=[WholeCheckpoints()],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=0,
    )  # fmt: skip


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM arrive as KeyboardInterrupt: Lightning makes a silent exit of them, after SIGTERM with code 0."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning ignores further ones
        raise KeyboardInterrupt from error


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Known ends of a step as known errors: torch reports a full disk and a full GPU as RuntimeError."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory is full",
            remedy="give a smaller batch_size with accumulate_batches, bf16-mixed, or bank_dtype bfloat16",
        ) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise TrainingError("a checkpoint cannot be written", remedy="free space and give the same command again") from error


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


def _choose(network: QueryNetwork, start: dict[str, torch.Tensor], before: dict[str, float], checkpoints: Path) -> dict[str, Any]:
    """Put the best weights into `network`: the best epoch's, or the start's when no epoch was better."""
    path = checkpoints / ("best.ckpt" if before else "last.ckpt")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    report: dict[str, Any] = {"epoch": int(saved["epoch"]) + 1, "val_recall_at_1": None}
    if before:
        # From the file: spawned processes do not hand the callback's score back.
        scores = [state.get("best_model_score") for state in saved["callbacks"].values() if state.get("monitor") == "val_recall_at_1"]
        after = float(scores[0])
        report |= {"val_recall_at_1": after, "val_recall_at_1_before": before["val_recall_at_1"]}
        if after < before["val_recall_at_1"]:
            network.load_state_dict(start)
            return {**report, "epoch": 0}
    prefix = "network."
    own = {n.removeprefix(prefix): t for n, t in saved["state_dict"].items() if n.startswith(prefix)}
    network.load_state_dict(saved.get(AVERAGED, own))
    return report
