"""Made-up data of real size for the benchmarks: pictures, a query model of random weights, a gallery of clustered descriptors.

Speed and memory do not depend on what the numbers mean; recall among the descriptors says how an index does, not a network.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import cv2
import numpy as np

from asymvpr_core.gallery.store import DESCRIPTORS, KEYFRAMES, write_keyframes
from asymvpr_core.manifest import GalleryNetworkIdentity, new_folder, write_manifest
from asymvpr_core.types import Keyframe, Pose

_BLOCK = 1024
_CLUSTER = 8  # keyframes that look alike, as neighbours on a street do
_SPACING_M = 2.0


def picture(seed: int, width: int = 640, height: int = 480) -> np.ndarray:
    """(height, width, 3) uint8 RGB with detail at all scales, so that a JPEG of it has a usual size."""
    generator = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((4, 90.0), (16, 50.0), (64, 25.0), (256, 12.0)):
        noise = generator.standard_normal((max(2, cells * height // width), cells, 3)).astype(np.float32)
        image += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + 128, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    """JPEG bytes of an RGB picture."""
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def made_up_pictures(folder: Path, count: int) -> Path:
    """A folder of `count` JPEG files of 640x480 with positions in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"@{500000 + 10 * number}@4000000@{number:06d}@.jpg").write_bytes(jpeg(picture(number)))
    return folder


def identity(dimension: int) -> GalleryNetworkIdentity:
    """The pair of the made-up gallery and model."""
    return GalleryNetworkIdentity(name="made_up", weights_sha256="0" * 64, preprocess={}, projection_sha256=None, dimension=dimension)


def clustered_rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """(count, dimension) float32, L2-normalised; rows of a cluster have a cosine of about 0.7 to one another."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((-(-count // _CLUSTER), dimension), dtype=np.float32)
    rows = np.repeat(centres, _CLUSTER, axis=0)[:count] + 0.65 * generator.standard_normal((count, dimension), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made_up_gallery(path: Path, count: int, dimension: int, dtype: str = "float16") -> Path:
    """A gallery artefact of `count` keyframes along a road, written block by block, without an index file."""
    keyframes = [Keyframe(name=f"{i:07d}.jpg", pose=Pose.from_xy_yaw(_SPACING_M * i, 0.0, 0.0), heading_deg=90.0) for i in range(count)]
    with new_folder(path) as folder:
        rows = np.lib.format.open_memmap(folder / DESCRIPTORS, mode="w+", dtype=dtype, shape=(count, dimension))
        for start in range(0, count, _BLOCK):
            rows[start : start + _BLOCK] = clustered_rows(min(_BLOCK, count - start), dimension, seed=start)
        rows.flush()
        write_keyframes(folder / KEYFRAMES, keyframes)
        write_manifest(
            folder, "gallery", identity(dimension), inputs={"source": "made up"}, details={"map_frame": "map", "images_in_gallery": False}
        )
    return path


def made_up_model(path: Path, network: str, dimension: int) -> Path:
    """A query model of random weights, exported as a trained one would be."""
    import torch

    from asymvpr_core.config import ExportSettings
    from asymvpr_core.deploy.export import export_model
    from asymvpr_core.networks.query import QueryNetwork
    from asymvpr_core.networks.registry import network_spec

    spec = network_spec(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = QueryNetwork(spec, dimension).eval()
    run = path.with_name(path.name + "_run")
    with new_folder(run) as folder:
        module.save(folder / "weights.safetensors")
        write_manifest(
            folder, "run", identity(dimension), inputs={"gallery": str(folder / "none")},
            details={"query_network": spec.name, "gated": module.is_gated, "preprocess": spec.preprocess.model_dump(mode="json")},
        )  # fmt: skip
    with contextlib.redirect_stdout(None):
        export_model(run, path, ExportSettings())
    return path
