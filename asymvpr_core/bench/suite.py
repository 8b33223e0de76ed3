"""Runs benchmarks, each in a process of its own: memory and start-up times are those of the benchmark alone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asymvpr_core.bench.results import BenchmarkResult, read_result
from asymvpr_core.errors import EvaluationError


@dataclass(frozen=True)
class Benchmark:
    """A script of `benchmarks/`: what it measures, and its arguments where a first impression in minutes is enough."""

    name: str
    what: str
    quick: tuple[str, ...] = ()


SUITE = (
    Benchmark("encode", "named networks by runtime and precision", ("--quick",)),
    Benchmark("preprocess", "decoding, resizing, normalising: each step's share", ("--rounds", "20")),
    Benchmark("search", "indexes by size and dimension: time, memory, recall", ("--rows", "1000", "--rounds", "2")),
    Benchmark("frame", "from a frame to a match, through the core and through the live node", ("--rounds", "10", "--keyframes", "1000")),
    Benchmark("node_load", "camera streams through the live node: frames received, dropped, latency", ("--seconds", "3")),
    Benchmark("robot_cost", "memory and processor share at 2 and 10 Hz, beside a bag of words", ("--seconds", "5", "--keyframes", "1000")),
    Benchmark("gallery_size", "latency and memory as the gallery grows", ("--rows", "1000", "10000")),
    Benchmark("cold_start", "time and memory to the first descriptor", ("--rounds", "1")),
    Benchmark("gallery_build", "building a gallery beside the bare forward pass", ("--images", "16", "--rounds", "1")),
    Benchmark("memory_bank", "place statistics beside exact neighbour lists", ("--images", "2000", "4000", "--queries", "64")),
    Benchmark("loss_step", "a training step over a large bank", ("--places", "6700", "--dimension", "1024", "--repeats", "2")),
)  # fmt: skip


def benchmarks_folder() -> Path:
    """The folder of the scripts: that of the repository, or where the package was installed.

    Raises:
        EvaluationError: there is none.
    """
    found = Path(__file__).resolve().parents[2] / "benchmarks", Path(sysconfig.get_path("data")) / "share" / "asymvpr_ros" / "benchmarks"
    for folder in found:
        if (folder / "record.py").is_file():
            return folder
    raise EvaluationError(
        "the benchmark scripts are not installed", expected=f"{found[1]}", remedy="install the package again, or run in the repository"
    )


def choose(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names, in the suite's order; all where none is given. Raises EvaluationError for an unknown name."""
    known = {benchmark.name: benchmark for benchmark in SUITE}
    for name in names:
        if name not in known:
            raise EvaluationError(f"there is no benchmark '{name}'", expected=", ".join(known))
    return [benchmark for benchmark in SUITE if not names or benchmark.name in names]


def run_benchmark(benchmark: Benchmark, out: Path, *, quick: bool = False, say: Callable[[str], None] = print) -> BenchmarkResult:
    """Run one benchmark, let `say` have every line that it prints, and write `out/<name>.json`.

    Raises:
        EvaluationError: it ended with an error, whose last line is named.
    """
    folder, result = benchmarks_folder(), out / f"{benchmark.name}.json"
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(folder / f"{benchmark.name}.py"), *(benchmark.quick if quick else ()), "--out", str(result.resolve())]
    log = out / f"{benchmark.name}.log"
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ))
        try:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip("\n"))
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code != 0:
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        raise EvaluationError(
            f"benchmark {benchmark.name} ended with code {code}: {lines[-1] if lines else 'no message'}", remedy=f"see {log}"
        )
    return read_result(result)
