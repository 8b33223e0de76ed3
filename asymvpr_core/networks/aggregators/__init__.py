"""Aggregators: feature maps (B, C, h, w) to L2-normalised descriptors (B, D)."""

from asymvpr_core.networks.aggregators.gem import GeM

__all__ = ["GeM"]
