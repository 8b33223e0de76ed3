"""The Lightning module: one query network, one objective, and a search for held-out places as validation."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.networks.frozen_prefix import FrozenPrefix
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.training.objective import Objective
from asymvpr_core.training.validation import HeldOutSearch

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class AsymmetricModule(lightning.LightningModule):
    """Trains `network` with `objective`, and validates it by searching views of held-out images.

    Args:
        search: what the validation searches among, and which place every gallery image has.
        steps: optimiser steps of the whole training, over which the learning rate falls.
        prefix: where the batches hold features of the network's frozen stages instead of images: the network cut behind them.
    """

    def __init__(
        self,
        network: QueryNetwork,
        objective: Objective,
        search: HeldOutSearch,
        settings: TrainSettings,
        steps: int,
        prefix: FrozenPrefix | None = None,
    ):
        super().__init__()
        self.network, self.objective, self.search, self.settings, self.steps = network, objective, search, settings, steps
        self._prefix = prefix

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, gallery, place, index = batch
        # Dropout and the draws of the explicit loss: a resumed training draws what the undisturbed one did.
        key = (self.settings.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        query = self._describe(images).float()
        with torch.autocast(query.device.type, enabled=False):
            loss = self.objective(query, gallery, place, index)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}, step {batch_idx + 1}", expected="a finite number",
                remedy="give a smaller learning rate, gradient_clip, or precision 32; the last finished epoch is kept",
            )  # fmt: skip
        rates = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        values = {"loss": loss.detach(), "cosine": (query.detach() * gallery).sum(dim=1).mean(), "learning_rate": rates}
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=self._parallel, batch_size=len(images))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        _, gallery, place, _ = batch
        self.objective.after_backward(gallery, place)

    def on_validation_epoch_start(self) -> None:
        self.search.start()
        if self._parallel:  # of processes started from outside, only the first one has aligned its network
            for tensor in self.network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, own, place, index = batch
        descriptors = self._describe(images).float()
        if dataloader_idx == 1:
            self.search.add_references(descriptors, index)
        else:
            self.search.add_queries(descriptors, own, place, index)

    def on_validation_epoch_end(self) -> None:
        values = self.search.finish(self.device)
        totals = torch.stack([torch.as_tensor(float(v), device=self.device) for v in (values.correct, values.cosines, values.queries)])
        if self._parallel:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        correct, cosines, queries = totals
        self.log_dict({"val_recall_at_1": correct / queries, "val_cosine": cosines / queries})

    def configure_optimizers(self) -> Any:
        settings = self.settings
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(self.steps, 1), eta_min=settings.learning_rate_end)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _describe(self, images: Tensor) -> Tensor:
        descriptors: Tensor = self.network(images) if self._prefix is None else self._prefix.describe(images)
        return descriptors

    @property
    def _parallel(self) -> bool:
        return bool(self.trainer.world_size > 1)
