"""Recall of heavy-heavy, random, aligned and trained query networks against one heavy gallery.

    python benchmarks/asymmetric_recall.py --train SITE/train --database SITE/val/database \\
        --queries SITE/val/queries --out out/street --recipe small_site --seeds 0 1 2

Every step is an `asymvpr` command, printed as it runs. The gallery network's projection is fitted on
`--train` and re-used for `--database`, so that nothing of the evaluation set is seen before. With the
same folder as --train and --database it measures the adaptation to a site. Finished steps are kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

QUERY_NETWORKS = {
    "random head": ["--init", "random", "--epochs", "0"],
    "aligned in closed form": ["--epochs", "0"],
    "trained (L_asym+)": [],
}


def asymvpr(out: Path, *words: str) -> Path:
    """Run one command unless its result is there; returns the result."""
    command = [sys.executable, "-m", "asymvpr_core", *words, "--out", str(out)]
    if not out.exists():
        print("$ asymvpr", shlex.join(command[3:]), file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def recall(out: Path, gallery: Path, options: argparse.Namespace, *encoder: str) -> dict[str, float]:
    """Recall@K in percent, by K."""
    words = ["evaluate", "recall", "--gallery", str(gallery), "--queries", str(options.queries), *encoder]
    result = asymvpr(out, *words, "--radius-m", str(options.radius_m), "--k", "1,5,10")
    metrics = json.loads((result / "metrics.json").read_text(encoding="utf-8"))
    return {k: 100 * value for k, value in metrics["recall_at_k"].items()}


def main() -> int:
    """Measure and print the table; `out/recall.json` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "database", "queries", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipe", default="small_site")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--radius-m", type=float, default=25.0)
    options = parser.parse_args()
    out: Path = options.out
    training = asymvpr(out / "gallery_train", "gallery", "build", str(options.train), "--network", "efficientnet_lite2_gem")
    gallery = training
    if options.database.resolve() != options.train.resolve():
        borrowed = ["--network", "efficientnet_lite2_gem", "--projection-from", str(training)]
        gallery = asymvpr(out / "gallery_database", "gallery", "build", str(options.database), *borrowed)
    rows = {"gallery network on both sides": [recall(out / "recall_heavy", gallery, options, "--network", "efficientnet_lite2_gem")]}
    for number, (name, flags) in enumerate(QUERY_NETWORKS.items()):
        rows[name] = []
        for seed in options.seeds:
            where = out / f"query_{number}_seed_{seed}"
            run = asymvpr(where / "run", "train", str(training), "--recipe", options.recipe, "--seed", str(seed), *flags)
            model = asymvpr(where / "model", "export", str(run))
            rows[name].append(recall(where / "recall", gallery, options, "--model", str(model)))
    report(rows, out, options)
    return 0


def report(rows: dict[str, list[dict[str, float]]], out: Path, options: argparse.Namespace) -> None:
    """Print mean and sample deviation over seeds as Markdown, and write all values."""
    print("| query side | Recall@1 % | Recall@5 % | Recall@10 % | runs |\n|---|---|---|---|---|")
    for name, runs in rows.items():
        cells = []
        for k in ("1", "5", "10"):
            values = [run[k] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        print(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {"commit": commit, "machine": platform.processor() or platform.machine(), "arguments": sys.argv[1:], "recall_percent": rows}
    (out / "recall.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
