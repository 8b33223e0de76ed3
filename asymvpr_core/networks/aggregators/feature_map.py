"""What every aggregator asks of the features that it is given."""

from __future__ import annotations

from torch import Tensor

from asymvpr_core.errors import NetworkError


def check_feature_map(features: Tensor, channels: int, aggregator: str) -> None:
    """Refuse what is not a `(B, channels, h, w)` feature map.

    Raises:
        NetworkError: another number of axes or channels.
    """
    if features.ndim != 4 or features.shape[1] != channels:
        raise NetworkError(
            f"{aggregator} was given features of shape {tuple(features.shape)}",
            expected=f"(B, {channels}, h, w)",
            remedy="build the aggregator with the backbone's number of channels and give it the feature map, not tokens",
        )


def check_token(token: Tensor, batch: int, channels: int, aggregator: str) -> None:
    """Refuse what is not one `(B, channels)` token for each image.

    Raises:
        NetworkError: another shape.
    """
    if token.ndim != 2 or token.shape[0] != batch or token.shape[1] != channels:
        raise NetworkError(
            f"{aggregator} was given a token of shape {tuple(token.shape)}",
            expected=f"({batch}, {channels})",
            remedy="give it the class token, or the average over the feature map where the backbone has none",
        )
