"""Gallery building on a local Ray cluster: the bits of a local build, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("torch")

from conftest import REPOSITORY
from town_folder import make_folder

from asymvpr_core.config import EngineSettings, GallerySettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import GalleryError
from asymvpr_core.gallery.build import build_gallery

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = GallerySettings(projection_dim=6, chunk_size=2, batch_size=2, threads=1)
ON_RAY = EngineSettings(engine="ray", workers=2, local_cpus=2)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One cluster for all tests, whose workers import this package as the driver does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), before]))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("ray") / "images", places=8, looks=2)


@pytest.fixture(scope="module")
def local(images, tmp_path_factory) -> Path:
    return build_gallery(open_source(images), SETTINGS, tmp_path_factory.mktemp("local") / "gallery")


def same_artefact(a: Path, b: Path) -> bool:
    """Whether all files but the two manifests, which hold times, have equal bytes."""
    names = [sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) for root in (a, b)]
    return names[0] == names[1] and all(
        (a / n).read_bytes() == (b / n).read_bytes() or n == "projection.npz" and same_numbers(a / n, b / n)
        for n in names[0]
        if n not in ("manifest.json", "index.json")
    )


def same_numbers(a: Path, b: Path) -> bool:
    """Whether two .npz files hold equal bits; the container holds time stamps."""
    with np.load(a) as one, np.load(b) as other:
        return all(np.array_equal(one[name], other[name]) for name in ("mean", "matrix"))


def worker_processes() -> list[int]:
    """Process ids of this test's Ray actors: they carry the class's name in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:  # ended meanwhile
            continue
        if command.startswith("ray::") and "MapWorker" in command:
            found.append(int(entry.name))
    return found


def test_two_workers_give_the_bits_of_a_local_build(images, local, tmp_path):
    assert same_artefact(build_gallery(open_source(images), SETTINGS, tmp_path / "g", engine=ON_RAY), local)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(images, local, tmp_path):
    killed: list[int] = []
    chunks = tmp_path / "g.partial" / "chunks"

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if list(chunks.glob("*.npy")) and (workers := worker_processes()):
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        built = build_gallery(open_source(images), SETTINGS, tmp_path / "g", engine=ON_RAY)
    finally:
        killer.join(timeout=130)
    assert killed, "the build ended before a worker could be killed"
    assert same_artefact(built, local)


def test_unreadable_images_are_reported_as_by_a_local_build(tmp_path):
    folder = make_folder(tmp_path / "images", places=3, looks=1)
    name = sorted(path.name for path in folder.iterdir())[1]
    (folder / name).write_bytes(b"no picture")
    with pytest.raises(GalleryError, match="1 of 3 images cannot be read") as refused:
        build_gallery(open_source(folder), SETTINGS, tmp_path / "g", engine=ON_RAY)
    assert name in str(refused.value)


def test_no_cluster_at_the_address_is_one_line(images, tmp_path):
    command = [sys.executable, "-m", "asymvpr_core", "gallery", "build", str(images), "--engine", "ray", "--ray-address", "127.0.0.1:1"]
    result = subprocess.run([*command, "--out", str(tmp_path / "g")], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("asymvpr: no Ray cluster answers at 127.0.0.1:1") and "ray start --head" in last


def test_a_bag_is_refused(tmp_path):
    class OneBag:
        root, layout, map_frame, records = tmp_path, "bag", "map", open_source(make_folder(tmp_path / "images", places=2)).records

    with pytest.raises(GalleryError, match="is a bag, which is read from front to back"):
        build_gallery(OneBag(), SETTINGS, tmp_path / "g", engine=ON_RAY)  # type: ignore[arg-type]
