"""Choose the settings of every loss for a fair comparison, on a split of the training images alone.

    python benchmarks/compare_losses.py street/train --out out/choice
    asymvpr train street_train --config out/choice/chosen.yaml --compare aligned,asym+,regression \\
        --database street_val --queries street/val/queries --out out/losses

The eastern 30 % of the positions become database (two of three) and queries; what lies at least
50 m west of them is trained on. Every loss gets the same number of trials, of the same epochs, each an
ordinary training: first the learning rate, then one parameter of its own after the other, kept where
the mean of Recall@1, 5 and 10 on the split rises. `chosen.yaml` is a settings file with the common settings and one
override for each loss; `trials.json` and `trials.md` have every trial. Finished trials are kept, so that the
command goes on after a kill, and several processes can share the losses (--losses) and one folder, once
the galleries and views of the first trial are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import yaml

from asymvpr_core.config import EvaluationSettings, GallerySettings, NeighbourSettings, SourceSettings, TrainSettings
from asymvpr_core.datasets.dataset import Dataset, FileDataset
from asymvpr_core.datasets.source import open_source
from asymvpr_core.evaluation.ground_truth import gallery_benchmark, positives_of
from asymvpr_core.evaluation.loss_comparison import evaluate_run
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import write_text_atomically
from asymvpr_core.memory.neighbours import build_neighbours
from asymvpr_core.settings_files import make_settings
from asymvpr_core.training.objective import NEIGHBOUR_LOSSES
from asymvpr_core.training.run import train

EASTERN_SHARE, GAP_M, SEED = 0.3, 50.0, 0
COMMON: dict[str, Any] = {
    "epochs": 5, "batch_size": 32, "frozen_share": 0.875, "cached_views": 4, "view_seed": 0, "validation_share": 0.0, "boards": 0,
    "cells": {"cell_size_m": 15.0}, "threads": 1, "workers": 0,
}  # fmt: skip


def _rate(value: float) -> dict[str, Any]:
    return {"learning_rate": value, "learning_rate_end": value / 10}


def _baseline(**values: float) -> dict[str, Any]:
    return {"baselines": values}


_RATES = [_rate(1e-4), _rate(3e-5), _rate(3e-4)]
_REGRESSION, _WARMER, _LARGER_CELLS = {"regression_weight": 5.0}, {"temperature": 0.1}, {"cells": {"cell_size_m": 25.0}}
_STRONGER = {"gamma": 1.0, "gamma_scale": "relative"}
_MORE_NEIGHBOURS = {"neighbours_k": 20}
# Changes that are tried one after the other on top of what was best so far; seven for each loss.
TRIALS: dict[str, list[dict[str, Any]]] = {
    "asym+": [*_RATES, _REGRESSION, _WARMER, _STRONGER, _LARGER_CELLS],
    "asym": [*_RATES, _REGRESSION, _WARMER, {"temperature": 0.2}, _LARGER_CELLS],
    "explicit": [*_RATES, _REGRESSION, _WARMER, _STRONGER, _LARGER_CELLS],
    "queue": [*_RATES, _REGRESSION, _WARMER, {"temperature": 0.2}, _LARGER_CELLS],
    "regression": [*_RATES, _rate(1e-5), _rate(1e-3), {"ema_decay": 0.98}, {"weight_decay": 0.1}],
    "csd": [*_RATES, _REGRESSION, _baseline(csd_query_temperature=0.1), _baseline(csd_gallery_temperature=0.05), _MORE_NEIGHBOURS],
    "d3still": [*_RATES, _REGRESSION, _baseline(d3still_alpha=50.0, d3still_beta=2.0), _baseline(d3still_beta=20.0), _MORE_NEIGHBOURS],
    "rop": [*_RATES, _REGRESSION, _baseline(rop_temperature=0.05), _baseline(rop_temperature=0.2), _MORE_NEIGHBOURS],
    "raml": [*_RATES, _REGRESSION, _baseline(raml_symmetric_weight=0.0), _baseline(raml_asymmetric_weight=3.0), {"weight_decay": 0.1}],
    "symmetric": [*_RATES, _baseline(symmetric_beta=20.0), _baseline(symmetric_epsilon=0.2), {"images_per_place": 2}, _LARGER_CELLS],
}


@dataclass(frozen=True)
class Split:
    """Three parts of one dataset, whose positions do not mix."""

    training: Dataset
    database: Dataset
    queries: Dataset


def split_by_position(dataset: Dataset) -> Split:
    """East against west, with a gap between; a position's images stay together.

    Raises ValueError where images have no position, or too few are left.
    """
    if any(record.pose is None for record in dataset.records):
        raise ValueError("every image needs a position")
    xy = np.array([record.pose.position[:2] for record in dataset.records if record.pose is not None])
    positions, of_image = np.unique(xy, axis=0, return_inverse=True)  # ascending in x
    of_image = of_image.reshape(-1)
    east = np.arange(len(positions) - round(EASTERN_SHARE * len(positions)), len(positions))
    distance = np.linalg.norm(positions[:, None] - positions[east][None], axis=2).min(axis=1)
    queries = east[1::3]
    parts = {"training": np.flatnonzero(distance >= GAP_M), "database": np.setdiff1d(east, queries), "queries": queries}
    counts = {name: len(chosen) for name, chosen in parts.items()}
    if min(counts.values()) < 2:
        raise ValueError(f"positions of the split: {counts}; at least 2 for each are needed")

    def images_at(chosen: np.ndarray) -> Dataset:
        records = [dataset.records[i] for i in np.flatnonzero(np.isin(of_image, chosen))]
        return FileDataset(dataset.root, dataset.layout, dataset.map_frame, records)

    return Split(*(images_at(chosen) for chosen in parts.values()))


class Choice:
    """Trains and evaluates on the split; every trial is one JSON file in `out`/trials."""

    def __init__(self, images: Path, gallery_network: str, out: Path, common: dict[str, Any]):
        self.out, self.common, self.evaluation = out, common, EvaluationSettings()
        self.split = split_by_position(open_source(images, SourceSettings()))
        settings = GallerySettings(network=gallery_network, threads=1)
        self.gallery, self.database, self.lists = out / "gallery_training", out / "gallery_database", out / "neighbours"
        for folder in ("trials", "features", "runs"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        if not self.gallery.exists():
            build_gallery(self.split.training, settings, self.gallery)
        if not self.database.exists():
            build_gallery(self.split.database, settings, self.database, projection_from=self.gallery)
        if not self.lists.exists():
            build_neighbours(self.gallery, NeighbourSettings(k=20, threads=1), self.lists)
        self.benchmark = gallery_benchmark(Gallery.open(self.database), self.split.queries, self.evaluation)
        self.truth = positives_of(self.benchmark)

    def trial(self, name: str, loss: str, changes: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Train and evaluate once, unless it was done before."""
        file = self.out / "trials" / f"{name.replace('+', '_plus')}.json"
        settings = make_settings(TrainSettings, **_merged(self.common, {"loss": loss, "seed": SEED, **changes, **more}))
        if file.exists():
            done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if done["settings"] == settings.model_dump(mode="json"):
                return done
        run = self.out / "runs" / file.stem
        shutil.rmtree(run, ignore_errors=True)
        lists = self.lists if loss in NEIGHBOUR_LOSSES and settings.epochs > 0 else None
        started = time.perf_counter()
        train(self.gallery, settings, run, neighbours=lists, features=self.out / "features")
        result = evaluate_run(run, settings, Gallery.open(self.database), self.benchmark, self.truth, self.evaluation)
        shutil.rmtree(run)
        recalls = result["statistics"]["recall_at_k"]
        result = {
            "name": name, "loss": loss, "changes": changes, "settings": settings.model_dump(mode="json"), "recall_at_k": recalls,
            "score": float(np.mean([recalls[str(k)] for k in self.evaluation.k])), "seconds": time.perf_counter() - started,
            "details": {key: result[key] for key in ("fine_tuning", "gamma")},
        }  # fmt: skip
        write_text_atomically(file, json.dumps(result, indent=2) + "\n")
        print(f"{name}: {_percent(recalls)}, {result['seconds']:.0f} s, {changes}", file=sys.stderr, flush=True)
        return result

    def choose(self, loss: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The settings of the loss that were best, and all its trials: the three learning rates, then one change at a time."""
        trials: list[dict[str, Any]] = []
        best: dict[str, Any] | None = None
        for number, change in enumerate(TRIALS[loss]):
            changes = change if best is None else _merged(best["changes"], change)
            trials.append(self.trial(f"{loss}-{number}", loss, changes))
            if best is None or trials[-1]["score"] > best["score"]:
                best = trials[-1]
        assert best is not None
        return best["changes"], trials


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in change.items():
        result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return result


def _percent(recalls: dict[str, float]) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in recalls.values())


def main() -> int:
    """Run the trials and write the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="images with positions: what is to be trained on later")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--gallery-network", default="efficientnet_lite2_gem", metavar="NAME")
    parser.add_argument("--losses", default=",".join(TRIALS), metavar="LOSS,…")
    parser.add_argument("--common", type=json.loads, default={}, metavar="JSON", help="training settings that differ for all losses")
    options = parser.parse_args()
    common = _merged(COMMON, options.common)
    choice = Choice(options.images, options.gallery_network, options.out, common)
    aligned = choice.trial("aligned", "regression", {}, epochs=0)
    chosen, trials = {}, [aligned]
    for loss in options.losses.split(","):
        changes, own = choice.choose(loss)
        chosen[loss] = _merged({key: value for key, value in common.items() if isinstance(value, dict) and key in changes}, changes)
        trials += own
    write_text_atomically(options.out / "chosen.yaml", yaml.safe_dump({"train": common, "comparison": {"overrides": chosen}}))
    record = {"machine": machine.describe("torch"), "arguments": sys.argv[1:], "trials": trials}
    write_text_atomically(options.out / "trials.json", json.dumps(record, indent=2) + "\n")
    counts = ", ".join(f"{len(part.records)} {name}" for name, part in vars(choice.split).items())
    lines = [f"Images: {counts}; seed {SEED}.", "", "| trial | changes | Recall@1/5/10 % | mean |", "|---|---|---|---|"]
    lines += [f"| {t['name']} | {json.dumps(t['changes'])} | {_percent(t['recall_at_k'])} | {100 * t['score']:.1f} |" for t in trials]
    write_text_atomically(options.out / "trials.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
