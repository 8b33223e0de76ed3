"""What becomes of trainings that are killed: SIGKILL at random moments, the same command again, the weights compared.

    nice python benchmarks/kill_training.py --kills 60 --out out/kills.json
    nice python benchmarks/kill_training.py --kills 10 --devices 2 --out out/kills_ddp.json

Made-up pictures, a small gallery, a network at 64 pixels, three epochs. A run is started and killed after a time
drawn from 0 to 1.2 times that of an undisturbed run, started again and killed again, until it finishes; then the next run
begins, until there were `--kills` kills. Every finished run is compared with the undisturbed one. With one device every
start is a fork of a process that has imported everything and computed nothing, as a new process would be.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from killing import finish, killed_after, make_pictures, start
from machine import describe
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from asymvpr_core.config import GallerySettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.manifest import read_manifest
from asymvpr_core.training.run import train

# Everything with a state that a kill could lose: queue, moving average, accumulated gradients, augmentation.
SETTINGS = TrainSettings(
    query_network="efficientnet_lite0_gem_64px", loss="queue", queue_capacity=6, regression_weight=1.0, ema_decay=0.9, accumulate_batches=2,
    gradient_clip=1.0, epochs=3, batch_size=4, alignment_copies=1, frozen_share=0.8, validation_share=0.3, validation_views=2, workers=0,
    learning_rate=1e-3, threads=1, accelerator="cpu",
)  # fmt: skip


def stage(out: Path) -> str:
    """How far a run was when it was killed, by what it left."""
    work = out.with_name(out.name + ".partial")
    if not any(work.glob("*")):
        return "before anything was written"
    if not (work / "checkpoints" / "last.ckpt").exists():
        aligned = any(work.glob("features_*.npy"))
        return "first epoch, after the alignment" if aligned else "bank and alignment"
    return "writing the result" if any((work / "staging").glob("*")) else "after a checkpoint"


def difference(run: Path, reference: Path) -> float:
    """Largest difference of a weight."""
    mine, theirs = (load_file(path / "weights.safetensors") for path in (run, reference))
    if mine.keys() != theirs.keys():
        return float("inf")
    return max(float(np.abs(mine[name].astype(np.float64) - theirs[name]).max(initial=0.0)) for name in mine)


def same_choice(run: Path, reference: Path) -> bool:
    """Whether the best epoch and its recall, and the rows of the metrics (to 1e-4), are those of the undisturbed run."""
    details = [read_manifest(path, "run").details["fine_tuning"] for path in (run, reference)]
    mine, theirs = (np.genfromtxt(path / "metrics.csv", delimiter=",", skip_header=1) for path in (run, reference))
    equal = mine.shape == theirs.shape and np.allclose(mine, theirs, atol=1e-4, equal_nan=True)
    return equal and all(details[0][name] == details[1][name] for name in ("epoch", "val_recall_at_1"))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    settings = SETTINGS.model_copy(update={"devices": options.devices, "batch_size": SETTINGS.batch_size // options.devices})
    gallery, rng = folder / "gallery", np.random.default_rng(options.seed)
    pictures = make_pictures(folder / "pictures")
    finish(start(lambda: build_gallery(open_source(pictures), GallerySettings(projection_dim=8, threads=1), gallery)))
    begin = time.perf_counter()
    finish(start(lambda: train(gallery, settings, folder / "undisturbed")))
    usual_s = time.perf_counter() - begin
    kills: list[str] = []
    runs: list[dict[str, object]] = []
    killed = 0
    while len(kills) < options.kills or killed > 0:
        out = folder / f"run_{len(runs)}"
        child = start(lambda out=out: train(gallery, settings, out))  # type: ignore[misc]
        pause_s = float(rng.uniform(0.0, 1.2 * usual_s)) if len(kills) < options.kills else np.inf
        if killed_after(child, pause_s):
            kills.append("after the result had its name" if out.exists() else stage(out))
            killed += 1
            if not out.exists():
                continue
        runs.append(
            {"kills": killed, "difference": difference(out, folder / "undisturbed"), "same": same_choice(out, folder / "undisturbed")}
        )
        killed = 0
    return {"undisturbed_s": usual_s, "kills": dict(Counter(kills)), "runs": runs}


def report(result: dict) -> None:
    print("| killed | times |\n|---|---|")
    for name, count in sorted(result["kills"].items()):
        print(f"| {name} | {count} |")
    worst = max(run["difference"] for run in result["runs"])
    same = sum(run["same"] for run in result["runs"])
    print(f"\n{sum(result['kills'].values())} kills in {len(result['runs'])} runs of {result['undisturbed_s']:.1f} s. Largest difference")
    print(f"of a weight to the undisturbed run: {worst:.2g}. Best epoch, its recall and all metrics equal: {same} runs.")


def main() -> int:
    """Kill, compare and print the table; `--out` keeps every value. Exit code 1 where a run ended elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--devices", type=int, default=1, help="processes of the training", choices=(1, 2))
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference of a weight that is numerical noise")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="where the runs are written for the time of the measurement", metavar="DIR")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(options, Path(folder))
    report(result)
    if options.out is not None:
        record = describe("numpy", "torch", "lightning") | {"arguments": sys.argv[1:], **result}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(any(run["difference"] > options.tolerance or not run["same"] for run in result["runs"]))


if __name__ == "__main__":
    sys.exit(main())
