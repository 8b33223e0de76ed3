"""Memory and processor share of a robot that recognises places at 2 and 10 Hz, beside a bag of binary words.

    python benchmarks/robot_cost.py --keyframes 10000 --out out/robot_cost.json

Each system is a process of its own that takes frames of 640x480 at a fixed rate for some seconds; where ROS 2 is
installed, the live node with its messages as well. The bag of words
stands for what a user might otherwise pick: OpenCV's ORB, a vocabulary of binary words, and FAISS's search among the
keyframes' word histograms (tf-idf). It is a reference for cost only: nothing is said here of what it recognises.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import faiss
import machine
import node_load
import numpy as np
from made_up import made_up_gallery, made_up_model, picture
from record import Record, child_json

from asymvpr_core.config import IndexSettings
from asymvpr_core.retrieval.building import index_gallery

FEATURES, WORDS, VOCABULARY_FRAMES = 500, 4096, 40


def asymvpr(model: Path, gallery: Path) -> Callable[[np.ndarray], object]:
    """The package's own recogniser."""
    from asymvpr_core.config import MatcherSettings, RuntimeSettings
    from asymvpr_core.retrieval.recogniser import PlaceRecogniser
    from asymvpr_core.types import QueryFrame

    recogniser = PlaceRecogniser.open(gallery, model, MatcherSettings(), RuntimeSettings(threads=1))
    stamps = iter(range(10**9, 10**15, 10**8))
    return lambda image: recogniser.process(image, QueryFrame(next(stamps)))


def bag_of_words(keyframes: int) -> Callable[[np.ndarray], object]:
    """ORB features, the nearest word of each, and the best of `keyframes` histograms."""
    orb = cv2.ORB_create(FEATURES)
    described = [orb.detectAndCompute(cv2.cvtColor(picture(seed), cv2.COLOR_RGB2GRAY), None)[1] for seed in range(VOCABULARY_FRAMES)]
    pool = np.unique(np.concatenate(described), axis=0)
    words = faiss.IndexBinaryFlat(256)
    words.add(pool[np.random.default_rng(0).permutation(len(pool))[:WORDS]])
    count = words.ntotal
    weights = np.random.default_rng(1).uniform(0.5, 4.0, count).astype(np.float32)  # tf-idf; which, does not change the cost
    # A histogram has at most FEATURES entries that are not zero: inverted lists hold them, as DBoW does.
    generator = np.random.default_rng(2)
    lists = [generator.integers(0, keyframes, max(1, keyframes * FEATURES // count)).astype(np.int32) for _ in range(count)]
    entries = [np.full(len(rows), 1.0 / FEATURES, np.float32) for rows in lists]

    def process(image: np.ndarray) -> np.ndarray:
        features = orb.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)[1]
        found, times = np.unique(words.search(features, 1)[1], return_counts=True)
        scores = np.zeros(keyframes, np.float32)
        for word, number in zip(found.tolist(), times.tolist(), strict=True):
            np.add.at(scores, lists[word], entries[word] * (weights[word] * number / FEATURES))
        return np.argpartition(scores, -5)[-5:]

    return process


def measure(process: Callable[[np.ndarray], object], rate_hz: float, seconds: float) -> dict[str, float]:
    """Take frames at `rate_hz` in this process: memory, processor share of one core, frames that were late."""
    frames = [picture(seed) for seed in range(8)]
    for frame in frames[:3]:
        process(frame)
    late, taken = 0, 0
    begin, used = time.perf_counter(), time.process_time()
    while (now := time.perf_counter() - begin) < seconds:
        due = taken / rate_hz
        if now < due:
            time.sleep(due - now)
        elif taken and now > due + 1 / rate_hz:
            late += 1
        process(frames[taken % len(frames)])
        taken += 1
    elapsed = time.perf_counter() - begin
    return {"frames": taken, "late": late, "cpu_share": (time.process_time() - used) / elapsed, "memory_mb": machine.resident_bytes() / 1e6}


def main() -> int:
    """Measure and print; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", default=["mobilevitv2_100_boq:12288", "efficientnet_lite0_gem:512"], metavar="NAME:DIMENSION"
    )
    parser.add_argument("--keyframes", type=int, default=10_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 10.0], metavar="HZ")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--without-node", action="store_true", help="leave the live node out")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # model or "-", gallery or "-", rate
    options = parser.parse_args()
    if options.measure is not None:
        model, gallery, rate = options.measure
        cv2.setNumThreads(1)
        faiss.omp_set_num_threads(1)
        process = bag_of_words(options.keyframes) if model == "-" else asymvpr(Path(model), Path(gallery))
        print(json.dumps(measure(process, float(rate), options.seconds)))
        return 0
    record = Record(
        "robot_cost", "What a robot pays",
        f"{options.keyframes} keyframes, frames of 640x480 at a fixed rate for {options.seconds:g} s, one thread, each system in a process "
        f"of its own. The share is of one core. The bag of words has {FEATURES} ORB features a frame, {WORDS} binary words and inverted "
        "lists; it stands for cost only.", "onnxruntime", "faiss-cpu", "opencv-python-headless",
    )  # fmt: skip
    rows, values = [], {}
    with_node = not options.without_node and importlib.util.find_spec("rclpy") is not None
    with tempfile.TemporaryDirectory() as work:
        systems: dict[str, tuple[str, str]] = {}
        for text in options.networks:
            name, dimension = text.rsplit(":", 1)
            gallery = made_up_gallery(Path(work) / f"gallery_{name}", options.keyframes, int(dimension))
            index_gallery(gallery, IndexSettings())
            systems[f"`{name}`, {dimension}-D"] = (str(made_up_model(Path(work) / f"model_{name}", name, int(dimension))), str(gallery))
        systems["ORB bag of words"] = ("-", "-")
        for label, (model, gallery_path) in systems.items():
            for rate in options.rates:
                words = ["--keyframes", str(options.keyframes), "--seconds", str(options.seconds)]
                command = [sys.executable, __file__, "--measure", model, gallery_path, str(rate), *words]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                result = child_json(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
                values[f"{label} at {rate:g} Hz"] = result
                rows.append([label, f"{rate:g}", f"{100 * result['cpu_share']:.0f} %", f"{result['memory_mb']:.0f}", result["late"]])
                if model != "-" and with_node:
                    node = node_load.measure(
                        Path(gallery_path), Path(model), width=640, height=480, rate_hz=rate, seconds=options.seconds, threads=1
                    )
                    values[f"{label}, live node at {rate:g} Hz"] = node
                    missed = node["sent"] - node["processed"]
                    cells = [f"{100 * node['node_cpu_share']:.0f} %", f"{node['node_memory_mb']:.0f}", missed]
                    rows.append([f"{label}, live node", f"{rate:g}", *cells])
    record.table("Cost", ["system", "Hz", "share of a core", "memory MB", "frames late or dropped"], rows)
    record.values(results=values)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
