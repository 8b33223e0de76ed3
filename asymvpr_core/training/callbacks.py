"""What accompanies the steps of a training: progress, time, the moving average of the weights, prediction boards."""

from __future__ import annotations

import time
from typing import Any

import cv2
import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from asymvpr_core.errors import ImageError
from asymvpr_core.gallery.several import AnyGallery
from asymvpr_core.progress import Progress
from asymvpr_core.training.data import GalleryImages
from asymvpr_core.training.samplers import Key

AVERAGED = "averaged_network"
_BOARD_HEIGHT, _BORDER = 160, 6
_RIGHT, _WRONG = (0, 160, 60), (200, 40, 40)


class ProgressCallback(lightning.Callback):
    """Hands Lightning's batches to the command line's progress bar."""

    def __init__(self, progress: Progress, batches_per_epoch: int, epochs: int):
        self._progress, self._batches, self._total = progress, batches_per_epoch, batches_per_epoch * epochs

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        done = trainer.current_epoch * self._batches
        self._bar = self._progress(range(done, self._total), "fine-tune", self._total, done)
        next(self._bar, None)

    def on_train_batch_end(self, *_: Any) -> None:
        next(self._bar, None)

    def on_train_end(self, *_: Any) -> None:
        for _step in self._bar:  # lets the bar close
            break


class StepClock(lightning.Callback):
    """Measures the time from the end of one batch to the end of the next, loading included, inside epochs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_epoch_start(self, *_: Any) -> None:
        self._last = None

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now

    @property
    def median_s(self) -> float | None:
        """Median of a batch; None without two in one epoch, and where spawned processes did the work."""
        return float(np.median(self.seconds)) if self.seconds else None


class MovingAverage(lightning.Callback):
    """Keeps an exponential moving average of the network's weights, validates it, and writes it into every checkpoint.

    Lightning's own would average the whole module, of which the memory bank would need a second copy.
    """

    def __init__(self, decay: float):
        self._decay, self._steps = decay, 0
        self._average: AveragedModel | None = None
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Not before: only now do all processes have the first one's weights.
        self._average = AveragedModel(pl_module.network, multi_avg_fn=get_ema_multi_avg_fn(self._decay))
        if self._loaded is not None:
            self._average.load_state_dict(self._loaded)
        else:
            self._average.update_parameters(pl_module.network)  # the average starts from the start

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        if self._average is not None and trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self._average.update_parameters(pl_module.network)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._swap(pl_module)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average is not None:
            checkpoint[AVERAGED] = self._average.module.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "average": {} if self._average is None else self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._loaded = state["steps"], state["average"] or None

    def _swap(self, pl_module: lightning.LightningModule) -> None:
        if self._average is None:  # the validation before the first step
            return
        with torch.no_grad():
            for mine, theirs in zip(self._average.module.parameters(), pl_module.network.parameters(), strict=True):
                kept = mine.clone()
                mine.copy_(theirs)
                theirs.copy_(kept)


class PredictionBoards(lightning.Callback):
    """Writes a few held-out views beside what was found for them to TensorBoard, green where the place is right, red where not."""

    def __init__(self, gallery: AnyGallery, views: GalleryImages, keys: list[Key], count: int):
        self._gallery, self._views, self._keys, self._count = gallery, views, keys, count

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        found = pl_module.search.found
        logs = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if found is None or found.queries == 0 or not logs or not trainer.is_global_zero:
            return
        rows = np.unique(np.linspace(0, found.queries - 1, self._count).astype(int))
        for number, row in enumerate(rows):
            index, best = int(found.query_indices[row]), int(found.best_indices[row])
            right = bool(self._views.places[index] == self._views.places[best])
            try:
                board = _board(self._views.picture(self._keys[row]), self._gallery.read_image(best), _RIGHT if right else _WRONG)
            except ImageError:  # a board is no reason to end a training
                continue
            logs[0].experiment.add_image(f"held out {number + 1}: view, found", board, trainer.global_step, dataformats="HWC")


def _board(query: np.ndarray, found: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the two pictures at one height, the second in a border of `colour`."""
    sides = []
    for picture, border in ((query, (255, 255, 255)), (found, colour)):
        width = max(1, round(picture.shape[1] * _BOARD_HEIGHT / picture.shape[0]))
        resized = cv2.resize(picture, (width, _BOARD_HEIGHT), interpolation=cv2.INTER_AREA)
        sides.append(cv2.copyMakeBorder(resized, _BORDER, _BORDER, _BORDER, _BORDER, cv2.BORDER_CONSTANT, value=border))
    return np.concatenate(sides, axis=1)
