"""The images of a dataset that are files below its root: finding and reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np

from asymvpr_core.errors import DatasetError
from asymvpr_core.image_decoding import decode_image, read_image_file
from asymvpr_core.types import ImageRecord

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def image_names(root: Path) -> list[str]:
    """Paths, relative to `root` and sorted, of all images below it; hidden files and folders are left out.

    Raises:
        DatasetError: a folder that cannot be read, or names that are not UTF-8.
    """
    names = []
    for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if Path(folder) == Path(root) else Path(folder).relative_to(root).as_posix() + "/"
        names += [below + name for name in files if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)]
    undecodable = [name for name in names if any("\ud800" <= character <= "\udfff" for character in name)]
    if undecodable:
        raise DatasetError(
            f"{len(undecodable)} of {len(names)} images in {root} have names that are not UTF-8, the first {undecodable[0]!a}",
            expected="names in UTF-8",
            remedy="rename them",
        )
    return sorted(names)


def stays_inside(name: str) -> bool:
    """Whether a name that a table gives is a path that cannot leave the folder it is relative to."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def only_existing(root: Path, records: Sequence[ImageRecord], index: str, allow_missing: bool) -> tuple[list[ImageRecord], list[str]]:
    """The records whose files are there, and the names of the others.

    Args:
        index: what lists the images, for the message.
        allow_missing: refuse only where all are absent.

    Raises:
        DatasetError: images are absent, or lie outside of `root`; the first five are named.
    """
    outside = [record.name for record in records if not stays_inside(record.name)]
    if outside:
        raise DatasetError(
            f"{index} names images outside of {root}: {', '.join(map(ascii, outside[:5]))}", expected=f"paths below {root}",
            remedy="move the images below it",
        )  # fmt: skip
    there = _existing(root, [record.name for record in records])
    missing = [record.name for record in records if record.name not in there]
    if missing and not (allow_missing and there):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DatasetError(
            f"{len(missing)} of {len(records)} images of {index} are absent: {', '.join(missing[:5])}{more}",
            expected=f"them below {root}",
            remedy="correct the paths or copy the images",
        )
    return [record for record in records if record.name in there], missing


def _existing(root: Path, names: Sequence[str]) -> set[str]:
    # Lists each folder once: on a network disk asking for every file takes minutes.
    wanted: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        wanted.setdefault(folder, []).append(file)
    there = set()
    for folder, files in wanted.items():
        try:
            with os.scandir(root / folder) as entries:
                found = {entry.name for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            _unreadable(error)
        there |= {f"{folder}/{file}" if folder else file for file in files if file in found}
    return there


def read_encoded_files(root: Path, records: Sequence[ImageRecord], indices: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Yield (index, bytes of the file) in the order of `indices`.

    Raises:
        ImageError: a file that is missing or cannot be read.
    """
    for index in indices:
        yield index, read_image_file(root / records[index].name)


def read_image_files(root: Path, records: Sequence[ImageRecord], indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, `(H, W, 3)` uint8 RGB) in the order of `indices`.

    Raises:
        ImageError: a file that is missing, truncated or no image.
    """
    for index, data in read_encoded_files(root, records, indices):
        yield index, decode_image(data, str(root / records[index].name))


def _unreadable(error: OSError) -> NoReturn:
    raise DatasetError(f"folder {error.filename} cannot be read: {error.strerror}", remedy="check its permissions") from error
