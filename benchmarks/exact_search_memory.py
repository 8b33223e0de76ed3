"""Memory and time of the exact search that evaluation uses, against the number of gallery descriptors.

    python benchmarks/exact_search_memory.py --rows 10000 25000 50000 --dimension 8448 --out memory.json

Made-up L2-normalised float16 descriptors are written to a file and searched through a memory map. Every
size runs in a process of its own; its memory is sampled while it searches: "anonymous" is what the search
itself allocates, "with the map" adds the pages of the file that are mapped at that moment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from machine import describe, memory_bytes

_BLOCK = 1000


def write_descriptors(path: Path, rows: int, dimension: int) -> None:
    """Write random unit rows, a block at a time; every block is the first one with its columns turned, which is quicker than drawing."""
    block = np.random.default_rng(0).normal(size=(_BLOCK, dimension)).astype(np.float32)
    block = (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16)
    with open(path, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, _BLOCK):
            file.write(np.roll(block, start // _BLOCK, axis=1)[: rows - start].tobytes())


def search_once(path: Path, queries: int, k: int) -> dict[str, float]:
    """Search in this process; what it needed beyond its memory before."""
    from asymvpr_core.retrieval.exact_search import search_exactly

    descriptors = np.load(path, mmap_mode="r")
    asked = np.random.default_rng(1).normal(size=(queries, descriptors.shape[1])).astype(np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    before, peak, done = memory_bytes(), [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for i, value in enumerate(memory_bytes()):
                peak[i] = max(peak[i], (value - before[i]) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    search_exactly(descriptors, asked, k)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return {"seconds": seconds, "anonymous_mib": peak[0], "with_map_mib": peak[1]}


def main() -> int:
    """Measure every size and print the table; `--out` keeps it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 25_000, 50_000])
    parser.add_argument("--dimension", type=int, default=8448)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search is not None:
        print(json.dumps(search_once(options.search, options.queries, options.k)))
        return 0
    results = []
    print("| rows | file MiB | as float32 index MiB | anonymous MiB | with the map MiB | seconds |\n|---|---|---|---|---|---|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "descriptors.npy"
            write_descriptors(path, rows, options.dimension)
            command = [sys.executable, __file__, "--search", str(path), "--queries", str(options.queries), "--k", str(options.k)]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        file_mib = 2 * rows * options.dimension / 2**20
        results.append({"rows": rows, "file_mib": file_mib, "index_mib": 2 * file_mib, **measured})
        cells = (measured["anonymous_mib"], measured["with_map_mib"])
        print(f"| {rows} | {file_mib:.0f} | {2 * file_mib:.0f} | {cells[0]:.0f} | {cells[1]:.0f} | {measured['seconds']:.1f} |", flush=True)
    record = describe("faiss-cpu", "numpy") | {"arguments": sys.argv[1:], "results": results}
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
