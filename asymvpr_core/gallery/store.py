"""The gallery on disk: descriptors, keyframes and poses behind one verified reader.

Folder: `manifest.json`, `descriptors.npy` (N, D), `keyframes.csv`, the index (`retrieval.gallery_index`),
`projection.npz` where the descriptors are projected, `images/` where the source was a bag, `thumbnails/`
where geometric verification was asked for.
"""

from __future__ import annotations

import csv
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from asymvpr_core.arrays import open_array
from asymvpr_core.datasets.image_files import stays_inside
from asymvpr_core.errors import ArtefactError, ImageError
from asymvpr_core.image_decoding import decode_grey_jpeg, decode_image, read_image_file
from asymvpr_core.manifest import GalleryNetworkIdentity, Manifest, read_manifest, refuse_outside, verify_files
from asymvpr_core.types import IDENTITY_QUATERNION, Keyframe, Pose
from asymvpr_core.verification import Verification, verify_behind

DESCRIPTORS, KEYFRAMES, PROJECTION, IMAGES = "descriptors.npy", "keyframes.csv", "projection.npz", "images"
THUMBNAILS = "thumbnails"
_THUMBNAIL_QUALITY, _THUMBNAIL_MAX_SIDE = 80, 4096
COLUMNS = (
    "index", "name", "camera", "stamp_ns", "x", "y", "z", "qx", "qy", "qz", "qw", "heading_deg", "lat", "lon", "place_id",
)  # fmt: skip


@dataclass(frozen=True)
class GalleryPart:
    """A source whose images are the keyframes of a gallery from `first_keyframe` to the next part."""

    first_keyframe: int
    source: str  # absolute path of the folder or bag
    images_in_gallery: bool


