"""Whole evaluations on tiny real artefacts: a run and a query set whose outcomes are counted by hand."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from naive_metrics import naive_sweep
from tiny_artefacts import SECOND_NS, encode_jpeg, make_gallery, make_identity, make_model, make_picture, make_street, revisit

from asymvpr_core.config import EvaluationSettings, KeyframeSettings, MatcherSettings, SourceSettings
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.datasets.source import open_source
from asymvpr_core.datasets.trajectory import Trajectory, read_tum, write_tum
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, BagError, EvaluationError
from asymvpr_core.evaluation import encoders as encoders_module
from asymvpr_core.evaluation.bag import evaluate_bag, evaluate_run
from asymvpr_core.evaluation.outcomes import Outcome
from asymvpr_core.evaluation.protocol import check_map_frames
from asymvpr_core.evaluation.recall import evaluate_recall
from asymvpr_core.evaluation.recorded import compare_candidates, evaluate_recorded, read_recording
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import Pose, QueryFrame

LIVE_START_S = 5000
OFF = MatcherSettings(sequence="off", score_threshold=0.8)
NEAR = EvaluationSettings(radius_m=1.0, k=(1, 5, 10))  # 10 is beyond the matcher's top_k


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Gallery of 12 places 2 m apart along x; a live run sees 10 of them again, mistakes two, and ends in unknown land."""
    folder = tmp_path_factory.mktemp("world")
    make_street(folder / "gallery")
    make_model(folder / "model")
    frames = _live_frames()
    with BagWriter(folder / "live") as bag:
        for stamp_ns, pose, picture in frames:
            bag.write_compressed_image("/camera/image/compressed", stamp_ns, "camera", encode_jpeg(picture))
            bag.write_pose("/ground_truth/pose", stamp_ns, pose)
    write_tum(folder / "truth.tum", Trajectory([f[0] for f in frames], [f[1] for f in frames]))
    (folder / "queries").mkdir()
    for _, pose, picture in frames:
        name = f"@{pose.position[0]:.2f}@{pose.position[1]:.2f}@@@@@@@{pose.heading_deg:.1f}@@@@@.jpg"
        (folder / "queries" / name).write_bytes(encode_jpeg(picture))
    pictures = [make_picture(seed) for seed in range(12)]
    make_gallery(folder / "gallery_utm", pictures, [Pose.from_xy_yaw(2.0 * i, 0.0, 0.0) for i in range(12)], map_frame="utm")
    return folder


def _live_frames() -> list[tuple[int, Pose, np.ndarray]]:
    shown = [0, 1, 2, 3, 9, 5, 6, 7, 1, 9, 100, 101, 102, 103]  # at place 4 it sees what is at 9, at place 8 what is at 1
    return [
        ((LIVE_START_S + i) * SECOND_NS, Pose.from_xy_yaw(2.0 * i if i < 10 else 100.0 + i, 0.3, 0.0), revisit(make_picture(seed), i))
        for i, seed in enumerate(shown)
    ]


def test_bag_evaluation_of_a_run_counted_by_hand(world, tmp_path):
    result = evaluate_bag(
        world / "live", world / "gallery", world / "model", evaluation=NEAR, matcher=OFF, out=tmp_path / "out",
        source=SourceSettings(pose_topic="/ground_truth/pose"),
    )  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    counts = {k: metrics[k] for k in ("n_frames", "n_opportunities", "n_without_positive", "n_accepted", "n_true", "n_false", "n_missed")}
    assert counts == {
        "n_frames": 14, "n_opportunities": 10, "n_without_positive": 4, "n_accepted": 10, "n_true": 8, "n_false": 2, "n_missed": 0,
    }  # fmt: skip
    assert metrics["precision_of_accepted"] == 0.8 and metrics["recall_of_accepted"] == 0.8
    assert metrics["recall_at_k"]["1"] == 0.8 and set(metrics["recall_at_k"]) == {"1", "5"}
    assert metrics["position_error_m"]["median"] == pytest.approx(0.3, abs=1e-3)
    assert metrics["heading_error_deg"]["median"] == pytest.approx(0.0, abs=1e-3)
    assert metrics["detection_delay_s"] == {"median": 0.0, "max": 0.0, "n_stretches": 1, "n_found": 1}
    assert 0 < metrics["latency_ms"]["p50"] <= metrics["latency_ms"]["p95"] <= metrics["latency_ms"]["p99"]
    assert metrics["protocol"]["correct_match"] == "gallery image within 1 m (horizontal distance) of the query"
    assert metrics["protocol"]["matcher"] == OFF.model_dump(mode="json")
    assert metrics["gallery"]["n_keyframes"] == 12 and metrics["encoder"]["kind"] == "query model"
    expected = [Outcome.TRUE] * 4 + [Outcome.FALSE] + [Outcome.TRUE] * 3 + [Outcome.FALSE, Outcome.TRUE] + [Outcome.REJECTED] * 4
    assert [frame.outcome for frame in result.frames] == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["matches.csv", "matches.tum", "metrics.json", "report.html"]


