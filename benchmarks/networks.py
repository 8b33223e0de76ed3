"""Parameters, multiply-adds and latency of every named network, on random weights; writes the table of docs/networks.md.

    python benchmarks/networks.py --document docs/networks.md --json out/networks.json

Latency: eager torch, one image of the network's own input size, median over `--repeats`. Each forward pass
is followed by one of the reference network, so that a busy moment of the machine meets both; the ratio is
that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe

from asymvpr_core.networks.cost import network_cost
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import random_network
from asymvpr_core.networks.registry import known_networks, network_spec
from asymvpr_core.networks.spec import NetworkSpec

BEGIN, END = "<!-- measured: written by benchmarks/networks.py -->", "<!-- end -->"


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="instead of all that are named")
    parser.add_argument("--reference", default="dinov2_salad", metavar="NAME")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--document", type=Path, metavar="FILE", help="Markdown file whose table is replaced")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    specs = [network_spec(name) for name in options.networks] if options.networks else known_networks()
    reference = _forward(network_spec(options.reference))
    rows = []
    for spec in specs:
        rows.append(_measure(spec, reference, options.repeats))
        print(_row(rows[-1]), file=sys.stderr, flush=True)
    record = {
        "made_with": describe("torch", "timm"),
        "threads": options.threads,
        "repeats": options.repeats,
        "reference": options.reference,
    }
    text = _table(rows, record)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record | {"networks": rows}, indent=2) + "\n", encoding="utf-8")
    if options.document is not None:
        before, rest = options.document.read_text(encoding="utf-8").split(BEGIN)
        options.document.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0


def _forward(spec: NetworkSpec) -> Any:
    module = random_network(spec, seed=0).eval()
    image = torch.randn(1, 3, spec.preprocess.height, spec.preprocess.width, generator=torch.Generator().manual_seed(0))

    def forward() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            module(image)
        return time.perf_counter() - begin

    forward()  # the first pass allocates
    return forward


def _measure(spec: NetworkSpec, reference: Any, repeats: int) -> dict[str, Any]:
    cost, forward = network_cost(spec), _forward(spec)
    own, other = [], []
    for _ in range(repeats):
        own.append(forward())
        other.append(reference())
    return {
        "name": spec.name, "role": spec.role, "dimension": spec.dimension, "parameters": cost.parameters, "macs": cost.macs,
        "attention_macs": cost.attention_macs, "input": f"{spec.preprocess.width} x {spec.preprocess.height}",
        "latency_ms": 1e3 * statistics.median(own), "latency_ms_all": [1e3 * s for s in own],
        "ratio": statistics.median(other) / statistics.median(own), "licence": spec.weights.licence,
    }  # fmt: skip


def _row(row: dict[str, Any]) -> str:
    return (
        f"| `{row['name']}` | {row['role']} | {row['dimension']} | {row['parameters'] / 1e6:.2f} | {row['macs'] / 1e9:.2f} "
        f"| {row['attention_macs'] / 1e9:.2f} | {row['input']} | {row['latency_ms']:.0f} | {row['ratio']:.1f} | {row['licence']} |"
    )


def _table(rows: list[dict[str, Any]], record: dict[str, Any]) -> str:
    made = record["made_with"]
    return "\n".join(
        [
            "",
            "    python benchmarks/networks.py --document docs/networks.md",
            "",
            f"Commit {made['commit']}; {made['processor']}, {made['cores']} cores; eager torch {made['versions']['torch']}, "
            f"{record['threads']} threads, one image, random weights, "
            f"median of {record['repeats']} passes, each beside one of `{record['reference']}`. GMAC counts all multiply-adds; "
            "the next column says how many of them are products of two activations (attention), which some published counts leave out. "
            "The last number says how many times faster than the reference a network is.",
            "",
            "| network | for | D | parameters [M] | GMAC | in attention | input [px] | latency [ms] | x faster | licence of the weights |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_row(row) for row in rows),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
