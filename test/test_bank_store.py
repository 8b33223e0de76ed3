"""The bank and the neighbour lists on disk: what is written, killed and continued, damaged, refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from descriptor_gallery import make_gallery, unit_rows

from asymvpr_core.config import BankSettings, NeighbourSettings
from asymvpr_core.errors import ArtefactError, MemoryBankError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.memory import moments, store
from asymvpr_core.memory import neighbours as neighbours_module
from asymvpr_core.memory.bank import build_memory_bank
from asymvpr_core.memory.neighbours import NeighbourLists, build_neighbours
from asymvpr_core.memory.spread import mean_spread
from asymvpr_core.memory.store import StoredBank, build_bank

COUNT, PLACES, DIMENSION = 200, 23, 12


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """Descriptors and places in random order; place 0 has one image."""
    rng = np.random.default_rng(0)
    return unit_rows(COUNT, DIMENSION), rng.permutation(np.concatenate([np.arange(PLACES), rng.integers(1, PLACES, COUNT - PLACES)]))


@pytest.fixture
def gallery(tmp_path: Path, data: tuple[np.ndarray, np.ndarray]) -> Path:
    return make_gallery(tmp_path / "gallery", *data)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_stored_bank_is_the_bank_in_memory(gallery, data, tmp_path, rank, dtype):
    stored = StoredBank.open(build_bank(gallery, BankSettings(rank=rank, dtype=dtype), tmp_path / "bank"))
    reference = build_memory_bank(*data, rank=rank)
    assert stored.bank.centroids.dtype == dtype and isinstance(stored.bank.centroids, np.memmap)
    np.testing.assert_array_equal(stored.bank.centroids, reference.centroids.astype(dtype))
    assert stored.bank.variances.dtype == np.float32
    np.testing.assert_array_equal(stored.bank.counts, reference.counts)
    np.testing.assert_array_equal(stored.bank.places, data[1])
    if rank == 0:
        assert stored.bank.factors is None
        np.testing.assert_array_equal(stored.bank.variances, reference.variances)
    else:
        np.testing.assert_array_equal(stored.bank.factors, reference.factors.astype(dtype))
        np.testing.assert_array_equal(stored.bank.factor_offsets, reference.factor_offsets)
        whole = build_memory_bank(*data).variances  # the diagonal is exact whatever type the factors have
        diagonal = [np.square(f, dtype=np.float64).sum(0) for f in np.split(stored.bank.factors, stored.bank.factor_offsets[1:-1])]
        np.testing.assert_allclose(stored.bank.variances + diagonal, whole, rtol=1e-6, atol=1e-4 if dtype == "float16" else 1e-9)
    assert [stored.manifest.details[name] for name in ("places", "images")] == [PLACES, COUNT]
    assert stored.manifest.details["places_with_one_image"] == int((reference.counts == 1).sum()) >= 1
    assert stored.mean_spread == pytest.approx(mean_spread(reference), rel=1e-3 if dtype == "float16" else 1e-6)
    stored.check_gallery(Gallery.open(gallery))
    assert not (tmp_path / "bank.partial").exists()


def test_a_bank_of_single_images_has_no_factors(tmp_path):
    gallery = make_gallery(tmp_path / "gallery", unit_rows(5, 4), np.arange(5))
    bank = StoredBank.open(build_bank(gallery, BankSettings(rank=2), tmp_path / "bank")).bank
    assert bank.factors is not None and bank.factors.shape == (0, 4) and not bank.variances.any()


def test_a_bank_of_another_gallery_is_refused(gallery, tmp_path):
    stored = StoredBank.open(build_bank(gallery, BankSettings(), tmp_path / "bank"))
    other = Gallery.open(make_gallery(tmp_path / "other", unit_rows(COUNT, DIMENSION, seed=1), np.arange(COUNT) % 5))
    with pytest.raises(ArtefactError, match="computed from gallery .*gallery, whose descriptors or keyframes are not those of .*other"):
        stored.check_gallery(other)


@pytest.mark.parametrize("name", ["centroids.npy", "variances.npy", "counts.npy", "places.npy", "factors.npy", "factor_offsets.npy"])
def test_every_damaged_file_of_a_bank_is_named(gallery, tmp_path, name):
    bank = build_bank(gallery, BankSettings(rank=1), tmp_path / "bank")
    content = bytearray((bank / name).read_bytes())
    content[-3] ^= 1
    (bank / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=f"{name} is damaged.*asymvpr bank build"):
        StoredBank.open(bank)
    (bank / name).write_bytes(content[:40])
    with pytest.raises(ArtefactError, match=f"{name}"):
        StoredBank.open(bank)
    (bank / name).write_bytes(b"")
    with pytest.raises(ArtefactError, match=f"{name} cannot be read"):
        StoredBank.open(bank, verify=False)
    (bank / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name} is missing"):
        StoredBank.open(bank)


def test_what_makes_no_bank_is_refused_and_leaves_nothing(data, tmp_path):
    one_place = make_gallery(tmp_path / "one", data[0], np.zeros(COUNT, np.int64))
    with pytest.raises(MemoryBankError, match="one place in all; expected at least two; use smaller cells"):
        build_bank(one_place, BankSettings(), tmp_path / "bank")
    broken = data[0].copy()
    broken[7, 2] = np.nan
    bad = make_gallery(tmp_path / "bad", broken, data[1])
    for rank in (0, 2):
        with pytest.raises(MemoryBankError, match="descriptor 7 is not finite; build the gallery again"):
            build_bank(bad, BankSettings(rank=rank), tmp_path / "bank")
    assert not (tmp_path / "bank").exists() and not (tmp_path / "bank.partial").exists()
    with pytest.raises(MemoryBankError, match="descriptor 7 is not finite"):
        build_neighbours(bad, NeighbourSettings(k=2), tmp_path / "lists")
    with pytest.raises(MemoryBankError, match=f"k is 201; expected at most the {COUNT} images"):
        build_neighbours(one_place, NeighbourSettings(k=COUNT + 1), tmp_path / "lists")
    assert not (tmp_path / "lists").exists() and not (tmp_path / "lists.partial").exists()


def test_a_full_disk_is_one_line_and_shows_before_the_work(gallery, tmp_path, monkeypatch):
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ArtefactError, match="bank cannot be written: No space left on device; free space"):
        build_bank(gallery, BankSettings(), tmp_path / "bank")
    assert not (tmp_path / "bank").exists() and not (tmp_path / "bank.partial").exists()


KILLED_BUILD = """
import os, signal, sys
sys.path[:0] = sys.argv[5:]
from pathlib import Path
from asymvpr_core.config import BankSettings, NeighbourSettings
from asymvpr_core.memory import moments, neighbours, store
kind, out, gallery, fatal = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
store._PLACES_BETWEEN_CHECKPOINTS = 3
moments._CHUNK_BYTES = 12 * 4 * 9
moments.stream_moments.__kwdefaults__["checkpoint_rows"] = 20
steps = 0
def progress(items, description, total=None, completed=0):
    global steps
    for item in items:
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
if kind == "neighbours":
    neighbours.build_neighbours(gallery, NeighbourSettings(k=5, chunk_size=15), out, progress=progress)
