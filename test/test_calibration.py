"""Calibration: isotonic probabilities, precision bounds and thresholds, files, refusals, and the command on tiny artefacts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tiny_artefacts import SECOND_NS, encode_jpeg, make_model, make_picture, make_street, revisit

from asymvpr_core.config import CalibrationSettings, EvaluationSettings, MatcherSettings, SessionSettings, SourceSettings
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.errors import ArtefactError, EvaluationError, SettingsError
from asymvpr_core.evaluation.bag import open_run
from asymvpr_core.evaluation.calibrate import calibrate
from asymvpr_core.evaluation.calibration_fit import (
    Samples,
    fit_errors,
    fit_scores,
    isotonic_probabilities,
    precision_bounds,
    single_points,
    stretches_along,
)
from asymvpr_core.evaluation.calibration_samples import Placed, samples_of_gallery, samples_of_run, samples_of_session
from asymvpr_core.evaluation.decisions import Decisions
from asymvpr_core.evaluation.held_out import held_out
from asymvpr_core.retrieval.calibration import CALIBRATION, agreement_settings, read_calibration, threshold_of, write_calibration
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import Pose, QueryFrame

NEAR = EvaluationSettings(radius_m=1.0)


def samples(scores, correct) -> Samples:
    count = len(scores)
    return Samples(np.asarray(scores, float), np.asarray(correct, bool), np.zeros((count, 2)), np.zeros(count), "run")


def some_scores(count: int, seed: int = 0) -> Samples:
    """Scores whose probability of being right rises with them."""
    generator = np.random.default_rng(seed)
    scores = generator.uniform(0.0, 1.0, count)
    return samples(scores, generator.uniform(size=count) < scores)


def test_isotonic_blocks_are_those_of_scikit_learn():
    isotonic = pytest.importorskip("sklearn.isotonic").IsotonicRegression()
    found = some_scores(400)
    knots, probabilities = isotonic_probabilities(found.scores, found.correct)
    theirs = isotonic.fit_transform(found.scores, found.correct)
    # Undo the pull towards one half: each block's share, from the frames between its knots, is scikit-learn's value there.
    for low in np.unique(probabilities):
        inside = (found.scores >= knots[probabilities == low].min()) & (found.scores <= knots[probabilities == low].max())
        for value in np.unique(theirs[inside].round(12)):
            block = inside & np.isclose(theirs, value)
            assert found.correct[block].mean() == pytest.approx(value)
    assert (np.diff(knots) > 0).all() and (np.diff(probabilities) >= 0).all()
    assert probabilities[0] > 0 and probabilities[-1] < 1  # no finite number of frames makes a certainty


def test_equal_scores_share_one_probability():
    knots, probabilities = isotonic_probabilities(np.array([0.5, 0.5, 0.5, 0.9]), np.array([True, False, False, True]))
    assert knots.tolist() == [0.5, 0.9]
    assert probabilities.tolist() == pytest.approx([1.5 / 4, 1.5 / 2])


def test_a_precision_of_99_percent_takes_299_frames():
    # Without a wrong one the bound is (1 - confidence)^(1 / n).
    accepted = np.array([298, 299])
    bounds = precision_bounds(accepted, accepted, 0.95)
    assert bounds == pytest.approx(0.05 ** (1 / accepted))
    assert bounds[0] < 0.99 <= bounds[1]
    assert precision_bounds(np.array([10]), np.array([0]), 0.95)[0] == 0.0


def test_bounds_are_what_their_definition_says():
    # The bound p is where seeing 47 or more right of 50 has probability 1 - confidence.
    (p,) = precision_bounds(np.array([50]), np.array([47]), 0.9)
    tail = sum(math.comb(50, k) * p**k * (1 - p) ** (50 - k) for k in range(47, 51))
    assert tail == pytest.approx(0.1)


def test_the_threshold_is_the_smallest_that_shows_the_precision():
    found = some_scores(600, seed=3)
    points = single_points(found.scores, found.correct, 0.9)
    for target in (0.5, 0.7, 0.8):
        naive = None
        for threshold in sorted(set(found.scores)):
            accepted = found.scores >= threshold
            if precision_bounds(np.array([accepted.sum()]), np.array([found.correct[accepted].sum()]), 0.9)[0] >= target:
                naive = threshold
                break
        assert points.threshold_for(target) == naive
    assert points.threshold_for(0.999) is None and points.best_bound < 0.999


def test_a_stretch_begins_where_the_last_one_is_far_enough_away():
    xy = np.array([[0, 0], [1, 0], [2.9, 0], [3, 0], [3, 2.9], [3.1, 3], [3, 3], [40, 0]], float)
    assert stretches_along(xy, 3.0).tolist() == [0, 0, 0, 1, 1, 2, 2, 3]  # the way back counts no more than the way there
    assert stretches_along(xy, 0.0).tolist() == list(range(8))
    assert stretches_along(xy[:0], 3.0).tolist() == []


def test_frames_of_one_stretch_are_one_witness():
    generator = np.random.default_rng(7)
    found, stretches = some_scores(500, seed=4), generator.integers(0, 120, 500)
    points = single_points(found.scores, found.correct, 0.8, stretches)
    for threshold in found.scores[::25]:
        accepted = found.scores >= threshold
        some = {g for g, a in zip(stretches, accepted, strict=True) if a}
        wrong = {g for g, a, right in zip(stretches, accepted, found.correct, strict=True) if a and not right}
        shown = precision_bounds(np.array([len(some)]), np.array([len(some - wrong)]), 0.8)[0]
        target = shown if shown > 0 else 0.0
        chosen = points.threshold_for(target)
        assert chosen is not None and chosen <= threshold  # the smallest that shows as much
    # Ten frames of each of 30 façades, all right: they show what 30 frames show, and not 300.
    scores, right = np.linspace(0.5, 0.9, 300), np.ones(300, dtype=bool)
    grouped = single_points(scores, right, 0.95, np.repeat(np.arange(30), 10))
    assert grouped.best_bound == pytest.approx(0.05 ** (1 / 30))
    assert single_points(scores, right, 0.95).best_bound == pytest.approx(0.05 ** (1 / 300))


def test_accepted_frames_of_one_stretch_are_counted_once():
    accepted = np.array([[1, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 1]], bool)
    right = np.array([[1, 1, 0, 0, 1, 1], [0, 1, 0, 0, 0, 1]], bool)
    decisions, stretches = Decisions(np.array([0.2, 0.6]), accepted, right), np.array([0, 0, 0, 1, 2, 3])
    counts = [column.tolist() for column in decisions.counts(None, stretches)]
    assert counts == [[3, 2], [2, 2]]  # the first stretch has a wrong frame at the lower threshold alone
    assert [column.tolist() for column in decisions.counts(np.array([3, 4, 5]), stretches)] == [[2, 1], [2, 1]]
    assert [column.tolist() for column in decisions.counts()] == [[5, 2], [4, 2]]


def test_held_out_thirds_are_judged_by_the_others():
    found = some_scores(300, seed=5)
    settings = CalibrationSettings(target_precision=0.7, confidence=0.8)
    tried = held_out(found, settings)
    others, here = found.part(np.arange(100, 300)), found.part(np.arange(100))
    threshold = fit_scores(others, 0.8).single.threshold_for(0.7)
    first = tried.splits[0]
    assert first.threshold == threshold and first.frames == 100
    assert first.accepted == (here.scores >= threshold).sum()
    assert first.precision == here.correct[here.scores >= threshold].mean()
    assert tried.probabilities[:100] == pytest.approx(fit_scores(others, 0.8).probability(here.scores))
    assert sum(b.frames for b in tried.bins()) == 300
    assert tried.calibration_error == pytest.approx(sum(b.frames * abs(b.share - b.probability) for b in tried.bins()) / 300)


def test_errors_are_standard_deviations_of_the_right_matches_alone():
    found = Samples(
        np.array([0.9, 0.8, 0.7, 0.2]), np.array([True, True, False, True]), np.array([[3.0, 0], [0, 4.0], [100, 0], [50, 0]]),
        np.array([2.0, -2.0, 90.0, 0.0]), "run",
    )  # fmt: skip
    errors = fit_errors(found, 0.5)
    assert errors.position_std_m == pytest.approx(math.sqrt((9 + 16) / 2 / 2)) and errors.yaw_std_deg == pytest.approx(2.0)
    assert errors.matches == 2
    assert fit_errors(found, 0.95) is None


def line(count: int, seed: int, start_s: int = 0, step_m: float = 1.0) -> Placed:
    """Images along +x with random descriptors."""
    rows = np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    xy = np.column_stack([step_m * np.arange(count), np.zeros(count)])
    return Placed(rows, xy, np.full(count, 90.0), (start_s + np.arange(count, dtype=np.int64)) * SECOND_NS)


def test_samples_of_a_run_are_its_best_candidates_without_the_recent_past():
    gallery, run = line(20, 0), line(6, 1, start_s=8)
    found = samples_of_run(run, gallery, EvaluationSettings(radius_m=1.5), exclude_time_s=5.0)
    for row in range(6):
        allowed = [i for i in range(20) if abs(int(gallery.stamps_ns[i] - run.stamps_ns[row])) >= 5 * SECOND_NS]
        best = max(allowed, key=lambda i: float(gallery.descriptors[i] @ run.descriptors[row]))
        assert found.scores[row] == pytest.approx(float(gallery.descriptors[best] @ run.descriptors[row]))
        assert found.correct[row] == (abs(best - row) <= 1.5)
        assert found.offsets_m[row, 0] == best - row


def test_the_session_sees_earlier_keyframes_only():
    run = line(40, 2)
    found = samples_of_session(run, EvaluationSettings(radius_m=100.0), exclude_time_s=10.0, keyframes=np.arange(0, 40, 5))
    assert len(found) == 30  # the first ten seconds have nothing before them
    assert found.correct.all() and (found.offsets_m[:, 0] <= -10).all()


def test_impostors_of_a_gallery_are_never_right_and_a_keyframe_never_finds_itself():
    plain = line(12, 3)
    found = samples_of_gallery(plain, [plain], plain, EvaluationSettings(radius_m=1.5), exclude_time_s=0.5, impostor_distance_m=3.0)
    # A neighbour a second apart counts as passed again: each keyframe is asked for once, and once as an impostor.
    assert len(found) == 24
    assert not found.correct[1::2].any() and (np.abs(found.offsets_m[1::2, 0]) > 3.0).all()
    assert (found.scores < 0.999).all()
    views = samples_of_gallery(plain, [plain] * 3, plain, EvaluationSettings(radius_m=0.5), exclude_time_s=60.0, impostor_distance_m=1.0)
    # Nothing else lies within the radius: then the keyframe itself may answer its views.
    assert len(views) == 72 and views.correct[0::2].all() and views.scores[0] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Gallery of 12 places 2 m apart; a run of 40 frames passes them over and over, slower than the exclusion, and 10 see new places."""
    folder = tmp_path_factory.mktemp("calibration")
    make_model(folder / "model")
    with BagWriter(folder / "live") as bag:
        for i in range(50):
            place = i % 12
            new = i % 5 == 4
            pose = Pose.from_xy_yaw(2.0 * place if not new else 300.0 + 7 * i, 0.3, 0.0)
            picture = make_picture(200 + i) if new else revisit(make_picture(place), i)
            stamp_ns = (5000 + i) * SECOND_NS
            bag.write_compressed_image("/camera/image/compressed", stamp_ns, "camera", encode_jpeg(picture))
            bag.write_pose("/ground_truth/pose", stamp_ns, pose)
    return folder


