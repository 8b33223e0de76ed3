"""The live node for half an hour at 30 Hz while things go wrong around it: does anything grow, and does it keep its count?

    python benchmarks/long_run.py --minutes 30 --out long_run.json --plots docs/images
    python benchmarks/long_run.py --minutes 2 --width 320 --height 240

One camera at 30 Hz and odometry at 50 Hz on a clock of their own (`/clock`), all from one process that is made anew every few
minutes, by SIGKILL every other time, and whose clock jumps back by 30 s. Meanwhile galleries are exchanged, parameters are changed, and
every few minutes two processes take all of the processor for a while. The node keeps a session gallery, which is full after
a few minutes. Sampled once a second: memory, threads, open files and processor time of the node, and its diagnostics.
"""

from __future__ import annotations

import argparse
import array
import math
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from live_node import cpu_s, footprint, node_words, private_domain, running
from made_up import made_up_gallery, made_up_model, picture
from record import Record

RATE_HZ, ODOMETRY_HZ = 30.0, 50.0
READY_S = 60.0
JUMP_BACK_S = 30.0
# Every so many seconds; prime to one another, so that all meet one another some time.
PERIODS_S = {"reloads": 61, "restarts": 127, "jumps": 89, "pressure": 181, "parameters": 47}
PRESSURE_FOR_S = 20
SLICES = 10
COUNTS = ("received", "processed", "dropped", "stale", "failed", "rate_limited", "ignored")


def send(width: int, height: int, compressed: bool) -> None:
    """Be the robot: pictures, odometry and a clock until killed. Starts its clock at the wall clock, jumps back by SIGUSR1."""
    import cv2
    import rclpy
    from nav_msgs.msg import Odometry
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import CompressedImage, Image

    rclpy.init()
    node = rclpy.create_node("robot")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    images = node.create_publisher(CompressedImage if compressed else Image, "image/compressed" if compressed else "image", qos)
    odometry, clock = node.create_publisher(Odometry, "odom", 10), node.create_publisher(Clock, "/clock", qos)
    pictures = []
    for seed in range(8):
        pixels = picture(seed, width, height)
        data = array.array("B")
        data.frombytes(cv2.imencode(".jpg", pixels)[1].tobytes() if compressed else pixels.tobytes())
        image = (
            CompressedImage(format="jpeg", data=data)
            if compressed
            else Image(height=height, width=width, encoding="rgb8", step=3 * width, data=data)
        )
        image.header.frame_id = "camera"
        pictures.append(image)
    offset_ns = 0

    def jump_back(*_: object) -> None:
        nonlocal offset_ns
        offset_ns -= int(JUMP_BACK_S * 1e9)

    signal.signal(signal.SIGUSR1, jump_back)
    begin, steps = time.monotonic(), {"image": 0, "odometry": 0}
    while True:
        due = {"image": begin + steps["image"] / RATE_HZ, "odometry": begin + steps["odometry"] / ODOMETRY_HZ}
        kind = min(due, key=lambda name: due[name])
        time.sleep(max(0.0, due[kind] - time.monotonic()))
        stamp = rclpy.time.Time(nanoseconds=time.time_ns() + offset_ns).to_msg()
        if kind == "odometry":
            clock.publish(Clock(clock=stamp))
            way_m = (time.time() % 100_000.0) * 1.0  # 1 m/s on a circle of 50 m: the session fills, and closes its loops
            message = Odometry(child_frame_id="base_link")
            message.header.stamp, message.header.frame_id = stamp, "odom"
            position, orientation, angle = message.pose.pose.position, message.pose.pose.orientation, way_m / 50.0
            position.x, position.y = 50.0 * math.sin(angle), 50.0 * (1.0 - math.cos(angle))
            orientation.z, orientation.w = math.sin(angle / 2), math.cos(angle / 2)
            odometry.publish(message)
        else:
            image = pictures[steps["image"] // 15 % len(pictures)]
            image.header.stamp = stamp
            images.publish(image)
        steps[kind] += 1


def _burn() -> None:
    while True:
        math.sqrt(2.0)


@dataclass
class Observations:
    """One row a second, and what was done to the node."""

    rows: list[dict[str, float]] = field(default_factory=list)
    events: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("reloads", "restarts", "kills", "jumps", "pressure", "parameters"), 0)
    )
    refusals: list[str] = field(default_factory=list)