else:
    store.build_bank(gallery, BankSettings(rank=int(kind), memory_gb=(7 if kind == "0" else 99) * 16 * 12 / 1e9), out, progress=progress)
print(steps)
"""


def build_until(kind: str, out: Path, gallery: Path, fatal: int) -> int | None:
    """Steps of a build in a process of its own; None when it was killed at step `fatal`."""
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", KILLED_BUILD, kind, str(out), str(gallery), str(fatal), str(here.parent), str(here)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == -signal.SIGKILL:
        return None
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize("kind", ["0", "3", "neighbours"])
def test_a_killed_build_continues_and_gives_the_same_bytes(gallery, tmp_path, kind):
    whole_steps = build_until(kind, tmp_path / "whole", gallery, -1)
    assert whole_steps is not None and whole_steps > 10
    for fatal in (2, whole_steps // 2, whole_steps):
        out = tmp_path / f"killed_{fatal}"
        assert build_until(kind, out, gallery, fatal) is None
        assert not out.exists() and Path(f"{out}.partial").exists()
        steps = build_until(kind, out, gallery, -1)
        assert steps is not None and (fatal < 10 or steps < whole_steps)
        names = sorted(path.name for path in out.iterdir())
        assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
        for name in names:
            if name != "manifest.json":
                assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert not Path(f"{out}.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_kill_at_any_moment_leaves_no_wrong_bank(gallery, data, tmp_path, rank, monkeypatch):
    """Fifty kills at random moments: what has the final name is whole, and the last run gives the right numbers."""
    monkeypatch.setattr(moments, "_CHUNK_BYTES", DIMENSION * 4 * 5)
    monkeypatch.setattr(store, "_PLACES_BETWEEN_CHECKPOINTS", 2)
    monkeypatch.setitem(moments.stream_moments.__kwdefaults__, "checkpoint_rows", 10)
    reference, settings = build_memory_bank(*data, rank=rank), BankSettings(rank=rank)
    rng, kills, finished = np.random.default_rng(0), 0, 0
    begin = time.perf_counter()
    build_bank(gallery, settings, tmp_path / "unhurried")
    usual_s = time.perf_counter() - begin
    while kills < 50:
        out = tmp_path / f"bank_{finished}"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                build_bank(gallery, settings, out)
                code = 0
            finally:
                os._exit(code)
        time.sleep(rng.uniform(0, 1.2 * usual_s))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        kills += status == -signal.SIGKILL
        if out.exists():
            finished += 1
            bank = StoredBank.open(out).bank
            for name in ("centroids", "variances", "counts", "places", "factors"):
                np.testing.assert_array_equal(getattr(bank, name), getattr(reference, name))
    build_bank(gallery, settings, tmp_path / f"bank_{finished}")
    np.testing.assert_array_equal(StoredBank.open(tmp_path / f"bank_{finished}").bank.centroids, reference.centroids)


def test_work_of_other_settings_is_not_used(gallery, tmp_path):
    assert build_until("neighbours", tmp_path / "lists", gallery, 3) is None
    with pytest.raises(ArtefactError, match="differed in k"):
        build_neighbours(gallery, NeighbourSettings(k=6, chunk_size=15), tmp_path / "lists")


@pytest.mark.parametrize("memory_rows", [20, 50, 10_000])
@pytest.mark.parametrize("k", [1, 7, COUNT])
def test_neighbour_lists_are_those_of_a_full_sort(gallery, data, tmp_path, k, memory_rows):
    settings = NeighbourSettings(k=k, chunk_size=30, threads=1, memory_gb=memory_rows * 4 * DIMENSION / 1e9)
    lists = NeighbourLists.open(build_neighbours(gallery, settings, tmp_path / "lists"))
    similarities = data[0].astype(np.float64) @ data[0].T.astype(np.float64)
    assert lists.neighbours.shape == (COUNT, k) and lists.neighbours.dtype == np.int32
    assert np.array_equal(lists.neighbours, np.argsort(-similarities, axis=1)[:, :k])
    np.testing.assert_allclose(lists.similarities, np.take_along_axis(similarities, lists.neighbours.astype(int), 1), atol=1e-6)
    lists.check_gallery(Gallery.open(gallery))


def test_an_image_is_its_own_first_neighbour_among_copies(tmp_path):
    descriptors = np.concatenate([np.tile(unit_rows(1, 6), (9, 1)), unit_rows(3, 6, seed=4)])
    gallery = make_gallery(tmp_path / "gallery", descriptors, np.arange(12))
    lists = NeighbourLists.open(build_neighbours(gallery, NeighbourSettings(k=4), tmp_path / "lists"))
    assert np.array_equal(lists.neighbours[:, 0], np.arange(12))
    assert all(len(set(row)) == 4 for row in lists.neighbours.tolist())
    np.testing.assert_allclose(lists.similarities[:, 0], 1, atol=1e-6)


def test_damaged_and_empty_lists_are_refused(gallery, tmp_path):
    lists = build_neighbours(gallery, NeighbourSettings(k=3), tmp_path / "lists")
    np.save(lists / neighbours_module.NEIGHBOURS, np.zeros((COUNT, 0), np.int32))
    with pytest.raises(ArtefactError, match="neighbours.npy has 128 bytes.*'asymvpr bank neighbours'"):
        NeighbourLists.open(lists)
    with pytest.raises(ArtefactError, match="expected .*k >= 1"):
        NeighbourLists.open(lists, verify=False)
    with pytest.raises(ArtefactError, match="is a neighbours; expected a bank"):
        StoredBank.open(lists)
