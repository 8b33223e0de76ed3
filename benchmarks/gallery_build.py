"""How close a gallery build comes to the network's bare forward pass, side by side on the same images.

    python benchmarks/gallery_build.py --network dinov2_salad
    python benchmarks/gallery_build.py --network efficientnet_lite2_gem --source street/val/database

Without --source, the images are made up: JPEG files of 640x480. Weights are random, which costs the same.

Each round describes the same images twice: by the build's own code (reading, decoding, resizing, network,
chunks on disk), and by the network alone on inputs that lie ready in memory, in batches of the same size.
The order alternates. Loading the network is in neither.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from made_up import made_up_pictures
from record import Record, interleaved, spread

from asymvpr_core.config import GallerySettings, SourceSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.source import open_source
from asymvpr_core.gallery.describe import describe
from asymvpr_core.networks.checkpoints import LoadReport
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import LoadedNetwork, random_network
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.progress import silent


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, metavar="DIR")
    parser.add_argument("--network", default="dinov2_salad", metavar="NAME")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    settings = GallerySettings(network=options.network, threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(options.source or made_up_pictures(Path(folder), options.images), SourceSettings())
        source.records = source.records[: options.images]
        return compare(source, settings, options)


def compare(source: Dataset, settings: GallerySettings, options: argparse.Namespace) -> int:
    """Describe the images in both ways, in turn."""
    spec = network_spec(options.network)
    network = LoadedNetwork(spec, random_network(spec, seed=0).eval(), "0" * 64, LoadReport(used=0))
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

    times = interleaved({"build": build, "bare": bare}, options.rounds)
    build_s, bare_s = statistics.median(times["build"]), statistics.median(times["bare"])
    count = len(source.records)
    record = Record(
        "gallery_build", "Building a gallery beside the bare forward pass",
        f"{count} images described by the build's own code (reading, decoding, resizing, network, chunks on disk) and by the network "
        f"alone on inputs that lie in memory, in batches of {settings.batch_size}, {options.threads} threads, {options.rounds} rounds in "
        "turn. Loading the network is in neither.", "torch",
    )  # fmt: skip
    rates = [spread([count / s for s in times[name]], digits=2) for name in ("build", "bare")]
    columns = ["network", "images", "build [images/s]", "forward pass alone [images/s]", "ratio"]
    record.table("Throughput", columns, [[f"`{options.network}`", count, *rates, f"{bare_s / build_s:.3f}"]])
    record.aim(f"gallery build / bare forward pass, {options.network}", bare_s / build_s, 0.95, at_most=False)
    record.values(seconds=times)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