@pytest.fixture
def gallery(world, tmp_path):
    return make_street(tmp_path / "gallery")


EASY = CalibrationSettings(target_precision=0.9, confidence=0.9, stretch_m=1.0)  # the places are 2 m apart
OFF = MatcherSettings(sequence="off")


def test_a_labelled_run_calibrates_the_gallery_and_the_robot_uses_it(world, gallery, tmp_path):
    run = open_run(world / "live", SourceSettings(pose_topic="/ground_truth/pose"))
    result = calibrate(gallery, world / "model", run=run, settings=EASY, evaluation=NEAR, matcher=OFF, out=tmp_path / "out")
    prior = result.calibration.prior
    assert prior.frames == 50 and prior.correct == 40 and prior.basis == "run"
    assert read_calibration(gallery) == read_calibration(tmp_path / "out")
    assert "Reliability" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    wanted = OFF.model_copy(update={"target_precision": 0.9})
    recogniser = PlaceRecogniser.open(gallery, world / "model", wanted)
    threshold = prior.single.threshold_for(0.9)
    assert recogniser.matcher.settings.score_threshold == threshold != OFF.score_threshold
    answer = recogniser.process(revisit(make_picture(3), 9), QueryFrame(9000 * SECOND_NS)).prior
    assert answer.accepted and f"the threshold {threshold:.3f}" in answer.reason
    # The measured error, 0.3 m in y alone, takes the place of half the keyframe spacing; in z nothing else is added to it.
    assert math.sqrt(answer.covariance[2, 2]) == pytest.approx(0.3 / math.sqrt(2), rel=1e-3)
    assert result.calibration.errors.position_std_m == pytest.approx(0.3 / math.sqrt(2), rel=1e-3)


