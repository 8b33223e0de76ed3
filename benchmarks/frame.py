"""From a camera frame to a match: through the core beside the bare encoder, and through the live node over ROS 2.

    python benchmarks/frame.py --keyframes 10000 --out out/frame.json

The core's ways take turns in this process. For the node, a process of its own gets raw frames one after the other over
ROS 2 (a private domain, the shipped Fast DDS profile); a frame's time runs from its publication to the arrival of its
candidates, and the node's own part is what it says in its diagnostics. Without rclpy the node is left out.
"""

from __future__ import annotations

import argparse
import array
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import faiss
import numpy as np
from made_up import clustered_rows, jpeg, made_up_gallery, made_up_model, picture
from PIL import Image as PillowImage
from record import Record, interleaved, spread

from asymvpr_core.config import IndexSettings, MatcherSettings, RuntimeSettings
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import QueryFrame

WIDTH, HEIGHT = 640, 480
DEADLINE_S = 60.0
ENVIRONMENT = {
    "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    "FASTDDS_DEFAULT_PROFILES_FILE": str(Path(__file__).resolve().parents[1] / "config" / "fastdds_shm.xml"),
    "OMP_NUM_THREADS": "1",
}


def eager_torch(network: str, dimension: int, run: Path, rows: np.ndarray) -> Callable[[bytes], object]:
    """Pillow, torch as it comes, and a flat index: what a first script would do."""
    import torch

    from asymvpr_core.networks.query import QueryNetwork
    from asymvpr_core.networks.registry import network_spec

    torch.set_num_threads(1)
    spec = network_spec(network)
    module = QueryNetwork(spec, dimension)
    module.load(run / "weights.safetensors")
    module.eval()
    index = faiss.IndexFlatIP(dimension)
    index.add(rows)
    mean, std = (np.array(values, np.float32) for values in (spec.preprocess.mean, spec.preprocess.std))

    def process(data: bytes) -> object:
        size = (spec.preprocess.width, spec.preprocess.height)
        resized = np.asarray(PillowImage.open(io.BytesIO(data)).convert("RGB").resize(size, PillowImage.Resampling.BILINEAR), np.float32)
        inputs = np.ascontiguousarray(((resized / 255 - mean) / std).transpose(2, 0, 1))[None]
        with torch.inference_mode():
            return index.search(module(torch.from_numpy(inputs)).numpy(), 5)

    return process


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Seconds of one call of `function`."""

    def run() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return run


def through_the_core(model: Path, gallery: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a frame in each way, in turn."""
    recogniser = PlaceRecogniser.open(gallery, model, MatcherSettings(), RuntimeSettings(threads=1))
    image = picture(0, WIDTH, HEIGHT)
    data, stamps = jpeg(image), iter(range(10**9, 10**15, 10**8))
    inputs = recogniser.model.preprocess.resize(image)[None]
    starts = range(0, options.keyframes, 1024)
    rows = np.concatenate([clustered_rows(min(1024, options.keyframes - start), options.dimension, start) for start in starts])
    script = eager_torch(options.network, options.dimension, model.with_name("model_run"), rows)
    methods: dict[str, Callable[[], object]] = {
        "bare encoder, input ready": lambda: recogniser.model.encode_batch(inputs),
        "raw frame to match": lambda: recogniser.process(image, QueryFrame(next(stamps))),
        "JPEG to match": lambda: recogniser.process(decode_image(data, "frame"), QueryFrame(next(stamps))),
        "JPEG to match with Pillow, eager torch, flat index": lambda: script(data),
    }
    return interleaved({name: timed(method) for name, method in methods.items()}, options.rounds)


