"""Cost of the memory bank beside the exact neighbour lists that CSD and D3still need, and its memory against N.

    python benchmarks/memory_bank.py --images 20000 100000 --out out/memory_bank.json

Random float16 descriptors on disk, eight images a place, in the order of the places and shuffled. Neighbour
lists are timed on some of the queries against all images, t_subset, and extrapolated: t(N) = t_subset·N/Q.
To `--target` images: the bank t(N)·(N'/N), the lists t(N)·(N'/N)², from the largest N measured. The memory
is that of a process of its own that streams the bank to disk, above what it had before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from machine import peak_bytes, reset_peak, resident_bytes
from record import Record

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from asymvpr_core.memory.bank import build_memory_bank
from asymvpr_core.memory.moments import Moments, stream_moments
from asymvpr_core.memory.rows import read_rows
from asymvpr_core.row_file import RowFile

NEIGHBOURS, IMAGES_PER_PLACE = 10, 8
GALLERY_ROWS = 8192  # of the neighbour search, in float32 at a time


def make_descriptors(path: Path, images: int, dimension: int) -> Path:
    """(images, dimension) float16 rows of length 1, those of a place alike, written block by block."""
    generator = np.random.default_rng(0)
    file = RowFile(path, (images, dimension), np.float16)
    for start in range(0, images, 1024):
        count = min(1024, images - start)
        places = generator.standard_normal((-(-count // IMAGES_PER_PLACE), dimension), dtype=np.float32)
        rows = np.repeat(places, IMAGES_PER_PLACE, axis=0)[:count] + generator.standard_normal((count, dimension), dtype=np.float32)
        file.write(start, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    file.close()
    return path


def make_places(images: int, order: str) -> np.ndarray:
    places = np.arange(images) // IMAGES_PER_PLACE
    return places if order == "in order" else np.random.default_rng(1).permutation(places)


def knn_torch(descriptors: np.ndarray, queries: torch.Tensor) -> None:
    """The k best of the queries among all rows, block by block, in the queries' precision."""
    best = torch.full((len(queries), 0), 0.0)
    for start in range(0, len(descriptors), GALLERY_ROWS):
        rows = torch.from_numpy(read_rows(descriptors, start, start + GALLERY_ROWS)).to(queries.dtype)
        best = torch.cat([best, (queries @ rows.T).float().topk(min(NEIGHBOURS, len(rows)), dim=1).values], dim=1)
        best = best.topk(min(NEIGHBOURS, best.shape[1]), dim=1).values


def knn_faiss(descriptors: np.ndarray, queries: torch.Tensor) -> None:
    """The same with FAISS's exact search."""
    array = queries.numpy()
    for start in range(0, len(descriptors), GALLERY_ROWS):
        rows = read_rows(descriptors, start, start + GALLERY_ROWS).astype(np.float32)
        faiss.knn(array, rows, NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)


def stream_to_disk(descriptors: np.ndarray, places: np.ndarray, folder: Path) -> None:
    """The bank as `asymvpr bank build` makes it, without artefact and checkpoints."""
    shape = (int(places.max()) + 1, descriptors.shape[1])
    centroids, variances = RowFile(folder / "centroids.npy", shape, np.float16), RowFile(folder / "variances.npy", shape, np.float32)

    def emit(place: int, moments: Moments) -> None:
        centroids.write(place, moments.mean)
        variances.write(place, moments.variance)

    stream_moments(descriptors, places, emit)
    for file in (centroids, variances):
        file.close()
        file.path.unlink()


