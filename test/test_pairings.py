"""Every pairing on tiny real artefacts, the vote over ordered queries, and the boards that the report shows."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_artefacts import DIMENSION, PREPROCESS, SECOND_NS, encode_jpeg, make_gallery, make_identity, make_model, make_picture, revisit

from asymvpr_core.config import BenchmarkSettings, EvaluationSettings, MatcherSettings
from asymvpr_core.datasets.benchmark import Benchmark
from asymvpr_core.datasets.benchmark_source import open_pair
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, EvaluationError, RetrievalError
from asymvpr_core.evaluation.boards import board_sections, load_boards
from asymvpr_core.evaluation.descriptor_cache import DescriptorCache
from asymvpr_core.evaluation.encoders import NamedEncoder, describe, name_models
from asymvpr_core.evaluation.ground_truth import GalleryImages, gallery_benchmark
from asymvpr_core.evaluation.pairings import evaluate_pairings, pairings_of
from asymvpr_core.evaluation.predictions import Predictions
from asymvpr_core.evaluation.recall import evaluate_recall
from asymvpr_core.evaluation.sequence import evaluate_sequence
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.retrieval.index import build_index
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.types import ImageRecord, Pose, QueryFrame

SETTINGS = EvaluationSettings(radius_m=1.0, k=(1, 3), bootstrap_resamples=50, boards=3)
# The places that 14 queries show: at place 4 what is at 9, at place 8 what is at 1, and four times unknown land.
SHOWN = [0, 1, 2, 3, 9, 5, 6, 7, 1, 9, 100, 101, 102, 103]


class HalfBlind:
    """Another network for both sides: it sees the mean colour of the left half only."""

    dimension = 3

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return PREPROCESS(image)

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        features = inputs[:, :, :, : inputs.shape[3] // 2].mean(axis=(2, 3))
        return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


HALF_BLIND = NamedEncoder("half_blind", HalfBlind(), {"kind": "network", "name": "half_blind"})


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairings")
    poses = [Pose.from_xy_yaw(2.0 * i, 0.0, 0.0) for i in range(12)]
    make_gallery(folder / "gallery", [make_picture(seed) for seed in range(12)], poses, map_frame="utm")
    make_model(folder / "light")
    make_model(folder / "light_again")
    (folder / "queries").mkdir()
    (folder / "database").mkdir()
    for i, seed in enumerate(SHOWN):
        note = "night" if i % 2 else "day"
        name = f"@{2.0 * i if i < 10 else 100.0 + i:06.2f}@0.30@@@@@@@90.0@@@@@{note}@.jpg"
        (folder / "queries" / name).write_bytes(encode_jpeg(revisit(make_picture(seed), i)))
    for i in range(12):
        (folder / "database" / f"@{2.0 * i:06.2f}@0.00@@@@@@@90.0@@@@@@.jpg").write_bytes(encode_jpeg(make_picture(i)))
    return folder


def folders(world: Path) -> Benchmark:
    return open_pair(world / "database", world / "queries", BenchmarkSettings(radius_m=SETTINGS.radius_m))


def opened(world: Path) -> tuple[Gallery, QueryModel]:
    return Gallery.open(world / "gallery"), QueryModel.open(world / "light")


def test_all_pairings_of_one_gallery(world, tmp_path):
    gallery, model = opened(world)
    heavy = NamedEncoder.of_model(model, "heavy")  # the tiny network stands on both sides of its pair
    pairings = pairings_of(gallery, [model], [HALF_BLIND], heavy, use_stored=True)
    assert [(p.name, p.kind) for p in pairings] == [
        ("light on grid8_mean", "asymmetric"),
        ("grid8_mean, both sides", "symmetric"),
        ("light, both sides", "symmetric"),
        ("half_blind without projection, both sides", "symmetric"),
    ]
    result = evaluate_pairings(
        gallery_benchmark(gallery, open_source(world / "queries"), SETTINGS),
        pairings,
        SETTINGS,
        tmp_path / "out",
        gallery=gallery,
        cache=DescriptorCache(tmp_path / "cache", 10**9),
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    systems = metrics["systems"]
    for name in ("light on grid8_mean", "grid8_mean, both sides", "light, both sides"):  # the same network in all three
        assert systems[name]["recall_at_k"]["1"] == 0.8 and systems[name]["n_without_positive"] == 4
    # By hand: places 4 and 8 are wrong, and 0.8 of both conditions together.
    assert systems["light on grid8_mean"]["by_condition"]["day"]["recall_at_k"]["1"] == 3 / 5
    assert systems["light on grid8_mean"]["by_condition"]["night"]["recall_at_k"]["1"] == 1.0
    assert systems["light on grid8_mean"]["gallery_side"] == "stored"
    assert systems["light, both sides"]["gallery_side"]["dimension"] == DIMENSION
    blind = describe(GalleryImages(gallery), HALF_BLIND) @ describe(open_source(world / "queries"), HALF_BLIND).T
    first = blind.argmax(axis=0)[:10]
    assert systems["half_blind without projection, both sides"]["recall_at_k"]["1"] == pytest.approx((first == np.arange(10)).mean())
    assert len(metrics["comparison"]) == 6 and result.comparison[0].mcnemar_p == 1.0
    files = sorted(path.name for path in (tmp_path / "out" / "predictions").iterdir())
    assert files[0] == "1_light_on_grid8_mean.csv" and len(files) == 4
    with open(tmp_path / "out" / "predictions" / files[0], newline="") as file:
        assert sum(row["correct"] == "1" for row in csv.DictReader(file) if row["rank"] == "1") == 8
    report = (tmp_path / "out" / "report.html").read_text()
    assert "half_blind without projection" in report and "McNemar" in report


def test_a_second_run_computes_nothing_and_says_the_same(world, tmp_path):
    gallery, model = opened(world)
    cache, outs = DescriptorCache(tmp_path / "cache", 10**9), []

    class Counted:
        dimension, images, prepare = DIMENSION, 0, staticmethod(model.prepare)

        def encode_batch(self, inputs):
            self.images += len(inputs)
            return model.encode_batch(inputs)

    for run in range(2):
        counted = Counted()
        encoder = NamedEncoder("counted", counted, {"kind": "network"})
        pairings = pairings_of(None, [], [encoder], None, use_stored=False)
        result = evaluate_pairings(
            folders(world),
            pairings,
            SETTINGS,
            tmp_path / f"out{run}",
            cache=cache,
        )
        outs.append((counted.images, result.systems[0].scores))
    assert outs[0][0] == 2 + 14 + 12 and outs[1][0] == 2  # the probe alone, for either side
    np.testing.assert_array_equal(outs[0][1], outs[1][1])


def test_a_database_replaces_the_images_of_the_gallery(world, tmp_path):
    gallery, model = opened(world)
    pairings = pairings_of(gallery, [model], [], NamedEncoder.of_model(model, "heavy"), use_stored=False)
    assert pairings[0].gallery_side is not None
    result = evaluate_pairings(folders(world), pairings, SETTINGS, tmp_path / "out", gallery=gallery)
    assert {system.name: system.correct.sum() for system in result.systems} == {
        "light on grid8_mean": 8, "grid8_mean, both sides": 8, "light, both sides": 8,
    }  # fmt: skip
    assert result.metrics["references"]["path"].endswith("database")


def test_what_cannot_be_paired_is_refused(world, tmp_path):
    gallery, model = opened(world)
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        pairings_of(None, [], [], None, use_stored=True)
    with pytest.raises(EvaluationError, match="without a gallery; expected --gallery"):
        pairings_of(None, [model], [], None, use_stored=True)
    with pytest.raises(EvaluationError, match="without the gallery's network"):
        pairings_of(gallery, [model], [], None, use_stored=False)
    with pytest.raises(EvaluationError, match="light is given twice"):
        pairings_of(gallery, [model, model], [], None, use_stored=True)
    with pytest.raises(EvaluationError, match="two pairings are called 'half_blind"):
        pairings_of(None, [], [HALF_BLIND, HALF_BLIND], None, use_stored=True)
    with pytest.raises(ArtefactError, match="of one pair"):
        pairings_of(gallery, [QueryModel.open(make_model(tmp_path / "other", make_identity("other")))], [], None, use_stored=True)
    stored = pairings_of(gallery, [model], [], None, use_stored=True)
    with pytest.raises(EvaluationError, match="needs the stored descriptors of a gallery; expected --gallery"):
        evaluate_pairings(folders(world), stored, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_are_compared_on_one_gallery(world, tmp_path):
    gallery, model = opened(world)
    other = NamedEncoder.of_model(QueryModel.open(world / "light_again"))
    result = evaluate_recall(gallery, open_source(world / "queries"), model, SETTINGS, tmp_path / "out", compare_with=[other])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (pair,) = metrics["comparison"]
    assert (pair["second"], pair["only_first"], pair["only_second"], pair["mcnemar_p"]) == ("light_again", 0, 0, 1.0)
    assert metrics["compared"]["light_again"]["recall_at_k"] == metrics["recall_at_k"]
    assert result.protocol["mcnemar_p"] and "light_again" in (tmp_path / "out" / "report.html").read_text()
    stranger = NamedEncoder.of_model(QueryModel.open(make_model(tmp_path / "other", make_identity("other"))))
    with pytest.raises(ArtefactError, match="of one pair"):
        evaluate_recall(gallery, open_source(world / "queries"), model, SETTINGS, tmp_path / "no", compare_with=[stranger])


def test_models_are_named_by_what_tells_their_folders_apart(tmp_path):
    models = [QueryModel.open(make_model(tmp_path / name)) for name in ("a/seed/model", "b/seed/model")]
    assert [named.name for named in name_models(models)] == ["a/seed/model", "b/seed/model"]
    assert [named.name for named in name_models(models[:1])] == ["model"]
    assert name_models([]) == []


# Bad input


def test_one_gallery_image_and_k_beyond_it(world, tmp_path):
    gallery = Gallery.open(make_gallery(tmp_path / "one", [make_picture(0)], [Pose.from_xy_yaw(0.0, 0.0, 0.0)], map_frame="utm"))
    result = evaluate_recall(gallery, open_source(world / "queries"), opened(world)[1], SETTINGS, tmp_path / "out")
    assert result.metrics["recall_at_k"] == {"1": 1.0, "3": 1.0} and result.metrics["n_without_positive"] == 13
    assert result.indices.shape == (14, 1)
    assert "K = 3 is larger than the 1 images" in (tmp_path / "out" / "report.html").read_text()


def test_query_sets_that_cannot_be_judged_are_refused(world, tmp_path):
    gallery, model = opened(world)
    queries = open_source(world / "queries")
    queries.records = [replace(record, pose=None) if i in (1, 4) else record for i, record in enumerate(queries.records)]
    with pytest.raises(EvaluationError, match="2 of 14 images .* have no position"):
        evaluate_recall(gallery, queries, model, SETTINGS, tmp_path / "out")
    queries.records = []
    with pytest.raises(EvaluationError, match="holds no images"):
        evaluate_recall(gallery, queries, model, SETTINGS, tmp_path / "out")
    empty = Gallery.open(make_gallery(tmp_path / "empty", [], []))
    with pytest.raises(EvaluationError, match="gallery .* holds no images"):
        evaluate_recall(empty, open_source(world / "queries"), model, SETTINGS, tmp_path / "out")
    with pytest.raises(EvaluationError, match="14 queries, and conditions for 2"):
        evaluate_recall(gallery, open_source(world / "queries"), model, SETTINGS, tmp_path / "out", conditions=["day", "night"])
    assert not (tmp_path / "out").exists()


# Sequences


def _run(accepted_at: float, **changes) -> tuple[MatcherSettings, EvaluationSettings]:
    settings = {"sequence": "vote", "sequence_length": 3, "min_votes": 2, "agreement_radius_m": 3.0, "score_threshold": accepted_at}
    return MatcherSettings(**{**settings, **changes}), SETTINGS


def test_the_vote_over_ordered_queries_is_that_of_the_matcher(world, tmp_path):
    gallery, model = opened(world)
    matcher, settings = _run(0.8)
    queries = open_source(world / "queries")
    result = evaluate_recall(gallery, queries, model, settings, tmp_path / "out", sequence=matcher)
    run = result.sequence
    # By hand: frame 0 has nothing before it; 4 (seen as 9) and 8 (seen as 1) agree with no frame before them;
    # 9 agrees with none of 7 and 8; the rest of 1..7 has a neighbour within 3 m among the last three frames.
    assert run.accepted.tolist() == [False, True, True, True, False, False, True, True] + [False] * 6
    assert (run.statistics["n_accepted"], run.statistics["n_true"], run.statistics["n_false"]) == (5, 5, 0)
    assert run.statistics["precision_of_accepted"] == 1.0 and run.statistics["recall_of_accepted"] == 0.5
    assert run.operating_point == (0.5, 1.0)
    direct = Matcher(gallery, build_index(gallery.descriptors), matcher.model_copy(update={"exclude_time_s": 0.0}))
    described = describe(queries, NamedEncoder.of_model(model))
    answers = [direct.match(descriptor, QueryFrame(i * SECOND_NS)) for i, descriptor in enumerate(described)]
    assert run.accepted.tolist() == [answer.accepted for answer in answers]
    # The vote rejects the two confident mistakes, which no threshold on the single frame does.
    assert run.sweep.recall_at_full_precision == 0.5 > run.single_frame.recall_at_full_precision
    assert run.single_frame.average_precision == pytest.approx(result.metrics["average_precision"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["sequence"]["matcher"]["min_votes"] == 2 and metrics["sequence"]["protocol"]["stamps"].startswith("none")
    assert "Sequence" in (tmp_path / "out" / "report.html").read_text()


def test_a_sequence_without_a_vote_is_the_single_frame(world, tmp_path):
    gallery, model = opened(world)
    matcher, settings = _run(0.8, sequence="off")
    result = evaluate_recall(gallery, open_source(world / "queries"), model, settings, tmp_path / "out", sequence=matcher)
    run = result.sequence
    np.testing.assert_array_equal(run.sweep.recall, run.single_frame.recall)
    np.testing.assert_array_equal(run.accepted, result.scores[:, 0] >= 0.8)


def test_stamps_exclude_and_must_not_go_back(world):
    gallery, model = opened(world)
    described = np.asarray(gallery.descriptors)
    positives = [np.array([i]) for i in range(12)]
    matcher, _ = _run(0.8, sequence="off", exclude_time_s=100.0)
    own = [ImageRecord(str(i), gallery.keyframes[i].pose, stamp_ns=(1 + i) * SECOND_NS) for i in range(12)]
    run = evaluate_sequence(gallery, own, described, positives, matcher)
    assert (run.n_opportunities, run.statistics["n_accepted"]) == (0, 0) and run.operating_point is None
    later = [replace(record, stamp_ns=record.stamp_ns + 1000 * SECOND_NS) for record in own]
    assert evaluate_sequence(gallery, later, described, positives, matcher).statistics["recall_of_accepted"] == 1.0
    with pytest.raises(EvaluationError, match="not in order of time"):
        evaluate_sequence(gallery, later[::-1], described, positives, matcher)
    with pytest.raises(EvaluationError, match="1 of 12 queries have no stamp"):
        evaluate_sequence(gallery, [*own[:-1], replace(own[-1], stamp_ns=None)], described, positives, matcher)
    with pytest.raises(RetrievalError, match="dimension|D descriptors"):
        evaluate_sequence(gallery, own, described[:, :5], positives, matcher)


# Boards


def test_boards_show_the_failures_most_confident_first(world):
    gallery, model = opened(world)
    scores = np.array([[0.9, 0.2], [0.5, 0.4], [0.95, 0.3], [0.6, 0.1], [0.7, 0.6]])
    indices = np.array([[0, 1], [3, 1], [7, 8], [5, 3], [4, 0]])
    positives = [np.array([0]), np.array([1]), np.array([], dtype=np.int64), np.array([2, 3]), np.array([6])]
    predictions = Predictions("system", scores, indices, positives, np.zeros(5), ["a", "b", "c", "d", "e"])
    queries = open_source(world / "queries")
    queries.records = queries.records[:5]
    failures, right = board_sections(predictions, queries, GalleryImages(gallery), SETTINGS)
    (block,) = failures.blocks
    assert [board.query.label for board in block.boards] == ["query 2", "query 4", "query 3"]  # three of four, by score
    assert block.caption.startswith("3 of 4 queries")
    unknown, nothing_found, second = block.boards
    assert (unknown.tone, unknown.note) == ("warn", "The gallery holds no correct match.")
    assert nothing_found.note == "No correct match among the first 2." and nothing_found.answers[-1].label == "nearest correct"
    assert np.abs(nothing_found.answers[-1].image.astype(int) - make_picture(6)).max() == 0
    assert second.note == "The first correct match is number 2."
    assert [(a.label, a.tone, a.mark) for a in second.answers] == [("1", "bad", "✗ wrong"), ("2", "good", "✓ correct")]
    assert second.answers[0].facts == ("score 0.600", "4.0 m") and second.query.facts == ("d",)
    assert [board.query.label for board in right.blocks[0].boards] == ["query 0"]
    assert "1, ✗ wrong, score 0.600" in second.answers[0].description
    only_wrong = board_sections(predictions, queries, GalleryImages(gallery), SETTINGS.model_copy(update={"only_wrong": True}))
    assert [section.title for section in only_wrong] == ["Failures"]
    assert board_sections(predictions, queries, GalleryImages(gallery), SETTINGS.model_copy(update={"boards": 0})) == []


def test_boards_say_which_picture_is_gone(world, tmp_path):
    poses = [Pose.from_xy_yaw(2.0 * i, 0.0, 0.0) for i in range(3)]
    gallery = Gallery.open(make_gallery(tmp_path / "gallery", [make_picture(i) for i in range(3)], poses, map_frame="utm"))
    gallery.image_path(1).unlink()
    predictions = Predictions("s", np.array([[0.9, 0.8, 0.7]]), np.array([[0, 1, 2]]), [np.array([0])], np.zeros(1))
    queries = open_source(world / "queries")
    (board,) = load_boards(predictions, [0], queries, GalleryImages(gallery))
    assert [answer.image is None for answer in board.answers] == [False, True, False]
