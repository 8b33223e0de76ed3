"""What the live node makes of camera streams: images sent, received, matched, dropped, and how long an answer takes.

    python benchmarks/node_load.py --gallery map --model model
    python benchmarks/node_load.py --seconds 30 --out node_load.json
    python benchmarks/node_load.py --gallery map --model model

Needs rclpy on Fast DDS. Cameras and node are processes of their own, raw best-effort images with the shipped Fast DDS
profile; with --compressed JPEGs. The pictures are noise of one gallery's size: matching costs the same, and nothing is
accepted. Prints a Markdown table; counts are the node's own, from /diagnostics.
"""

from __future__ import annotations

import argparse
import array
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from live_node import PROFILE, cpu_s, node_words, private_domain, running
from made_up import made_up_gallery, made_up_model
from record import Record

# width, height, rate of each camera [Hz], cameras
STREAMS = ((640, 480, 30.0, 1), (1920, 1080, 15.0, 1), (640, 480, 30.0, 4))
READY_S = 60.0


def send(width: int, height: int, rate_hz: float, cameras: int, seconds: float, compressed: bool) -> int:
    """Publish the streams for `seconds` once every camera has its subscriber; images sent. Runs in a process of its own."""
    import cv2
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, Image

    rclpy.init()
    node = rclpy.create_node("cameras")
    kind, suffix = (CompressedImage, "image/compressed") if compressed else (Image, "image")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publishers = [node.create_publisher(kind, f"camera{i}/{suffix}", qos) for i in range(cameras)]
    deadline = time.monotonic() + READY_S
    while not all(publisher.get_subscription_count() for publisher in publishers):
        if time.monotonic() > deadline:
            raise SystemExit("the node does not subscribe")
        time.sleep(0.05)
    time.sleep(1.0)  # the subscriber's side of the discovery
    small = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    data = array.array("B")
    data.frombytes(cv2.imencode(".jpg", picture)[1].tobytes() if compressed else picture.tobytes())
    if compressed:
        image = CompressedImage(format="jpeg", data=data)
    else:
        image = Image(height=height, width=width, encoding="rgb8", step=3 * width, data=data)
    begin, sent = time.monotonic(), 0
    while (ahead := begin + sent / rate_hz) < begin + seconds:
        time.sleep(max(0.0, ahead - time.monotonic()))
        for publisher in publishers:
            image.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(image)
        sent += 1
    time.sleep(1.0)
    rclpy.shutdown()
    return sent * cameras


def measure(
    gallery: Path,
    model: Path,
    *,
    width: int,
    height: int,
    rate_hz: float,
    cameras: int = 1,
    seconds: float = 10.0,
    compressed: bool = False,
    threads: int = 1,
    profile: Path | None = PROFILE,
) -> dict[str, Any]:
    """Counts of the node (sent, received, processed, dropped, failed), latency [ms], its CPU seconds a second of stream, its memory.

    Raises:
        RuntimeError: the node did not become active, with the end of its log.
    """
    environment = private_domain(profile)
    names = ",".join(f"camera{i}" for i in range(cameras))
    arguments = {
        "gallery_path": gallery,
        "model_path": model,
        "camera_names": f"[{names}]",
        "transport": "compressed" if compressed else "raw",
        "threads": threads,
    }
    stream = [str(width), str(height), str(rate_hz), str(cameras), str(seconds), str(int(compressed))]
    with tempfile.TemporaryDirectory() as folder:
        recording, log = Path(folder) / "recording.jsonl", Path(folder) / "node.log"
        recorder_words = ["-m", "asymvpr_ros.match_recorder", "--out", str(recording)]
        with running(node_words(arguments), environment, log) as node, running(recorder_words, environment):
            before = _wait_for_status(recording, node, log)
            cpu_before = cpu_s(node.pid)
            words = [sys.executable, __file__, "--send", *stream]
            sender = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, timeout=READY_S + 3 * seconds + 30)
            used_s = cpu_s(node.pid) - cpu_before
            memory = machine.resident_bytes(node.pid)
            time.sleep(1.5)  # the next report
            after = _statuses(recording)[-1]
    counts = {name: int(after[f"frames_{name}"]) - int(before[f"frames_{name}"]) for name in ("received", "processed", "dropped", "failed")}
    return {
        "width": width, "height": height, "rate_hz": rate_hz, "cameras": cameras, "seconds": seconds, "compressed": compressed,
        "sent": int(sender.stdout.split()[-1]), **counts,
        "latency_ms_p50": float(after["latency_ms_p50"]), "latency_ms_p95": float(after["latency_ms_p95"]),
        "threads": threads, "node_cpu_share": round(used_s / seconds, 3), "node_memory_mb": memory / 1e6,
    }  # fmt: skip


