"""Baselines that need the batch alone: AML, RAML, feature regression, RKD, PKT, and the symmetric training.

q is the query descriptor of the light network, g the stored gallery descriptor of the same image;
both (B, D), L2-normalised by the caller except where a loss says that it does not need that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from asymvpr_core.errors import TrainingError


def aml_loss(
    query: Tensor, gallery: Tensor, place: Tensor | None = None, *, contrastive_weight: float = 0.0, margin: float = 0.7
) -> Tensor:
    """Asymmetric metric learning: plain regression, optionally with an asymmetric contrast; a scalar ≥ 0.

        L = mean_i ‖q_i − g_i‖₂ + w·( mean over pairs of one place ½‖q_i − g_j‖²
                                     + mean over pairs of two places ½[m − ‖q_i − g_j‖₂]₊² )

    Source: Budnik, Avrithis, "Asymmetric Metric Learning for Knowledge Transfer", CVPR 2021, arXiv
    2006.16331, which found regression best in asymmetric search. Positives are never negatives. The
    paper mines five negatives a query; here all pairs of the batch count.

    Args:
        query, gallery: (B, D), L2-normalised; gradients flow into `query`.
        place: (B,) int64; needed with a contrastive weight.
        contrastive_weight: w ≥ 0; 0 is the regression alone.
        margin: m in (0, 2]; the paper uses 0.7.

    Raises:
        TrainingError: shapes that do not fit, a parameter out of its range, or no place where one is needed.
    """
    _check_batch(query, gallery)
    if contrastive_weight < 0 or not 0 < margin <= 2:
        raise TrainingError(f"contrastive_weight is {contrastive_weight}, margin {margin}", expected=">= 0, and in (0, 2]")
    regression = torch.linalg.vector_norm(query - gallery, dim=1).mean()
    if contrastive_weight == 0:
        return regression
    if place is None or place.shape != query.shape[:1]:
        raise TrainingError("the contrast needs the places of the batch", expected="(B,) int64", remedy="give place")
    same = place[:, None] == place[None, :]
    distances = _distances(query, gallery)
    positive = 0.5 * distances[same].pow(2).mean()
    negatives = 0.5 * (margin - distances[~same]).clamp(min=0).pow(2)
    negative = negatives.mean() if negatives.numel() > 0 else torch.zeros_like(positive)
    return regression + contrastive_weight * (positive + negative)


def raml_loss(query: Tensor, gallery: Tensor, *, asymmetric_weight: float = 0.7482, symmetric_weight: float = 0.6778) -> Tensor:
    """Resolution-asymmetric metric learning, a scalar ≥ 0.

        L = mean_i (1 − q_i·g_i + 1e-6)² + λ1·D(QGᵀ, GGᵀ) + λ2·D(QQᵀ, GGᵀ),
        D(A, B) = Σ_{i≠j} (A_ij − B_ij)² / (B(B − 1))

    Source: Suma, Tolias, "Large-to-small Image Resolution Asymmetry in Deep Metric Learning", WACV 2023,
    arXiv 2210.05463.

    Args:
        query, gallery: (B, D), L2-normalised; gradients flow into `query`. D is 0 for B = 1.
        asymmetric_weight, symmetric_weight: λ1, λ2 ≥ 0; 0 and 0 leave the regression.

    Raises:
        TrainingError: shapes that do not fit, or a negative weight.
    """
    _check_batch(query, gallery)
    if asymmetric_weight < 0 or symmetric_weight < 0:
        raise TrainingError(f"the weights are {asymmetric_weight} and {symmetric_weight}", expected="both >= 0")
    target = gallery @ gallery.T
    regression = (1 - (query * gallery).sum(dim=1) + 1e-6).pow(2).mean()
    asymmetric = _off_diagonal_mean_square(query @ gallery.T - target)
    symmetric = _off_diagonal_mean_square(query @ query.T - target)
    return regression + asymmetric_weight * asymmetric + symmetric_weight * symmetric


def feature_regression_loss(query: Tensor, gallery: Tensor) -> Tensor:
    """Mean squared error over all elements of (B, D) features, not normalised: mean_{i,d} (q_id − g_id)², a scalar.

    Source: Romero et al., "FitNets", ICLR 2015, arXiv 1412.6550, on the descriptors.

    Raises:
        TrainingError: shapes that do not fit.
    """
    _check_batch(query, gallery)
    return (query - gallery).pow(2).mean()


def rkd_loss(query: Tensor, gallery: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Relational knowledge distillation: distances and angles inside the batch, a scalar ≥ 0.

        L = w_d·huber(d_ij/mean d of Q, the same of G) + w_a·huber(cos of the angle at j in the triangle ijk, the same of G)

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.
    Compares the two sides only in how their own pairs lie: by itself it makes no common space.

    Args:
        query, gallery: (B, D), B ≥ 2, not necessarily normalised; gradients flow into `query`. Needs B³ numbers.
        distance_weight, angle_weight: w_d, w_a ≥ 0; the paper uses 25 and 50 together.

    Raises:
        TrainingError: shapes that do not fit, one image only, or a negative weight.
    """
    _check_batch(query, gallery, at_least=2)
    if distance_weight < 0 or angle_weight < 0:
        raise TrainingError(f"the weights are {distance_weight} and {angle_weight}", expected="both >= 0")
    distance = functional.smooth_l1_loss(_relative_distances(query), _relative_distances(gallery))
    angle = functional.smooth_l1_loss(_angles(query), _angles(gallery))
    return distance_weight * distance + angle_weight * angle


