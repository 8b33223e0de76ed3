"""A benchmark layout of your own: three files, `database.txt`, `queries.txt` and the images that they list.

asymvpr dataset info my_benchmark --layout my_layout:LAYOUT    (with this file's folder on PYTHONPATH)
"""

from pathlib import Path

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.benchmark import Benchmark, Layout, radius_rule, refuse_settings
from asymvpr_core.datasets.dataset import FileDataset
from asymvpr_core.datasets.image_files import only_existing
from asymvpr_core.errors import DatasetError
from asymvpr_core.types import ImageRecord, Pose


def open_my_layout(path: Path, settings: BenchmarkSettings) -> Benchmark:
    """Lines of "image x y" in metres of one map; 25 m, or by the settings' radius."""
    refuse_settings(settings, "my_layout", ("split", "version"), "it has one of each")
    database, queries = (_side(path, side, settings.allow_missing) for side in ("database", "queries"))
    return Benchmark(path.name, "my_layout", database, queries, radius_rule(settings))


def _side(path: Path, side: str, allow_missing: bool) -> FileDataset:
    records = []
    for number, line in enumerate((path / f"{side}.txt").read_text(encoding="utf-8").splitlines(), start=1):
        try:
            name, x, y = line.split()
            records.append(ImageRecord(name, Pose((float(x), float(y), 0.0))))
        except ValueError as error:
            raise DatasetError(f"{path / side}.txt, line {number} is '{line}'", expected="image x y") from error
    there, missing = only_existing(path, records, f"{side}.txt", allow_missing)
    return FileDataset(path, "my_layout", "map", there, missing)


LAYOUT = Layout("my_layout", "database.txt and queries.txt", lambda path: (path / "database.txt").is_file(), open_my_layout)
