"""The Lightning module: one query network against one gallery and its memory bank."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from asymvpr_core.config import TrainSettings
from asymvpr_core.memory.bank import MemoryBank
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.training.losses import asymmetric_loss, regression_loss

Batch = tuple[Tensor, Tensor, Tensor]


class AsymmetricModule(lightning.LightningModule):
    """Trains `network` so that its descriptors may be searched among the gallery's.

    `gallery_descriptors` (N, D) float32 and the bank's places serve the validation: an augmented view
    of a held-out image, which imitates a revisit, is searched among all gallery descriptors and must
    find its place.
    """

    def __init__(self, network: QueryNetwork, bank: MemoryBank, gallery_descriptors: np.ndarray, settings: TrainSettings, steps: int):
        super().__init__()
        self.network, self.settings, self.steps = network, settings, steps
        # Not persistent: the bank and the descriptors are artefacts of their own, no part of a checkpoint.
        self.register_buffer("centroids", torch.from_numpy(bank.centroids), persistent=False)
        self.register_buffer("variances", torch.from_numpy(bank.variances), persistent=False)
        self.register_buffer("gallery_descriptors", torch.from_numpy(gallery_descriptors), persistent=False)
        self.register_buffer("places", torch.from_numpy(bank.places), persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, gallery, place = batch
        query = self.network(images)
        loss = self._loss(query, gallery, place)
        rates = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        values = {"loss": loss, "cosine": (query * gallery).sum(dim=1).mean(), "learning_rate": rates}
        self.log_dict(values, on_step=False, on_epoch=True)
        return loss

    def _loss(self, query: Tensor, gallery: Tensor, place: Tensor) -> Tensor:
        settings = self.settings
        if settings.loss == "regression":
            return regression_loss(query, gallery)
        gamma = settings.gamma if settings.loss == "asym+" else 0.0
        loss = asymmetric_loss(query, gallery, place, self.centroids, self.variances, settings.temperature, gamma)
        if settings.regression_weight > 0:
            loss = loss + settings.regression_weight * regression_loss(query, gallery)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, own, place = batch
        query = self.network(images)
        nearest = (query @ self.gallery_descriptors.T).argmax(dim=1)
        correct = self.places[nearest] == place
        values = {"val_recall_at_1": correct.float().mean(), "val_cosine": (query * own).sum(dim=1).mean()}
        self.log_dict(values, on_epoch=True, batch_size=len(images))

    def configure_optimizers(self) -> Any:
        settings = self.settings
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(self.steps, 1), eta_min=settings.learning_rate_end)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
