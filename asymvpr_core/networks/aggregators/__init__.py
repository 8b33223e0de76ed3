"""Aggregators: feature maps (B, C, h, w) to L2-normalised descriptors (B, D).

All but GeM, whose D is its input's C, say their D as `dimension`. Those with `takes_token` are
called with the features and a (B, C) token: the class token, or the features' average for a CNN.
"""

from asymvpr_core.networks.aggregators.boq import BoQ
from asymvpr_core.networks.aggregators.convap import ConvAP
from asymvpr_core.networks.aggregators.cosplace import CosPlace
from asymvpr_core.networks.aggregators.gem import GeM
from asymvpr_core.networks.aggregators.megaloc import MegaLocAggregator
from asymvpr_core.networks.aggregators.mixvpr import MixVPR
from asymvpr_core.networks.aggregators.salad import SALAD

__all__ = ["SALAD", "BoQ", "ConvAP", "CosPlace", "GeM", "MegaLocAggregator", "MixVPR"]
