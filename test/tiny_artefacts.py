"""Real artefacts in miniature for tests: an ONNX query model, a gallery, pictures that differ.

The network averages the picture on an 8x8 grid: 192 numbers, L2-normalised. A picture that is
shown again, a little brighter or noisier, scores near 1; two pictures of different seeds near 0.
No torch is needed, and the same model serves as gallery network and as query network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from asymvpr_core.config import IndexSettings
from asymvpr_core.deploy.model_folder import MODEL, SELF_TEST, Variant
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.gallery.store import DESCRIPTORS, IMAGES, KEYFRAMES, write_keyframes
from asymvpr_core.manifest import GalleryNetworkIdentity, digest_of, new_folder, write_manifest
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.types import Keyframe, Pose

GRID, INPUT_SIZE = 8, 64
DIMENSION = 3 * GRID * GRID
PREPROCESS = Preprocess(height=INPUT_SIZE, width=INPUT_SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CAMERA = "camera_image_compressed"
SECOND_NS = 1_000_000_000


def make_identity(name: str = "grid8_mean") -> GalleryNetworkIdentity:
    """Identity of the tiny network; another name makes another pair."""
    return GalleryNetworkIdentity(
        name=name, weights_sha256="0" * 64, preprocess=PREPROCESS.model_dump(mode="json"), projection_sha256=None, dimension=DIMENSION
    )


def make_picture(seed: int, *, height: int = 120, width: int = 160) -> np.ndarray:
    """`(height, width, 3)` uint8 RGB picture of smooth colour patches, the same for the same seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (GRID, GRID, 3), dtype=np.uint8)
    return cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)