class Monitor:
    """Reads the node's diagnostics, calls its services, changes its parameters."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rcl_interfaces.srv import SetParameters
        from std_srvs.srv import Trigger

        rclpy.init()
        self._ros, self.values = rclpy, {}  # type: ignore[var-annotated]
        self.node = rclpy.create_node("monitor")
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._load = self.node.create_client(Trigger, "/place_recognition/load_gallery")
        self._set = self.node.create_client(SetParameters, "/place_recognition/set_parameters")

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith(": place recognition"):
                self.values = {pair.key: pair.value for pair in status.values}

    def spin(self, seconds: float) -> None:
        """Listen for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._ros.spin_once(self.node, timeout_sec=left)

    def load_gallery(self, path: Path) -> str:
        """Exchange the gallery; the refusal, or nothing."""
        refusal = self.set_parameter("gallery_path", str(path))
        if refusal:
            return refusal
        answer = self._call(self._load, self._load.srv_type.Request())
        return "" if answer is not None and answer.success else f"load_gallery: {'no answer' if answer is None else answer.message}"

    def set_parameter(self, name: str, value: str | float) -> str:
        """Change a parameter; the refusal, or nothing."""
        from rclpy.parameter import Parameter

        request = self._set.srv_type.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        answer = self._call(self._set, request)
        if answer is None:
            return f"{name}: no answer"
        return "" if answer.results[0].successful else f"{name}: {answer.results[0].reason}"

    def _call(self, client: Any, request: Any) -> Any:
        if not client.wait_for_service(timeout_sec=READY_S):
            return None
        future = client.call_async(request)
        self._ros.spin_until_future_complete(self.node, future, timeout_sec=READY_S)
        return future.result() if future.done() else None

    def close(self) -> None:
        """End the connection."""
        self.node.destroy_node()
        self._ros.shutdown()


def run(options: argparse.Namespace, galleries: Sequence[Path], model: Path, folder: Path) -> tuple[Observations, int]:
    """All observations, and the exit code of the node."""
    environment = private_domain()
    os.environ.update(environment)  # for the monitor in this process
    parameters = {
        "gallery_path": galleries[0], "model_path": model, "transport": "compressed" if options.compressed else "raw",
        "use_sim_time": True, "session_gallery": True, "session_capacity": 200, "max_image_age_s": 0.0,
    }  # fmt: skip
    robot_words = [__file__, "--send", str(options.width), str(options.height), str(int(options.compressed))]
    log = folder / "node.log"
    periods = {name: max(1, round(seconds / options.faster)) for name, seconds in PERIODS_S.items()}
    pressure_for = max(1, round(PRESSURE_FOR_S / options.faster))
    found, robots, burners = Observations(), [], []  # type: ignore[var-annotated]
    with running(node_words(parameters), environment, log) as node:
        monitor = Monitor()
        try:
            deadline = time.monotonic() + READY_S
            while monitor.values.get("state") != "active":
                if node.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the node did not become active:\n{log.read_text(encoding='utf-8')[-2000:]}")
                monitor.spin(0.2)
            robots.append(running(robot_words, environment))
            robot = robots[-1].__enter__()
            begin, used_s = time.monotonic(), cpu_s(node.pid)
            for second in range(1, round(options.minutes * 60) + 1):
                monitor.spin(max(0.0, begin + second - time.monotonic()))
                if node.poll() is not None:
                    raise RuntimeError(f"the node ended with code {node.returncode}:\n{log.read_text(encoding='utf-8')[-2000:]}")
                if second % periods["reloads"] == 0:
                    found.events["reloads"] += 1
                    found.refusals += filter(None, [monitor.load_gallery(galleries[found.events["reloads"] % len(galleries)])])
                if second % periods["parameters"] == 0:
                    found.events["parameters"] += 1
                    found.refusals += filter(
                        None, [monitor.set_parameter("score_threshold", 0.4 + 0.01 * (found.events["parameters"] % 20))]
                    )
                if second % periods["jumps"] == 0 and robot.poll() is None:
                    found.events["jumps"] += 1
                    robot.send_signal(signal.SIGUSR1)
                if second % periods["restarts"] == 0:
                    found.events["restarts"] += 1
                    if found.events["restarts"] % 2 == 0:
                        found.events["kills"] += 1
                        robot.kill()
                    robots.pop().__exit__(None, None, None)
                    robots.append(running(robot_words, environment))
                    robot = robots[-1].__enter__()
                if second % periods["pressure"] == 0:
                    found.events["pressure"] += 1
                    burners = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(os.cpu_count() or 1)]
                    for burner in burners:
                        burner.start()
                if burners and second % periods["pressure"] == pressure_for:
                    _end(burners)
                    burners = []
                now_s = cpu_s(node.pid)
                values = {name: float(value) for name, value in monitor.values.items() if _is_number(value)}
                state = {"active": float(monitor.values.get("state") == "active"), "pressed": float(bool(burners))}
                found.rows.append({"s": float(second), "cpu": now_s - used_s, **footprint(node.pid), **state, **values})
                used_s = now_s
        finally:
            _end(burners)
            for process in robots:
                process.__exit__(None, None, None)
            monitor.close()
    return found, node.returncode


