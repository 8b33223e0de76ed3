"""Every file of every artefact, damaged in every way: refused by the file's name with a remedy, or shown to be harmless."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from damaging import HARMLESS, counterpart, outcomes
from safetensors.numpy import save_file
from small_bags import EVERY, drive
from tiny_artefacts import CAMERA, PREPROCESS, encode_jpeg, grid_descriptor, make_identity, make_model, make_picture
from typer.testing import CliRunner

from asymvpr_core.cli.main import app
from asymvpr_core.config import (
    BankSettings,
    CellSettings,
    IndexSettings,
    MatcherSettings,
    NeighbourSettings,
    RuntimeSettings,
    SessionSettings,
)
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.model_folder import ModelFolder
from asymvpr_core.deploy.openvino_session import why_no_openvino
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError
from asymvpr_core.gallery.store import (
    DESCRIPTORS,
    IMAGES,
    KEYFRAMES,
    THUMBNAILS,
    Gallery,
    encode_thumbnail,
    thumbnail_name,
    write_keyframes,
)
from asymvpr_core.manifest import new_folder, read_manifest, verify_files, write_manifest
from asymvpr_core.memory.neighbours import NeighbourLists, build_neighbours
from asymvpr_core.memory.store import StoredBank, build_bank
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.calibration import (
    Calibration,
    OperatingPoints,
    ScoreCalibration,
    gallery_key,
    read_calibration,
    usable_calibration,
    write_calibration,
)
from asymvpr_core.retrieval.gallery_index import open_index
from asymvpr_core.retrieval.index import search
from asymvpr_core.retrieval.session import SessionGallery
from asymvpr_core.types import Keyframe, Pose, QueryFrame

SECOND_NS = 1_000_000_000
KEYFRAMES_OF_A_GALLERY = 6


def make_gallery(path: Path, seed: int) -> Path:
    """A gallery with everything that one can have: pictures, thumbnails, an index file, a calibration."""
    pictures = [make_picture(100 * seed + i) for i in range(KEYFRAMES_OF_A_GALLERY)]
    keyframes = [
        Keyframe(f"{CAMERA}/{i}.jpg", Pose.from_xy_yaw(20.0 * i + seed, 0.0, 0.0), 90.0, (1 + i) * SECOND_NS, CAMERA)
        for i in range(KEYFRAMES_OF_A_GALLERY)
    ]
    with new_folder(path) as folder:
        np.save(folder / DESCRIPTORS, np.stack([grid_descriptor(PREPROCESS.resize(picture)) for picture in pictures]))
        write_keyframes(folder / KEYFRAMES, keyframes)
        (folder / IMAGES / CAMERA).mkdir(parents=True)
        (folder / THUMBNAILS).mkdir()
        for number, picture in enumerate(pictures):
            (folder / IMAGES / keyframes[number].name).write_bytes(encode_jpeg(picture))
            (folder / thumbnail_name(number)).write_bytes(encode_thumbnail(picture, 64))
        details = {"map_frame": "map", "images_in_gallery": True, "thumbnails": True, "index": True}
        write_manifest(folder, "gallery", make_identity(), inputs={"source": "made up"}, details=details)
        index_gallery(folder, IndexSettings(kind="sq8", recall=0.5, k=1, threads=1))
    points = OperatingPoints(thresholds=(0.5,), precision_bounds=(0.9,))
    scores = ScoreCalibration(scores=(0.1, 0.9), probabilities=(0.0, 0.9), single=points, frames=50, correct=40, basis="run")
    model = {"path": "model", "sha256": "0" * 64}
    key = gallery_key(Gallery.open(path))
    write_calibration(path, Calibration(created=f"day {seed}", gallery=key, model=model, settings={}, protocol={}, prior=scores))
    return path


def use_gallery(path: Path) -> object:
    """What the robot and the offline commands read of a gallery, each in its way."""
    gallery = Gallery.open(path, verify="auto")
    if gallery.verification is not None:
        gallery.verification.wait(60)
    scores, rows = search(open_index(gallery), np.array(gallery.descriptors), 3)
    pictures = [gallery.read_image(i).tobytes() + gallery.read_thumbnail(i).tobytes() for i in range(len(gallery))]
    calibration = read_calibration(path)
    assert calibration is None or calibration.prior is not None
    return gallery.keyframes, rows.tolist(), scores.tolist(), pictures, calibration


def make_session(path: Path, seed: int) -> Path:
    settings = SessionSettings(session_gallery=True)
    session = SessionGallery(8, MatcherSettings(sequence="off"), settings)
    rng = np.random.default_rng(seed)
    for number in range(5):
        row = rng.standard_normal(8).astype(np.float32)
        session.process(row / np.linalg.norm(row), QueryFrame(number * SECOND_NS, Pose.from_xy_yaw(5.0 * number + seed, 0.0, 0.0), ""))
    return session.save(path, make_identity().model_copy(update={"dimension": 8}), "odom", "made up")


def use_session(path: Path) -> object:
    gallery = Gallery.open(path)
    scores, rows = search(open_index(gallery), np.array(gallery.descriptors), 2)
    return gallery.keyframes, rows.tolist(), scores.tolist()


def make_bank(path: Path, seed: int) -> Path:
    gallery = make_gallery(path.with_name(f"gallery_of_{path.name}"), seed)
    build_bank(gallery, BankSettings(rank=seed, cells=CellSettings(cell_size_m=100.0 - 20.0 * seed)), path)
    return path


def use_bank(path: Path) -> object:
    bank = StoredBank.open(path).bank
    arrays = (bank.centroids, bank.variances, bank.counts, bank.places, bank.factors, bank.factor_offsets)
    return [np.asarray(array).tolist() for array in arrays]


def make_neighbours(path: Path, seed: int) -> Path:
    return build_neighbours(make_gallery(path.with_name(f"gallery_of_{path.name}"), seed), NeighbourSettings(k=3, threads=1), path)


def use_neighbours(path: Path) -> object:
    lists = NeighbourLists.open(path)
    return lists.neighbours.tolist(), lists.similarities.tolist()


def make_query_model(path: Path, seed: int) -> Path:
    """A query model with every kind of file; those that no runtime opens below are copies with a note at their end."""
    plain = make_model(path.with_name(f"plain_{path.name}"), self_test=True)
    manifest = read_manifest(plain, "model")
    files = {"model_fp16.onnx": ("onnx", "fp16"), "model_int8.onnx": ("onnx", "int8"), "model.xml": ("openvino", "fp32")}
    with new_folder(path) as folder:
        for name in ("model.onnx", "self_test.npz"):
            shutil.copy(plain / name, folder / name)
        for name in (*files, "model.bin"):
            (folder / name).write_bytes((plain / "model.onnx").read_bytes() + bytes([seed]))
        variants = [*manifest.details["variants"], *({"file": n, "format": f, "precision": p} for n, (f, p) in files.items())]
        identity = make_identity(f"grid8_{seed}")
        write_manifest(folder, "model", identity, details=manifest.details | {"variants": variants})
        if seed > 1:  # another network and other pictures, so that there is something to swap
            (folder / "model.onnx").write_bytes(b"another network")
            np.savez(folder / "self_test.npz", inputs=np.zeros((1, 64, 64, 3), np.uint8), descriptors=np.zeros((1, 192), np.float32))
    return path


def use_query_model(path: Path) -> object:
    """Opened as the robot does; of the other variants what every runtime does before it opens them."""
    folder = ModelFolder.open(path)
    for variant in folder.variants:
        folder.verify(variant)
    model = QueryModel.open(path, RuntimeSettings(runtime="onnxruntime", threads=1))
    assert folder.self_test() is not None
    return model.encode(make_picture(0)).tolist(), str(model.manifest.gallery_network)


def make_run(path: Path, seed: int) -> Path:
    with new_folder(path) as folder:
        save_file({"head.weight": np.full((2, 3), seed, np.float32)}, folder / "weights.safetensors")
        (folder / "checkpoints").mkdir()
        for name in ("bank.npz", "settings.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
            (folder / name).write_bytes(f"{name} of run {seed}".encode())
        write_manifest(folder, "run", make_identity(), details={"query_network": f"network {seed}"})
    return path


def use_run(path: Path) -> object:
    """As the export: manifest, and checksums of what it uses; here of all files."""
    manifest = read_manifest(path, "run")
    verify_files(path, manifest)
    return manifest.details


KINDS = {
    "gallery": (make_gallery, use_gallery),
    "session gallery": (make_session, use_session),
    "bank": (make_bank, use_bank),
    "neighbours": (make_neighbours, use_neighbours),
    "query model": (make_query_model, use_query_model),
    "run": (make_run, use_run),
}
# A whole calibration of another gallery is not damaged: it is passed over, or refused where a precision is asked for (below).
# Without one a gallery is as it was before it was calibrated.
NOT_REFUSED = {"gallery": {("calibration.json", "swapped"), ("calibration.json", "missing")}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_of_every_file_is_refused_by_its_name(tmp_path: Path, kind: str):
    make, use = KINDS[kind]
    artefact, other = make(tmp_path / "one", 1), make(tmp_path / "two", 2)
    found = outcomes(artefact, use, other)
    assert len({name for name, _ in found}) == sum(path.is_file() for path in artefact.rglob("*")) >= 3
    answered = {key: text for key, text in found.items() if text == HARMLESS or text.startswith("WRONG")}
    newlines = {(name, damage) for name, damage in found if name.endswith(".json") and damage == "one byte short"}  # the last of a text
    assert answered.keys() == NOT_REFUSED.get(kind, set()) | newlines, answered
    assert {answered[key] for key in newlines} == {HARMLESS}
    for (name, damage), text in found.items():
        # A whole manifest of another artefact is none of its faults: the first file that it does not fit is named.
        expected = str(artefact) if (name, damage) == ("manifest.json", "swapped") else Path(name).name
        assert (name, damage) in answered or expected in text, f"{name}, {damage}: {text}"
        assert damage != "newer format" or "has format version 99; expected at most" in text


def test_a_calibration_of_another_gallery_is_refused_where_it_is_needed(tmp_path: Path):
    one, two = make_gallery(tmp_path / "one", 1), make_gallery(tmp_path / "two", 2)
    shutil.copy(two / "calibration.json", one / "calibration.json")
    model = read_manifest(make_model(tmp_path / "model"), "model")
    gallery = Gallery.open(one)
    assert usable_calibration(gallery, tmp_path / "model", model, needed=False) is None
    with pytest.raises(ArtefactError, match=rf"the calibration in {one} is of gallery {two}.*asymvpr calibrate"):
        usable_calibration(gallery, tmp_path / "model", model, needed=True)


def test_gallery_verify_names_every_damaged_file(tmp_path: Path):
    """The command reads what a robot never does; what a manifest does not list is tested as well."""
    gallery = make_gallery(tmp_path / "one", 1)
    for path in sorted(gallery.rglob("*")):
        if path.is_file():
            whole = path.read_bytes()
            path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
            result = CliRunner().invoke(app, ["gallery", "verify", str(gallery)])
            assert result.exit_code != 0 and path.name in result.output, path
            path.write_bytes(whole)
    assert CliRunner().invoke(app, ["gallery", "verify", str(gallery)]).exit_code == 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_opens_no_damaged_variant(tmp_path: Path, runtime: str):
    if runtime == "openvino" and why_no_openvino():
        pytest.skip("needs OpenVINO")
    model = make_query_model(tmp_path / "model", 1)
    wanted = {"onnxruntime": {"fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}, "openvino": {"fp32": "model.bin"}}[runtime]
    for precision, name in wanted.items():
        whole = (model / name).read_bytes()
        (model / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtefactError, match=f"{name} is damaged.*asymvpr export"):
            QueryModel.open(model, RuntimeSettings(runtime=runtime, precision=precision, threads=1))
        (model / name).write_bytes(whole)


def test_a_recording_that_is_damaged_is_refused_or_read(tmp_path: Path):
    """A rosbag2 has no checksums: what the recorder wrote may lose a bit unnoticed, but is never read past its end or in part."""

    def use(path: Path) -> object:
        source = open_source(path, EVERY)
        digest = hashlib.sha256()
        for _, image in source.read_images(range(len(source.records))):
            digest.update(image.tobytes())
        return digest.hexdigest()

    found = outcomes(drive(tmp_path / "bag"), use)
    for (name, damage), text in found.items():
        assert "flipped" in damage or not text.startswith("WRONG"), f"{name}, {damage}: {text}"
        assert damage not in ("half", "emptied", "missing") or text != HARMLESS, f"{name}, {damage}"


def test_the_file_of_another_artefact_is_found_by_kind(tmp_path: Path):
    (tmp_path / "index-1.faiss").write_bytes(b"x")
    assert counterpart(tmp_path, "index-2.faiss") == tmp_path / "index-1.faiss"
