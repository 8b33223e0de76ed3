"""Time and memory of one step of L_asym+ over a large bank, beside the bare matrix product and a dense step.

    python benchmarks/loss_step.py --out out/loss_step.json

Two tables: medians over runs of all methods in turn, forward and forward with backward, with
the difference of the loss to the dense float32 step; and the peak memory above the bank, each method in a
process of its own. The bank has rows near every query, so that a few large logits dominate as they do
after some training: bfloat16 products alone would look better on random rows than they are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import peak_bytes, reset_peak, resident_bytes
from record import Record
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from asymvpr_core.training.losses import asymmetric_loss

TEMPERATURE, GAMMA = 0.05, 15.0
NOISE = 1.2  # between a query and its gallery descriptor: a loss of the order of 1 at the default size
NEAR_ROWS, NEAR_COSINE, PLACE_COSINE = 20, 0.55, 0.35  # per query, to it, and of all rows to their common mean


class Data:
    """One batch and banks in several precisions, the same numbers for the same seed and size."""

    def __init__(self, batch: int, places: int, dimension: int, dtypes: list[torch.dtype]):
        generator = torch.Generator().manual_seed(0)
        common = normalize(torch.randn(1, dimension, generator=generator), dim=1)
        directions = normalize(torch.randn(batch, dimension, generator=generator), dim=1)
        self.gallery = normalize(directions + 0.4 * common, dim=1)
        self.query = normalize(self.gallery + NOISE * normalize(torch.randn(batch, dimension, generator=generator), dim=1), dim=1)
        self.place = torch.randperm(places, generator=generator)[:batch]
        self.variances = torch.full((1, dimension), 0.4 / dimension).expand(places, dimension)
        self.banks = {dtype: torch.empty(places, dimension, dtype=dtype) for dtype in dtypes}
        for start in range(0, places, 1024):
            rows = torch.randn(min(1024, places - start), dimension, generator=generator)
            rows = normalize(normalize(rows, dim=1) + PLACE_COSINE * common, dim=1)
            if start < batch * NEAR_ROWS:
                near = torch.arange(start, start + len(rows)) % batch
                rows = normalize(rows + NEAR_COSINE / (1 - NEAR_COSINE**2) ** 0.5 * self.gallery[near], dim=1)
            for bank in self.banks.values():
                bank[start : start + len(rows)] = 0.8 * rows
        self.query.requires_grad_()


def bare_product(data: Data) -> Tensor:
    return data.query.detach() @ data.banks[torch.float32].T


def dense(data: Data, dtype: torch.dtype) -> Tensor:
    """What autograd does without care: all logits at once, a half-precision bank converted as a whole."""
    bank = data.banks[dtype].float()
    logits = (data.query @ bank.T / TEMPERATURE).scatter(1, data.place[:, None], -torch.inf)
    spread = (data.variances[data.place] * data.query**2).sum(1)
    logits = logits + GAMMA / (2 * TEMPERATURE**2) * spread[:, None]
    positive = (data.query * data.gallery).sum(1) / TEMPERATURE
    return (torch.logsumexp(torch.cat([positive[:, None], logits], 1), 1) - positive).mean()


def ours(data: Data, dtype: torch.dtype, half_products: bool = True) -> Tensor:
    return asymmetric_loss(
        data.query, data.gallery, data.place, data.banks[dtype], data.variances, TEMPERATURE, GAMMA, half_products=half_products
    )


METHODS: dict[str, tuple[torch.dtype, Callable[[Data], Tensor]]] = {
    "bare product q·Cᵀ, float32": (torch.float32, bare_product),
    "dense, float32": (torch.float32, lambda data: dense(data, torch.float32)),
    "in blocks, float32": (torch.float32, lambda data: ours(data, torch.float32)),
    "in blocks, bfloat16": (torch.bfloat16, lambda data: ours(data, torch.bfloat16)),
    "in blocks, bfloat16, converted": (torch.bfloat16, lambda data: ours(data, torch.bfloat16, half_products=False)),
    "in blocks, float16": (torch.float16, lambda data: ours(data, torch.float16)),
}
MEMORY_ONLY = {"dense, bfloat16 converted at once": (torch.bfloat16, lambda data: dense(data, torch.bfloat16))}


def step(data: Data, method: Callable[[Data], Tensor]) -> tuple[float, float | None, Tensor]:
    """Seconds of the forward pass, of forward and backward, and the result."""
    begin = time.perf_counter()
    result = method(data)
    forward = time.perf_counter() - begin
    if not result.requires_grad:
        return forward, None, result
    torch.autograd.grad(result, data.query)
    return forward, time.perf_counter() - begin, result.detach()


def measure_times(options: argparse.Namespace) -> list[dict[str, object]]:
    data = Data(options.batch, options.places, options.dimension, [torch.float32, torch.bfloat16, torch.float16])
    forward: dict[str, list[float]] = {name: [] for name in METHODS}
    both: dict[str, list[float]] = {name: [] for name in METHODS}
    losses: dict[str, float] = {}
    for repeat in range(options.repeats + 1):  # the first one warms up
        for name, (_, method) in METHODS.items():
            seconds, total, result = step(data, method)
            if repeat > 0:
                forward[name].append(seconds)
                both[name] += [] if total is None else [total]
            if result.ndim == 0:
                losses[name] = float(result)
    return [
        {
            "method": name,
            "forward_ms": 1e3 * statistics.median(forward[name]),
            "forward_backward_ms": 1e3 * statistics.median(both[name]) if both[name] else None,
            "loss": losses.get(name),
            "loss_difference": abs(losses[name] - losses["dense, float32"]) if name in losses else None,
            "runs_forward_s": forward[name],
            "runs_forward_backward_s": both[name],
        }
        for name in METHODS
    ]


def measure_memory(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Peak memory of one step above what the process has with its bank, in a process of its own."""
    words = [sys.executable, __file__, "--memory-of", name, "--batch", str(options.batch), "--places", str(options.places)]
    words += ["--dimension", str(options.dimension), "--threads", str(options.threads)]
    # Otherwise the allocator keeps what making the bank took, and the step would seem to need nothing.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    result = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return {"method": name} | json.loads(result.stdout.splitlines()[-1])