def seconds_of(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measure(images: int, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Medians over runs of all methods in turn; the lists' times are those of the subset of queries."""
    descriptors = np.load(make_descriptors(folder / f"{images}.npy", images, options.dimension), mmap_mode="r")
    queries = min(options.queries, images)
    chosen = torch.from_numpy(read_rows(descriptors, 0, queries).astype(np.float32))
    in_memory = np.array(descriptors, dtype=np.float32) if 4 * images * options.dimension < options.ram_gb * 1e9 else None
    methods: dict[str, Callable[[], object]] = {
        "bank, float16 file": lambda: build_memory_bank(descriptors, make_places(images, "in order")),
        "bank, float16 file, to disk": lambda: stream_to_disk(descriptors, make_places(images, "in order"), folder),
        "bank, float16 file, shuffled": lambda: build_memory_bank(descriptors, make_places(images, "shuffled")),
        "lists, torch float32": lambda: knn_torch(descriptors, chosen),
        "lists, torch bfloat16": lambda: knn_torch(descriptors, chosen.bfloat16()),
        "lists, FAISS flat": lambda: knn_faiss(descriptors, chosen),
    }
    if in_memory is not None:
        methods = {"bank, float32 in memory": lambda: build_memory_bank(in_memory, make_places(images, "in order"))} | methods
    runs: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name, method in methods.items():
            runs[name].append(seconds_of(method))
    whole = {name: statistics.median(times) * (images / queries if name.startswith("lists") else 1) for name, times in runs.items()}
    return {"images": images, "queries": queries, "runs_s": runs, "seconds": whole}


def measure_memory(images: int, order: str, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    words = [sys.executable, __file__, "--memory-of", str(folder / f"{images}.npy"), "--order", order, "--threads", str(options.threads)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    result = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return {"images": images, "order": order} | json.loads(result.stdout.splitlines()[-1])


def memory_of(path: Path, order: str) -> int:
    descriptors = np.load(path, mmap_mode="r")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        stream_to_disk(descriptors[:64], make_places(64, order), Path(folder))
        reset_peak()
        before = resident_bytes()
        stream_to_disk(descriptors, make_places(len(descriptors), order), Path(folder))
        print(json.dumps({"peak_mb": (peak_bytes() - before) / 1e6, "file_mb": descriptors.nbytes / 1e6}))
    return 0


def report(results: list[dict], memory: list[dict], options: argparse.Namespace) -> Record:
    sizes = [str(result["images"]) for result in results]
    largest = results[-1]
    record = Record(
        "memory_bank", "Place statistics beside exact neighbour lists",
        f"Seconds at {options.dimension}-D, {options.threads} thread(s), medians of {options.repeats} runs in turn. Lists are measured "
        f"for Q = {largest['queries']} queries and multiplied by N/Q; to {options.target} images the bank goes as t(N)·(N'/N), the lists "
        "as t(N)·(N'/N)², from the largest N measured. Memory is that of a process of its own, above what it had before.",
        "torch", "faiss-cpu",
    )  # fmt: skip
    growth = options.target / largest["images"]
    bank = largest["seconds"]["bank, float16 file"]
    extrapolated = {name: seconds * (growth**2 if name.startswith("lists") else growth) for name, seconds in largest["seconds"].items()}
    rows: list[list[object]] = []
    for name, seconds in largest["seconds"].items():
        cells = [f"{result['seconds'][name]:.3g}" if name in result["seconds"] else "–" for result in results]
        rows.append([name, *cells, f"{extrapolated[name]:.3g}", f"{seconds / bank:.3g}", f"{extrapolated[name] / (bank * growth):.3g}"])
    last = [f"/ bank from file at {sizes[-1]}", f"/ bank at {options.target}"]
    record.table("Seconds", ["", *sizes, f"{options.target} (extrapolated)", *last], rows)
    record.table(
        "Memory of the pass", ["images", "order", "descriptors MB", "peak memory of the stream MB"],
        [[row["images"], row["order"], f"{row['file_mb']:.0f}", f"{row['peak_mb']:.0f}"] for row in memory],
    )  # fmt: skip
    torch_lists = largest["seconds"]["lists, torch float32"] / bank
    record.aim(f"exact lists in torch float32 / memory bank, {sizes[-1]} images", torch_lists, 100, at_most=False)
    flat = extrapolated["lists, FAISS flat"] / extrapolated["bank, float16 file"]
    record.aim(f"exact lists by FAISS / memory bank, {options.target} images, extrapolated", flat, 3000, at_most=False)
    names = [name for name in largest["seconds"] if all(name in result["seconds"] for result in results)]
    record.curves(
        "Precompute against the number of images", "images", "seconds",
        {
            name: [*((result["images"], result["seconds"][name]) for result in results), (options.target, extrapolated[name])]
            for name in names
        },
    )  # fmt: skip
    record.values(times=results, memory=memory)
    return record


def main() -> int:
    """Measure and print the tables; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20000, 100000], help="sizes N, ascending")
    parser.add_argument("--dimension", type=int, default=8448)
    parser.add_argument("--queries", type=int, default=512, help="queries of the neighbour lists that are timed")
    parser.add_argument("--target", type=int, default=560000, help="N' of the extrapolation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ram-gb", type=float, default=4.0, help="largest float32 copy that is also timed from memory")
    parser.add_argument("--folder", type=Path, help="where the descriptors are written for the time of the run", metavar="DIR")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--order", default="in order", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    if options.memory_of:
        return memory_of(options.memory_of, options.order)
    results, memory = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for images in options.images:
            results.append(measure(images, options, Path(folder)))
            memory += [measure_memory(images, order, options, Path(folder)) for order in ("in order", "shuffled")]
            (Path(folder) / f"{images}.npy").unlink()
    return report(results, memory, options).finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
