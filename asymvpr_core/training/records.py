"""What a training leaves on the disk: checkpoints that are whole or absent, and one row of numbers for each epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from asymvpr_core.manifest import write_text_atomically
from asymvpr_core.resumable import save_piece

METRICS = "metrics.csv"
_COLUMNS = ("epoch", "step", "loss", "cosine", "learning_rate", "val_recall_at_1", "val_cosine")


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their final name and renamed: a kill leaves the one before.

    Lightning itself writes to the system's temporary folder and moves the file: on another file system that is a
    copy, which a kill or a full disk cuts short, and a kill leaves the temporary file there for ever.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it. Raises OSError when it cannot be written; the file that was there stays."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_piece(Path(path), lambda file: torch.save(checkpoint, file))


class EpochTable(lightning.Callback):
    """Writes `metrics.csv` after every epoch: epoch, step, loss, cosine, learning rate, and what the held-out views gave.

    Epoch 0 is the start. The rows are part of every checkpoint, so that a resumed training has those of all epochs;
    Lightning's own CSVLogger begins its file anew.

    Args:
        path: of the file.
        start: what the validation of the start gave; empty without held-out images.
    """

    def __init__(self, path: Path, start: dict[str, float]):
        self._path = path
        self.rows: list[dict[str, float]] = [{"epoch": 0, "step": 0, **start}] if start else []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in _COLUMNS}
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **values})
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text_atomically(self._path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]