def _end(processes: Sequence[multiprocessing.Process]) -> None:
    for process in processes:
        process.kill()  # SIGTERM would meet the handler that rclpy installed before the fork
    for process in processes:
        process.join()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def report(found: Observations, code: int, options: argparse.Namespace) -> Record:
    """Tables by slice of the run, aims, curves over time."""
    every = {name: round(seconds / options.faster) for name, seconds in PERIODS_S.items()}
    kind = "JPEG" if options.compressed else "raw rgb8"
    record = Record(
        "long_run", "A long run with faults",
        f"{options.minutes:g} minutes through the live node, {kind} {options.width}x{options.height} at {RATE_HZ:g} Hz, odometry at "
        f"{ODOMETRY_HZ:g} Hz, simulated clock, `{options.network}` with random weights, {options.keyframes} keyframes, a session gallery of"
        f" at most 200, one thread. Every {every['reloads']} s another gallery, every {every['restarts']} s another publisher (SIGINT and "
        f"SIGKILL), every {every['jumps']} s the clock jumps back by {JUMP_BACK_S:g} s, every {every['parameters']} s another threshold, "
        f"every {every['pressure']} s two busy processes for a ninth of that time. One sample a second.", "onnxruntime",
    )  # fmt: skip
    rows = found.rows
    cells, slices = [], [list(part) for part in np.array_split(np.array(rows, dtype=object), SLICES)]
    for part in slices:
        calm = _calm(part)
        counts = [int(part[-1][f"frames_{name}"] - part[0][f"frames_{name}"]) for name in COUNTS[:5]]
        cells.append([
            f"{part[0]['s'] / 60:.0f} to {part[-1]['s'] / 60:.0f}", f"{_median(part, 'private_kb') / 1024:.1f}",
            f"{_median(calm, 'latency_ms_p50'):.1f} / {_median(calm, 'latency_ms_p95'):.1f}", *counts, int(_median(part, "threads")),
            int(_median(part, "files")), f"{100 * _median(calm, 'cpu'):.0f} %",
        ])  # fmt: skip
    columns = ["minutes", "memory MB", "latency p50 / p95 ms", *COUNTS[:5], "threads", "files", "CPU share"]
    record.table(
        "By part of the run",
        columns,
        cells,
        "Memory is the process's own; latency and CPU share are medians of the seconds without pressure.",
    )
    last = rows[-1]
    done = [[name, found.events[name]] for name in found.events] + [["clock resets seen", int(last["clock_resets"])]]
    done += [
        ["odometry restarts seen", int(last["odometry_restarts"])],
        ["exit code of the node", code],
        ["refusals", "; ".join(found.refusals) or "none"],
    ]
    record.table("What was done to the node", ["what", "count"], done)
    early, late = [row for part in slices[1:3] for row in part], [row for part in slices[-2:] for row in part]
    for name, key, limit in (("private memory", "private_kb", 1.03), ("threads", "threads", 1.0), ("open files", "files", 1.0)):
        record.aim(f"long run, {name}, last fifth / second fifth", _median(late, key) / _median(early, key), limit, at_most=True)
    calm_early, calm_late = (_calm(part) for part in (early, late))
    record.aim(
        "long run, median latency, last fifth / second fifth", _median(calm_late, "latency_ms_p50") / _median(calm_early, "latency_ms_p50"),
        1.1, at_most=True,
    )  # fmt: skip
    # One frame may be in work when the count is taken.
    missing = last["frames_received"] - sum(last[f"frames_{name}"] for name in COUNTS[1:])
    record.aim("long run, frames received that were neither matched nor counted otherwise", float(missing), 1.0, at_most=True)
    record.aim(
        "long run, share of seconds in which the node was active", float(np.mean([row["active"] for row in rows])), 1.0, at_most=False
    )
    minutes = [row["s"] / 60 for row in rows]
    dropped = np.diff([row["frames_dropped"] for row in rows], prepend=rows[0]["frames_dropped"])
    memory = {kind: [row[f"{kind}_kb"] / 1024 for row in rows] for kind in ("private", "resident")}
    record.curves("Memory of the node", "minutes", "MB", {k: _thin(minutes, v) for k, v in memory.items()}, logarithmic=False)
    record.curves("Latency over time", "minutes", "ms, of the last 300 frames", {
        "p50": _thin(minutes, [row.get("latency_ms_p50", math.nan) for row in rows]),
        "p95": _thin(minutes, [row.get("latency_ms_p95", math.nan) for row in rows]),
    }, logarithmic=False)  # fmt: skip
    record.curves("Frames dropped over time", "minutes", "frames a second", {"dropped": _thin(minutes, dropped)}, logarithmic=False)
    record.values(exit_code=code, events=found.events, refusals=found.refusals, rows=rows)
    return record


