"""The loss of a training as one object: settings, bank and neighbour lists in, the loss of a batch out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError
from asymvpr_core.gallery.several import AnyGallery
from asymvpr_core.memory.bank import MemoryBank
from asymvpr_core.memory.neighbours import NeighbourLists
from asymvpr_core.memory.spread import scaled_gamma
from asymvpr_core.training.bank_tensors import bank_tensors
from asymvpr_core.training.baselines import aml_loss, raml_loss, symmetric_loss
from asymvpr_core.training.losses import LowRankFactors, asymmetric_loss, explicit_asymmetric_loss, regression_loss
from asymvpr_core.training.queue import QueueBank
from asymvpr_core.training.ranking import csd_loss, d3still_loss, in_batch_neighbours, neighbour_similarities, rop_loss

_LOG = logging.getLogger(__name__)

BANK_LOSSES = ("asym+", "asym", "explicit")
NEIGHBOUR_LOSSES = ("csd", "rop", "d3still")


class Objective(nn.Module):
    """The loss of a batch, a scalar, from query descriptors (B, D), the images' gallery descriptors (B, D), their
    places (B,) int64 and their gallery indices (B,) int64; descriptors are float32, L2-normalised.

    `gamma` is the factor that L_asym+ and the explicit loss got, 0 where the loss has none.
    """

    gamma: float = 0.0

    def __init__(self, settings: TrainSettings):
        super().__init__()
        self.settings = settings

    def forward(self, query: Tensor, gallery: Tensor, place: Tensor, index: Tensor) -> Tensor:
        loss = self.loss(query, gallery, place, index)
        weight = self.settings.regression_weight
        if weight > 0 and self.settings.loss not in ("regression", "symmetric"):
            loss = loss + weight * regression_loss(query, gallery)
        return loss

    def loss(self, query: Tensor, gallery: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """The loss without the regression term beside it."""
        raise NotImplementedError

    def after_backward(self, gallery: Tensor, place: Tensor) -> None:
        """What changes once the gradients of a batch are there."""


class BankObjective(Objective):
    """L_asym, L_asym+ and the explicit loss: over the centroids of a memory bank."""

    centroids: Tensor
    variances: Tensor

    def __init__(self, settings: TrainSettings, bank: MemoryBank):
        super().__init__(settings)
        self.gamma = 0.0 if settings.loss == "asym" else _gamma(settings, bank)
        tensors = bank_tensors(bank, getattr(torch, settings.bank_dtype))
        # Not persistent: the bank is an artefact of its own, no part of a checkpoint.
        self.register_buffer("centroids", tensors.centroids, persistent=False)
        self.register_buffer("variances", tensors.variances, persistent=False)
        self.register_buffer("factor_rows", None if tensors.factors is None else tensors.factors.rows, persistent=False)
        self.register_buffer("factor_offsets", None if tensors.factors is None else tensors.factors.offsets, persistent=False)

    def loss(self, query: Tensor, gallery: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """L_asym+ (with γ = 0 L_asym), or the mean over draws."""
        factors = None if self.factor_rows is None else LowRankFactors(self.factor_rows, self.factor_offsets)
        arguments = (query, gallery, place, self.centroids, self.variances, self.settings.temperature, self.gamma)
        if self.settings.loss == "explicit":
            return explicit_asymmetric_loss(*arguments, draws=self.settings.draws, factors=factors)
        return asymmetric_loss(*arguments, factors=factors)


class QueueObjective(Objective):
    """L_asym over recent gallery descriptors; the queue is kept in checkpoints."""

    def __init__(self, settings: TrainSettings, dimension: int):
        super().__init__(settings)
        self.queue = QueueBank(settings.queue_capacity, dimension, getattr(torch, settings.bank_dtype))

    def loss(self, query: Tensor, gallery: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """0 while the queue is empty."""
        return self.queue.loss(query, gallery, place, self.settings.temperature)

    def after_backward(self, gallery: Tensor, place: Tensor) -> None:
        """Put the batch into the queue."""
        self.queue.push(gallery, place)


class BatchObjective(Objective):
    """Losses that need the batch alone: regression, AML, RAML, and the symmetric one, which ignores the gallery descriptors."""

    def loss(self, query: Tensor, gallery: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """The loss that the settings name."""
        own = self.settings.baselines
        match self.settings.loss:
            case "regression":
                return regression_loss(query, gallery)
            case "aml":
                return aml_loss(query, gallery, place, contrastive_weight=own.aml_contrastive_weight, margin=own.aml_margin)
            case "raml":
                weights = {"asymmetric_weight": own.raml_asymmetric_weight, "symmetric_weight": own.raml_symmetric_weight}
                return raml_loss(query, gallery, **weights)
            case _:
                return symmetric_loss(query, place, alpha=own.symmetric_alpha, beta=own.symmetric_beta, epsilon=own.symmetric_epsilon)


class NeighbourObjective(Objective):
    """CSD, ROP and D3still, with neighbours from lists of the whole gallery, or from the batch where there are none.

    Of the gallery's descriptors only the rows that a batch's lists name are read.
    """

    def __init__(self, settings: TrainSettings, gallery: AnyGallery, neighbours: np.ndarray | None):
        super().__init__(settings)
        self._gallery, self._neighbours = gallery, neighbours

    def loss(self, query: Tensor, gallery: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """The loss that the settings name, over the similarities to the neighbours."""
        own, k = self.settings.baselines, self.settings.neighbours_k
        if self._neighbours is None:
            u, s = neighbour_similarities(query, gallery, gallery, in_batch_neighbours(gallery, min(k, len(gallery))))
        else:
            lists = np.asarray(self._neighbours[index.cpu().numpy(), :k])
            rows, inverse = np.unique(lists, return_inverse=True)
            descriptors = torch.from_numpy(np.array(self._gallery.descriptors[rows], dtype=np.float32)).to(query.device)
            u, s = neighbour_similarities(query, gallery, descriptors, torch.from_numpy(inverse.reshape(lists.shape)).to(query.device))
        match self.settings.loss:
            case "csd":
                return csd_loss(u, s, query_temperature=own.csd_query_temperature, gallery_temperature=own.csd_gallery_temperature)
            case "rop":
                return rop_loss(u, s, temperature=own.rop_temperature)
            case _:
                return d3still_loss(u, s, alpha=own.d3still_alpha, beta=own.d3still_beta, gamma=own.d3still_gamma)


def make_objective(settings: TrainSettings, gallery: AnyGallery, bank: MemoryBank, neighbours: Path | None = None) -> Objective:
    """The objective that the settings name.

    Args:
        gallery: whose images are trained on; its descriptors are the neighbours.
        bank: of the same gallery; may be the memory maps of a stored one.
        neighbours: folder of neighbour lists of this gallery for CSD, ROP and D3still; None: inside the batch.

    Raises:
        ArtefactError: damaged lists, or lists of another gallery.
        TrainingError: lists that no loss needs or that are too short, one place in all, a bank of another dimension.
        MemoryBankError: γ on the relative scale where the images of every place have the same descriptor.
    """
    if neighbours is not None and settings.loss not in NEIGHBOUR_LOSSES:
        raise TrainingError(
            f"neighbour lists are given for the loss {settings.loss}", expected=", ".join(NEIGHBOUR_LOSSES), remedy="leave --neighbours out"
        )
    if settings.loss in BANK_LOSSES:
        found, expected = bank.centroids.shape[1], gallery.descriptors.shape[1]
        if found != expected:
            raise TrainingError(f"the bank holds {found}-D centroids", expected=f"the gallery's {expected}-D", remedy="build it anew")
        return BankObjective(settings, bank)
    if settings.loss == "queue":
        return QueueObjective(settings, gallery.descriptors.shape[1])
    if settings.loss in NEIGHBOUR_LOSSES:
        return NeighbourObjective(settings, gallery, None if neighbours is None else _lists(neighbours, gallery, settings))
    return BatchObjective(settings)


def _lists(path: Path, gallery: AnyGallery, settings: TrainSettings) -> np.ndarray:
    lists = NeighbourLists.open(path)
    lists.check_gallery(gallery)
    found = lists.neighbours.shape[1]
    if found < settings.neighbours_k:
        raise TrainingError(
            f"the lists {path} hold {found} neighbours of every image", expected=f"at least neighbours_k = {settings.neighbours_k}",
            remedy=f"make them with 'asymvpr bank neighbours --k {settings.neighbours_k}', or set neighbours_k",
        )  # fmt: skip
    return lists.neighbours


def _gamma(settings: TrainSettings, bank: MemoryBank) -> float:
    strength, scale = settings.resolved_gamma
    if not (bank.counts >= 2).any():  # every covariance is zero: γ has no effect, and no scale either
        _LOG.warning("no place has two images: the embedding augmentation has no effect")
        return 0.0
    return scaled_gamma(bank, strength, settings.temperature, scale)
