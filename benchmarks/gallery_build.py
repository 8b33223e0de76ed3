"""How close a gallery build comes to the network's bare forward pass, side by side on the same images.

    asymvpr networks random dinov2_salad --out random.safetensors
    python benchmarks/gallery_build.py --source street/val/database --network dinov2_salad --weights random.safetensors

Each round describes the same images twice: by the build's own code (reading, decoding, resizing, network,
chunks on disk), and by the network alone on inputs that lie ready in memory, in batches of the same size.
The order alternates. Loading the network is in neither.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import torch

from asymvpr_core.config import GallerySettings, SourceSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.gallery.describe import describe
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import load_network
from asymvpr_core.progress import silent


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--network", default="efficientnet_lite2_gem", metavar="NAME")
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    settings = GallerySettings(network=options.network, threads=options.threads)
    source = open_source(options.source, SourceSettings())
    source.records = source.records[: options.images]
    network = load_network(options.network, options.weights)
    inputs = np.stack([network.spec.preprocess(image) for _, image in source.read_images(list(range(len(source.records))))])

    def build() -> float:
        with tempfile.TemporaryDirectory() as work:
            begin = time.perf_counter()
            describe(source, settings, network, Path(work), silent)
            return time.perf_counter() - begin

    def bare() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(inputs), settings.batch_size):
                network.module(torch.from_numpy(inputs[start : start + settings.batch_size]))
        return time.perf_counter() - begin

    bare()
    times: dict[str, list[float]] = {"build": [], "bare": []}
    for number in range(options.rounds):
        for name, run in (("build", build), ("bare", bare)) if number % 2 == 0 else (("bare", bare), ("build", build)):
            times[name].append(run())
    build_s, bare_s = statistics.median(times["build"]), statistics.median(times["bare"])
    made = machine.describe("torch")
    print(f"commit {made['commit']}; {made['processor']}, {made['cores']} cores; {options.threads} threads")
    print(f"batches of {settings.batch_size}, {options.rounds} rounds\n")
    print("| network | images | build [images/s] | forward pass alone [images/s] | ratio |\n|---|---|---|---|---|")
    count = len(source.records)
    print(f"| `{options.network}` | {count} | {count / build_s:.2f} | {count / bare_s:.2f} | {bare_s / build_s:.3f} |")
    if options.json is not None:
        record = {"made_with": made, "arguments": sys.argv[1:], "seconds": times, "ratio": bare_s / build_s}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
