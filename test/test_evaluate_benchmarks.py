"""`evaluate pairs --benchmark` on small benchmarks with real image bytes, in every kind of rule and with none."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_benchmarks import line_name, msls, utm_name
from test_cli import misused, refused, run
from tiny_artefacts import DIMENSION, encode_jpeg, make_identity, make_model, make_picture, revisit
from torch import Tensor, nn

import asymvpr_core.evaluation.encoders as encoders
from asymvpr_core.config import BenchmarkSettings, EvaluationSettings, GallerySettings
from asymvpr_core.datasets.benchmark_source import open_benchmark, open_database
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.evaluation.encoders import NamedEncoder, describe
from asymvpr_core.evaluation.ground_truth import gallery_benchmark, holds_database
from asymvpr_core.evaluation.pairings import evaluate_pairings, pairings_of
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.networks import registry
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource
from asymvpr_core.preprocess import Preprocess

OPTIONS = ["--network", "grid=grid.pt", "--bootstrap-resamples", "10", "--no-cache", "--k", "1,2"]


class Grid(nn.Module):
    """Mean colours on an 8 x 8 grid, whatever the size of the picture."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)
        return nn.functional.normalize(self.scale * (features - 0.5))


@pytest.fixture(autouse=True)
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetworkSpec]:
    """A network of variable input size by the name "grid", its weights in grid.pt."""
    monkeypatch.chdir(tmp_path)
    preprocess = Preprocess(height=64, width=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resample="bilinear", fit="native")
    spec = NetworkSpec("grid", "query", "mean colours", Grid, DIMENSION, preprocess, WeightsSource("test"))
    registry.register(spec)
    torch.save(Grid().state_dict(), tmp_path / "grid.pt")
    yield spec
    del registry._own["grid"]


def show(path: Path, seed: int, look: int = 0) -> None:
    """A picture of place `seed`; every other place in another size, so that batches hold one size each."""
    picture = make_picture(seed, height=96 if seed % 2 else 120)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(picture if look == 0 else revisit(picture, look)))


def evaluate(*arguments: object) -> tuple[dict, list[dict[str, str]], str]:
    """(metrics, rows of the only pairing's predictions, report) of one run on a benchmark."""
    out = Path("out")
    code, stdout, stderr = run("evaluate", "pairs", *arguments, *OPTIONS, "--out", out)
    assert code == 0, stderr
    (predictions,) = (out / "predictions").iterdir()
    with open(predictions, newline="") as file:
        rows = list(csv.DictReader(file))
    return json.loads((out / "metrics.json").read_text()), rows, (out / "report.html").read_text() + stdout


def only(metrics: dict) -> dict:
    (system,) = metrics["systems"].values()
    return system


def test_pairs_without_positions(tmp_path):
    for i in range(6):
        show(tmp_path / "sped" / "ref" / f"{i:04d}.jpg", i)
        show(tmp_path / "sped" / "query" / f"{i:04d}.jpg", {4: 3}.get(i, i), look=1)  # query 4 shows place 3
    metrics, rows, report = evaluate("--benchmark", "sped")
    assert metrics["protocol"]["correct_match"] == "database image of the query's pair, which has its name"
    assert metrics["protocol"]["radius_m"] is None and metrics["benchmark"]["layout"] == "sped"
    assert only(metrics)["recall_at_k"]["1"] == pytest.approx(5 / 6) and only(metrics)["median_position_error_m"] is None
    assert {row["distance_m"] for row in rows} == {""} and sum(row["correct"] == "1" and row["rank"] == "1" for row in rows) == 5
    assert any("published with 607 and 607" in warning for warning in metrics["warnings"]) and "warning: " in report
    assert "grid of grid.pt" in report and ">Map<" not in report and "a correct one" not in report  # it is among the answers
    assert " nan" not in report and "– m" not in report


def test_windows_of_frames(tmp_path):
    for i in range(30):
        show(tmp_path / "nordland" / "summer" / f"{i:03d}.png", i)
        show(tmp_path / "nordland" / "winter" / f"{i:03d}.png", i if i != 20 else 21, look=2)  # one frame off still counts
    metrics, rows, _ = evaluate("--benchmark", "nordland", "--version", "star")
    assert "at most 1 frame from" in metrics["protocol"]["correct_match"] and only(metrics)["recall_at_k"]["1"] == 1.0
    assert {row["query_image"]: row["n_positives"] for row in rows} == {"000.png": "2", "010.png": "3", "020.png": "3"}
    assert list(only(metrics)["by_condition"]) == ["winter"]
    assert "takes no radius_m" in refused("evaluate", "pairs", "--benchmark", "nordland", "--radius-m", "5", *OPTIONS, "--out", "no")