@dataclass(frozen=True)
class Gallery:
    """A verified gallery, open for reading.

    `descriptors` is (N, D) float32 or float16, L2-normalised, memory-mapped; row i belongs to
    `keyframes[i]`, whose pose is that of the robot's base in `map_frame` at capture time.
    `verification` is the check of the descriptors that goes on behind the work, where there is one.
    """

    path: Path
    manifest: Manifest
    descriptors: np.ndarray
    keyframes: list[Keyframe]
    verification: Verification | None = None

    @staticmethod
    def open(path: Path, *, verify: bool | Literal["auto"] = True) -> Gallery:
        """Open a gallery.

        Args:
            verify: True: checksums of descriptors and keyframes are tested first, which reads all of them.
                "auto": so, but those of large descriptors are tested by a thread behind the work, and
                `verification` says what came out. False: nothing is tested.

        Raises:
            ArtefactError: missing, unfinished, damaged (naming the file), or inconsistent.
        """
        path = Path(path)
        manifest = read_manifest(path, "gallery")
        verification = None
        if verify == "auto":
            verification = verify_behind(path, manifest, [DESCRIPTORS, KEYFRAMES])
        else:
            verify_files(path, manifest, [DESCRIPTORS, KEYFRAMES] if verify else [])
        descriptors = open_array(path / DESCRIPTORS, "rebuild with 'asymvpr gallery build'")
        keyframes = read_keyframes(path / KEYFRAMES)
        shape = (len(keyframes), manifest.gallery_network.dimension)
        if descriptors.shape != shape:
            raise ArtefactError(
                f"{path / DESCRIPTORS} has shape {descriptors.shape}", expected=f"{shape} by keyframes and manifest",
                remedy="rebuild with 'asymvpr gallery build'",
            )  # fmt: skip
        if descriptors.dtype not in (np.float16, np.float32) or not descriptors.flags.c_contiguous:
            raise ArtefactError(
                f"{path / DESCRIPTORS} is of type {descriptors.dtype}{'' if descriptors.flags.c_contiguous else ', column by column'}",
                expected="float16 or float32, row by row", remedy="rebuild with 'asymvpr gallery build'",
            )  # fmt: skip
        details, inputs = manifest.details, manifest.inputs
        if not (isinstance(details.get("map_frame"), str) and isinstance(details.get("images_in_gallery"), bool)):
            raise ArtefactError(
                f"the manifest of gallery {path} does not say its map_frame and images_in_gallery",
                remedy="rebuild with 'asymvpr gallery build'",
            )
        if not details["images_in_gallery"] and not isinstance(inputs.get("source"), str):
            raise ArtefactError(f"the manifest of gallery {path} does not name its source", remedy="rebuild with 'asymvpr gallery build'")
        gallery = Gallery(path, manifest, descriptors, keyframes, verification)
        try:
            starts = [part.first_keyframe for part in gallery.parts]
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"the manifest of gallery {path} does not say what was appended to it", remedy="rebuild with 'asymvpr gallery build'"
            ) from error
        if starts != sorted(starts) or starts[-1] > len(keyframes):
            raise ArtefactError(
                f"the manifest of gallery {path} names parts that start at {starts}", expected=f"ascending, up to {len(keyframes)}"
            )
        return gallery

    def __len__(self) -> int:
        return len(self.keyframes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the gallery itself: a pickle would hold a copy of all descriptors."""
        return _reopen, (self.path,)

    @property
    def digest(self) -> str:
        """Short name of its descriptors and keyframes, from the checksums of its manifest."""
        return "-".join(self.manifest.files[name].sha256[:16] for name in (DESCRIPTORS, KEYFRAMES))

    @property
    def gallery_network(self) -> GalleryNetworkIdentity:
        """The pair: what the descriptors are comparable with."""
        return self.manifest.gallery_network

    @property
    def map_frame(self) -> str:
        """Name of the frame of all poses."""
        return str(self.manifest.details["map_frame"])

    @cached_property
    def positions(self) -> np.ndarray:
        """(N, 3) float64, metres in the map frame; NaN where a keyframe has no pose."""
        return np.array([k.pose.position if k.pose else (np.nan,) * 3 for k in self.keyframes], dtype=np.float64).reshape(-1, 3)

    @cached_property
    def parts(self) -> tuple[GalleryPart, ...]:
        """What the keyframes came from, in their order: the source that the gallery was built from, then those that were appended."""
        details, inputs = self.manifest.details, self.manifest.inputs
        first = {"source": inputs.get("source", ""), "images_in_gallery": details["images_in_gallery"], "first_keyframe": 0}
        return tuple(
            GalleryPart(int(part["first_keyframe"]), str(part["source"]), bool(part["images_in_gallery"]))
            for part in [first, *inputs.get("appended", [])]
        )

    def part_of(self, index: int) -> GalleryPart:
        """The part that keyframe `index` belongs to."""
        return next(part for part in reversed(self.parts) if part.first_keyframe <= index)

    def image_path(self, index: int) -> Path:
        """Path of the picture of keyframe `index`: in the gallery for bags, in the source folder otherwise."""
        part = self.part_of(index)
        return (self.path / IMAGES if part.images_in_gallery else Path(part.source)) / self.keyframes[index].name

    @property
    def holds_images(self) -> bool:
        """Whether pictures of some keyframes lie in the gallery's folder."""
        return any(part.images_in_gallery for part in self.parts)

    @property
    def has_thumbnails(self) -> bool:
        """Whether every keyframe has a thumbnail."""
        return bool(self.manifest.details.get("thumbnails"))

    def read_thumbnail(self, index: int) -> np.ndarray:
        """(H, W) uint8 grey thumbnail of keyframe `index`, after its checksum was tested.

        Raises:
            ArtefactError: there is none, or it is damaged.
        """
        name = thumbnail_name(index)
        verify_files(self.path, self.manifest, [name])
        return decode_thumbnail((self.path / name).read_bytes(), str(self.path / name))

    def read_encoded(self, index: int) -> bytes:
        """The file of the picture of keyframe `index`; of one that lies in the gallery the checksum is tested.

        Raises:
            ImageError: it cannot be read, or is damaged.
            ArtefactError: it belongs to the gallery and is a link that leaves its folder.
        """
        path = self.image_path(index)
        if self.manifest.details["images_in_gallery"]:
            refuse_outside(self.path, path)
        data = read_image_file(path)
        if self.manifest.details["images_in_gallery"]:
            entry = self.manifest.files.get(f"{IMAGES}/{self.keyframes[index].name}")
            if entry is None or hashlib.sha256(data).hexdigest() != entry.sha256:
                found = f"image {path} is damaged: its checksum is not that in the manifest of the gallery"
                raise ImageError(found, remedy="restore the file or rebuild with 'asymvpr gallery build'")
        return data

    def read_image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB picture of keyframe `index`. Raises as `read_encoded`, or ImageError when it cannot be decoded."""
        return decode_image(self.read_encoded(index), str(self.image_path(index)))


def thumbnail_name(index: int) -> str:
    """Path of a thumbnail in the gallery."""
    return f"{THUMBNAILS}/{index:08d}.jpg"


def encode_thumbnail(image: np.ndarray, side_px: int) -> bytes:
    """Grey JPEG of an `(H, W, 3)` RGB image, its longer side `side_px` at most."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = side_px / max(grey.shape)
    if scale < 1.0:
        size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, _THUMBNAIL_QUALITY])
    return data.tobytes()


