"""Time and memory from starting a process to its first descriptor and first match, beside torch with timm.

    python benchmarks/cold_start.py --out out/cold_start.json

Each run is a process of its own. The files are read once before, so that the disk is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made_up import made_up_model
from record import Record, child_json, interleaved, spread

ROBOT = """
import json, sys, time
begin = time.perf_counter()
sys.path.insert(0, {folder!r})
import machine
from pathlib import Path
import numpy as np
from asymvpr_core.deploy.runtime import QueryModel
model = QueryModel.open(Path({model!r}))
model.encode(np.zeros((480, 640, 3), np.uint8))
print(json.dumps({{"memory": machine.peak_bytes()}}))
"""
TORCH = """
import json, sys, time
sys.path.insert(0, {folder!r})
import machine
import numpy as np, torch
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.networks.query import QueryNetwork
spec = network_spec({network!r})
network = QueryNetwork(spec, {dimension})
network.load(__import__("pathlib").Path({run!r}) / "weights.safetensors")
network.eval()
with torch.inference_mode():
    network(torch.from_numpy(spec.preprocess(np.zeros((480, 640, 3), np.uint8))[None]))
print(json.dumps({{"memory": machine.peak_bytes()}}))
"""


def child(code: str) -> dict[str, float]:
    """Run Python code in a process of its own; what it prints, and the seconds of the whole process."""
    begin = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {"seconds": time.perf_counter() - begin} | child_json(result.stdout)


def main() -> int:
    """Measure and print; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilevitv2_100_boq", metavar="NAME")
    parser.add_argument("--dimension", type=int, default=12288)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    record = Record(
        "cold_start", "Cold start",
        f"`{options.network}`, {options.dimension}-D, random weights: from the start of a process to its first descriptor, one frame of "
        f"640x480. Medians (smallest to largest) of {options.rounds} rounds in turn; memory is the process's peak.",
        "onnxruntime", "torch", "timm",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        model = made_up_model(Path(work) / "model", options.network, options.dimension)
        values = {
            "folder": str(Path(__file__).parent), "model": str(model), "run": str(model) + "_run",
            "network": options.network, "dimension": options.dimension,
        }  # fmt: skip
        memory: dict[str, list[float]] = {"the robot's process": [], "torch and timm": []}

        def run(name: str, code: str) -> float:
            found = child(code.format(**values))
            memory[name].append(found["memory"])
            return found["seconds"]

        names = dict(zip(memory, (ROBOT, TORCH), strict=True))
        times = interleaved({name: lambda name=name, code=code: run(name, code) for name, code in names.items()}, options.rounds)
    ratios = [statistics.median(times[a]) / statistics.median(times[b]) for a, b in [tuple(names)]]
    memory_ratio = statistics.median(memory["the robot's process"]) / statistics.median(memory["torch and timm"])
    rows = [[name, spread(times[name], digits=2), f"{statistics.median(memory[name]) / 1e6:.0f}"] for name in names]
    record.table("To the first descriptor", ["process", "seconds", "peak memory MB"], rows)
    record.aim("cold start, robot's process / torch and timm, time", ratios[0], 0.2, at_most=True)
    record.aim("cold start, robot's process / torch and timm, memory", memory_ratio, 0.25, at_most=True)
    record.values(seconds=times, memory_bytes=memory)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
