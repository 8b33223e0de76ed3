"""What each step from a camera's frame to the network's input costs, and what its alternatives would.

    python benchmarks/preprocess.py --out out/preprocess.json

One thread; processor time of this thread and wall time, each the median over interleaved rounds: on a shared machine
the first is the steadier one. Steps marked with a star are what the robot does; the others are measured beside them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from record import Record

from asymvpr_core.image_decoding import decode_image
from asymvpr_core.preprocess import Preprocess

SIZES = ((640, 480), (1280, 720), (1920, 1080))
PREPROCESS = Preprocess(height=322, width=322, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Step = Callable[[], Any]


def measure(*, sizes: tuple[tuple[int, int], ...] = SIZES, rounds: int = 15) -> list[dict[str, Any]]:
    """One row for each camera size and step, as JSON values: processor and wall time [ms], and whether the robot does it."""
    cv2.setNumThreads(1)
    rows = []
    for width, height in sizes:
        steps = _steps(width, height)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for step in steps.values():
            step()  # the first run allocates
        for _ in range(rounds):
            for name, step in steps.items():
                wall, processor = time.perf_counter(), time.thread_time()
                step()
                times[name].append((time.thread_time() - processor, time.perf_counter() - wall))
        for name, pairs in times.items():
            processor_ms, wall_ms = 1e3 * np.median(np.asarray(pairs), axis=0)
            rows.append(
                {
                    "camera": f"{width} x {height}", "step": name.removesuffix("*"), "on_the_robot": name.endswith("*"),
                    "processor_ms": float(processor_ms), "wall_ms": float(wall_ms), "rounds": rounds,
                }
            )  # fmt: skip
    return rows


def _steps(width: int, height: int) -> dict[str, Step]:
    patches = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    data = np.frombuffer(jpeg, np.uint8)
    half = cv2.imdecode(data, cv2.IMREAD_REDUCED_COLOR_2)
    size = (PREPROCESS.width, PREPROCESS.height)
    small = PREPROCESS.resize(picture)
    graphs = {name: _session(*parts, picture.shape) for name, parts in _resizing_graphs(width, height).items()}
    folded = _session([helper.make_node("Mul", ["planes", "scale"], ["m"]), helper.make_node("Sub", ["m", "offset"], ["out"])], {
        name: array.reshape(1, 3, 1, 1) for name, array in zip(("scale", "offset"), PREPROCESS.scale_and_offset, strict=True)
    }, small.shape)  # fmt: skip
    return {
        "decode JPEG*": lambda: decode_image(jpeg, "frame"),
        "decode JPEG at half size": lambda: cv2.imdecode(data, cv2.IMREAD_REDUCED_COLOR_2),
        "resize (OpenCV, area)*": lambda: PREPROCESS.resize(picture),
        "resize of half size (OpenCV, area)": lambda: cv2.resize(half, size, interpolation=cv2.INTER_AREA),
        "resize (OpenCV, linear without antialias)": lambda: cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR),
        "resize (Pillow, bilinear)": lambda: Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR),
        **{name: lambda graph=graph: graph(picture) for name, graph in graphs.items()},  # type: ignore[misc]
        "normalise in the graph*": lambda: folded(small),
        "normalise by table": lambda: PREPROCESS.normalise(small),
    }


def _resizing_graphs(width: int, height: int) -> dict[str, tuple[list[Any], dict[str, np.ndarray]]]:
    sizes = {"sizes": np.array([1, 3, PREPROCESS.height, PREPROCESS.width], np.int64)}
    rows, columns = _area_matrix(height, PREPROCESS.height), _area_matrix(width, PREPROCESS.width)
    return {
        "resize in the graph (Resize, linear, antialias)": (
            [helper.make_node("Resize", ["planes", "", "", "sizes"], ["out"], mode="linear", antialias=1)], sizes,
        ),
        "resize in the graph (area, as two products)": (
            [helper.make_node("MatMul", ["planes", "columns"], ["m"]), helper.make_node("MatMul", ["rows", "m"], ["out"])],
            {"rows": rows, "columns": np.ascontiguousarray(columns.T)},
        ),
    }  # fmt: skip


def _session(nodes: list[Any], constants: dict[str, np.ndarray], shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """A graph over the float planes of a uint8 picture, in onnxruntime on one thread."""
    before = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *shape])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = helper.make_model(
        helper.make_graph(before + nodes, "step", [image], [out], initializers), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(picture: np.ndarray) -> np.ndarray:
        result: np.ndarray = session.run(None, {"image": picture[np.newaxis]})[0]
        return result

    return run


def _area_matrix(length: int, target: int) -> np.ndarray:
    """(target, length) float32 that averages `length` samples over `target` equal intervals, as INTER_AREA does when it shrinks."""
    edges = np.arange(target + 1) * (length / target)
    samples = np.arange(length)
    covered = np.minimum(edges[1:, None], samples + 1) - np.maximum(edges[:-1, None], samples)
    return (np.clip(covered, 0, None) * (target / length)).astype(np.float32)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args(arguments)
    rows = measure(rounds=options.rounds)
    record = Record(
        "preprocess", "From a frame to the network's input",
        f"One thread, input of {PREPROCESS.width}x{PREPROCESS.height}, made-up pictures; medians of {options.rounds} rounds in turn. "
        "Processor time is the steadier one on a shared machine. Steps with a star are the robot's.",
        "opencv-python-headless", "pillow", "onnxruntime",
    )  # fmt: skip
    cells = [
        [row["camera"], row["step"] + (" *" if row["on_the_robot"] else ""), f"{row['processor_ms']:.2f}", f"{row['wall_ms']:.2f}"]
        for row in rows
    ]
    record.table("Steps", ["camera", "step", "processor ms", "wall ms"], cells)
    record.values(rows=rows)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