def decode_thumbnail(data: bytes, name: str) -> np.ndarray:
    """(H, W) uint8 of what `encode_thumbnail` wrote. Raises ArtefactError where it cannot be decoded."""
    try:
        return decode_grey_jpeg(data, name, _THUMBNAIL_MAX_SIDE)
    except ImageError as error:
        raise ArtefactError(f"thumbnail {error.found}", remedy="rebuild with 'asymvpr gallery build --thumbnails'") from error


def _reopen(path: Path) -> Gallery:
    return Gallery.open(path, verify=False)


def write_keyframes(path: Path, keyframes: list[Keyframe]) -> None:
    """Write keyframes as csv; empty fields mean unknown. Positions to 0.1 mm, quaternions to 1e-9."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for index, k in enumerate(keyframes):
            pose = [""] * 7
            if k.pose is not None:
                pose = [f"{v:.4f}" for v in k.pose.position] + [f"{v:.9f}" for v in k.pose.quaternion]
            lat_lon = ["", ""] if k.lat_lon_deg is None else [f"{v:.8f}" for v in k.lat_lon_deg]
            heading = "" if k.heading_deg is None else f"{k.heading_deg:.3f}"
            optional = ["" if v is None else v for v in (k.stamp_ns, k.place_id)]
            writer.writerow([index, k.name, k.camera, optional[0], *pose, heading, *lat_lon, optional[1]])


def read_keyframes(path: Path) -> list[Keyframe]:
    """Read what `write_keyframes` wrote.

    Raises:
        ArtefactError: another header, a field that is no finite number, a pose that is no rigid transform, or a name that
            leaves the folder.
    """
    keyframes = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = tuple(next(reader, ()))
            if header != COLUMNS:
                raise ArtefactError(f"{path} has columns {', '.join(header)}", expected=", ".join(COLUMNS))
            for row in reader:
                keyframes.append(_keyframe(dict(zip(COLUMNS, row, strict=True))))
    except (ValueError, OSError, csv.Error) as error:
        raise ArtefactError(
            f"{path} is damaged near row {len(keyframes)}: {error}", remedy="rebuild with 'asymvpr gallery build'"
        ) from error
    return keyframes


def _keyframe(row: dict[str, str]) -> Keyframe:
    if not stays_inside(row["name"]):
        raise ValueError(f"image name {row['name']!a} leaves its folder")
    pose = None
    if row["x"]:
        position = (float(row["x"]), float(row["y"]), float(row["z"]))
        quaternion = tuple(float(row[c]) for c in ("qx", "qy", "qz", "qw")) if row["qw"] else IDENTITY_QUATERNION
        # Both are false for NaN.
        if not (math.isfinite(sum(position)) and 0.9**2 <= sum(v * v for v in quaternion) <= 1.1**2):
            raise ValueError(f"position {position} and quaternion {quaternion} are no rigid transform")
        pose = Pose(position, quaternion)  # type: ignore[arg-type]
    return Keyframe(
        name=row["name"],
        pose=pose,
        heading_deg=_finite(row["heading_deg"]) if row["heading_deg"] else None,
        stamp_ns=_whole(row["stamp_ns"]) if row["stamp_ns"] else None,
        camera=row["camera"],
        lat_lon_deg=(_finite(row["lat"]), _finite(row["lon"])) if row["lat"] else None,
        place_id=_whole(row["place_id"]) if row["place_id"] else None,
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is not finite")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) >= 2**63:
        raise ValueError(f"'{text}' does not fit into 64 bits")
    return value