def test_named_folders_with_conditions_and_another_radius(tmp_path):
    root = tmp_path / "set" / "images" / "test"
    for i, northing in enumerate(range(0, 100, 10)):
        show(root / "database" / line_name(northing), i)
    for place, northing, note in ((0, 0, "day"), (2, 47, "night"), (5, 51, "night"), (99, 1000, "night")):
        show(root / "queries" / line_name(northing, note), place, look=1)
    metrics, _, report = evaluate("--benchmark", "set")
    assert metrics["protocol"]["correct_match"] == "database image within 25 m (horizontal distance) of the query"
    assert (only(metrics)["n_queries"], only(metrics)["n_without_positive"]) == (4, 1)
    # By hand: the second query sees place 2 at 20 m, 27 m away; 2 of the 3 that have a match are right.
    assert only(metrics)["recall_at_k"]["1"] == pytest.approx(2 / 3)
    night = only(metrics)["by_condition"]["night"]
    assert (night["n_queries"], night["n_without_positive"], night["recall_at_k"]["1"]) == (3, 1, 0.5)
    assert ">Map<" in report and "Conditions" in report
    code, _, stderr = run("evaluate", "pairs", "--benchmark", "set", "--radius-m", "30", *OPTIONS, "--out", "wide")
    assert code == 0, stderr
    wide = json.loads(Path("wide/metrics.json").read_text())
    assert only(wide)["recall_at_k"]["1"] == 1.0 and wide["protocol"]["radius_m"] == 30.0
    Path("rules.yaml").write_text("benchmark: {radius_m: 30.0}\nevaluation: {radius_m: 1.0}\n")
    code, _, stderr = run("evaluate", "pairs", "--benchmark", "set", "--config", "rules.yaml", *OPTIONS, "--out", "section")
    assert code == 0 and json.loads(Path("section/metrics.json").read_text())["protocol"]["radius_m"] == 30.0, stderr


def test_msls_matches_within_a_city(tmp_path):
    msls(tmp_path / "msls")
    for i, path in enumerate(sorted((tmp_path / "msls").rglob("*.jpg"))):
        show(path, i)
    metrics, rows, _ = evaluate("--benchmark", "msls")
    assert metrics["benchmark"] == {"title": "msls val (740)", "layout": "msls", "split": "val", "version": "740"}
    assert metrics["protocol"]["correct_match"].endswith(", in the same city")
    truth = open_benchmark(Path("msls")).positives
    assert [int(row["n_positives"]) for row in rows if row["rank"] == "1"] == truth.counts.tolist()


def test_without_ground_truth_nothing_is_judged(tmp_path):
    for i in range(4):
        show(tmp_path / "plain" / "database" / f"{i}.jpg", i)
    for i in range(20):
        show(tmp_path / "plain" / "queries" / f"{i:02d}.jpg", i % 4, look=1 + i)
    metrics, rows, report = evaluate("--benchmark", "plain", "--k", "1,2,9")
    assert metrics["protocol"]["judged"].startswith("nothing was judged") and metrics["comparison"] == []
    assert set(only(metrics)) == {"kind", "query_side", "gallery_side", "n_queries", "best_score"}
    assert len(rows) == 20 * 4 and {(row["correct"], row["n_positives"], row["distance_m"]) for row in rows} == {("", "", "")}
    assert [row["gallery_image"] for row in rows if row["rank"] == "1"][:5] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "0.jpg"]
    assert "Nothing was judged" in report and "Most confident answers" in report and "Least confident answers" in report
    assert "✗" not in report and "✓" not in report and "Recall@" not in report
    shutil.copy("grid.pt", "again.pt")
    code, stdout, stderr = run("evaluate", "pairs", "--benchmark", "plain", *OPTIONS, "--network", "grid=again.pt", "--out", "two")
    assert code == 0 and "nothing was judged" in stdout, stderr
    two = json.loads(Path("two/metrics.json").read_text())
    assert two["comparison"] == [] and list(two["systems"])[1].startswith("grid of again.pt")


