"""Memory of the closed-form alignment against the number of images.

    python benchmarks/alignment_memory.py --images 10000 40000 --out out/alignment.json

Random float32 features and float16 descriptors on disk, eight images a place, each image twice as a feature, as with
one augmented copy. Each size is fitted in a process of its own; the memory is the most that it had (VmHWM, with the
pages of mapped files) above what it had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe, peak_bytes, reset_peak, resident_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from asymvpr_core.row_file import RowFile
from asymvpr_core.training.alignment import align

COPIES, IMAGES_PER_PLACE, BLOCK = 2, 8, 1000


def make_rows(path: Path, rows: int, columns: int, dtype: type) -> Path:
    """(rows, columns) random rows of length 1, written block by block."""
    generator = np.random.default_rng(0)
    file = RowFile(path, (rows, columns), dtype)
    for start in range(0, rows, BLOCK):
        values = generator.standard_normal((min(BLOCK, rows - start), columns), dtype=np.float32)
        file.write(start, values / np.linalg.norm(values, axis=1, keepdims=True))
    file.close()
    return path


def fit(folder: Path, images: int) -> dict[str, float]:
    """Seconds and memory of one alignment, in this process."""
    features, descriptors = (np.load(folder / name, mmap_mode="r") for name in ("features.npy", "descriptors.npy"))
    rows = np.tile(np.arange(images), COPIES)
    places = rows // IMAGES_PER_PLACE
    few = min(images, 2 * features.shape[1])
    align(features[:few], descriptors, places[:few], rows=rows[:few])  # loads what numpy loads at its first use
    reset_peak()
    before, begin = resident_bytes(), time.perf_counter()
    align(features, descriptors, places, rows=rows)
    return {"peak_mb": (peak_bytes() - before) / 1e6, "seconds": time.perf_counter() - begin}


def measure(images: int, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        files = [make_rows(folder / "features.npy", COPIES * images, options.channels, np.float32)]
        files.append(make_rows(folder / "descriptors.npy", images, options.dimension, np.float16))
        on_disk = {"images": images, "files_mb": sum(path.stat().st_size for path in files) / 1e6}
        words = [sys.executable, __file__, "--fit", str(folder), "--images", str(images)]
        return on_disk | json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> int:
    """Measure and print the table; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10000, 40000])
    parser.add_argument("--channels", type=int, default=320, help="C of the features")
    parser.add_argument("--dimension", type=int, default=512, help="D of the descriptors")
    parser.add_argument("--folder", type=Path, help="where the numbers are written for the time of the run", metavar="DIR")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit is not None:
        print(json.dumps(fit(options.fit, options.images[0])))
        return 0
    results = [measure(images, options) for images in options.images]
    print("| images | features and descriptors MB | peak memory of the alignment MB | s |\n|---|---|---|---|")
    for row in results:
        print(f"| {row['images']} | {row['files_mb']:.0f} | {row['peak_mb']:.0f} | {row['seconds']:.1f} |")
    if options.out is not None:
        record = describe("numpy") | {"arguments": sys.argv[1:], "results": results}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
