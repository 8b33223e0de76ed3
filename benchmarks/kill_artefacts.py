"""What becomes of builds that are killed: SIGKILL at random moments, a look at what is there, the same command again.

    nice python benchmarks/kill_artefacts.py --kills 60 --out out/kills.json
    nice python benchmarks/kill_artefacts.py --stages index session --kills 100

Small made-up artefacts of five stages: `gallery build` (of a bag), `bank build`, `export` (ONNX), `index build` (in a gallery
that has another index) and saving a session. Every other kill comes at a moment drawn from 0 to 1.05 times the duration of an
undisturbed run, the others before a file operation (opening for writing, renaming, removing) drawn from all of them, so that
the last steps are hit as often as they are many. A run is killed one to three times before the command is left alone. After
every kill the artefact is opened with all its checksums and compared with the undisturbed one.
Training has a script of its own, kill_training.py. Exit code 1 where anything wrong was found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process with a pool of threads must not be forked; before numpy and torch are imported

import cv2
import numpy as np
from killing import count_operations, finish, killed_after, killed_before, make_pictures, start
from record import Record
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
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
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec, register
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource, squashed
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.gallery_index import open_index
from asymvpr_core.retrieval.session import SessionGallery
from asymvpr_core.types import Pose, QueryFrame

NETWORK = "grid8"
VOLATILE = ("created", "trials", "note", "manifest_sha256", "index_sha256")  # when, and how quick the machine was
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Stage:
    """One command: what it makes at a path, how that is opened with all its checksums, and what is there before it."""

    name: str
    command: Callable[[Path], object]
    open: Callable[[Path], object]
    before: Callable[[Path], object] | None = None


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
    """The five stages, and in `folder` what they start from."""
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
    save_file(random_network(network_spec(NETWORK), seed=0).state_dict(), weights)
    finish(start(prepare))
    session = make_session()
    identity = GalleryNetworkIdentity(name=NETWORK, weights_sha256="0" * 64, preprocess={}, projection_sha256=None, dimension=192)
    export = ExportSettings(
        precisions=tuple(precisions), parity_images=2, calibration_images=2, self_test_images=2, recall_views=0, force=True
    )
    other = index.model_copy(update={"kind": "float16"})
    return [
        Stage("gallery build", build, open_gallery),
        Stage("bank build", lambda out: build_bank(gallery, BankSettings(rank=2), out), lambda out: StoredBank.open(out)),
        Stage("export", lambda out: export_model(run, out, export), open_model),
        Stage("index build", lambda out: index_gallery(out, other, verify=True), open_gallery, lambda out: shutil.copytree(gallery, out)),
        Stage("session save", lambda out: session.save(out, identity, "odom", "made up"), open_gallery),
    ]


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
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps({k: v for k, v in json.loads(data).items() if k not in VOLATILE}, sort_keys=True).encode()
            found[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return found


def left_over(folder: Path, out: Path) -> list[str]:
    """What lies beside the artefact, or half-written in it."""
    return sorted(str(path.relative_to(folder)) for path in [*folder.iterdir(), *out.rglob(".*")] if path != out)


class Killer:
    """Kills one stage again and again, and keeps what came out."""

    def __init__(self, stage: Stage, folder: Path, rng: np.random.Generator):
        self.stage, self.folder, self.rng = stage, folder, rng
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.kills = self.runs = self.resumed = self.refused = self.cleared = 0
        out = self._new("undisturbed")
        begin = time.perf_counter()
        finish(start(lambda: stage.command(out)))
        self.usual_s = time.perf_counter() - begin
        self.expected, refusal = ask(lambda: content(stage, out))
        if refusal:
            raise SystemExit(f"{stage.name}: {refusal}")
        self.before = None if stage.before is None else ask(lambda: content(stage, self._new("before")))[0]
        counted = self._new("counted")
        self.operations = count_operations(lambda: stage.command(counted), counted.parent)

    def run(self) -> None:
        """One run: one to three kills, and then the command undisturbed."""
        out = self._new(f"run_{self.runs}")
        self.runs += 1
        killed = False
        for _ in range(int(self.rng.integers(1, 4))):
            if not self._kill(out):
                break
            killed = True
            self.kills += 1
            if not self._look(out):
                break
        if not killed:
            shutil.rmtree(out.parent)
            return
        remains = left_over(out.parent, out) != []
        _, refusal = ask(lambda: self.stage.command(out) and None)
        if refusal and "exists already" not in refusal:
            self.wrong.append(f"run {self.runs}: the next command was refused: {refusal}")
        self.refused, self.resumed = self.refused + bool(refusal), self.resumed + (not refusal)
        found, refusal = ask(lambda: content(self.stage, out))
        if found != self.expected:
            names = [name for name in {*(found or {}), *self.expected} if (found or {}).get(name) != self.expected.get(name)]
            self.wrong.append(f"run {self.runs}: the result differs in {names} {refusal}")
        left = left_over(out.parent, out)
        if left:
            self.wrong.append(f"run {self.runs}: {left} is left after the next command")
        self.cleared += remains and not left
        shutil.rmtree(out.parent)

    def _kill(self, out: Path) -> bool:
        if self.rng.random() < 0.5:
            child = start(lambda: self.stage.command(out))
            return killed_after(child, float(self.rng.uniform(0.0, 1.05 * self.usual_s)))
        return killed_before(lambda: self.stage.command(out), out.parent, int(self.rng.integers(1, self.operations + 1)))

    def _look(self, out: Path) -> bool:
        """Note what a kill left under the final name; whether the command still has something to do."""
        found, refusal = ask(lambda: content(self.stage, out))
        if found == self.expected:
            self.outcomes["the new one, whole"] += 1
            return self.before is not None
        if found is not None and found == self.before:
            self.outcomes["the one before, whole"] += 1
        elif found is None and not out.exists():
            self.outcomes["nothing"] += 1
        else:
            self.outcomes["WRONG"] += 1
            self.wrong.append(f"run {self.runs}: a kill left what {f'is refused: {refusal}' if refusal else 'opens and differs'}")
        return True

    def _new(self, name: str) -> Path:
        """The path of a new artefact, alone in a folder of its own."""
        out = self.folder / name / "artefact"
        out.parent.mkdir(parents=True)
        if self.stage.before is not None:
            self.stage.before(out)
        return out


def main() -> int:
    """Kill, compare and print the table; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="of each stage (default 60)")
    parser.add_argument("--stages", nargs="+", default=[], metavar="WORD", help="only those that have one of these words in their names")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], help="of the export (default fp32)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="where the artefacts are written for the time of the measurement", metavar="DIR")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    record = Record("kill_artefacts", "Kills", __doc__.partition("\n\n")[2].partition("\n\n")[2], "torch", "faiss-cpu", "onnxruntime")
    rows, wrong, values = [], [], {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve()
        for stage in make_stages(folder, options.precisions):
            if options.stages and not any(word in stage.name for word in options.stages):
                continue
            killer = Killer(stage, folder / stage.name.replace(" ", "_"), np.random.default_rng(options.seed))
            while killer.kills < options.kills:
                killer.run()
            seen = [killer.outcomes[outcome] for outcome in ("nothing", "the one before, whole", "the new one, whole", "WRONG")]
            rows.append([stage.name, killer.kills, *seen, killer.runs, killer.resumed, killer.refused, killer.cleared, len(killer.wrong)])
            wrong += [f"{stage.name}: {what}" for what in killer.wrong]
            values[stage.name] = {
                "undisturbed_s": killer.usual_s, "file_operations": killer.operations, "outcomes": dict(killer.outcomes),
                "wrong": killer.wrong, "kills": killer.kills, "runs": killer.runs,
            }  # fmt: skip
    columns = ["stage", "kills", "left: nothing", "the one before", "the new one", "anything wrong", "runs", "next command finished it",
               "next command: exists already", "remains cleared", "differences"]  # fmt: skip
    record.table("What a kill left under the final name, and what the next command made of it", columns, rows)
    record.values(stages=values)
    record.finish(options.out)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
