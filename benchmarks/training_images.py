"""Images a second that the training's loader gives, beside those that the network trains on.

    python benchmarks/training_images.py --images 64 --out out/training_images.json

Made-up JPEG pictures of three sizes, augmented by the default settings to the query network's input; and steps of that
network, forward and backward, with none, half and all of its blocks frozen. Rates count the own time of a process of one
thread: they say what one core does, also on a machine that is busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from machine import describe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from asymvpr_core.config import TrainSettings
from asymvpr_core.image_decoding import read_image
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.training.data import GalleryImages

SIZES = ((320, 320), (640, 480), (1920, 1080))


def make_pictures(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Pictures of smooth patches with noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        smooth = cv2.resize(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f"{number}.jpg")
        cv2.imwrite(str(paths[-1]), np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8))
    return paths


def rate(function: Callable[[int], object], count: int, repeats: int) -> float:
    """Calls of `function(i)` a second of this process's own time, so that a busy machine counts less; median of the repeats."""
    rates = []
    for _ in range(repeats):
        begin = time.process_time()
        for index in range(count):
            function(index)
        rates.append(count / (time.process_time() - begin))
    return statistics.median(rates)


def step_rate(name: str, frozen_share: float, batch: int, repeats: int) -> float:
    """Images a second of steps, in this process's own time."""
    spec = network_spec(name)
    network = QueryNetwork(spec, 256).train()
    network.freeze(frozen_share)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    images = torch.randn(batch, 3, spec.preprocess.height, spec.preprocess.width)

    def step(_: int) -> None:
        optimiser.zero_grad()
        network(images).square().mean().backward()
        optimiser.step()

    return batch * rate(step, 1, repeats)


def main() -> int:
    """Measure and print the table; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="pictures of each size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--query-network", default=TrainSettings().query_network)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    settings, loaded = TrainSettings(), {}
    preprocess = network_spec(options.query_network).preprocess
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            paths = make_pictures(Path(folder), size, options.images)
            descriptors = np.zeros((len(paths), 256), np.float32)
            gallery = SimpleNamespace(read_image=lambda i, paths=paths: read_image(paths[i]), descriptors=descriptors)
            images = GalleryImages(gallery, np.zeros(len(paths), np.int64), preprocess, settings.augmentation)  # type: ignore[arg-type]
            whole = rate(lambda i, images=images: images[(0, i)], len(paths), options.repeats)  # type: ignore[misc]
            loaded[f"{size[0]} x {size[1]}"] = {"decoded": rate(gallery.read_image, len(paths), options.repeats), "augmented": whole}
    trained = {share: step_rate(options.query_network, share, options.batch, options.repeats) for share in (0.0, 0.5, 1.0)}
    print("| pictures [px] | decoded alone, images/s of one core | decoded and augmented |\n|---|---|---|")
    for name, rates in loaded.items():
        print(f"| {name} | {rates['decoded']:.0f} | {rates['augmented']:.0f} |")
    print(f"\n| frozen_share | {options.query_network} trains on, images/s of one core |\n|---|---|")
    for share, value in trained.items():
        print(f"| {share:g} | {value:.0f} |")
    if options.out is not None:
        record = describe("torch", "torchvision") | {
            "arguments": sys.argv[1:],
            "loaded": loaded,
            "trained": trained,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
