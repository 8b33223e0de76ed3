"""What a training can do besides the plain loop: kills, moving averages, precision, several processes, every loss."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from town_folder import make_folder

from asymvpr_core.config import BankSettings, GallerySettings, NeighbourSettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import ArtefactError, ImageError, MemoryBankError, TrainingError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.manifest import read_manifest
from asymvpr_core.memory.neighbours import build_neighbours
from asymvpr_core.memory.store import build_bank
from asymvpr_core.training.callbacks import ProgressCallback
from asymvpr_core.training.fit import _readable_errors, _whole_checkpoint
from asymvpr_core.training.records import WholeCheckpoints
from asymvpr_core.training.run import train

pytestmark = pytest.mark.slow

SETTINGS = TrainSettings(
    query_network="efficientnet_lite0_gem_64px", epochs=2, batch_size=4, alignment_copies=0, frozen_share=0.8, validation_share=0.3,
    validation_views=2, workers=0, learning_rate=1e-3, threads=1, accelerator="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def gallery_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    source = open_source(make_folder(root / "images", places=8, looks=2))
    return build_gallery(source, GallerySettings(projection_dim=8, threads=1), root / "gallery")


def changed(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate(SETTINGS.model_dump() | changes)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    average = {f"average.{name}": tensor for name, tensor in saved.get("averaged_network", {}).items()}
    return saved["state_dict"] | average


@pytest.mark.parametrize("loss", ["asym+", "asym", "explicit", "queue", "regression", "aml", "raml", "csd", "rop", "d3still", "symmetric"])
def test_every_loss_trains_from_the_aligned_start(gallery_path, tmp_path, loss):
    run = train(gallery_path, changed(loss=loss, epochs=1, neighbours_k=3), tmp_path / "run")
    manifest = read_manifest(run, "run")
    assert manifest.details["fine_tuning"]["val_recall_at_1"] is not None
    assert all(torch.isfinite(tensor.float()).all() for tensor in last_weights(run).values())
    own_pair = manifest.gallery_network.pair_id == read_manifest(gallery_path, "gallery").gallery_network.pair_id
    assert own_pair == (loss != "symmetric")  # a symmetric network must not be searched in the gallery


def test_stored_bank_and_lists_give_what_is_computed_in_memory(gallery_path, tmp_path):
    bank = build_bank(gallery_path, BankSettings(), tmp_path / "bank")
    lists = build_neighbours(gallery_path, NeighbourSettings(k=4, threads=1), tmp_path / "lists")
    mine, stored = (train(gallery_path, changed(epochs=1), tmp_path / name, bank=b) for name, b in (("mine", None), ("stored", bank)))
    a, b = last_weights(mine), last_weights(stored)
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=1e-6) for name in a)
    assert read_manifest(stored, "run").inputs["bank"] == str(bank.resolve()) and not (stored / "bank.npz").exists()
    run = train(gallery_path, changed(loss="d3still", epochs=1, neighbours_k=4), tmp_path / "d3still", neighbours=lists)
    assert read_manifest(run, "run").inputs["neighbours"] == str(lists.resolve())
    other = build_gallery(
        open_source(make_folder(tmp_path / "others", places=3, first_seed=50)), GallerySettings(projection_dim=5, threads=1), tmp_path / "o"
    )
    with pytest.raises(ArtefactError, match="was computed from gallery"):
        train(other, changed(epochs=1), tmp_path / "refused", bank=bank)
    assert not (tmp_path / "refused.partial").exists()


KILLED = {
    "queue, average, accumulation, clipping": {
        "loss": "queue", "queue_capacity": 6, "ema_decay": 0.9, "accumulate_batches": 2, "gradient_clip": 1.0,
    },
    "draws, bfloat16": {"loss": "explicit", "precision": "bf16-mixed"},
}  # fmt: skip


@pytest.mark.parametrize("name", KILLED)
def test_a_run_killed_at_a_random_moment_ends_where_the_undisturbed_one_does(gallery_path, tmp_path, name):
    import yaml

    values = {k: v for k, v in changed(**KILLED[name], epochs=3).model_dump(mode="json").items()}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"train": values}))
    straight = train(gallery_path, TrainSettings(**values), tmp_path / "straight")
    command = [sys.executable, "-m", "asymvpr_core", "train", str(gallery_path), "--config", str(config), "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "killed.partial" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng().uniform(0.0, 0.6)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (tmp_path / "killed").exists():
        train(gallery_path, TrainSettings(**values), tmp_path / "killed")
    a, b = last_weights(straight), last_weights(tmp_path / "killed")
    assert a.keys() == b.keys() and (name.startswith("draws") or {"objective.queue.descriptors"} <= a.keys())
    for key in a:
        torch.testing.assert_close(a[key].float(), b[key].float(), atol=2e-5, rtol=1e-3, msg=key)
    for entry in ("epoch", "val_recall_at_1"):
        details = [read_manifest(tmp_path / run, "run").details["fine_tuning"][entry] for run in ("straight", "killed")]
        assert details[0] == details[1]


def test_the_moving_average_is_a_naive_one_and_is_kept(gallery_path, tmp_path, monkeypatch):
    from asymvpr_core.training.module import AsymmetricModule

    seen = []
    original = AsymmetricModule.training_step

    def recording(self, batch, batch_idx):
        seen.append(self.network.head.weight.detach().clone())
        return original(self, batch, batch_idx)

    monkeypatch.setattr(AsymmetricModule, "training_step", recording)
    run = train(gallery_path, changed(epochs=2, ema_decay=0.5, validation_share=0.0), tmp_path / "run")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    average = seen[0]
    for weight in (*seen[1:], saved["state_dict"]["network.head.weight"]):
        average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(saved["averaged_network"]["head.weight"], average)
    torch.testing.assert_close(load_file(run / "weights.safetensors")["head.weight"], average)


def test_boards_learning_rate_and_recall_are_in_the_tensorboard_log(gallery_path, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(gallery_path, changed(epochs=1, boards=3), tmp_path / "run")
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    assert {"loss", "learning_rate", "val_recall_at_1", "val_cosine"} <= set(log.Tags()["scalars"])
    assert len(log.Tags()["images"]) == 3
    assert log.Images(log.Tags()["images"][0])[0].height == 172


def test_two_processes_train_together(gallery_path, tmp_path):
    run = train(gallery_path, changed(epochs=2, devices=2, batch_size=2, loss="queue"), tmp_path / "run")
    details = read_manifest(run, "run").details["fine_tuning"]
    assert 0 <= details["val_recall_at_1"] <= 1 and details["epoch"] in (0, 1, 2)
    # The start is validated on the same views, whoever describes them.
    alone = train(gallery_path, changed(epochs=1, batch_size=4, loss="queue"), tmp_path / "alone")
    assert details["val_recall_at_1_before"] == pytest.approx(
        read_manifest(alone, "run").details["fine_tuning"]["val_recall_at_1_before"], abs=1e-6
    )


@pytest.mark.skipif("ASYMVPR_TEST_KILLED_PROCESSES" not in os.environ, reason="starts five processes; minutes on a busy machine")
def test_two_processes_killed_and_resumed_train_as_one_does(gallery_path, tmp_path):
    """Batches of two in each of two processes are batches of four: the same gradients, recall and losses, also over a kill."""
    import yaml

    values = changed(epochs=2, devices=2, batch_size=2, frozen_share=1.0).model_dump(mode="json")
    config, out = tmp_path / "config.yaml", tmp_path / "two"
    config.write_text(yaml.safe_dump({"train": values}))
    command = [sys.executable, "-m", "asymvpr_core", "train", str(gallery_path), "--config", str(config), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while process.poll() is None and not (tmp_path / "two.partial" / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < deadline, "no checkpoint after 300 s"
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the spawned ones too
        process.wait()
    if not out.exists():
        train(gallery_path, TrainSettings(**values), out)
    alone = train(gallery_path, TrainSettings(**values | {"devices": 1, "batch_size": 4}), tmp_path / "alone")
    two, one = (np.genfromtxt(run / "metrics.csv", delimiter=",", names=True) for run in (out, alone))
    for column in one.dtype.names:
        np.testing.assert_allclose(two[column], one[column], rtol=1e-4, atol=1e-5, err_msg=column)
    a, b = (load_file(run / "weights.safetensors") for run in (out, alone))
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=1e-4) for name in a)


def test_torchrun_starts_processes_of_which_one_writes(gallery_path, tmp_path):
    import yaml

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"train": changed(epochs=1, devices=2, batch_size=2, ema_decay=0.9).model_dump(mode="json")}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "asymvpr_core", "train"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(gallery_path), "--config", str(config), "--out", str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("trained against") == 1
    assert read_manifest(tmp_path / "run", "run").details["alignment"]["held_out_cosine"] > 0  # of the first process
    assert not (tmp_path / "run.partial").exists()


def test_hardware_that_is_not_there_is_refused_before_anything_is_written(gallery_path, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for changes, message in (
        ({"accelerator": "gpu"}, "torch sees none"),
        ({"precision": "16-mixed"}, "16-mixed on a CPU"),
    ):
        with pytest.raises(TrainingError, match=message):
            train(gallery_path, changed(**changes), tmp_path / "run")
    with pytest.raises(TrainingError, match="2 nodes and no launcher"):
        train(gallery_path, changed(num_nodes=2, init="random"), tmp_path / "run")


def test_a_full_disk_at_a_checkpoint_loses_nothing(gallery_path, tmp_path, monkeypatch):
    import lightning

    straight = train(gallery_path, SETTINGS, tmp_path / "straight")
    original = lightning.Trainer.save_checkpoint

    def full(self, path, *arguments, **options):
        if self.current_epoch == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, path, *arguments, **options)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", full)
    with pytest.raises(ArtefactError, match="No space left on device; free space"):
        train(gallery_path, SETTINGS, tmp_path / "run")
    monkeypatch.undo()
    assert _whole_checkpoint(tmp_path / "run.partial" / "checkpoints" / "last.ckpt") is not None
    run = train(gallery_path, SETTINGS, tmp_path / "run")
    a, b = last_weights(straight), last_weights(run)
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=1e-6) for name in a)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    """A real write that fails half-way, as on a full disk: the limit on the size of a file stands for it."""
    import resource

    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 0, "state_dict": {"a": torch.zeros(10)}}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises((OSError, TrainingError)), _readable_errors():
            WholeCheckpoints().save_checkpoint({"epoch": 1, "state_dict": {"a": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def test_an_image_that_breaks_between_two_epochs_is_named_and_the_run_goes_on_after_its_repair(tmp_path, monkeypatch):
    from asymvpr_core.training import module

    images = make_folder(tmp_path / "images", places=5, looks=2)
    gallery = build_gallery(open_source(images), GallerySettings(projection_dim=4, threads=1), tmp_path / "gallery")
    whole = {picture: picture.read_bytes() for picture in images.glob("*.jpg")}
    original = module.AsymmetricModule.on_validation_epoch_end

    def breaking(self):
        original(self)
        if self.trainer.state.fn == "fit":
            for picture, data in whole.items():
                picture.write_bytes(data[:100])

    monkeypatch.setattr(module.AsymmetricModule, "on_validation_epoch_end", breaking)
    with pytest.raises(ImageError, match=r"p00\d_\d@@0@@@@@@\.jpg is a truncated JPEG"):
        train(gallery, SETTINGS, tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run.partial" / "checkpoints" / "last.ckpt").exists()
    for picture, data in whole.items():
        picture.write_bytes(data)
    assert read_manifest(train(gallery, SETTINGS, tmp_path / "run"), "run").details["fine_tuning"]["epoch"] >= 0


def test_descriptors_that_are_not_finite_are_refused_early(tmp_path):
    from descriptor_gallery import make_gallery, unit_rows

    rows = unit_rows(8, 4)
    rows[3, 2] = np.nan
    gallery = make_gallery(tmp_path / "gallery", rows, np.repeat(np.arange(4), 2))
    with pytest.raises(MemoryBankError, match="3"):
        train(gallery, SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run.partial").exists()


def test_a_loss_that_is_not_finite_ends_the_training_with_a_reason(gallery_path, tmp_path, monkeypatch):
    from asymvpr_core.training.objective import Objective

    monkeypatch.setattr(Objective, "forward", lambda self, query, *rest: query.sum() * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1, step 1"):
        train(gallery_path, SETTINGS, tmp_path / "run")


@pytest.mark.parametrize("epochs_done", [0, 1])
def test_the_progress_bar_counts_every_batch_once(epochs_done):
    counted: list[tuple[int, int]] = []

    def progress(items, description, total=None, completed=0):
        for done, item in enumerate(items, start=completed + 1):
            yield item
            counted.append((done, total))

    bar = ProgressCallback(progress, batches_per_epoch=3, epochs=2)
    bar.on_train_start(SimpleNamespace(current_epoch=epochs_done), None)
    for _ in range(3 * (2 - epochs_done)):
        bar.on_train_batch_end()
    bar.on_train_end()
    assert counted == [(done, 6) for done in range(3 * epochs_done + 1, 7)]
