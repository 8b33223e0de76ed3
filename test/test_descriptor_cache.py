"""The descriptor cache: what is asked twice is computed once, and nothing stale, damaged or foreign is ever returned."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_artefacts import PREPROCESS, encode_jpeg, make_model, make_picture

from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, EvaluationError, ImageError
from asymvpr_core.evaluation.descriptor_cache import DescriptorCache, default_cache_folder
from asymvpr_core.evaluation.encoders import NamedEncoder, describe
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.types import ImageRecord

LIMIT = 10**9


class Pictures:
    """Encoded images in memory."""

    def __init__(self, files: list[bytes]):
        self.files, self.records = files, [ImageRecord(f"image_{i}.jpg") for i in range(len(files))]

    def read_encoded(self, indices):
        yield from ((i, self.files[i]) for i in indices)

    def read_images(self, indices):
        yield from ((i, decode_image(self.files[i], str(i))) for i in indices)


class Counting:
    """An encoder that counts the images that it was given; `factor` stands for other weights or code."""

    dimension = 12

    def __init__(self, factor: float = 1.0):
        self.images, self.factor = 0, factor

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return PREPROCESS(image)

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        self.images += len(inputs)
        features = self.factor * inputs.reshape(len(inputs), self.dimension, -1).mean(axis=2)
        return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def counting(factor: float = 1.0, **identity: object) -> NamedEncoder:
    return NamedEncoder("counting", Counting(factor), {"kind": "test", **identity})


def jpegs(*seeds: int) -> Pictures:
    return Pictures([encode_jpeg(make_picture(seed)) for seed in seeds])


def computed(images: Pictures, encoder: NamedEncoder, cache: DescriptorCache) -> tuple[int, np.ndarray]:
    """How many images the encoder saw, beside the probe, and the descriptors."""
    before = encoder.encoder.images
    descriptors = describe(images, encoder, cache)
    return encoder.encoder.images - before - 1, descriptors


def test_what_is_asked_twice_is_computed_once(tmp_path):
    cache, images = DescriptorCache(tmp_path, LIMIT), jpegs(*range(20), 3, 3)
    fresh = describe(images, counting())
    first, once = computed(images, counting(), cache)
    again, twice = computed(images, counting(), DescriptorCache(tmp_path, LIMIT))
    assert again == 0 and 20 <= first <= 22
    np.testing.assert_array_equal(once, fresh)
    np.testing.assert_array_equal(twice, fresh)
    more, _ = computed(jpegs(*range(25)), counting(), DescriptorCache(tmp_path, LIMIT))
    assert more == 5


def test_the_key_is_the_content_of_the_image_not_its_name(tmp_path):
    cache = DescriptorCache(tmp_path, LIMIT)
    computed(jpegs(1, 2, 3), counting(), cache)
    count, descriptors = computed(jpegs(3, 9, 1), counting(), cache)  # other content under the same names
    assert count == 1
    np.testing.assert_array_equal(descriptors, describe(jpegs(3, 9, 1), counting()))


@pytest.mark.parametrize("other", [{"weights_sha256": "1" * 64}, {"name": "another"}, {"preprocess": {"height": 32}}])
def test_another_identity_finds_nothing(tmp_path, other):
    cache = DescriptorCache(tmp_path, LIMIT)
    computed(jpegs(1, 2), counting(weights_sha256="0" * 64, name="one", preprocess={"height": 64}), cache)
    changed = {"weights_sha256": "0" * 64, "name": "one", "preprocess": {"height": 64}, **other}
    assert computed(jpegs(1, 2), counting(**changed), cache)[0] == 2


def test_another_behaviour_under_the_same_identity_finds_nothing(tmp_path):
    # What no manifest names: the code of a network, a library's version. The probe's descriptor tells them apart.
    cache, images = DescriptorCache(tmp_path, LIMIT), jpegs(1, 2)
    computed(images, counting(1.0), cache)
    count, descriptors = computed(images, counting(-1.0), cache)
    assert count == 2
    np.testing.assert_array_equal(descriptors, describe(images, counting(-1.0)))


def test_a_query_model_is_known_by_model_pair_and_preprocessing(tmp_path):
    model = QueryModel.open(make_model(tmp_path / "model"))
    named = NamedEncoder.of_model(model)
    same = NamedEncoder.of_model(QueryModel.open(tmp_path / "model"), "another name to show")
    assert named.cache_identity() == same.cache_identity()  # a second run finds what the first one wrote
    wider = Preprocess(**{**PREPROCESS.model_dump(), "mean": (0.4, 0.5, 0.5)})
    assert NamedEncoder.of_model(replace(model, folder=replace(model.folder, preprocess=wider))).cache_identity() != named.cache_identity()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_damaged_files_are_removed_and_computed_again(tmp_path, damage):
    images = jpegs(*range(6))
    _, expected = computed(images, counting(), DescriptorCache(tmp_path, LIMIT))
    (file,) = tmp_path.glob("*/*.npy")
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    file.write_bytes({"flip": data, "truncate": data[:-40], "empty": b"", "foreign": b"not numpy"}[damage])
    count, descriptors = computed(images, counting(), DescriptorCache(tmp_path, LIMIT))
    assert count == 6
    np.testing.assert_array_equal(descriptors, expected)
    assert computed(images, counting(), DescriptorCache(tmp_path, LIMIT))[0] == 0  # and written anew


def test_a_file_of_another_dimension_is_not_used(tmp_path):
    cache = DescriptorCache(tmp_path, LIMIT)
    shelf = cache.shelf({"kind": "x"}, 3)
    shelf.put(b"a" * 32, np.ones(3))
    shelf.flush()
    other = cache.shelf({"kind": "x"}, 4)
    assert other.damaged == 1 and other.get(b"a" * 32) is None


def test_the_cache_stays_below_its_limit_and_drops_what_was_used_longest_ago(tmp_path):
    cache = DescriptorCache(tmp_path, LIMIT)
    files = []
    for number in range(4):
        shelf = cache.shelf({"number": number}, 100)
        shelf.put(hashlib.sha256(b"%d" % number).digest(), np.full(100, number))
        shelf.flush()
        (file,) = shelf.path.glob("*.npy")
        os.utime(file, (1000 + number, 1000 + number))
        files.append(file)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.npy").write_bytes(b"x" * 10_000)  # the user's own, in no shelf
    cache.shelf({"number": 0}, 100)  # used now
    DescriptorCache(tmp_path, 2 * files[0].stat().st_size).shrink()
    assert [file.exists() for file in files] == [True, False, False, True]
    assert (tmp_path / "notes" / "mine.npy").exists()


def test_a_shelf_keeps_its_rows_when_another_process_makes_room(tmp_path):
    cache = DescriptorCache(tmp_path, LIMIT)
    computed(jpegs(1, 2), counting(), cache)
    shelf = cache.shelf(counting().cache_identity(), 12)
    DescriptorCache(tmp_path, 0).shrink()
    assert not list(tmp_path.glob("*/*.npy"))
    found = [shelf.get(hashlib.sha256(file).digest()) for file in jpegs(1, 2).files]
    np.testing.assert_array_equal(found, describe(jpegs(1, 2), counting()))


def test_remains_of_killed_processes_go(tmp_path):
    cache = DescriptorCache(tmp_path, LIMIT)
    computed(jpegs(1), counting(), cache)
    (file,) = tmp_path.glob("*/*.npy")
    old, new = file.with_name(".old.partial"), file.with_name(".new.partial")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    cache.shrink()
    assert not old.exists() and new.exists()


def _write_often(folder: str, seed: int, stop_after_s: float) -> None:
    rng, end = np.random.default_rng(seed), time.monotonic() + stop_after_s
    while time.monotonic() < end:
        shelf = DescriptorCache(Path(folder), 60_000).shelf({"shared": True}, 16)
        for value in rng.integers(0, 500, 20).tolist():
            key = hashlib.sha256(b"%d" % value).digest()
            known = shelf.get(key)
            assert known is None or (known == value).all(), f"{value} is cached as {known}"
            shelf.put(key, np.full(16, value, dtype=np.float32))
        shelf.flush()


def test_processes_share_a_cache_while_some_are_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_often, args=(str(tmp_path), seed, 2.0 if seed < 2 else 60.0)) for seed in range(4)]
    for process in processes:
        process.start()
    end = time.monotonic() + 30
    while len(list(tmp_path.glob("*/*.npy"))) < 5 and time.monotonic() < end:
        time.sleep(0.02)
    for process in processes[2:]:
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, -signal.SIGKILL, -signal.SIGKILL]
    shelf = DescriptorCache(tmp_path, LIMIT).shelf({"shared": True}, 16)
    assert shelf.damaged == 0 and len(shelf) > 0
    for value in range(500):
        known = shelf.get(hashlib.sha256(b"%d" % value).digest())
        assert known is None or (known == value).all()


def test_a_long_description_is_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("asymvpr_core.evaluation.descriptor_cache._SEGMENT_BYTES", 5 * (32 + 4 * 12))
    computed(jpegs(*range(12)), counting(), DescriptorCache(tmp_path, LIMIT))
    assert len(list(tmp_path.glob("*/*.npy"))) == 3
    assert computed(jpegs(*range(12)), counting(), DescriptorCache(tmp_path, LIMIT))[0] == 0


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtefactError, match="descriptor cache .* cannot be used.*--no-cache"):
        describe(jpegs(1), counting(), DescriptorCache(tmp_path / "file", LIMIT))


def test_the_default_folder_follows_the_standard(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_folder() == Path("/somewhere/asymvpr/descriptors")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "asymvpr" / "descriptors"


def test_a_descriptor_that_is_not_finite_names_the_image_and_is_not_kept(tmp_path):
    class Broken(Counting):
        def encode_batch(self, inputs):
            descriptors = super().encode_batch(inputs)
            if len(inputs) > 1:
                descriptors[1, 0] = np.nan
            return descriptors

    cache, images = DescriptorCache(tmp_path, LIMIT), jpegs(1, 2, 3)
    with pytest.raises(EvaluationError, match="image image_1.jpg a descriptor that is not finite"):
        describe(images, NamedEncoder("broken", Broken(), {"kind": "test"}), cache)
    assert not list(tmp_path.glob("*/*.npy"))


def test_an_unreadable_image_is_named(tmp_path):
    images = Pictures([encode_jpeg(make_picture(1)), encode_jpeg(make_picture(2))[:500]])
    with pytest.raises(ImageError, match="image_1.jpg"):
        describe(images, counting(), DescriptorCache(tmp_path, LIMIT))
    _, grey = cv2.imencode(".png", np.zeros((8, 8), np.uint8))
    assert describe(Pictures([grey.tobytes()]), counting()).shape == (1, 12)