def memory_of(name: str, options: argparse.Namespace) -> int:
    dtype, method = (METHODS | MEMORY_ONLY)[name]
    small = Data(2, 128, 64, [dtype])
    step(small, method)  # what the first call loads is not the step's
    data = Data(options.batch, options.places, options.dimension, [dtype])
    reset_peak()
    before = resident_bytes()
    step(data, method)
    bank = data.banks[dtype]
    print(json.dumps({"bank_mb": bank.nbytes / 1e6, "above_bank_mb": (peak_bytes() - before) / 1e6}))
    return 0


def report(times: list[dict[str, object]], memory: list[dict[str, object]], options: argparse.Namespace) -> Record:
    record = Record(
        "loss_step", "A training step over a large bank",
        f"L_asym+ at batch {options.batch}, {options.places} places, {options.dimension}-D, {options.threads} thread(s), medians of "
        f"{options.repeats} runs of all methods in turn. The bank has rows near every query. Memory is that of a process of its own, "
        "forward and backward, above its bank.", "torch",
    )  # fmt: skip
    by_name = {str(row["method"]): row for row in times}
    bare, reference = by_name["bare product q·Cᵀ, float32"], by_name["dense, float32"]
    rows: list[list[object]] = []
    for name, row in by_name.items():
        cells = [f"{row['forward_ms']:.0f}", *(f"{row['forward_ms'] / other['forward_ms']:.2f}" for other in (bare, reference))]
        both = row["forward_backward_ms"]
        cells += ["–", "–"] if both is None else [f"{both:.0f}", f"{both / reference['forward_backward_ms']:.2f}"]
        cells += ["–", "–"] if row["loss"] is None else [f"{row['loss']:.4f}", f"{row['loss_difference']:.1e}"]
        rows.append([name, *cells])
    columns = ["step", "forward ms", "/ bare product", "/ dense", "forward + backward ms", "/ dense", "loss", "difference"]
    record.table("Time of a step", columns, rows)
    record.table(
        "Memory of a step", ["step with backward", "bank MB", "peak above the bank MB"],
        [[row["method"], f"{row['bank_mb']:.0f}", f"{row['above_bank_mb']:.0f}"] for row in memory],
    )  # fmt: skip
    half, single = by_name["in blocks, bfloat16"], by_name["in blocks, float32"]
    record.aim("loss step, bfloat16 in blocks / dense float32, forward", half["forward_ms"] / reference["forward_ms"], 0.35, at_most=True)
    record.aim("loss step, difference of the bfloat16 loss", half["loss_difference"], 1e-4, at_most=True)
    record.aim("loss step, float32 in blocks / bare product, forward", single["forward_ms"] / bare["forward_ms"], 1.1, at_most=True)
    record.values(times=times, memory=memory)
    return record


def main() -> int:
    """Measure and print the tables; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--places", type=int, default=67000)
    parser.add_argument("--dimension", type=int, default=8448)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        return memory_of(options.memory_of, options)
    memory = [measure_memory(name, options) for name in [*METHODS, *MEMORY_ONLY]]
    times = measure_times(options)
    return report(times, memory, options).finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
