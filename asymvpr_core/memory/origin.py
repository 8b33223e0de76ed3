"""Which galleries an artefact was computed from, and whether others are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.several import AnyGallery, galleries_of
from asymvpr_core.manifest import Manifest


def gallery_digest(gallery: AnyGallery) -> str:
    """Short name of descriptors and keyframes, from the checksums of the manifest; of several galleries, those of each in their order."""
    return "+".join(one.digest for one in galleries_of(gallery))


def origin(gallery: AnyGallery) -> dict[str, Any]:
    """The `inputs` of a manifest of what was computed from the gallery, or from several."""
    galleries = galleries_of(gallery)
    if len(galleries) == 1:
        return {"gallery": str(galleries[0].path.resolve()), "gallery_digest": gallery_digest(gallery)}
    listed = [{"path": str(one.path.resolve()), "digest": gallery_digest(one)} for one in galleries]
    return {"galleries": listed, "gallery_digest": gallery_digest(gallery)}


def origin_paths(manifest: Manifest) -> list[Path]:
    """The galleries that an artefact was computed from, as `origin` wrote them down; none where nothing is written."""
    several = manifest.inputs.get("galleries")
    if several:
        return [Path(one["path"]) for one in several]
    return [Path(manifest.inputs["gallery"])] if "gallery" in manifest.inputs else []


def named(paths: list[Path]) -> str:
    """Galleries as a message names them."""
    return " and ".join(map(str, paths)) or "unknown"


def check_origin(manifest: Manifest, path: Path, gallery: AnyGallery, command: str) -> None:
    """Refuse galleries whose descriptors or keyframes, or whose order, are not those that `path` was computed from.

    Raises:
        ArtefactError: naming both, and as what makes the right one `command` with the galleries behind it.
    """
    if manifest.inputs.get("gallery_digest") != gallery_digest(gallery):
        paths, before = [one.path for one in galleries_of(gallery)], origin_paths(manifest)
        same = [one.resolve() for one in paths] == [one.resolve() for one in before]
        raise ArtefactError(
            f"{path} was computed from gallery {named(before)}"
            + (
                " as it was before; its descriptors or keyframes have changed since"
                if same
                else f", whose descriptors or keyframes are not those of {named(paths)}"
            ),
            remedy=f"make it anew with '{' '.join([command, *map(str, paths)])}'",
        )
