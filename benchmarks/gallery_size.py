"""How opening a gallery and matching a descriptor grow with the number of keyframes: milliseconds and memory.

    python benchmarks/gallery_size.py --rows 1000 10000 100000 1000000 --out out/gallery_size.json

Made-up galleries of clustered descriptors, each opened and searched as the robot does, in a process of its own.
Memory is what the process has more than before; "private" leaves out the pages of mapped files, which the system may take back.
The largest needs 1.7 GB of disk for its descriptors while it is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import memory_bytes
from made_up import clustered_rows, made_up_gallery
from record import Record, child_json

from asymvpr_core.config import IndexSettings
from asymvpr_core.retrieval.building import index_gallery

MAPPED_AT = (100_000, 8448)  # keyframes and dimension of the gallery that has to open by memory map


def measure(path: Path, queries: int) -> dict[str, float]:
    """Open the gallery in this process and match descriptors against it."""
    from asymvpr_core.config import MatcherSettings
    from asymvpr_core.gallery.store import Gallery
    from asymvpr_core.retrieval.gallery_index import open_index
    from asymvpr_core.retrieval.matcher import Matcher
    from asymvpr_core.types import QueryFrame

    before = memory_bytes()
    begin = time.perf_counter()
    gallery = Gallery.open(path, verify="auto")
    matcher = Matcher(gallery, open_index(gallery), MatcherSettings())
    opened_at = time.perf_counter()
    open_s = opened_at - begin
    opened = memory_bytes()
    asked = clustered_rows(queries + 1, gallery.descriptors.shape[1], seed=1)
    seconds = []
    for number, query in enumerate(asked):
        begin = time.perf_counter()
        matcher.match(query, QueryFrame((number + 1) * 10**8))
        seconds.append(time.perf_counter() - begin)
    after = memory_bytes()
    if gallery.verification is not None:  # the descriptors' checksum, behind the work
        gallery.verification.wait()
    return {
        "verified_s": time.perf_counter() - opened_at,
        "opened_mapped_mb": (opened[1] - before[1] - (opened[0] - before[0])) / 1e6,
        "open_s": open_s, "match_ms": 1e3 * statistics.median(seconds[1:]), "opened_private_mb": (opened[0] - before[0]) / 1e6,
        "private_mb": (after[0] - before[0]) / 1e6, "all_mb": (after[1] - before[1]) / 1e6,
    }  # fmt: skip


def main() -> int:
    """Measure every size and print; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--dimension", type=int, nargs="+", default=[512, 8448])
    parser.add_argument("--largest-gb", type=float, default=4.0, help="leave out descriptors that take more than this on disk")
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.queries)))
        return 0
    record = Record(
        "gallery_size", "As the gallery grows",
        f"Made-up float16 galleries with the index that the package chooses, opened and matched as the robot does, in a process of its own "
        f"for each; median of {options.queries} descriptors, one thread. Memory is what the process has more than before.", "faiss-cpu",
    )  # fmt: skip
    found: dict[int, list[dict[str, float]]] = {dimension: [] for dimension in options.dimension}
    rows = []
    for dimension in options.dimension:
        for count in options.rows:
            if 2 * count * dimension > options.largest_gb * 1e9:
                continue
            with tempfile.TemporaryDirectory() as work:
                path = made_up_gallery(Path(work) / "gallery", count, dimension)
                index_gallery(path, IndexSettings())
                command = [sys.executable, __file__, "--measure", str(path), "--queries", str(options.queries)]
                result = child_json(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[dimension].append(result | {"rows": count})
            size_mb = 2 * count * dimension / 1e6
            opened = [f"{result['open_s']:.2f}", f"{result['opened_private_mb']:.0f}", f"{result['opened_mapped_mb']:.0f}"]
            matched = [f"{result['match_ms']:.2f}", f"{result['private_mb']:.0f}", f"{result['all_mb']:.0f}", f"{result['verified_s']:.1f}"]
            rows.append([dimension, count, f"{size_mb:.0f}", *opened, *matched])
            if (count, dimension) == MAPPED_AT:
                share = result["opened_mapped_mb"] / size_mb
                record.aim("100k x 8448 gallery opened: mapped pages in memory / bytes of its descriptors", share, 0.1, at_most=True)
                whole = (result["opened_private_mb"] + result["opened_mapped_mb"]) / size_mb
                record.aim("the same with all that opening allocated (keyframes, poses, index)", whole, 0.3, at_most=True)
    columns = ["D", "keyframes", "descriptors MB", "open s", "opened, private MB", "opened, mapped MB", "match ms"]
    columns += ["after matching, private MB", "with mapped files MB", "verified behind the work after s"]
    record.table("Opening and matching", columns, rows)
    for value, unit in (("match_ms", "ms"), ("private_mb", "MB")):
        series = {f"{dimension}-D": [(r["rows"], max(r[value], 0.01)) for r in results] for dimension, results in found.items() if results}
        record.curves({"match_ms": "Time of a match", "private_mb": "Private memory"}[value], "keyframes", unit, series)
    record.values(results={str(dimension): results for dimension, results in found.items()})
    return record.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
