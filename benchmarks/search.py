"""Kinds of search index by gallery size and dimension: time, bytes, recall against exact search.

    python benchmarks/search.py --rows 1000 10000 100000 --dimension 512 8448 --out out/search.json
    python benchmarks/search.py --rows 1000000 --dimension 512 --kinds exact ivfpq --out out/search_1m.json

Made-up clustered descriptors as float16, queries near them, one thread. What the package chooses by itself at each size
is judged; every kind that is named is built beside it, whatever memory it takes, and timed in turn with a flat float32
index and with a pass that only reads a buffer: the read floor.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from made_up import made_up_gallery
from record import Record, interleaved, spread

from asymvpr_core.config import IndexSettings
from asymvpr_core.errors import RetrievalError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.exact_search import search_exactly
from asymvpr_core.retrieval.gallery_index import GalleryIndex, IndexManifest, open_index
from asymvpr_core.retrieval.index import search, view_index
from asymvpr_core.retrieval.recipes import RECIPES
from asymvpr_core.retrieval.tuning import made_up_queries, recall

K, QUERIES = 10, 400
KINDS = ("exact", "float16", "sq8", "rabitq", "hnsw", "pq", "ivfpq")
DEFAULT_AT = (10_000, 8448)  # the size that the aims are set for


def seconds_per_query(queries: np.ndarray, call: Callable[[np.ndarray], object]) -> Callable[[], float]:
    """Mean seconds of one query, given one at a time."""

    def run() -> float:
        begin = time.perf_counter()
        for query in queries:
            call(query[np.newaxis])
        return (time.perf_counter() - begin) / len(queries)

    return run


def read_floor(megabytes: int = 512) -> Callable[[], float]:
    """Seconds to read one byte of a large buffer, by a sum over it."""
    buffer = np.ones(megabytes << 18, np.float32)

    def run() -> float:
        begin = time.perf_counter()
        faiss.fvec_inner_product(faiss.swig_ptr(buffer), faiss.swig_ptr(buffer), len(buffer))
        return (time.perf_counter() - begin) / buffer.nbytes

    return run


def bytes_a_vector(manifest: IndexManifest, dimension: int) -> float:
    """Everything that searches read, by the vector: the index file, and the stored float16 descriptors where they are read as well."""
    stored = 2 * dimension if manifest.kind == "exact" or (RECIPES[manifest.kind].refines and manifest.refine == "descriptors") else 0
    return stored + (0 if manifest.file is None else manifest.file.bytes / manifest.keyframes)


def measure(count: int, dimension: int, kinds: list[str], rounds: int, refine: str, flat_gb: float) -> dict[str, object]:
    """All kinds at one size: seconds by round, bytes, recall; what could not be built, and why."""
    with tempfile.TemporaryDirectory() as work:
        path = made_up_gallery(Path(work) / "gallery", count, dimension)
        gallery = Gallery.open(path, verify=False)
        queries = made_up_queries(gallery.descriptors, QUERIES, seed=1)
        truth = search_exactly(gallery.descriptors, queries, K)[1]
        methods: dict[str, Callable[[], float]] = {}
        found: dict[str, dict[str, object]] = {}
        refused: dict[str, str] = {}
        few = queries[:20]

        def add(name: str, call: Callable[[np.ndarray], object], size: float | None, build_s: float | None, kind: str) -> None:
            methods[name] = seconds_per_query(few, call)
            indices = np.concatenate([np.asarray(call(query[np.newaxis]))[1] for query in queries])  # type: ignore[index]
            found[name] = {
                "kind": kind, "bytes_a_vector": size, "build_s": build_s,
                "recall_at_1": recall(indices, truth, 1), "recall_at_10": recall(indices, truth, K),
            }  # fmt: skip

        if 4 * count * dimension <= flat_gb * 1e9:
            flat = faiss.IndexFlatIP(dimension)
            for start in range(0, count, 4096):
                flat.add(np.ascontiguousarray(gallery.descriptors[start : start + 4096], dtype=np.float32))
            add("flat float32, FAISS alone", lambda q, i=flat: i.search(q, K), 4 * dimension, None, "flat")
            if (count, dimension) == DEFAULT_AT:
                single = GalleryIndex("exact", None, stored_float32(Path(work) / "float32.npy", gallery.descriptors), {}, "descriptors")
                add("exact, stored as float32", lambda q, i=single: search(i, q, K), 4 * dimension, None, "exact")
        stored = view_index(gallery.descriptors)
        add("exact, FAISS alone", lambda q, i=stored: i.search(q, K), 2 * dimension, None, "exact")
        chosen: IndexManifest | None = None
        for kind in ["auto", *kinds]:
            begin = time.perf_counter()
            settings = (
                IndexSettings() if kind == "auto" else IndexSettings.model_validate({"kind": kind, "refine": refine, "memory_mb": 65536.0})
            )
            try:
                manifest = index_gallery(path, settings)
            except RetrievalError as error:
                refused[kind] = str(error)
                continue
            build_s = time.perf_counter() - begin
            index: GalleryIndex = open_index(gallery)
            chosen = manifest if kind == "auto" else chosen
            name = "what the package chooses" if kind == "auto" else kind
            add(name, lambda q, i=index: search(i, q, K), bytes_a_vector(manifest, dimension), build_s, manifest.kind)
            if kind == "auto":
                inner = index.faiss_index
                add("the same, FAISS alone", lambda q, i=inner: i.search(q, K), None, None, manifest.kind)
        methods["read floor, a byte"] = read_floor()
        faiss.omp_set_num_threads(1)
        times = interleaved(methods, rounds)
        return {
            "rows": count,
            "dimension": dimension,
            "found": found,
            "refused": refused,
            "seconds": times,
            "chosen": chosen and chosen.kind,
        }


def stored_float32(path: Path, descriptors: np.ndarray) -> np.ndarray:
    """The descriptors as float32 in a file, memory-mapped as a gallery's are: the type that `asymvpr gallery build` writes by itself."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=descriptors.shape)
    for start in range(0, len(rows), 4096):
        rows[start : start + 4096] = descriptors[start : start + 4096]
    rows.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def main() -> int:
    """Measure every size and print; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--dimension", type=int, nargs="+", default=[512, 8448])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--refine", default="auto", choices=("auto", "descriptors", "sq8"), help="of the kinds that are named")
    parser.add_argument("--largest-gb", type=float, default=2.0, help="leave out descriptors that take more than this on disk")
    parser.add_argument("--flat-gb", type=float, default=5.0, help="no flat index beside them above this")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    record = Record(
        "search", "Search",
        f"Made-up clustered descriptors, float16 on disk; {QUERIES} queries near them for the recall at {K} against exact search, 20 of "
        f"them, one at a time, for the milliseconds: median of {options.rounds} rounds in turn, one thread. Bytes are all that searches "
        "read: the index, and the stored descriptors (2·D) where candidates are ranked again with them; without keyframes and poses.",
        "faiss-cpu",
    )  # fmt: skip
    curves: dict[str, list[tuple[float, float]]] = {}
    kept = []
    for dimension in options.dimension:
        for count in options.rows:
            if 2 * count * dimension > options.largest_gb * 1e9:
                continue
            result = measure(count, dimension, options.kinds, options.rounds, options.refine, options.flat_gb)
            kept.append(result)
            report(record, result)
            for name, times in result["seconds"].items():  # type: ignore[attr-defined]
                if name in ("flat float32, FAISS alone", "what the package chooses"):
                    curves.setdefault(f"{name}, {dimension}-D", []).append((count, 1e3 * statistics.median(times)))
    record.curves("Milliseconds of a query", "keyframes", "ms", curves)
    record.values(results=kept)
    return record.finish(options.out)


def report(record: Record, result: dict) -> None:
    """The table of one size, and the aims where it is the size that they are set for."""
    times, found = result["seconds"], result["found"]
    median = {name: statistics.median(values) for name, values in times.items()}
    flat = median.get("flat float32, FAISS alone")
    rows: list[list[object]] = []
    for name, values in found.items():
        size, build_s = values["bytes_a_vector"], values["build_s"]
        times_faster = "–" if flat is None else f"{flat / median[name]:.1f}"
        label = f"{name} ({values['kind']})" if name == "what the package chooses" else name
        rows.append(
            [
                label, spread(times[name], 1e3, 2), times_faster, "–" if size is None else f"{size:.0f}",
                f"{values['recall_at_1']:.3f}", f"{values['recall_at_10']:.3f}", "–" if build_s is None else f"{build_s:.1f}",
            ]
        )  # fmt: skip
    columns = ["index", "ms", "x faster than flat", "bytes a vector", "R@1", "R@10", "build s"]
    note = " ".join(f"`{kind}` was refused: {reason}." for kind, reason in result["refused"].items())
    record.table(f"{result['rows']} x {result['dimension']}-D", columns, rows, note)
    ours, size = "what the package chooses", f"{result['rows']} x {result['dimension']}"
    record.aim(f"default index at {size} ({found[ours]['kind']}): recall at 10", found[ours]["recall_at_10"], 0.99, at_most=False)
    bare = 1.05 * median["the same, FAISS alone"] + 5e-5
    record.aim(f"our search call at {size} / (1.05 x FAISS's + 0.05 ms)", median[ours] / bare, 1.0, at_most=True)
    if (result["rows"], result["dimension"]) != DEFAULT_AT:
        return
    floor = 2 * result["rows"] * result["dimension"] * median["read floor, a byte"]
    if flat is not None:
        record.aim(f"default index at {size}: flat / ours, time", flat / median[ours], 15, at_most=False)
        share = found[ours]["bytes_a_vector"] / (4 * result["dimension"])
        record.aim(f"default index at {size}: bytes that searches read / flat's", share, 0.3, at_most=True)
        single = 2 * floor / median["exact, stored as float32"]
        record.aim("exact search, our call, stored as float32: read floor of its bytes / time", single, 0.85, at_most=False)
        record.aim("flat float32, FAISS alone: read floor of its bytes / time", 2 * floor / flat, 0.85, at_most=False)
    half = floor / median["exact, FAISS alone"]
    record.aim("exact search, FAISS alone, stored as float16: read floor of its bytes / time", half, 0.85, at_most=False)


if __name__ == "__main__":
    sys.exit(main())