def test_two_sources_of_different_zones_share_a_frame(tmp_path):
    # Some metres apart on either side of 12 degrees east: the zones 32 and 33.
    for i, lon in enumerate((11.99990, 12.00010)):
        show(tmp_path / "database" / utm_name(48.0, lon), i)
    show(tmp_path / "queries" / utm_name(48.0, 12.00005), 0, look=1)
    metrics, rows, _ = evaluate("--database", "database", "--queries", "queries")
    assert metrics["references"]["map_frame"] == metrics["queries"]["map_frame"]
    assert only(metrics)["recall_at_k"]["1"] == 1.0
    assert float(rows[0]["distance_m"]) == pytest.approx(11.2, abs=0.3)  # 0.00015 degrees of longitude at 48 degrees


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A benchmark of named folders and a gallery of its database, made by the network grid."""
    root = tmp_path / "site" / "images" / "test"
    for i in range(8):
        show(root / "database" / line_name(10.0 * i), i)
        show(root / "queries" / line_name(10.0 * i + 1), i if i != 5 else 2, look=1)
    settings = GallerySettings(network="grid", projection_dim=None, threads=1)
    build_gallery(open_database(tmp_path / "site"), settings, tmp_path / "gallery", weights=tmp_path / "grid.pt")
    return tmp_path / "site"


def test_a_gallery_of_the_benchmark_is_not_described_again(site, monkeypatch):
    gallery = Gallery.open(Path("gallery"))
    assert len(gallery) == 8 and holds_database(gallery, open_benchmark(site).database)
    described = []
    monkeypatch.setattr("asymvpr_core.evaluation.pairings.describe", lambda *a, **k: described.append(a[4]) or describe(*a, **k))
    arguments = ["evaluate", "pairs", "--benchmark", "site", "--gallery", "gallery", "--weights", "grid.pt", "--radius-m", "5"]
    code, _, stderr = run(*arguments, "--no-cache", "--out", "out")
    assert code == 0, stderr
    system = only(json.loads(Path("out/metrics.json").read_text()))
    assert described == ["queries"] and system["gallery_side"] == "stored"
    assert system["recall_at_k"]["1"] == pytest.approx(7 / 8)
    next(iter((site / "images" / "test" / "database").iterdir())).unlink()  # other images: they are described
    assert not holds_database(gallery, open_benchmark(site).database)


def test_queries_of_a_benchmark_never_get_into_its_gallery(site):
    code, stdout, stderr = run("gallery", "build", "site", "--network", "efficientnet_lite0_gem", "--projection-dim", "0", "--out", "built")
    assert code == 0, stderr
    assert len(Gallery.open(Path("built"))) == 8
    with pytest.raises(Exception, match="only benchmarks have them"):
        open_database(site / "images" / "test" / "queries", BenchmarkSettings(split="val"))
    assert len(open_database(site, BenchmarkSettings(layout="folder")).records) == 16  # asked for: all images


def test_a_random_aggregator_is_refused(site):
    error = refused("evaluate", "pairs", "--benchmark", "site", "--network", "efficientnet_lite0_salad", "--no-cache", "--out", "no")
    assert "random aggregator" in error and "--network efficientnet_lite0_salad=FILE" in error
    assert not Path("no").exists()


def test_networks_and_their_files(site):
    pairs = ["evaluate", "pairs", "--benchmark", "site", "--no-cache", "--out", "no", "--network"]
    assert "NAME=FILE" in misused(*pairs, "grid=") and "NAME=FILE" in misused(*pairs, "=grid.pt")
    assert "no.pt" in refused(*pairs, "grid=no.pt")
    assert "--network cosplace_resnet18_512=FILE" in refused(*pairs, "cosplace_resnet18_512")
    assert "two pairings are called" in refused(*pairs, "grid=grid.pt", "--network", "grid=grid.pt")
    assert "give one of --benchmark and --queries" in misused(*pairs, "grid=grid.pt", "--queries", "site")
    assert "a database of its own" in misused(*pairs, "grid=grid.pt", "--database", "site")


def test_large_descriptors_go_through_a_file_with_the_same_answers(site, monkeypatch, tmp_path):
    benchmark = open_benchmark(site)
    model = NamedEncoder.of_model(QueryModel.open(make_model(tmp_path / "model", make_identity("x"))))
    in_memory = describe(benchmark.database, model)
    on_disk = describe(benchmark.database, model, scratch=tmp_path, memory_gb=4 * 7 * DIMENSION / 1e9)  # room for seven of eight
    assert isinstance(on_disk, np.memmap) and not isinstance(in_memory, np.memmap)
    np.testing.assert_array_equal(on_disk, in_memory)
    assert not isinstance(describe(benchmark.database, model, scratch=tmp_path, memory_gb=4 * 8 * DIMENSION / 1e9), np.memmap)
    before = set(tmp_path.iterdir())
    rooms, room = [], encoders._room
    monkeypatch.setattr(encoders, "_room", lambda *a: rooms.append(room(*a)) or rooms[-1])
    found = []
    for limit in (1.0, 0.0):
        settings = EvaluationSettings(k=(1, 3), descriptor_memory_gb=limit, bootstrap_resamples=0)
        pairings = pairings_of(None, [], [model], None, use_stored=False)
        result = evaluate_pairings(benchmark, pairings, settings, tmp_path / f"limit{limit:.0f}")
        found.append(result.systems[0])
    assert [isinstance(array, np.memmap) for array in rooms] == [False, False, True, True]
    np.testing.assert_array_equal(found[0].indices, found[1].indices)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)
    names = {path.name for path in set(tmp_path.iterdir()) - before}
    assert names == {"limit1", "limit0"}
    assert {path.name for path in (tmp_path / "limit0").iterdir()} == {"metrics.json", "predictions", "report.html"}


def test_a_gallery_and_queries_of_another_zone_share_a_frame(tmp_path):
    for i, lon in enumerate((12.00010, 12.00030)):
        show(tmp_path / "database" / utm_name(48.0, lon), i)
    show(tmp_path / "queries" / utm_name(48.0, 11.99995), 0)
    settings = GallerySettings(network="grid", projection_dim=None, threads=1)
    build_gallery(open_source(tmp_path / "database"), settings, tmp_path / "gallery", weights=tmp_path / "grid.pt")
    benchmark = gallery_benchmark(Gallery.open(tmp_path / "gallery"), open_source(tmp_path / "queries"), EvaluationSettings(radius_m=20.0))
    assert benchmark.positives[0].tolist() == [0]
    assert benchmark.rule_text == "gallery image within 20 m (horizontal distance) of the query"