def revisit(picture: np.ndarray, seed: int = 0, *, brightness: float = 1.1, noise: float = 6.0) -> np.ndarray:
    """The same place seen again: `picture` brighter and with Gaussian noise, uint8 RGB."""
    noisy = picture * brightness + np.random.default_rng(seed).normal(0.0, noise, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def encode_jpeg(picture: np.ndarray, quality: int = 95) -> bytes:
    """JPEG bytes of an RGB picture."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def make_model(path: Path, identity: GalleryNetworkIdentity | None = None, *, self_test: bool = False, **details: object) -> Path:
    """Write a query-model folder: `model.onnx` (input `image` (1, 64, 64, 3) uint8, output `descriptor`) and manifest.

    Args:
        self_test: with pictures of seeds 0 to 2 and their descriptors.
        details: more of the manifest's details.
    """
    scale, offset = PREPROCESS.scale_and_offset
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "offset"], ["normalised"]),
        *_grid_nodes("normalised"),
    ]
    constants = [numpy_helper.from_array(array.reshape(1, 3, 1, 1), name) for array, name in ((scale, "scale"), (offset, "offset"))]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, INPUT_SIZE, INPUT_SIZE, 3])
    with new_folder(path) as folder:
        onnx.save(_checked(helper.make_graph(nodes, "grid8_mean", [image], [_descriptor(1)], constants)), folder / MODEL)
        if self_test:
            inputs = np.stack([PREPROCESS.resize(make_picture(seed)) for seed in range(3)])
            np.savez(folder / SELF_TEST, inputs=inputs, descriptors=np.stack([grid_descriptor(one) for one in inputs]))
        variants = [Variant.named("onnx", "fp32").model_dump(mode="json")]
        known = {"preprocess": PREPROCESS.model_dump(mode="json"), "variants": variants, "tolerances": {"fp32": 0.9999}}
        write_manifest(folder, "model", identity or make_identity(), details=known | details)
    return path


def make_model_of_format_1(path: Path) -> Path:
    """A query-model folder as version 0.1.0 wrote it: the graph takes normalised planes (batch, 3, 64, 64) float32."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, INPUT_SIZE, INPUT_SIZE])
    with new_folder(path) as folder:
        onnx.save(_checked(helper.make_graph(_grid_nodes("image"), "grid8_mean", [image], [_descriptor("batch")])), folder / MODEL)
        write_manifest(folder, "model", make_identity(), details={"preprocess": PREPROCESS.model_dump(mode="json")})
    change_manifest(path, format_version=1)
    return path


def change_manifest(folder: Path, **fields: object) -> None:
    """Set fields of a manifest, and its checksum anew."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({**content, "manifest_sha256": digest_of(content)}))


def grid_descriptor(resized: np.ndarray) -> np.ndarray:
    """What the tiny network makes of a resized picture, with numpy."""
    planes = PREPROCESS.normalise(resized)
    cells = planes.reshape(3, GRID, INPUT_SIZE // GRID, GRID, INPUT_SIZE // GRID).mean(axis=(2, 4)).reshape(-1)
    return (cells / np.linalg.norm(cells)).astype(np.float32)


def _grid_nodes(planes: str) -> list[onnx.NodeProto]:
    side = INPUT_SIZE // GRID
    return [
        helper.make_node("AveragePool", [planes], ["grid"], kernel_shape=[side] * 2, strides=[side] * 2),
        helper.make_node("Flatten", ["grid"], ["flat"], axis=1),
        helper.make_node("LpNormalization", ["flat"], ["descriptor"], axis=1, p=2),
    ]


def _descriptor(batch: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("descriptor", TensorProto.FLOAT, [batch, DIMENSION])


def _checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def make_gallery(
    path: Path,
    images: Sequence[np.ndarray],
    poses: Sequence[Pose],
    *,
    identity: GalleryNetworkIdentity | None = None,
    stamps_ns: Sequence[int | None] | None = None,
    map_frame: str = "map",
) -> Path:
    """Write a gallery folder of `images` (RGB) taken at `poses`, described by the tiny network.

    Without `stamps_ns`, keyframe i was taken at second 1 + i. No images make an empty gallery.
    """
    stamps = [(1 + i) * SECOND_NS for i in range(len(images))] if stamps_ns is None else list(stamps_ns)
    keyframes = [
        Keyframe(name=f"{CAMERA}/{index:05d}.png", pose=pose, heading_deg=pose.heading_deg, stamp_ns=stamp, camera=CAMERA)
        for index, (pose, stamp) in enumerate(zip(poses, stamps, strict=True))
    ]
    with new_folder(path) as folder:
        descriptors = describe(folder / "model_for_build", images)
        np.save(folder / DESCRIPTORS, descriptors)
        write_keyframes(folder / KEYFRAMES, keyframes)
        for keyframe, image in zip(keyframes, images, strict=True):
            picture_path = folder / IMAGES / keyframe.name
            picture_path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(picture_path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        write_manifest(
            folder,
            "gallery",
            identity or make_identity(),
            inputs={"source": "synthetic pictures"},
            details={"map_frame": map_frame, "images_in_gallery": True, "index": True},
        )
        index_gallery(folder, IndexSettings())
    return path


def describe(scratch: Path, images: Sequence[np.ndarray]) -> np.ndarray:
    """`(N, 192)` float32 descriptors of `images`; the model is written to `scratch` and removed again."""
    model = QueryModel.open(make_model(scratch))
    descriptors = np.array([model.encode(image) for image in images], dtype=np.float32).reshape(-1, DIMENSION)
    shutil.rmtree(scratch)
    return descriptors


def make_street(path: Path, n_keyframes: int = 12, spacing_m: float = 2.0, first_seed: int = 0, **options: object) -> Path:
    """A gallery of `n_keyframes` pictures (seeds from `first_seed`) along +x, `spacing_m` apart, looking along +x."""
    pictures = [make_picture(first_seed + i) for i in range(n_keyframes)]
    poses = [Pose.from_xy_yaw(spacing_m * i, 0.0, 0.0) for i in range(n_keyframes)]
    return make_gallery(path, pictures, poses, **options)  # type: ignore[arg-type]
