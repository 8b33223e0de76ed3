"""Ground truth of public benchmarks against the counts that their papers and repositories report.

The positions come from the wheel of patchnetvlad 0.1.8 on the package registry (MIT; 6 MB), which is
no dependency and is never kept: ASYMVPR_PATCHNETVLAD_WHEEL names a copy, otherwise it is downloaded
for the run of the test.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from asymvpr_core.datasets.ground_truth import positives_within
from asymvpr_core.datasets.layouts import msls, nordland, vpr_folders
from asymvpr_core.datasets.match_rules import FrameWindow

WHEEL = "patchnetvlad-0.1.8-py3-none-any.whl"
SHA256 = "211b85afbca2f3cc0b8969acca81c34c0711502a2d3be817457effc58f2ab67c"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The opened wheel; skips where the registry cannot be reached."""
    given = os.environ.get("ASYMVPR_PATCHNETVLAD_WHEEL")
    path = Path(given) if given else tmp_path_factory.mktemp("wheel") / WHEEL
    if not given:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check", "--retries", "0"]
        command += ["--only-binary", ":all:", "--timeout", "10", "--dest", str(path.parent), "patchnetvlad==0.1.8"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("patchnetvlad 0.1.8: the package registry did not answer; set ASYMVPR_PATCHNETVLAD_WHEEL to a copy of its wheel")
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(f"patchnetvlad 0.1.8 cannot be downloaded ({reason}); set ASYMVPR_PATCHNETVLAD_WHEEL to a copy of its wheel")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256, f"{path} is not the wheel that the counts were taken from"
    with zipfile.ZipFile(path) as opened:
        yield opened


def positions(wheel: zipfile.ZipFile, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Query and database positions, and the radius, of one benchmark."""
    with np.load(io.BytesIO(wheel.read(f"patchnetvlad/dataset_gt_files/{name}.npz")), allow_pickle=False) as arrays:
        return arrays["utmQ"].astype(np.float64), arrays["utmDb"].astype(np.float64), float(arrays["posDistThr"])


@pytest.mark.parametrize(
    ("name", "queries", "database", "radius_m", "pairs", "mean", "fewest", "most"),
    [
        ("pitts30k_test", 6816, 10000, 25.0, 968_448, 142.08, 24, 360),
        ("tokyo247", 315, 75984, 25.0, 37_260, 118.29, 48, 240),
        ("nordland", 27592, 27592, 10.0, 413_824, 15.00, 8, 15),
    ],
)
def test_correct_matches_by_distance(wheel, name, queries, database, radius_m, pairs, mean, fewest, most):
    query_xy, database_xy, radius = positions(wheel, name)
    assert (len(query_xy), len(database_xy), radius) == (queries, database, radius_m)
    found = positives_within(query_xy, database_xy, radius)
    assert found.total == pairs
    assert (found.counts.min(), found.counts.max(), round(float(found.counts.mean()), 2)) == (fewest, most, mean)
    # A few queries against every database image, without a tree.
    for query in range(0, queries, queries // 7):
        near = np.hypot(*(database_xy - query_xy[query]).T) <= radius
        assert found[query].tolist() == np.flatnonzero(near).tolist()


def test_patch_netvlad_nordland_is_seven_frames_either_way(wheel):
    by_distance = positives_within(*positions(wheel, "nordland"))
    frames = np.arange(27592)
    by_frame = FrameWindow(nordland._RULES[nordland.PATCH_NETVLAD][0], frames, frames).positives([], [])
    assert (by_distance.offsets == by_frame.offsets).all() and (by_distance.indices == by_frame.indices).all()


def test_lists_of_images(wheel):
    def lines(name: str) -> list[str]:
        return wheel.read(f"patchnetvlad/dataset_imagenames/{name}.txt").decode().split()

    published = msls._PUBLISHED[msls.OFFICIAL]
    cities = [f"mapillary{city}" for city in msls.VAL_CITIES]
    assert [len(lines(f"{city}_imageNames_query")) for city in cities] == [498, 242]
    assert sum(len(lines(f"{city}_imageNames_query")) for city in cities) == published.queries == 740
    assert sum(len(lines(f"{city}_imageNames_index")) for city in cities) == published.database == 18871
    assert all("/train_val/" in line and "/query/images/" in line for city in cities for line in lines(f"{city}_imageNames_query"))
    for name, key in (("pitts30k", ("pitts30k", "test")), ("tokyo247", ("tokyo247", "test"))):
        counts = vpr_folders._PUBLISHED[key]
        assert (len(lines(f"{name}_imageNames_query")), len(lines(f"{name}_imageNames_index"))) == (counts.queries, counts.database)
    assert len(lines("nordland_imageNames_query")) == len(lines("nordland_imageNames_index")) == nordland._FRAMES


def test_nordland_star_has_2760_queries():
    half_width, step = nordland._RULES[nordland.STAR]
    queries = step * np.arange(-(-nordland._FRAMES // step))
    found = FrameWindow(half_width, queries, np.arange(nordland._FRAMES)).positives([], [])
    assert len(found) == 2760
    assert found[0].tolist() == [0, 1]
    assert all(found[i].tolist() == [10 * i - 1, 10 * i, 10 * i + 1] for i in range(1, 2760))