def through_the_node(gallery: Path, model: Path, frames: int, log: Path) -> dict[str, list[float]]:
    """Seconds from publication to answer of single frames, and the node's own share of them as it reports it."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PoseArray
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    parameters = {"gallery_path": gallery, "model_path": model, "threads": 1, "max_image_age_s": 0.0}
    words = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    with open(log, "w", encoding="utf-8") as output:
        node = subprocess.Popen(
            [sys.executable, "-m", "asymvpr_ros.place_recognition_node", "--ros-args", *words], stdout=output, stderr=subprocess.STDOUT
        )
    rclpy.init()
    try:
        graph = rclpy.create_node("benchmark")
        publisher = graph.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
        answered: set[int] = set()
        reported: dict[str, str] = {}
        graph.create_subscription(PoseArray, "place_match/candidates", lambda m: answered.add(m.header.stamp.sec), 5)

        def listen(message: DiagnosticArray) -> None:
            reported.update({item.key: item.value for status in message.status for item in status.values})

        graph.create_subscription(DiagnosticArray, "/diagnostics", listen, 10)
        until(graph, lambda: publisher.get_subscription_count() > 0 and reported.get("state") == "active", log)
        data = array.array("B")
        data.frombytes(picture(0, WIDTH, HEIGHT).tobytes())
        image = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=data)
        seconds = []
        for number in range(1, frames + 4):  # the first three warm up
            image.header.stamp.sec = number
            begin = time.perf_counter()
            publisher.publish(image)
            until(graph, lambda number=number: number in answered, log)
            seconds.append(time.perf_counter() - begin)
        until(graph, lambda: int(reported.get("frames_processed", "0")) >= frames + 3, log)
        return {"publication to answer": seconds[3:], "inside the node": [float(reported["latency_ms_p50"]) / 1e3]}
    finally:
        rclpy.try_shutdown()
        node.send_signal(signal.SIGINT)
        try:
            node.wait(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()


def until(graph: object, holds: Callable[[], bool], log: Path) -> None:
    """Spin until `holds`. Raises TimeoutError with what the node printed."""
    import rclpy

    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the node did not answer; it printed:\n{log.read_text(encoding='utf-8')}")
        rclpy.spin_once(graph, timeout_sec=0.2)


def main() -> int:
    """Measure and print; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilevitv2_100_boq", metavar="NAME")
    parser.add_argument("--dimension", type=int, default=12288)
    parser.add_argument("--keyframes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    cv2.setNumThreads(1)
    record = Record(
        "frame", "From a frame to a match",
        f"`{options.network}`, random weights, against {options.keyframes} keyframes of {options.dimension}-D, frames of {WIDTH}x{HEIGHT}, "
        f"one thread; milliseconds, median (smallest to largest) of {options.rounds} rounds in turn.",
        "onnxruntime", "torch", "faiss-cpu",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        model = made_up_model(Path(work) / "model", options.network, options.dimension)
        gallery = made_up_gallery(Path(work) / "gallery", options.keyframes, options.dimension)
        index_gallery(gallery, IndexSettings())
        found = through_the_core(model, gallery, options)
        bare, raw, compressed, plain = (statistics.median(values) for values in found.values())
        record.table(
            "Through the core", ["way", "ms", "/ bare encoder"],
            [[name, spread(values, 1e3), f"{statistics.median(values) / bare:.2f}"] for name, values in found.items()],
        )  # fmt: skip
        record.aim("raw frame to match / bare encoder", raw / bare, 1.05, at_most=True)
        record.aim("JPEG to match / bare encoder", compressed / bare, 1.10, at_most=True)
        record.aim("Pillow, eager torch and a flat index / JPEG to match", plain / compressed, 2.0, at_most=False)
        record.values(core_seconds=found)
        if find_spec("rclpy") is None:
            record.aim("frame to answer through the node / raw frame to match", None, 1.15, at_most=True)
        else:
            live = through_the_node(gallery, model, options.rounds, Path(work) / "node.log")
            whole, inside = statistics.median(live["publication to answer"]), live["inside the node"][0]
            lines = [
                ["publication to answer", spread(live["publication to answer"], 1e3), f"{whole / raw:.2f}"],
                ["of this, inside the node: arrival to answer", f"{1e3 * inside:.1f}", f"{inside / raw:.2f}"],
                ["transport, both ways", f"{1e3 * (whole - inside):.1f}", f"{(whole - inside) / raw:.2f}"],
                ["inside the node, beyond the core's work", f"{1e3 * (inside - raw):.1f}", f"{(inside - raw) / raw:.2f}"],
            ]
            record.table("Through the live node, raw frames", ["part", "ms", "/ raw frame to match in the core"], lines)
            record.aim("frame to answer through the node / raw frame to match", whole / raw, 1.15, at_most=True)
            record.values(node_seconds=live)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
