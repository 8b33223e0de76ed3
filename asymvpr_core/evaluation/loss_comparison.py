"""Losses side by side: the same network, gallery, schedule and seeds for each, evaluated on one query set."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from asymvpr_core.config import ComparisonSettings, EvaluationSettings, LossName, NeighbourSettings, TrainSettings
from asymvpr_core.datasets.benchmark import Benchmark
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import ArtefactError, EvaluationError
from asymvpr_core.evaluation.encoders import NamedEncoder, describe
from asymvpr_core.evaluation.ground_truth import gallery_benchmark, positives_of, protocol_of
from asymvpr_core.evaluation.loss_comparison_report import write_comparison
from asymvpr_core.evaluation.predictions import Predictions
from asymvpr_core.evaluation.recall import predict
from asymvpr_core.evaluation.retrieval_metrics import statistics
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import read_manifest, sha256_of, write_text_atomically
from asymvpr_core.memory.neighbours import build_neighbours
from asymvpr_core.memory.origin import gallery_digest
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.progress import Progress, silent
from asymvpr_core.settings_files import make_settings
from asymvpr_core.training import hardware
from asymvpr_core.training.objective import NEIGHBOUR_LOSSES
from asymvpr_core.training.run import WEIGHTS, train
from asymvpr_core.work_folder import refuse_undecodable, unwritable

ALIGNED, ALIGNED_ALL = "aligned", "aligned:all"
_RANDOM = ":random"
_PROTOCOL, _RESULTS, _RUNS, _NEIGHBOURS, _FEATURES = "protocol.json", "results", "runs", "neighbours", "features"


@dataclass(frozen=True)
class Entry:
    """One row of the comparison: a loss, or the aligned start without training; `name` is what the user wrote.

    `hold_out`: the start is fitted without the images that the losses hold out for validation.
    """

    name: str
    settings: TrainSettings
    hold_out: bool = False


def entries_of(names: Sequence[str], settings: TrainSettings, comparison: ComparisonSettings) -> list[Entry]:
    """What the names mean: a loss, with `:random` behind it from a random start, or the closed-form start alone.

    `aligned` is fitted to the images that the losses are trained on, which is their start, `aligned:all` to all images.

    Raises:
        EvaluationError: no name, one twice, or an unknown one.
        SettingsError: an override that is no training setting, or out of its range.
    """
    known = (*get_args(LossName), ALIGNED, ALIGNED_ALL)
    wrong = [name for name in (*names, *comparison.overrides) if name.removesuffix(_RANDOM) not in known]
    if wrong or not names:
        found = f"'{wrong[0]}' is no loss" if wrong else "no losses are given"
        raise EvaluationError(found, expected=f"{', '.join(known)}; with {_RANDOM} for a random start")
    if len(set(names)) < len(names):
        raise EvaluationError("a loss is given twice", expected="each once", remedy="name each once")
    entries = []
    for name in names:
        changes: dict[str, Any] = {"init": "random"} if name.endswith(_RANDOM) else {}
        loss = name.removesuffix(_RANDOM)
        changes |= {"epochs": 0} if loss in (ALIGNED, ALIGNED_ALL) else {"loss": loss}
        values = settings.model_dump() | comparison.overrides.get(loss, {}) | comparison.overrides.get(name, {}) | changes
        entries.append(Entry(name, make_settings(TrainSettings, **values), hold_out=loss == ALIGNED))
    return entries


def compare_losses(
    gallery_path: Path,
    names: Sequence[str],
    settings: TrainSettings,
    comparison: ComparisonSettings,
    database: Gallery,
    queries: Dataset,
    evaluation: EvaluationSettings,
    out: Path,
    *,
    bank: Path | None = None,
    neighbours: Path | None = None,
    weights: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Train every loss with every seed and write `comparison.json`, `.md` and `.png` to `out`; returns `out`.

    Each run is searched asymmetrically: its descriptors of the queries among the stored descriptors of
    `database`. A symmetric run describes both sides. What is finished stays in `out` and is not done again
    when the command is repeated, also with more losses or seeds; other settings are refused.

    Args:
        database: a gallery of the same pair as the one that is trained on, not necessarily of the same images.
        neighbours: neighbour lists for CSD, ROP and D3still; None: made here, of the whole gallery, and timed.

    Raises:
        ArtefactError: `database` is of another pair, or `out` holds a comparison of other settings.
        EvaluationError: unknown losses, or queries of which nothing can be found.
        AsymvprError: what a training raises.
    """
    out = Path(out)
    entries = entries_of(names, settings, comparison)
    gallery = Gallery.open(gallery_path)
    mine, theirs = gallery.manifest.gallery_network, database.manifest.gallery_network
    if mine.pair_id != theirs.pair_id:
        raise ArtefactError(
            f"gallery {gallery_path} is of ({mine}), {database.path} of ({theirs})", expected="one pair",
            remedy=f"build {database.path} with --projection-from {gallery_path}",
        )  # fmt: skip
    benchmark = gallery_benchmark(database, queries, evaluation)
    truth = positives_of(benchmark)
    protocol = {
        "training_gallery": gallery_digest(gallery), "evaluation_gallery": gallery_digest(database), "queries": str(queries.root),
        "evaluation": protocol_of(evaluation, benchmark), "weights": None if weights is None else sha256_of(weights),
        "settings": settings.model_dump(mode="json", exclude={"loss", "seed"}), "overrides": comparison.overrides,
    }  # fmt: skip
    try:
        _claim(out, protocol)
        lists = neighbours
        list_seconds: float | None = None
        if neighbours is None and any(e.settings.loss in NEIGHBOUR_LOSSES and e.settings.epochs > 0 for e in entries):
            lists, list_seconds = _neighbours(gallery, entries, out, progress)
        rows = []
        for seed in comparison.seeds:
            for entry in entries:
                file = out / _RESULTS / f"{_file_name(entry.name)}-seed{seed}.json"
                if not file.exists():
                    own = entry.settings.model_copy(update={"seed": seed})
                    run = out / _RUNS / file.stem
                    used = lists if own.loss in NEIGHBOUR_LOSSES else None
                    peak = None
                    if not run.exists():
                        reset_peak_memory()
                        train(
                            gallery_path, own, run, weights=weights, bank=bank, neighbours=used, features=out / _FEATURES,
                            hold_out=entry.hold_out, progress=progress,
                        )  # fmt: skip
                        peak = peak_memory_bytes()
                    result = evaluate_run(run, own, database, benchmark, truth, evaluation, progress)
                    result |= {"name": entry.name, "seed": seed, "peak_memory_bytes": peak}
                    write_text_atomically(file, json.dumps(result, indent=2) + "\n")
                rows.append(json.loads(file.read_text(encoding="utf-8")))
        shutil.rmtree(out / _FEATURES, ignore_errors=True)
        write_comparison(out, rows, protocol, evaluation.k, len(queries.records), list_seconds)
    except OSError as error:
        raise unwritable(out, error) from error
    return out