def pkt_loss(query: Tensor, gallery: Tensor) -> Tensor:
    """Probabilistic knowledge transfer, a scalar ≥ 0.

        P(X)_ij = (1 + cos(x_i, x_j))/2, each row divided by its sum;  L = mean_ij P(G)_ij·log( P(G)_ij / P(Q)_ij )

    Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV
    2018, arXiv 1803.10837. Like RKD it makes no common space by itself.

    Args:
        query, gallery: (B, D), normalised here; gradients flow into `query`.

    Raises:
        TrainingError: shapes that do not fit.
    """
    _check_batch(query, gallery)
    epsilon = 1e-7
    target, own = _pair_probabilities(gallery, epsilon), _pair_probabilities(query, epsilon)
    return (target * torch.log((target + epsilon) / (own + epsilon))).mean()


def symmetric_loss(
    query: Tensor, place: Tensor, *, alpha: float = 1.0, beta: float = 50.0, base: float = 0.0, epsilon: float = 0.1
) -> Tensor:
    """Multi-similarity loss of the light network alone, with its miner: the symmetric baseline, a scalar ≥ 0.

    Source: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning",
    CVPR 2019, arXiv 1904.06627, eq. 15; implementation: pytorch-metric-learning. The defaults are
    those of GSV-Cities (Ali-bey et al., Neurocomputing 2022). Batches must hold several images of
    a place, which the sampler with P places of K images gives; without a pair the loss is 0.

    Args:
        query: (B, D), L2-normalised.
        place: (B,) int64.
        alpha, beta: > 0, weights of positive and negative pairs.
        base: similarity at which a pair weighs nothing more, in [-1, 1].
        epsilon: margin of the miner, ≥ 0.

    Raises:
        TrainingError: shapes that do not fit, or a parameter out of its range.
    """
    if query.ndim != 2 or place.shape != query.shape[:1]:
        raise TrainingError(f"query {tuple(query.shape)}, place {tuple(place.shape)}", expected="(B, D), (B,)")
    if alpha <= 0 or beta <= 0 or epsilon < 0 or not -1 <= base <= 1:
        raise TrainingError(f"alpha is {alpha}, beta {beta}, base {base}, epsilon {epsilon}", expected="> 0, > 0, in [-1, 1], >= 0")
    # Imported here: it brings scikit-learn's import along, which no other loss needs.
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    pairs = MultiSimilarityMiner(epsilon=epsilon, distance=CosineSimilarity())(query, place)
    loss: Tensor = MultiSimilarityLoss(alpha=alpha, beta=beta, base=base, distance=CosineSimilarity())(query, place, pairs)
    return loss


def _off_diagonal_mean_square(matrix: Tensor) -> Tensor:
    size = len(matrix)
    squares = matrix.pow(2)
    return (squares.sum() - squares.diagonal().sum()) / max(size * (size - 1), 1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) Euclidean distances; the floor keeps the gradient of a zero distance finite."""
    squares = a.pow(2).sum(dim=1)[:, None] + b.pow(2).sum(dim=1)[None, :] - 2 * a @ b.T
    return squares.clamp(min=1e-12).sqrt()


def _relative_distances(features: Tensor) -> Tensor:
    """(B, B) distances over their mean; 0 on the diagonal."""
    off_diagonal = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    distances = torch.where(off_diagonal, _distances(features, features), 0.0)
    return distances / distances[off_diagonal].mean()


def _angles(features: Tensor) -> Tensor:
    """(B, B, B) cosine at every image of the angle between every two."""
    directions = functional.normalize(features[None, :, :] - features[:, None, :], dim=2)
    return directions @ directions.transpose(1, 2)


def _pair_probabilities(features: Tensor, epsilon: float) -> Tensor:
    directions = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + epsilon)
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


def _check_batch(query: Tensor, gallery: Tensor, at_least: int = 1) -> None:
    if query.ndim != 2 or gallery.shape != query.shape:
        raise TrainingError(f"shapes do not fit: query {tuple(query.shape)}, gallery {tuple(gallery.shape)}", expected="(B, D) twice")
    if len(query) < at_least:
        raise TrainingError(f"the batch holds {len(query)} images", expected=f"at least {at_least}")