def _calm(rows: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
    """The seconds without pressure; all where there is no other."""
    return [row for row in rows if not row["pressed"]] or rows


def _median(rows: Sequence[dict[str, float]], key: str) -> float:
    found = [row[key] for row in rows if key in row]
    return statistics.median(found) if found else math.nan  # no frame yet


def _thin(x: Sequence[float], y: Sequence[float] | np.ndarray) -> list[tuple[float, float]]:
    """Means of ten seconds."""
    return [
        (float(np.mean(x[i : i + 10])), float(np.nanmean(y[i : i + 10])))
        for i in range(0, len(x), 10)
        if not np.all(np.isnan(y[i : i + 10]))
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run and print, or be the robot."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--send"]:
        width, height, compressed = words[1:]
        send(int(width), int(height), compressed == "1")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--network", default="efficientnet_lite0_gem", help="with random weights", metavar="NAME")
    parser.add_argument("--keyframes", type=int, default=2000)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--faster", type=float, default=1.0, help="divide the time between two faults by this")
    parser.add_argument("--compressed", action="store_true", help="JPEGs instead of raw images")
    parser.add_argument("--out", type=Path, help="JSON file with every sample", metavar="FILE")
    parser.add_argument("--plots", type=Path, help="folder for the plots", metavar="DIR")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        galleries = [made_up_gallery(folder / f"gallery{i}", options.keyframes + 500 * i, 512) for i in range(2)]
        model = made_up_model(folder / "model", options.network, 512)
        found, code = run(options, galleries, model, folder)
    record = report(found, code, options)
    if options.plots is not None:
        record.draw(options.plots)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