def test_agreement_over_time_is_calibrated_with_its_own_settings(world, gallery):
    run = open_run(world / "live", SourceSettings(pose_topic="/ground_truth/pose"))
    vote = MatcherSettings(sequence="vote", sequence_length=2, min_votes=1)
    calibration = calibrate(gallery, world / "model", run=run, settings=EASY, evaluation=NEAR, matcher=vote).calibration
    prior = calibration.prior
    assert prior.agreed.settings == agreement_settings(vote)
    assert prior.points_for(vote.model_copy(update={"score_threshold": 0.1, "target_precision": 0.9})) is prior.agreed
    assert prior.points_for(vote.model_copy(update={"min_votes": 2})) is prior.single
    assert threshold_of(vote.model_copy(update={"target_precision": 0.9}), calibration) == prior.agreed.threshold_for(0.9)


def test_the_gallery_alone_calibrates_both_searches(world, gallery):
    pytest.importorskip("torch")
    settings = CalibrationSettings(target_precision=0.5, confidence=0.6, views=1)
    calibration = calibrate(
        gallery, world / "model", settings=settings, evaluation=EvaluationSettings(radius_m=0.5), matcher=OFF
    ).calibration
    assert calibration.prior.frames == calibration.session.frames == 24  # one view and one impostor for each of 12 keyframes
    assert calibration.prior.basis == calibration.session.basis == "gallery"
    session = SessionSettings(session_gallery=True, session_target_precision=0.5)
    assert threshold_of(session, calibration) == calibration.session.single.threshold_for(0.5)