def _claim(out: Path, protocol: dict[str, Any]) -> None:
    refuse_undecodable(out)
    file = out / _PROTOCOL
    if out.exists() and any(out.iterdir()) and not file.exists():
        raise ArtefactError(f"{out} exists and is no comparison", remedy="give another --out")
    for name in (_RESULTS, _RUNS, _FEATURES):
        (out / name).mkdir(parents=True, exist_ok=True)
    mine = json.loads(json.dumps(protocol))
    if file.exists():
        theirs = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name in mine if theirs.get(name) != mine[name]]
        if different:
            raise ArtefactError(
                f"{out} holds a comparison with other {', '.join(different)}", remedy="repeat that one, or give another --out"
            )
    else:
        write_text_atomically(file, json.dumps(mine, indent=2) + "\n")


def _neighbours(gallery: Gallery, entries: Sequence[Entry], out: Path, progress: Progress) -> tuple[Path, float]:
    """Lists of the whole gallery, long enough for every loss, and the seconds that they took."""
    k = max(entry.settings.neighbours_k for entry in entries if entry.settings.loss in NEIGHBOUR_LOSSES)
    folder, clock = out / f"{_NEIGHBOURS}_{k}", out / f"{_NEIGHBOURS}_{k}.json"
    if not folder.exists():
        started = time.perf_counter()
        build_neighbours(gallery.path, NeighbourSettings(k=k, threads=entries[0].settings.threads), folder, progress=progress)
        write_text_atomically(clock, json.dumps({"seconds": time.perf_counter() - started}))
    return folder, float(json.loads(clock.read_text(encoding="utf-8"))["seconds"]) if clock.exists() else float("nan")


class RunEncoder:
    """The network of a run as an encoder of images, without an export."""

    def __init__(self, run: Path, settings: TrainSettings):
        manifest = read_manifest(run, "run")
        spec = network_spec(manifest.details["query_network"])
        self.dimension = manifest.gallery_network.dimension
        self.preprocess = Preprocess.model_validate(manifest.details["preprocess"])
        network = QueryNetwork(spec, self.dimension, gated=bool(manifest.details.get("gated", False)))
        network.load(run / WEIGHTS)
        self._device = hardware.device(settings)
        self._network = network.eval().to(self._device)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """(3, H, W) float32 for one (H, W, 3) uint8 RGB image."""
        return self.preprocess(image)

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        """(B, D) float32, L2-normalised, from stacked images that `prepare` has made."""
        with torch.inference_mode():
            result: np.ndarray = self._network(torch.from_numpy(inputs).to(self._device)).cpu().numpy()
        return result


def evaluate_run(
    run: Path,
    settings: TrainSettings,
    database: Gallery,
    benchmark: Benchmark,
    truth: Sequence[np.ndarray] | None,
    evaluation: EvaluationSettings,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Search with the network of a run, after a symmetric training on both sides; returns statistics and what the run says of itself.

    Args:
        database, benchmark, truth: of one pair with the run, as `gallery_benchmark` and `positives_of` give them.
    """
    encoder = NamedEncoder(run.name, RunEncoder(run, settings), {"kind": "run"})
    queries, references = benchmark.queries, benchmark.database
    described = describe(queries, encoder, progress=progress)
    symmetric = settings.loss == "symmetric"
    searched = describe(references, encoder, progress=progress, what="the gallery") if symmetric else database.descriptors
    predictions: Predictions = predict(run.name, searched, described, queries.records, references.records, truth, evaluation)
    details = read_manifest(run, "run").details
    return {
        "pairing": "symmetric" if symmetric else "asymmetric",
        "statistics": statistics(predictions, evaluation.k),
        "correct": [bool(correct) for correct in predictions.correct],
        "seconds": details["seconds"],
        "fine_tuning": details.get("fine_tuning"),
        "gamma": details["gamma"],
        "settings": settings.model_dump(mode="json"),
    }


def reset_peak_memory() -> None:
    """Start the measurement of `peak_memory_bytes` anew, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets the peak to what is resident now


def peak_memory_bytes() -> int:
    """Largest memory since `reset_peak_memory`: of the GPU where there is one, otherwise resident memory of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _file_name(name: str) -> str:
    return name.replace("+", "_plus").replace(":", "_")
