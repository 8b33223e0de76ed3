"""Folders of images whose names carry the position, as VPR-datasets-downloader writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asymvpr_core.datasets.dataset import FileDataset
from asymvpr_core.datasets.image_files import image_names
from asymvpr_core.datasets.image_names import NAME_PATTERN, NamedImage, frame_of, parse_name, records_of
from asymvpr_core.datasets.utm import UtmFrame
from asymvpr_core.errors import DatasetError


class FolderDataset(FileDataset):
    """All images below a folder, sorted by path; positions from the file names; satisfies `Dataset`.

    Names follow `NAME_PATTERN`; only the first two fields (UTM easting and northing, metres)
    must be filled, later ones may be missing. Heading is in degrees clockwise from north; the note
    becomes the record's condition. `map_frame` is "utm" followed by zone and letter where all names
    agree on them, and "utm" where none is named. Names of several zones are projected to one frame,
    see `UtmFrame`.

    Args:
        images, frame: what `read_named_images` gave, and the frame to use, where both sides of a benchmark share one.

    Raises:
        DatasetError: no such folder, no images in it, names that are not UTF-8, or without a position (the first five are listed).
    """

    def __init__(self, path: Path, images: Sequence[NamedImage] | None = None, frame: UtmFrame | None = None):
        images = read_named_images(path) if images is None else images
        frame = frame or frame_of(images)
        super().__init__(Path(path), "folder", frame.name, records_of(images, frame))


def read_named_images(path: Path) -> list[NamedImage]:
    """What the names of all images below `path` say, sorted by path; errors as those of `FolderDataset`."""
    root = Path(path)
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}", expected="a folder of images", remedy="check the path")
    names = image_names(root)
    if not names:
        raise DatasetError(f"folder {root} holds no images", expected=f"files named {NAME_PATTERN}", remedy="check the path")
    parsed = [(name, parse_name(name)) for name in names]
    wrong = [name for name, image in parsed if image is None]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DatasetError(
            f"{len(wrong)} of {len(names)} images in {root} carry no position in their names: {', '.join(wrong[:5])}{more}",
            expected=f"names of the form {NAME_PATTERN}",
            remedy="rename them, or list them with their positions in a csv and give that",
        )
    return [image for _, image in parsed if image is not None]
