"""Losses side by side: what is trained, what is kept, and that the table says what was counted."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
from town_folder import make_folder
from typer.testing import CliRunner

from asymvpr_core.config import ComparisonSettings, EvaluationSettings, GallerySettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.errors import ArtefactError, EvaluationError, SettingsError
from asymvpr_core.evaluation import loss_comparison
from asymvpr_core.evaluation.loss_comparison import RunEncoder, compare_losses, entries_of
from asymvpr_core.evaluation.loss_comparison_report import markdown, summarise
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import read_manifest

SETTINGS = TrainSettings(
    query_network="efficientnet_lite0_gem_64px", epochs=1, batch_size=4, alignment_copies=0, frozen_share=1.0, validation_share=0.3,
    validation_views=1, workers=0, threads=1, accelerator="cpu", neighbours_k=3, boards=0,
)  # fmt: skip
EVALUATION = EvaluationSettings(radius_m=3.0, k=(1, 5))


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    source = open_source(make_folder(root / "images", places=6, looks=2))
    gallery = build_gallery(source, GallerySettings(projection_dim=6, threads=1), root / "gallery")
    return gallery, open_source(make_folder(root / "queries", places=6, looks=3))


def result(name, seed, recall, **changes):
    values = {
        "name": name, "seed": seed, "pairing": "asymmetric", "statistics": {"recall_at_k": {"1": recall, "5": 1.0}},
        "seconds": {"bank": 0.5, "alignment": 2.0}, "fine_tuning": {"epoch": seed, "median_batch_s": 0.25, "val_recall_at_1": 0.5},
        "peak_memory_bytes": 3_000_000, "settings": {"loss": "csd", "epochs": 1},
    }  # fmt: skip
    return values | changes


def test_names_mean_losses_starts_and_overrides():
    comparison = ComparisonSettings(overrides={"csd": {"learning_rate": 0.5}, "asym+:random": {"epochs": 9}})
    named = entries_of(["aligned", "aligned:all", "csd", "asym+:random", "asym+"], SETTINGS, comparison)
    entries = {e.name: e.settings for e in named}
    assert [e.name for e in named if e.hold_out] == ["aligned"] and entries["aligned:all"].epochs == 0
    assert entries["aligned"].epochs == 0 and entries["csd"].epochs == 1
    assert (entries["csd"].learning_rate, entries["asym+"].learning_rate) == (0.5, SETTINGS.learning_rate)
    assert (entries["asym+:random"].init, entries["asym+:random"].loss, entries["asym+:random"].epochs) == ("random", "asym+", 9)
    for names, message in ((["triplet"], "'triplet' is no loss; expected asym"), ([], "no losses"), (["csd", "csd"], "given twice")):
        with pytest.raises(EvaluationError, match=message):
            entries_of(names, SETTINGS, ComparisonSettings())
    with pytest.raises(SettingsError, match="unknown setting 'learning_rat'"):
        entries_of(["csd"], SETTINGS, ComparisonSettings(overrides={"csd": {"learning_rat": 1}}))


def test_the_table_has_mean_and_sample_deviation_over_the_seeds():
    results = [result("csd", seed, recall) for seed, recall in ((0, 0.5), (1, 0.6), (2, 0.9))] + [
        result("symmetric", 0, 0.25, pairing="symmetric", peak_memory_bytes=None, settings={"loss": "symmetric", "epochs": 1})
    ]
    rows = summarise(results, (1, 5), 12.5)
    assert rows[0]["recall_at_k"]["1"] == (pytest.approx(2 / 3), pytest.approx(statistics.stdev([0.5, 0.6, 0.9])))
    assert rows[0]["lists_s"] == 12.5 and rows[1]["lists_s"] is None
    text = markdown(rows, (1, 5), 40, "one CPU").splitlines()
    assert text[2] == "| csd | 66.7 ± 20.8 | 100.0 ± 0.0 | 0, 1, 2 | 0.5 | 12.5 | 2.0 | 0.250 | 3 |"
    assert "0 is the start, which 2 of 4 trained runs kept" in text[-1]
    assert text[3].startswith("| symmetric (light network on both sides) | 25.0 ± 0.0 |") and text[3].endswith("| – |")


@pytest.mark.slow
def test_a_comparison_keeps_what_is_finished_and_counts_what_it_says(town, tmp_path, monkeypatch):
    gallery_path, queries = town
    out, gallery = tmp_path / "out", Gallery.open(gallery_path)
    trained = []
    original = loss_comparison.train

    def recording(path, settings, run, **options):
        trained.append(run.name)
        if run.name == "csd-seed1":
            raise KeyboardInterrupt
        return original(path, settings, run, **options)

    monkeypatch.setattr(loss_comparison, "train", recording)
    arguments = (SETTINGS, ComparisonSettings(seeds=(0, 1)), gallery, queries, EVALUATION, out)
    with pytest.raises(KeyboardInterrupt):
        compare_losses(gallery_path, ["aligned", "csd", "symmetric"], *arguments)
    assert trained == ["aligned-seed0", "csd-seed0", "symmetric-seed0", "aligned-seed1", "csd-seed1"]
    monkeypatch.setattr(
        loss_comparison, "train", lambda path, settings, run, **o: (trained.append(run.name), original(path, settings, run, **o))[1]
    )
    trained.clear()
    compare_losses(gallery_path, ["aligned", "csd", "symmetric"], *arguments)
    assert trained == ["csd-seed1", "symmetric-seed1"]  # finished parts are not done again
    content = json.loads((out / "comparison.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) == {"aligned", "csd", "symmetric"} and rows["csd"]["lists_s"] > 0 and rows["aligned"]["lists_s"] is None
    details = [read_manifest(out / "runs" / f"{name}-seed0", "run").details for name in ("aligned", "csd")]
    assert details[0]["training_images"] == details[1]["training_images"] < 12  # the start of the losses, not of more images
    assert details[0]["alignment"] == details[1]["alignment"]
    assert rows["aligned"]["batch_s"] is None and rows["csd"]["peak_memory_bytes"] > 1e8
    assert rows["symmetric"]["pairing"] == "symmetric" and (out / "comparison.png").stat().st_size > 1000
    assert "| aligned |" in (out / "comparison.md").read_text()
    # Counted naively: a query is right when the best of its cosines is within 3 m.
    for name in ("aligned", "symmetric"):
        encoder = RunEncoder(out / "runs" / f"{name}-seed0", SETTINGS)
        described = np.stack(
            [encoder.encode_batch(encoder.preprocess(image)[None])[0] for _, image in queries.read_images(list(range(18)))]
        )
        references = np.asarray(gallery.descriptors)
        if name == "symmetric":
            references = np.stack([encoder.encode_batch(encoder.preprocess(gallery.read_image(i))[None])[0] for i in range(12)])
        best = (described @ references.T).argmax(1)
        right = [abs(queries.records[q].pose.position[0] - gallery.positions[b, 0]) <= 3.0 for q, b in enumerate(best)]
        first = next(r for r in content["results"] if r["name"] == name and r["seed"] == 0)
        assert first["statistics"]["recall_at_k"]["1"] == pytest.approx(np.mean(right))
    with pytest.raises(ArtefactError, match="a comparison with other settings"):
        compare_losses(gallery_path, ["csd"], SETTINGS.model_copy(update={"epochs": 2}), *arguments[1:])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(ArtefactError, match="is no comparison"):
        compare_losses(gallery_path, ["csd"], *arguments[:-1], tmp_path / "mine")


@pytest.mark.slow
def test_another_pair_is_refused(town, tmp_path):
    gallery_path, queries = town
    source = open_source(make_folder(tmp_path / "images", places=3, looks=2, first_seed=60))
    other = build_gallery(source, GallerySettings(projection_dim=5, threads=1), tmp_path / "other")
    with pytest.raises(ArtefactError, match="expected one pair; build .* with --projection-from"):
        compare_losses(gallery_path, ["csd"], SETTINGS, ComparisonSettings(), Gallery.open(other), queries, EVALUATION, tmp_path / "out")


@pytest.mark.slow
def test_the_commands_align_and_compare(town, tmp_path):
    import yaml

    from asymvpr_core.cli.main import app

    gallery_path, queries = town
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"train": SETTINGS.model_dump(mode="json"), "evaluation": {"radius_m": 3.0, "k": [1, 5]}}))
    common = ["--config", str(config), "--out"]
    runner = CliRunner()
    network = ["--query-network", SETTINGS.query_network]
    aligned = runner.invoke(app, ["align", str(gallery_path), *network, *common, str(tmp_path / "aligned")])
    assert aligned.exit_code == 0 and "of held-out places" in aligned.output, aligned.output
    trained = runner.invoke(app, ["train", str(gallery_path), "--epochs", "0", *common, str(tmp_path / "trained")])
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "aligned" / "weights.safetensors").read_bytes() == (tmp_path / "trained" / "weights.safetensors").read_bytes()
    compared = runner.invoke(
        app,
        ["train", str(gallery_path), "--compare", "aligned", "--seeds", "0", "--queries", str(queries.root), *common, str(tmp_path / "c")],
    )
    assert compared.exit_code == 0 and "| aligned |" in compared.output, compared.output
    for wrong in (["--seeds", "0"], ["--compare", "csd"], ["--compare", "csd", "--queries", str(queries.root), "--seeds", "a"]):
        assert runner.invoke(app, ["train", str(gallery_path), *wrong, *common, str(tmp_path / "w")]).exit_code == 2