def test_bag_metrics_follow_from_the_recorded_frames(world, tmp_path):
    result = evaluate_bag(world / "live", world / "gallery", world / "model", evaluation=NEAR, matcher=OFF, out=tmp_path / "out")
    scores = [frame.best_score for frame in result.frames]
    correct = [frame.best_correct for frame in result.frames]
    average, f1, full = naive_sweep(scores, correct, 10, 1.0)
    metrics = result.metrics
    assert (metrics["average_precision"], metrics["max_f1"], metrics["recall_at_full_precision"]) == pytest.approx((average, f1, full))
    with open(tmp_path / "out" / "matches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == [frame.outcome.value for frame in result.frames]
    assert rows[4]["keyframe_index"] == "9" and rows[4]["accepted"] == "1"
    assert float(rows[4]["position_error_m"]) == pytest.approx(10.004, abs=1e-3)
    trajectory = read_tum(tmp_path / "out" / "matches.tum")
    assert len(trajectory) == 10 and trajectory.stamps_ns[0] == LIVE_START_S * SECOND_NS
    assert trajectory.poses[4].position == pytest.approx((18.0, 0.0, 0.0))


def test_worst_pairs_come_first_and_best_are_true(world, tmp_path):
    result = evaluate_bag(world / "live", world / "gallery", world / "model", evaluation=NEAR, matcher=OFF, out=tmp_path / "out")
    assert [pair.verdict for pair in result.pairs.best] == ["True match"] * 6
    assert [pair.verdict for pair in result.pairs.worst[:3]] == ["False match, accepted"] * 2 + ["Wrong candidate, rejected"]
    labels = {pair.left_label: pair.right_label for pair in result.pairs.worst[:2]}
    assert labels == {"frame at 4.0 s": "gallery image 9", "frame at 8.0 s": "gallery image 1"}
    pair = next(pair for pair in result.pairs.worst if pair.left_label == "frame at 4.0 s")
    assert np.abs(pair.right.astype(int) - make_picture(9)).max() == 0  # the pictures are those of frame and keyframe
    assert np.abs(pair.left.astype(int) - _live_frames()[4][2]).mean() < 8


def test_candidates_are_those_of_the_recogniser_itself(world, tmp_path):
    settings = MatcherSettings(sequence="vote", sequence_length=3, min_votes=2, score_threshold=0.6)
    source = SourceSettings(pose_topic="/ground_truth/pose", keyframes=None)
    result = evaluate_bag(world / "live", world / "gallery", world / "model", evaluation=NEAR, matcher=settings, out=tmp_path / "out")
    recogniser = PlaceRecogniser.open(world / "gallery", world / "model", settings)
    dataset = open_source(world / "live", source)
    images = dataset.read_images(list(range(len(dataset.records))))
    direct = [recogniser.process(image, QueryFrame(dataset.records[i].stamp_ns)).prior for i, image in images]
    assert [frame.result for frame in result.frames] == direct
    assert any(answer.accepted for answer in direct) and not all(answer.accepted for answer in direct)


def test_ground_truth_from_a_tum_file_gives_the_same(world, tmp_path):
    paths, options = (world / "live", world / "gallery", world / "model"), {"evaluation": NEAR, "matcher": OFF}
    topic = evaluate_bag(*paths, out=tmp_path / "a", **options)
    file = evaluate_bag(*paths, out=tmp_path / "b", source=SourceSettings(trajectory_file=world / "truth.tum"), **options)
    assert [f.outcome for f in topic.frames] == [f.outcome for f in file.frames]


def test_every_frame_is_evaluated_whatever_the_keyframe_settings(world, tmp_path):
    sparse = SourceSettings(keyframes=KeyframeSettings(min_distance_m=50.0))
    result = evaluate_bag(world / "live", world / "gallery", world / "model", source=sparse, evaluation=NEAR, out=tmp_path / "out")
    assert len(result.frames) == 14


def test_keyframes_excluded_by_time_are_no_opportunities(world, tmp_path):
    # The gallery's own recording as the live run: with the exclusion, each frame is left with nothing to find.
    stamps = [(LIVE_START_S + i) * SECOND_NS for i in range(10)]
    make_street(tmp_path / "gallery", 10, stamps_ns=stamps)
    settings = OFF.model_copy(update={"exclude_time_s": 100.0})
    metrics = evaluate_bag(
        world / "live", tmp_path / "gallery", world / "model", evaluation=NEAR, matcher=settings, out=tmp_path / "all"
    ).metrics
    assert (metrics["n_opportunities"], metrics["n_accepted"]) == (0, 0)
    assert metrics["recall_at_k"] == {} and metrics["average_precision"] is metrics["recall_of_accepted"] is metrics["max_f1"] is None
    settings = OFF.model_copy(update={"exclude_time_s": 0.0})
    metrics = evaluate_bag(
        world / "live", tmp_path / "gallery", world / "model", evaluation=NEAR, matcher=settings, out=tmp_path / "none"
    ).metrics
    assert metrics["n_opportunities"] == 10


def test_bag_evaluation_refuses_what_does_not_belong_together(world, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(BagError, match="/wrong"):
        evaluate_bag(world / "live", world / "gallery", world / "model", out=out, source=SourceSettings(pose_topic="/wrong"))
    with pytest.raises(EvaluationError, match="frame 'odom'; expected 'map'"):
        evaluate_bag(world / "live", world / "gallery", world / "model", out=out, source=SourceSettings(map_frame="odom"))
    with pytest.raises(ArtefactError, match="pair"):
        evaluate_bag(world / "live", world / "gallery", make_model(tmp_path / "other", make_identity("other")), out=out)
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ArtefactError, match="exists already"):
        evaluate_bag(world / "live", world / "gallery", world / "model", out=tmp_path / "full")


def test_runs_without_stamps_or_out_of_order_are_refused(world, tmp_path):
    recogniser = PlaceRecogniser.open(world / "gallery", world / "model", OFF)
    dataset = open_source(world / "live", SourceSettings(keyframes=None))
    dataset.records[3] = replace(dataset.records[3], stamp_ns=1)
    with pytest.raises(EvaluationError, match="not in order of time"):
        evaluate_run(dataset, recogniser, NEAR, tmp_path / "out")
    dataset.records[3] = replace(dataset.records[3], stamp_ns=None)
    with pytest.raises(EvaluationError, match="1 images .* no stamp"):
        evaluate_run(dataset, recogniser, NEAR, tmp_path / "out")


def test_recall_evaluation_counted_by_hand(world, tmp_path):
    gallery, model = Gallery.open(world / "gallery_utm"), QueryModel.open(world / "model")
    settings = EvaluationSettings(radius_m=1.0, k=(1, 5, 100))
    result = evaluate_recall(gallery, open_source(world / "queries"), model, settings, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["n_queries"], metrics["n_without_positive"], metrics["n_gallery"]) == (14, 4, 12)
    assert metrics["recall_at_k"]["1"] == 0.8 and metrics["recall_at_k"]["100"] == 1.0  # K beyond the gallery is all of it
    near = [0.3] * 8 + [np.hypot(10.0, 0.3), np.hypot(14.0, 0.3)]  # places 4 and 8 were mistaken
    assert sorted(result.distances_m)[:10] == pytest.approx(near) and min(sorted(result.distances_m)[10:]) > 50
    assert metrics["protocol"]["radius_m"] == 1.0 and metrics["encoder"]["pair_id"] == metrics["gallery"]["pair_id"]
    assert metrics["average_precision"] == pytest.approx(naive_sweep(result.scores[:, 0].tolist(), result.correct.tolist(), 10, 1.0)[0])
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 * 12
    first = [row for row in rows if row["rank"] == "1"]
    assert sum(row["correct"] == "1" for row in first) == 8 and sum(row["n_positives"] == "0" for row in first) == 4
    assert (tmp_path / "out" / "report.html").read_text().count("<img") > 3


def test_position_error_leaves_out_queries_without_a_positive(world, tmp_path):
    (tmp_path / "queries").mkdir()
    files = sorted((world / "queries").iterdir(), key=lambda path: float(path.name.split("@")[1]))
    for path in (files[0], *files[-4:]):
        shutil.copy(path, tmp_path / "queries")
    gallery, model = Gallery.open(world / "gallery_utm"), QueryModel.open(world / "model")
    metrics = evaluate_recall(gallery, open_source(tmp_path / "queries"), model, NEAR, tmp_path / "out").metrics
    assert (metrics["n_queries"], metrics["n_without_positive"]) == (5, 4)
    assert metrics["median_position_error_m"] == pytest.approx(0.3)


def test_recall_equals_brute_force_over_descriptors(world, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders_module, "_BATCH", 4)  # 14 queries: three full batches and a rest
    gallery, model, queries = Gallery.open(world / "gallery_utm"), QueryModel.open(world / "model"), open_source(world / "queries")
    result = evaluate_recall(gallery, queries, model, EvaluationSettings(radius_m=5.0, k=(1, 3)), tmp_path / "out")
    hits, counted = {1: 0, 3: 0}, 0
    for index, image in queries.read_images(list(range(len(queries.records)))):
        ranked = np.argsort(-(gallery.descriptors @ model.encode(image)))
        near = [np.hypot(*(gallery.positions[j, :2] - queries.records[index].pose.position[:2])) <= 5.0 for j in range(len(gallery))]
        counted += any(near)
        for k in hits:
            hits[k] += any(near) and any(near[j] for j in ranked[:k])
    assert result.metrics["recall_at_k"] == {str(k): hit / counted for k, hit in hits.items()}


def test_a_yaw_limit_changes_what_is_correct(world, tmp_path):
    backwards = [Pose.from_xy_yaw(2.0 * i, 0.0, np.pi) for i in range(12)]
    gallery = Gallery.open(make_gallery(tmp_path / "gallery", [make_picture(i) for i in range(12)], backwards, map_frame="utm"))
    model, queries = QueryModel.open(world / "model"), open_source(world / "queries")
    without = evaluate_recall(gallery, queries, model, EvaluationSettings(radius_m=1.0, k=(1,)), tmp_path / "without")
    assert without.metrics["recall_at_k"] == {"1": 0.8}
    with pytest.raises(EvaluationError, match="none of 14 queries has a correct match"):
        evaluate_recall(gallery, queries, model, EvaluationSettings(radius_m=1.0, max_yaw_deg=90.0, k=(1,)), tmp_path / "with")
    assert not (tmp_path / "with").exists()


def test_frames_are_compared_only_where_they_are_one():
    class Fake:
        path, map_frame = "gallery", "utm31U"

    for frame in ("utm31U", "utm", ""):
        check_map_frames(Fake(), frame, "queries")
    for frame in ("utm32U", "map"):
        with pytest.raises(EvaluationError, match=f"'{frame}'; expected 'utm31U'"):
            check_map_frames(Fake(), frame, "queries")


# What a live node published


def _numbers(pose: Pose) -> list[float]:
    return [*pose.position, *pose.quaternion]


def _recording(world) -> list[dict]:
    """Lines as match_recorder writes them, of a node that dropped frames 2 and 11 and took a moment to start."""
    recogniser = PlaceRecogniser.open(world / "gallery", world / "model", OFF)
    report = {"topic": "/diagnostics", "stamp_ns": 0, "received_ns": 0, "level": 0, "message": ""}
    lines = [{**report, "values": {"frames_processed": "0"}}]
    for i, (stamp_ns, _, picture) in enumerate(_live_frames()):
        if i in (2, 11):
            continue
        answer = recogniser.process(picture, QueryFrame(stamp_ns)).prior
        common = {"stamp_ns": stamp_ns, "received_ns": stamp_ns, "frame_id": "map"}
        poses = [_numbers(c.pose) for c in answer.candidates]
        lines.append({"topic": "place_match/candidates", **common, "poses": poses})
        if answer.match is not None:
            pose = dict(zip(("x", "y", "z", "qx", "qy", "qz", "qw"), poses[0], strict=True))
            lines.append({"topic": "place_match/pose", **common, **pose, "covariance": [0.1] * 36})
    values = {"frames_processed": "12", "latency_ms_p50": "12.50", "latency_ms_p95": "20.00", "frames_dropped": "2"}
    lines += [{**report, "values": values}, {**report, "values": {"state": "inactive"}}]
    return lines


def test_a_live_recording_counted_by_hand(world, tmp_path):
    (tmp_path / "matches.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _recording(world)))
    frames = _live_frames()
    result = evaluate_recorded(
        read_recording(tmp_path / "matches.jsonl"), read_tum(world / "truth.tum"), Gallery.open(world / "gallery"), NEAR, matcher=OFF,
        frame_stamps_ns=[frame[0] for frame in frames], max_pose_gap_s=2.0,
    )  # fmt: skip
    metrics = result.metrics
    counts = {k: v for k, v in metrics.items() if k.startswith("n_")}
    assert counts == {
        "n_frames_sent": 14, "n_frames_processed": 12, "n_frames_dropped": 2, "n_opportunities": 10, "n_published": 9,
        "n_without_ground_truth": 0, "n_true": 7, "n_false": 2,
    }  # fmt: skip
    assert metrics["precision_of_published"] == pytest.approx(7 / 9) and metrics["recall_of_published"] == 0.7
    assert metrics["latency_ms"] == {"p50": 12.5, "p95": 20.0}
    assert metrics["position_error_m"]["median"] == pytest.approx(0.3)
    assert [m.correct for m in result.matches] == [True, True, True, False, True, True, True, False, True]


def test_without_the_sent_frames_only_processed_ones_count(world):
    result = evaluate_recorded(_recording(world), read_tum(world / "truth.tum"), Gallery.open(world / "gallery"), NEAR, matcher=OFF)
    assert (result.metrics["n_frames_sent"], result.metrics["n_frames_dropped"], result.metrics["n_opportunities"]) == (12, 0, 9)


def test_matches_outside_the_ground_truth_are_counted_apart(world):
    truth = read_tum(world / "truth.tum")
    short = Trajectory(truth.stamps_ns[:6], truth.poses[:6])
    metrics = evaluate_recorded(_recording(world), short, Gallery.open(world / "gallery"), NEAR, matcher=OFF).metrics
    assert (metrics["n_published"], metrics["n_without_ground_truth"], metrics["n_true"], metrics["n_false"]) == (9, 4, 4, 1)


def test_live_candidates_equal_those_of_the_bag(world, tmp_path):
    frames = evaluate_bag(world / "live", world / "gallery", world / "model", evaluation=NEAR, matcher=OFF, out=tmp_path / "out").frames
    lines = [
        {"topic": "place_match/candidates", "stamp_ns": f.result.stamp_ns, "poses": [_numbers(c.pose) for c in f.result.candidates]}
        for f in frames
    ]
    assert compare_candidates(lines, frames) == (14, 14)
    lines[3]["poses"][0][0] += 0.01
    lines[5]["poses"].pop()
    del lines[7]
    assert compare_candidates(lines, frames) == (11, 13)


def test_bad_recordings_are_refused(world, tmp_path):
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_recording(tmp_path / "missing.jsonl")
    for line in ('{"topic": "place_match/pose", "stamp', '{"topic": 3, "stamp_ns": 1}', '{"topic": "x", "stamp_ns": "1"}', "[1]"):
        (tmp_path / "bad.jsonl").write_text('{"topic": "x", "stamp_ns": 1}\n' + line + "\n")
        with pytest.raises(EvaluationError, match="line 2 of recording"):
            read_recording(tmp_path / "bad.jsonl")
    truth, gallery = read_tum(world / "truth.tum"), Gallery.open(world / "gallery")
    with pytest.raises(EvaluationError, match="processed no frame"):
        evaluate_recorded([], truth, gallery)
    lines = _recording(world)
    del next(line for line in lines if line["topic"] == "place_match/pose")["qw"]
    with pytest.raises(EvaluationError, match="lacks the field 'qw'"):
        evaluate_recorded(lines, truth, gallery)