def test_too_little_data_is_refused_and_nothing_is_written(world, gallery, tmp_path):
    run = open_run(world / "live", SourceSettings(pose_topic="/ground_truth/pose"))
    with pytest.raises(
        EvaluationError, match="50 frames of .* stretches.* show a precision of 0.[89].* expected 0.99 at .*299 accepted.*longer run"
    ):
        calibrate(gallery, world / "model", run=run, evaluation=NEAR, matcher=OFF, out=tmp_path / "out")
    assert not (gallery / CALIBRATION).exists() and not (tmp_path / "out").exists()


def test_a_wanted_precision_without_its_calibration_is_refused(world, gallery, tmp_path):
    wanted = OFF.model_copy(update={"target_precision": 0.9})
    with pytest.raises(SettingsError, match="target_precision is 0.9 and there is no calibration.*asymvpr calibrate"):
        PlaceRecogniser.open(gallery, world / "model", wanted)
    run = open_run(world / "live", SourceSettings(pose_topic="/ground_truth/pose"))
    calibrate(gallery, world / "model", run=run, settings=EASY, evaluation=NEAR, matcher=OFF)
    recogniser = PlaceRecogniser.open(gallery, world / "model", OFF)
    with pytest.raises(SettingsError, match="shows 0.9.* at most for single frames"):
        recogniser.change_settings(OFF.model_copy(update={"target_precision": 0.999}))
    assert recogniser.matcher.settings.target_precision == 0.0  # the old settings stay
    recogniser.change_settings(wanted)
    # Of another gallery: refused where it is asked for, passed over where it is not.
    other = make_street(tmp_path / "other", 11)
    (other / CALIBRATION).write_bytes((gallery / CALIBRATION).read_bytes())
    with pytest.raises(ArtefactError, match="descriptors or keyframes are others"):
        PlaceRecogniser.open(other, world / "model", wanted)
    assert PlaceRecogniser.open(other, world / "model", OFF).calibration is None


def test_a_damaged_calibration_is_refused(world, gallery):
    run = open_run(world / "live", SourceSettings(pose_topic="/ground_truth/pose"))
    calibration = calibrate(gallery, world / "model", run=run, settings=EASY, evaluation=NEAR, matcher=OFF).calibration
    path = gallery / CALIBRATION
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"frames": 50', '"frames": 51'), encoding="utf-8")
    with pytest.raises(ArtefactError, match="differs from its own checksum.*asymvpr calibrate"):
        PlaceRecogniser.open(gallery, world / "model", OFF)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ArtefactError, match="not JSON"):
        read_calibration(gallery)
    path.write_text(json.dumps({"format_version": 99}), encoding="utf-8")
    with pytest.raises(ArtefactError, match="format version 99"):
        read_calibration(gallery)
    write_calibration(gallery, calibration)
    assert read_calibration(gallery).prior == calibration.prior
