"""SALAD: features assigned to clusters by optimal transport.

Izquierdo & Civera, "Optimal Transport Aggregation for Visual Place Recognition", CVPR 2024; the
transport with a dustbin follows Sarlin et al., "SuperGlue", CVPR 2020. Written from the papers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.aggregators.feature_map import check_feature_map, check_token


def log_sum_exp(values: Tensor, dim: int) -> Tensor:
    """log Σ exp(values) along `dim`, which stays with length 1.

    Spelt out with the maximum subtracted: a ReduceLogSumExp in the exported graph is computed over
    all axes by some releases of OpenVINO, and nothing says so.
    """
    largest = values.amax(dim, keepdim=True)
    return (values - largest).exp().sum(dim, keepdim=True).log() + largest


def transport_plan(scores: Tensor, dustbin_score: Tensor, iterations: int = 3) -> Tensor:
    """Soft assignment `(B, m + 1, n)` of n features to m clusters and, in the last row, the dustbin.

    Sinkhorn's algorithm in the log domain with regularisation 1. Each column sums to 1 (a feature is
    given away once); the rows tend to 1 for each cluster and n − m for the dustbin. These are the
    paper's marginals 1/(n+m), (n−m)/(n+m) and its plan times n + m: the factor cancels in every step.

    Args:
        scores: `(B, m, n)`, with n > m.
        dustbin_score: scalar, the score of the dustbin for every feature.
        iterations: pairs of row and column steps.
    """
    batch, clusters, positions = scores.shape
    given_dtype = scores.dtype
    scores = torch.cat((scores, dustbin_score.expand(batch, 1, positions)), dim=1)
    # Half precision would add up errors over hundreds of terms and six steps.
    scores = scores.to(torch.promote_types(given_dtype, torch.float32))
    log_row_sums = scores.new_tensor([0.0] * clusters + [math.log(positions - clusters)]).unsqueeze(1)
    row_potential, column_potential = scores.new_zeros(1), scores.new_zeros(1)
    for _ in range(iterations):
        row_potential = log_row_sums - log_sum_exp(scores + column_potential, dim=2)
        column_potential = -log_sum_exp(scores + row_potential, dim=1)
    return (scores + row_potential + column_potential).exp().to(given_dtype)


class SALAD(nn.Module):
    """Aggregate `(B, C, h, w)` features and a `(B, C)` token to `(B, D)`, D = token_dim + cluster_dim · num_clusters.

    Descriptor: [L2(token part) | L2 of each cluster's weighted sum of features, index l·m + cluster],
    all L2-normalised, so that the token part and each cluster have norm 1/√(1 + m). Features that no
    place is recognised by go to the dustbin, which is left out.
    """

    takes_token = True

    def __init__(
        self,
        in_channels: int,
        num_clusters: int = 64,
        cluster_dim: int = 128,
        token_dim: int = 256,
        hidden_dim: int = 512,
        dropout: float = 0.3,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.num_clusters = num_clusters
        self.dimension = token_dim + cluster_dim * num_clusters
        self.token_features = nn.Sequential(nn.Linear(in_channels, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, token_dim))
        self.cluster_features = _pointwise_mlp(in_channels, hidden_dim, cluster_dim, dropout)
        self.score = _pointwise_mlp(in_channels, hidden_dim, num_clusters, dropout)
        self.dust_bin = nn.Parameter(torch.tensor(1.0))

    def assign(self, features: Tensor) -> Tensor:
        """Share of each feature given to each cluster and, in the last row, to the dustbin: `(B, m + 1, h·w)`.

        Raises:
            NetworkError: features of another shape, or not more positions than clusters.
        """
        check_feature_map(features, self.in_channels, "SALAD")
        height, width = features.shape[-2:]
        if height * width <= self.num_clusters:
            raise NetworkError(
                f"SALAD was given {height}x{width} = {height * width} features for {self.num_clusters} clusters",
                expected="more features than clusters",
                remedy="take a larger input, a stage of the backbone with a smaller stride, or fewer clusters",
            )
        return transport_plan(self.score(features).flatten(2), self.dust_bin)

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        """Aggregate `(B, in_channels, h, w)` features and `(B, in_channels)` token to `(B, dimension)`, L2-normalised.

        Raises:
            NetworkError: input of another shape, or not more positions than clusters.
        """
        assignment = self.assign(features)[:, :-1]  # (B, m, n)
        check_token(token, features.shape[0], self.in_channels, "SALAD")
        clusters = self.cluster_features(features).flatten(2) @ assignment.transpose(1, 2)  # (B, l, m)
        parts = (functional.normalize(self.token_features(token), dim=1), functional.normalize(clusters, dim=1).flatten(1))
        return functional.normalize(torch.cat(parts, dim=1), dim=1)


def _pointwise_mlp(in_channels: int, hidden: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Two 1x1 convolutions; the dropout stands where the released names have their gap, even when it is 0."""
    return nn.Sequential(nn.Conv2d(in_channels, hidden, 1), nn.Dropout(dropout), nn.ReLU(), nn.Conv2d(hidden, out_channels, 1))
