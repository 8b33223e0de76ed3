"""Networks by name: the built-in ones, any timm backbone with any aggregator, and the user's own."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
from importlib.metadata import entry_points

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.backbone_kinds import PAPER_BACKBONES
from asymvpr_core.networks.gallery_networks import gallery_networks
from asymvpr_core.networks.query_networks import is_query_name, lite_gem, query_network
from asymvpr_core.networks.spec import NetworkSpec

PLUGINS_VARIABLE, ENTRY_POINTS = "ASYMVPR_NETWORKS", "asymvpr.networks"

# Query networks that `asymvpr networks` lists; any other timm backbone works by name as well.
LISTED_QUERY_NETWORKS = (
    *(f"{backbone}_{aggregator}" for backbone in PAPER_BACKBONES for aggregator in ("boq", "salad")),
    "mobilevitv2_075_salad",
    "mobilenetv4_conv_small_salad",
    "mobilenetv4_conv_medium_salad",
    "mobilenetv3_large_100_salad",
    "efficientnet_lite0_salad",
    "efficientvit_b0_salad",
    "efficientvit_b1_salad",
    "repvit_m1_salad",
    "fastvit_t8_salad",
    "edgenext_small_salad",
    "tinynet_e_salad",
)

_own: dict[str, NetworkSpec] = {}


def register(spec: NetworkSpec) -> None:
    """Make a network of the user's own known by its name.

    Raises:
        NetworkError: the name is taken, or the name of its weights file in the cache.
    """
    others = _built_in() | _own
    if spec.name in others or is_query_name(spec.name):
        raise NetworkError(f"there is a network '{spec.name}' already", remedy="register yours under another name")
    mine = spec.weights.name_in_cache
    for other in others.values():
        if mine is not None and mine == other.weights.name_in_cache and spec.weights.address != other.weights.address:
            found = f"the weights of '{spec.name}' would be '{mine}' in the cache, as those of '{other.name}' are"
            raise NetworkError(found, remedy="give its WeightsSource another file_name")
    _own[spec.name] = spec


def known_networks() -> list[NetworkSpec]:
    """The networks that are listed: gallery networks, query networks, the user's own."""
    _load_plugins()
    return [*_built_in().values(), *(network_spec(name) for name in LISTED_QUERY_NETWORKS), *_own.values()]


def network_spec(name: str) -> NetworkSpec:
    """The specification of a named network; `<backbone>_<aggregator>` is understood for every timm backbone.

    Raises:
        NetworkError: unknown name; lists the nearest known ones. Or a query network that cannot be built.
    """
    _load_plugins()
    known = _built_in() | _own
    if name in known:
        return known[name]
    if is_query_name(name):
        return _query_network(name)
    names = [*known, *LISTED_QUERY_NETWORKS]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(other) for other in near)}? " if near else ""
    raise NetworkError(f"unknown network '{name}'", remedy=f"{hint}'asymvpr networks' lists them; <timm backbone>_<aggregator> works too")


_query_network = functools.cache(query_network)


@functools.cache
def _built_in() -> dict[str, NetworkSpec]:
    specs = [*gallery_networks(), lite_gem("efficientnet_lite0_gem", "query", "efficientnet_lite0", 224)]
    return {spec.name: spec for spec in specs}


@functools.cache
def _load_plugins() -> None:
    """Import the modules that register networks: entry points of installed packages, and those that the environment names.

    Both are the user's own choice; no artefact can name a module.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except (ImportError, AttributeError) as error:
            found = f"an installed package offers networks in '{point.value}', which cannot be imported: {error}"
            raise NetworkError(found, remedy="mend or remove that package") from error
    for module in filter(None, map(str.strip, os.environ.get(PLUGINS_VARIABLE, "").split(","))):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise NetworkError(
                f"{PLUGINS_VARIABLE} names '{module}', which cannot be imported: {error}", remedy="correct it, or set PYTHONPATH"
            ) from error