def _statuses(recording: Path) -> list[dict[str, str]]:
    """Values of the node's diagnostics so far."""
    if not recording.exists():
        return []
    whole = recording.read_text(encoding="utf-8").rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines() if line]
    return [line["values"] for line in lines if line["topic"] == "/diagnostics"]


def _wait_for_status(recording: Path, node: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and node.poll() is None:
        found = [values for values in _statuses(recording) if values["state"] == "active"]
        if found:
            return found[-1]
        time.sleep(0.1)
    raise RuntimeError(f"the node did not become active:\n{log.read_text(encoding='utf-8')[-2000:]}")


def main(argv: list[str] | None = None) -> int:
    """Measure and print, or be the cameras."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--send"]:
        width, height, rate_hz, cameras, seconds, compressed = words[1:]
        print(send(int(width), int(height), float(rate_hz), int(cameras), float(seconds), compressed == "1"))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gallery", type=Path, help="a gallery and, with --model, its query model; not given: made up", metavar="DIR")
    parser.add_argument("--model", type=Path, metavar="DIR")
    parser.add_argument("--network", default="efficientnet_lite0_gem", help="of the made-up model, with random weights", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each stream [s]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the query network")
    parser.add_argument("--compressed", action="store_true", help="JPEGs instead of raw images")
    parser.add_argument("--streams", type=int, default=len(STREAMS), help="only the first so many streams")
    parser.add_argument("--out", type=Path, help="JSON file for the figures with commit and machine")
    options = parser.parse_args(words)
    if (options.gallery is None) != (options.model is None):
        parser.error("give --gallery and --model, or neither")
    with tempfile.TemporaryDirectory() as work:
        gallery, model = options.gallery, options.model
        if gallery is None:
            gallery = made_up_gallery(Path(work) / "gallery", 1000, 512)
            model = made_up_model(Path(work) / "model", options.network, 512)
        rows = [
            measure(
                gallery.resolve(), model.resolve(), width=width, height=height, rate_hz=rate_hz, cameras=cameras, seconds=options.seconds,
                compressed=options.compressed, threads=options.threads,
            )
            for width, height, rate_hz, cameras in STREAMS[: options.streams]
        ]  # fmt: skip
    return report(rows, options).finish(options.out)


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> Record:
    """The streams as a table, and how many frames the node got."""
    model = "its own model" if options.model else f"`{options.network}` with random weights, 1000 keyframes"
    record = Record(
        "node_load", "Camera streams through the live node",
        f"Best effort, keep last 1, {'JPEG' if options.compressed else 'raw rgb8'}, the shipped Fast DDS profile, {options.seconds:g} s "
        f"a stream; {model}, threads of the network: {options.threads}. The node answers the newest frame and drops what it replaced; "
        "latency is from arrival to answer, the share is of one core; it holds all of the node: network, messages, threads of ROS.",
        "onnxruntime",
    )  # fmt: skip
    cells = []
    for row in rows:
        name = f"{row['width']}x{row['height']} at {row['rate_hz']:g} Hz" + (f", {row['cameras']} cameras" if row["cameras"] > 1 else "")
        latency = f"{row['latency_ms_p50']:.1f} / {row['latency_ms_p95']:.1f}"
        counts = [row[count] for count in ("sent", "received", "processed", "dropped", "failed")]
        share = f"{100 * row['node_cpu_share']:.0f} % of {100 * row['threads']} %"
        cells.append([name, *counts, latency, share, f"{row['node_memory_mb']:.0f}"])
        if row["cameras"] == 1:
            record.aim(f"frames received / sent, {name}", row["received"] / row["sent"], 0.99, at_most=False)
    columns = [
        "stream",
        "sent",
        "received",
        "matched",
        "dropped",
        "failed",
        "latency p50 / p95 ms",
        "CPU of the node, of its threads",
        "memory MB",
    ]
    record.table("Streams", columns, cells)
    record.values(streams=rows)
    return record


if __name__ == "__main__":
    sys.exit(main())
