"""What each step from a camera's message to the network's input costs: decoding, resizing, normalising.

    python benchmarks/preprocess.py --out out/preprocess.json

The package's own way beside the obvious ones, in turn, one thread, for JPEG and raw frames of two sizes.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from made_up import jpeg, picture
from PIL import Image
from record import Record, interleaved, spread

from asymvpr_core.image_decoding import decode_image
from asymvpr_core.networks.registry import network_spec

SIZES = ((640, 480), (1920, 1080))


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Seconds of one call of `function`."""

    def run() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return run


def main() -> int:
    """Measure and print; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="efficientnet_lite0_gem", help="whose input size and normalisation are used", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    preprocess = network_spec(options.network).preprocess
    size = (preprocess.width, preprocess.height)
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    record = Record(
        "preprocess", "From a message to the network's input",
        f"Input of `{options.network}`, {size[0]}x{size[1]}. Milliseconds, median (smallest to largest) of {options.rounds} rounds in "
        "turn, one thread. Pictures are made up, JPEG of quality 90.", "opencv-python-headless", "pillow",
    )  # fmt: skip
    rows, seconds = [], {}
    for width, height in SIZES:
        image = picture(0, width, height)
        data = jpeg(image)
        shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)

        def with_pillow(data: bytes = data) -> np.ndarray:
            resized = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float32)
            return np.ascontiguousarray(((resized / 255 - mean) / std).transpose(2, 0, 1))

        methods: dict[str, Callable[[], object]] = {
            "decode a JPEG": lambda data=data: decode_image(data, "frame"),
            "resize and normalise a raw frame": lambda image=image: preprocess(image),
            "of this, normalise": lambda shrunk=shrunk: preprocess(shrunk),
            "JPEG to input": lambda data=data: preprocess(decode_image(data, "frame")),
            "JPEG to input, Pillow and numpy": with_pillow,
        }
        found = interleaved({name: timed(method) for name, method in methods.items()}, options.rounds)
        whole = statistics.median(found["JPEG to input"])
        for name, values in found.items():
            rows.append([f"{width}x{height}", name, spread(values, 1e3, 2), f"{statistics.median(values) / whole:.2f}"])
        seconds[f"{width}x{height}"] = found
        pillow = statistics.median(found["JPEG to input, Pillow and numpy"]) / whole
        record.aim(f"JPEG to input, {width}x{height}: Pillow and numpy / ours", pillow, 1.0, at_most=False)
    record.table("Steps", ["picture", "step", "ms", "share of JPEG to input"], rows)
    record.values(seconds=seconds)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
