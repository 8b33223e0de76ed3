"""What the commands that make or show a gallery print of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

_SHOWN = 20  # skipped images


def print_summary(path: Path) -> None:
    """Print what a gallery holds and what made it."""
    from asymvpr_core.gallery.store import Gallery
    from asymvpr_core.retrieval.calibration import read_calibration
    from asymvpr_core.retrieval.gallery_index import read_index_manifest

    gallery = Gallery.open(path, verify=False)
    manifest, index = gallery.manifest, read_index_manifest(gallery)
    identity = manifest.gallery_network
    rows = {
        "gallery": path,
        "keyframes": len(gallery),
        "map frame": gallery.map_frame,
        "network": identity.name,
        "descriptors": f"{identity.dimension}-D {gallery.descriptors.dtype}",
        "index": "exact" if index is None else index.note or index.kind,
        "projection": "none" if identity.projection_sha256 is None else identity.projection_sha256[:12],
        "pair": identity.pair_id,
        "weights": _weights(identity.weights_sha256, manifest.details.get("weights")),
        "skipped": f"{len(manifest.details.get('skipped_images', {}))} unreadable images",
        "source": ", ".join(dict.fromkeys(part.source for part in gallery.parts)) or "unknown",
        "size": f"{sum(entry.bytes for entry in manifest.files.values()) / 1e6:.1f} MB in {len(manifest.files)} files",
        "created": f"{manifest.created} by asymvpr {manifest.asymvpr_version}",
    }
    for name, value in rows.items():
        typer.echo(f"{name:12} {value}")
    calibration = read_calibration(path)
    for line in ["calibrated   no"] if calibration is None else calibration.summary():
        typer.echo(line)
    if calibration is not None and calibration.gallery.get("digest") != gallery.digest:
        typer.echo(f"calibrated   NOT usable: it is of gallery {calibration.gallery.get('path')}, as it was then")
    skipped = list(manifest.details.get("skipped_images", {}).values())
    for reason in skipped[:_SHOWN]:
        typer.echo(f"skipped      {reason}")
    if len(skipped) > _SHOWN:
        typer.echo(f"skipped      {len(skipped) - _SHOWN} more, all of them in {path / 'manifest.json'}")


def print_shortfall(path: Path, asked: int) -> None:
    """Say where PCA gave fewer dimensions than were asked for."""
    from asymvpr_core.gallery.store import Gallery

    gallery = Gallery.open(path, verify=False)
    dimension = gallery.manifest.gallery_network.dimension
    if dimension < asked:
        typer.echo(f"note: {dimension}-D, where {asked} were asked for: PCA of {len(gallery)} images gives no more")


def _weights(sha256: str, details: dict[str, Any] | None) -> str:
    """Checksum of the weights file, and what was not taken from it as it is."""
    if not details:
        return sha256[:12]
    reasons = dict.fromkeys(details["ignored"].values())
    ignored = [f"{sum(why == reason for why in details['ignored'].values())} tensors ignored: {reason}" for reason in reasons]
    return "; ".join([f"{sha256[:12]}, {details['tensors']} tensors", *ignored, *details["notes"]])
