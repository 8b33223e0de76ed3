"""Small made-up artefacts of six stages for fault scripts: what makes each, how it is opened, what lies in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from killing import finish, make_pictures, start
from torch import nn

from asymvpr_core.config import (
    BankSettings,
    ExportSettings,
    GallerySettings,
    IndexSettings,
    KeyframeSettings,
    MatcherSettings,
    RuntimeSettings,
    SessionSettings,
    SourceSettings,
    TrainSettings,
)
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.export import WEIGHTS, export_model
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import AsymvprError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import GalleryNetworkIdentity, new_folder, read_manifest, verify_files, write_manifest
from asymvpr_core.memory.store import StoredBank, build_bank
from asymvpr_core.networks.loading import random_network
from asymvpr_core.networks.query import QueryNetwork, save_tensors
from asymvpr_core.networks.registry import network_spec, register
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource, squashed
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.gallery_index import INDEX, open_index
from asymvpr_core.retrieval.session import SessionGallery
from asymvpr_core.training.run import train
from asymvpr_core.types import Pose, QueryFrame

NETWORK = "grid8"
VOLATILE = ("created", "trials", "note", "manifest_sha256", "index_sha256")  # when it was made, and how quick the machine was
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Stage:
    """One command: what it makes at a path, how that is opened with all its checksums, and what is there before it."""

    name: str
    command: Callable[[Path], object]
    open: Callable[[Path], object]
    before: Callable[[Path], object] | None = None
    not_compared: tuple[str, ...] = ()  # files that differ from run to run


def build_network() -> nn.Module:
    """Averages on an 8 x 8 grid and one linear layer: what is killed is the work around it."""
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, 32))


def make_run(path: Path, gallery: Path) -> Path:
    """A training run of that network which was never trained."""
    spec, identity = network_spec(NETWORK), read_manifest(gallery, "gallery").gallery_network
    with new_folder(path) as folder:
        QueryNetwork(spec, identity.dimension, random_network(spec, seed=1)).save(folder / WEIGHTS)
        write_manifest(
            folder, "run", identity, inputs={"gallery": str(gallery)},
            details={"query_network": NETWORK, "preprocess": spec.preprocess.model_dump(mode="json"), "gated": False},
        )  # fmt: skip
    return path


def make_bag(folder: Path, pictures: Path) -> Path:
    with BagWriter(folder / "bag") as bag:
        for second, picture in enumerate(sorted(pictures.iterdir())):
            stamp = (1 + second) * SECOND_NS
            bag.write_odometry("/odom", stamp, Pose.from_xy_yaw(3.0 * second, 0.0, 0.0))
            bag.write_compressed_image("/image", stamp, "camera", picture.read_bytes())
    return folder / "bag"


def make_session(dimension: int = 192, keyframes: int = 200) -> SessionGallery:
    session = SessionGallery(dimension, MatcherSettings(sequence="off"), SessionSettings(session_gallery=True))
    rng = np.random.default_rng(0)
    for number in range(keyframes):
        row = rng.standard_normal(dimension).astype(np.float32)
        session.process(row / np.linalg.norm(row), QueryFrame(number * SECOND_NS, Pose.from_xy_yaw(5.0 * number, 0.0, 0.0), ""))
    return session


def open_gallery(path: Path) -> None:
    manifest = read_manifest(path, "gallery")
    verify_files(path, manifest)
    open_index(Gallery.open(path))


def open_model(path: Path) -> None:
    verify_files(path, read_manifest(path, "model"))
    QueryModel.open(path, RuntimeSettings(runtime="onnxruntime", threads=1))  # not auto, which measures and keeps what it found


def make_stages(folder: Path, precisions: list[str]) -> list[Stage]:
    """All stages, and in `folder` what they start from."""
    cv2.setNumThreads(1)
    pictures = make_pictures(folder / "pictures", places=5)
    bag, gallery, run, weights = make_bag(folder, pictures), folder / "gallery", folder / "run", folder / "weights.safetensors"
    gallery_settings = GallerySettings(network=NETWORK, projection_dim=8, chunk_size=4, batch_size=4, threads=1, thumbnail_side_px=64)
    source_settings = SourceSettings(image_topic="/image", pose_topic="/odom", keyframes=KeyframeSettings(min_distance_m=1.0))
    index = IndexSettings(kind="sq8", recall=0.5, k=1, threads=1)

    def build(out: Path) -> None:
        build_gallery(open_source(bag, source_settings), gallery_settings, out, weights=weights, index=index)

    def prepare() -> None:
        build(gallery)
        make_run(run, gallery)

    register(NetworkSpec(NETWORK, "gallery", "made up", build_network, 32, squashed(64), WeightsSource("made up")))
    save_tensors(random_network(network_spec(NETWORK), seed=0).state_dict(), weights)
    finish(start(prepare))
    session = make_session()
    identity = GalleryNetworkIdentity(name=NETWORK, weights_sha256="0" * 64, preprocess={}, projection_sha256=None, dimension=192)
    export = ExportSettings(
        precisions=tuple(precisions), parity_images=2, calibration_images=2, self_test_images=2, recall_views=0, force=True
    )
    training = TrainSettings(
        query_network=NETWORK, epochs=1, batch_size=4, frozen_share=0.0, alignment_copies=1, workers=0, threads=1, accelerator="cpu"
    )
    other = index.model_copy(update={"kind": "float16"})
    return [
        Stage("session save", lambda out: session.save(out, identity, "odom", "made up"), open_gallery),
        Stage("bank build", lambda out: build_bank(gallery, BankSettings(rank=2), out), StoredBank.open),
        Stage("index build", lambda out: index_gallery(out, other, verify=True), open_gallery, lambda out: shutil.copytree(gallery, out)),
        Stage("gallery build", build, open_gallery),
        Stage("export", lambda out: export_model(run, out, export), open_model),
        Stage(
            "train", lambda out: train(gallery, training, out, weights=weights), lambda out: verify_files(out, read_manifest(out, "run")),
            not_compared=("manifest.json", "metrics.csv", "checkpoints/*", "tensorboard/*"),
        ),
    ]  # fmt: skip


def ask(function: Callable[[], object]) -> tuple[Any, str]:
    """(what `function` returns as JSON, why it refuses) in a forked process; any other end of it ends the measurement."""
    read, write = os.pipe()

    def answered() -> None:
        try:
            answer = json.dumps([function(), ""])
        except AsymvprError as error:
            answer = json.dumps([None, str(error)])
        with os.fdopen(write, "w") as pipe:
            pipe.write(answer)

    child = start(answered)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    finish(child)
    value, refusal = json.loads(text)
    return value, refusal


def content(stage: Stage, out: Path) -> dict[str, str]:
    """Digest of every file of an artefact that opens; of manifests without what differs from run to run. Raises as `stage.open`."""
    stage.open(out)
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path not in unused(out) and not any(path.match(pattern) for pattern in stage.not_compared):
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps({k: v for k, v in json.loads(data).items() if k not in VOLATILE}, sort_keys=True).encode()
            found[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return found


def wanted(stage: Stage, words: list[str]) -> bool:
    """Whether the name of a stage has one of the words; all have where there are none."""
    return not words or any(word in stage.name for word in words)


def unused(out: Path) -> list[Path]:
    """Files in an artefact that nothing reads: half-written ones, which are hidden, and an index that `index.json` does not name."""
    found = list(out.rglob(".*"))
    if (out / INDEX).exists():
        named = json.loads((out / INDEX).read_text(encoding="utf-8"))["file_name"]
        found += [path for path in out.glob("index-*.faiss") if path.name != named]
    return found


def left_over(folder: Path, out: Path) -> list[str]:
    """What lies beside the artefact, or unused in it."""
    return sorted(str(path.relative_to(folder)) for path in [*folder.iterdir(), *unused(out)] if path != out)
