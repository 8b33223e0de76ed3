"""Latency of the query networks in every runtime and precision of this machine, beside the heavy network.

    python benchmarks/encode.py --networks mobilevitv2_100_boq efficientvit_b2_boq --out out/encode.json

Random weights; one image of the network's own input size, already resized; the normalisation is part of the exported
graphs and not of eager torch. In each round every way to run the network runs once, and the heavy network runs beside
it, in eager torch and in onnxruntime: so that a busy moment of the machine meets all of them. Latency is the median
over the rounds, the spread are its quartiles, a ratio is that of medians. Cosines are to eager torch on smooth noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from record import Record

from asymvpr_core.config import ExportSettings
from asymvpr_core.deploy.model_folder import RuntimeName
from asymvpr_core.deploy.onnx_files import write_onnx
from asymvpr_core.deploy.onnxruntime_session import OnnxRuntimeSession
from asymvpr_core.deploy.openvino_session import OpenVinoSession, computes_bf16, openvino_version, why_no_openvino
from asymvpr_core.deploy.quantise import SCHEMES, QuantisationInput
from asymvpr_core.deploy.session import cosines
from asymvpr_core.errors import DeployError
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import random_network
from asymvpr_core.networks.registry import known_networks, network_spec
from asymvpr_core.networks.spec import NetworkSpec

REFERENCE = "dinov2_boq"
AIMED_AT = ("mobilevitv2_100_boq", "efficientvit_b2_boq")
_CALIBRATION = 8  # pictures: enough for the ranges, whose exactness does not matter for the time


@dataclass
class Way:
    """One way to run a network, and the seconds of its runs."""

    network: str
    runtime: str
    precision: str
    run: Callable[[], np.ndarray]
    cosine: float | None = None
    seconds: list[float] = field(default_factory=list)

    def time_once(self) -> None:
        """Run and note the time."""
        begin = time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - begin)

    @property
    def median_ms(self) -> float:
        """Median over the rounds so far."""
        return 1e3 * float(np.median(self.seconds))


def measure(
    networks: list[str],
    *,
    threads: int = 1,
    rounds: int = 7,
    reference: str = REFERENCE,
    int8: bool = True,
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """One row for each network and way to run it, as JSON values: latency, quartiles, ratios to the reference.

    `ratio_to_eager` and `ratio_to_onnxruntime` say how many times faster a row is than the reference network in eager
    torch and in onnxruntime fp32, over the same rounds.

    Args:
        networks: names of networks with one input size.
        int8: also quantise; takes the longest to prepare.
    """
    prepare_cpu(threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="asymvpr_bench_") as scratch:
        heavy = [way for way in _ways(network_spec(reference), Path(scratch), threads, int8=False) if way.runtime != "openvino"]
        for name in networks:
            light = list(_ways(network_spec(name), Path(scratch), threads, int8=int8))
            for way in heavy:
                way.seconds.clear()
            for _ in range(rounds):
                for way in (*heavy, *light):
                    way.time_once()
            rows += [_row(way, heavy, threads) for way in (*heavy, *light)]
            report(_table(rows[-len(heavy) - len(light) :]))
    return rows


def _ways(spec: NetworkSpec, scratch: Path, threads: int, *, int8: bool) -> Iterable[Way]:
    network = random_network(spec, seed=0).eval()
    pictures = np.stack([_picture(spec, seed) for seed in range(_CALIBRATION)])
    picture = pictures[:1]
    planes = torch.from_numpy(spec.preprocess.normalise(picture[0])[np.newaxis])

    def eager() -> np.ndarray:
        with torch.inference_mode():
            described: np.ndarray = network(planes).numpy()
        return described

    expected = eager()
    yield Way(spec.name, "eager torch", "fp32", eager, 1.0)
    path = scratch / f"{spec.name}.onnx"
    write_onnx(network, spec.preprocess, path, ExportSettings().opset)
    files = {"fp32": path}
    if int8:
        files["int8"] = scratch / f"{spec.name}_int8.onnx"
        with QuantisationInput(path) as source:
            source.write(files["int8"], pictures, SCHEMES[0])
    for runtime, precision in _combinations(int8):
        file = files["fp32" if precision == "bf16" else precision]
        try:
            session = _load(file, runtime, precision, threads)
        except DeployError as error:
            print(f"{spec.name}: {error}", file=sys.stderr)
            continue
        cosine = float(cosines(session.run(picture), expected)[0])
        yield Way(spec.name, runtime, precision, lambda session=session: session.run(picture), cosine)  # type: ignore[misc]


def _combinations(int8: bool) -> Iterable[tuple[RuntimeName, str]]:
    precisions = ("fp32", "int8") if int8 else ("fp32",)
    yield from (("onnxruntime", precision) for precision in precisions)
    if why_no_openvino() is None:
        yield from (("openvino", precision) for precision in precisions)
        if computes_bf16():
            yield "openvino", "bf16"


def _load(file: Path, runtime: RuntimeName, precision: str, threads: int) -> OnnxRuntimeSession | OpenVinoSession:
    if runtime == "openvino":
        return OpenVinoSession.open(file, precision, threads)
    return OnnxRuntimeSession.open(file, "cpu", precision, threads)


def _picture(spec: NetworkSpec, seed: int) -> np.ndarray:
    patches = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return spec.preprocess.resize(cv2.resize(patches, (640, 480), interpolation=cv2.INTER_CUBIC))


def _row(way: Way, heavy: list[Way], threads: int) -> dict[str, Any]:
    eager, exported = (next(other for other in heavy if other.runtime == runtime) for runtime in ("eager torch", "onnxruntime"))
    low, high = (1e3 * float(value) for value in np.percentile(way.seconds, (25, 75)))
    return {
        "network": way.network, "runtime": way.runtime, "precision": way.precision, "threads": threads, "rounds": len(way.seconds),
        "latency_ms": way.median_ms, "quartiles_ms": [low, high], "latency_ms_all": [1e3 * seconds for seconds in way.seconds],
        "ratio_to_eager": eager.median_ms / way.median_ms, "ratio_to_onnxruntime": exported.median_ms / way.median_ms,
        "reference": eager.network, "cosine_to_torch": way.cosine,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| network | runtime | precision | ms | quartiles | x {rows[0]['reference']} eager | x its onnxruntime | cosine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["quartiles_ms"]
        lines.append(
            f"| `{row['network']}` | {row['runtime']} | {row['precision']} | {row['latency_ms']:.1f} | {low:.1f} to {high:.1f} "
            f"| {row['ratio_to_eager']:.1f} | {row['ratio_to_onnxruntime']:.1f} | {row['cosine_to_torch']:.5f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="instead of all named query networks")
    parser.add_argument("--reference", default=REFERENCE, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-int8", action="store_true", help="leave out int8, whose preparation takes the longest")
    parser.add_argument("--quick", action="store_true", help="one light network, few rounds")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args(arguments)
    names = options.networks or [spec.name for spec in known_networks() if spec.role == "query"]
    names, rounds = (["efficientnet_lite0_gem"], 2) if options.quick else (names, options.rounds)
    quiet: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    rows = measure(names, threads=options.threads, rounds=rounds, reference=options.reference, int8=not options.no_int8, report=quiet)
    packages = ["torch", "timm", "onnxruntime"] + (["openvino"] if openvino_version() else [])
    record = Record(
        "encode", "Networks by runtime and precision",
        f"One image of the network's size, random weights, {options.threads} thread(s); median and quartiles of {rounds} rounds, in turn "
        f"with `{options.reference}`. The ratios: how many times faster than that one in eager torch and in ONNX Runtime.",
        *packages,
    )  # fmt: skip
    columns = ["network", "runtime", "precision", "ms", "quartiles", "x eager torch", "x its ONNX Runtime", "cosine to torch"]
    cells = [
        [
            f"`{row['network']}`", row["runtime"], row["precision"], f"{row['latency_ms']:.1f}",
            f"{row['quartiles_ms'][0]:.1f} to {row['quartiles_ms'][1]:.1f}", f"{row['ratio_to_eager']:.1f}",
            f"{row['ratio_to_onnxruntime']:.1f}", f"{row['cosine_to_torch']:.5f}",
        ]
        for row in rows
    ]  # fmt: skip
    record.table("Encoders", columns, cells)
    for row in rows:
        if row["network"] in AIMED_AT:
            way = (row["runtime"], row["precision"])
            if way == ("onnxruntime", "fp32"):
                record.aim(f"`{row['network']}`: heavy / light, both in ONNX Runtime", row["ratio_to_onnxruntime"], 8, at_most=False)
                record.aim(f"`{row['network']}`: heavy in eager torch / light in ONNX Runtime", row["ratio_to_eager"], 10, at_most=False)
            elif way == ("openvino", "bf16"):
                record.aim(f"`{row['network']}`: heavy in eager torch / light in OpenVINO bf16", row["ratio_to_eager"], 15, at_most=False)
    record.values(rows=rows)
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
