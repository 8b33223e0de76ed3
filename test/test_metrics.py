"""Metrics against hand-counted cases, naive loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from naive_metrics import naive_sweep
from sklearn.metrics import average_precision_score
from tiny_artefacts import SECOND_NS

from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.loop_closure import precision_recall
from asymvpr_core.evaluation.outcomes import Outcome, detection_delay, judge
from asymvpr_core.evaluation.picture_pairs import choose_apart
from asymvpr_core.evaluation.recall_report import spread_by_heading
from asymvpr_core.evaluation.retrieval_metrics import recall_at_k
from asymvpr_core.types import ImageRecord, Match, MatchResult, Pose

# Recall@K


def test_recall_of_a_case_counted_by_hand():
    ranked = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 1, 3, 4]])
    positives = [np.array([0]), np.array([1, 2]), np.array([4])]
    # Query 0 hits at rank 1, query 1 at rank 3, query 2 at rank 5.
    assert recall_at_k(ranked, positives, (1, 2, 3, 4, 5)) == {1: 1 / 3, 2: 1 / 3, 3: 2 / 3, 4: 2 / 3, 5: 1.0}


def test_recall_leaves_out_queries_without_a_positive():
    ranked = np.array([[0, 1], [0, 1], [1, 0]])
    positives = [np.array([0]), np.array([], dtype=np.int64), np.array([0])]
    assert recall_at_k(ranked, positives, (1, 2)) == {1: 0.5, 2: 1.0}
    with pytest.raises(EvaluationError, match="none of 3 queries"):
        recall_at_k(ranked, [np.array([], dtype=np.int64)] * 3, (1,))
    with pytest.raises(EvaluationError, match="3 queries are ranked, 2 have"):
        recall_at_k(ranked, positives[:2], (1,))


def test_recall_equals_a_naive_loop_on_random_data():
    rng = np.random.default_rng(0)
    ranked = np.array([rng.permutation(40)[:10] for _ in range(60)])
    positives = [np.sort(rng.choice(40, rng.integers(0, 4), replace=False)) for _ in range(60)]
    counted, hits = 0, dict.fromkeys((1, 3, 10), 0)
    for row, positive in zip(ranked.tolist(), positives, strict=True):
        if len(positive) == 0:
            continue
        counted += 1
        for k in hits:
            for index in row[:k]:
                if index in positive.tolist():
                    hits[k] += 1
                    break
    assert recall_at_k(ranked, positives, (1, 3, 10)) == pytest.approx({k: hit / counted for k, hit in hits.items()})


# Precision and recall


def test_precision_recall_of_a_case_counted_by_hand():
    sweep = precision_recall(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, True, False, True, False]), 4)
    np.testing.assert_allclose(sweep.thresholds, [0.9, 0.8, 0.7, 0.6, 0.5])
    np.testing.assert_allclose(sweep.precision, [1, 1, 2 / 3, 3 / 4, 3 / 5])
    np.testing.assert_allclose(sweep.recall, [1 / 4, 1 / 2, 1 / 2, 3 / 4, 3 / 4])
    assert sweep.average_precision == pytest.approx(1 / 4 + 1 / 4 + 3 / 4 / 4)
    assert (sweep.max_f1, sweep.max_f1_threshold) == pytest.approx((3 / 4, 0.6))
    assert (sweep.recall_at_full_precision, sweep.full_precision_threshold) == pytest.approx((0.5, 0.8))
    assert sweep.recall_at_precision(0.7) == pytest.approx((0.75, 0.6))


@pytest.mark.parametrize("levels", [5, 50, 10**9])  # few levels: many ties
@pytest.mark.parametrize("seed", range(4))
def test_sweep_equals_naive_loops_and_scikit_learn(levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, 120) / levels
    correct = rng.random(120) < 0.2 + 0.7 * scores
    n_correct = int(correct.sum())
    sweep = precision_recall(scores, correct, n_correct)
    assert sweep.average_precision == pytest.approx(average_precision_score(correct, scores))
    for extra in (0, 17):
        sweep = precision_recall(scores, correct, n_correct + extra)
        expected = naive_sweep(scores.tolist(), correct.tolist(), n_correct + extra, 0.9)
        assert (sweep.average_precision, sweep.max_f1, sweep.recall_at_precision(0.9)[0]) == pytest.approx(expected)
        assert sweep.average_precision == pytest.approx(average_precision_score(correct, scores) * n_correct / (n_correct + extra))


def test_a_tie_of_right_and_wrong_is_accepted_together():
    for correct in ([True, False], [False, True]):
        sweep = precision_recall(np.array([0.5, 0.5]), np.array(correct), 1)
        assert (sweep.precision.tolist(), sweep.recall.tolist()) == ([0.5], [1.0])
        assert (sweep.recall_at_full_precision, sweep.full_precision_threshold) == (0.0, None)


def test_queries_without_a_match_are_never_accepted():
    sweep = precision_recall(np.array([0.9, -np.inf, 0.7]), np.array([True, False, True]), 3)
    assert sweep.thresholds.tolist() == [0.9, 0.7] and sweep.recall[-1] == pytest.approx(2 / 3) and sweep.precision[-1] == 1.0


def test_sweeps_without_opportunities_or_matches():
    nothing = precision_recall(np.array([0.9, 0.8]), np.array([False, False]), 0)
    assert nothing.average_precision is nothing.max_f1 is nothing.recall_at_full_precision is None
    wrong = precision_recall(np.array([0.9, 0.8]), np.array([False, False]), 2)
    assert (wrong.average_precision, wrong.max_f1, wrong.max_f1_threshold, wrong.recall_at_full_precision) == (0.0, 0.0, None, 0.0)
    empty = precision_recall(np.zeros(0), np.zeros(0, bool), 2)
    assert (empty.average_precision, empty.max_f1, empty.recall_at_full_precision) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "correct", "n", "words"),
    [
        ([0.9, 0.8], [True], 1, "scores have shape"),
        ([np.nan, 0.8], [False, True], 1, "NaN"),
        ([0.9, 0.8], [True, True], 1, "2 matches are correct; expected at most one"),
        ([-np.inf, 0.8], [True, True], 2, "without a match is called correct"),
    ],
)
def test_bad_sweeps_are_refused(scores, correct, n, words):
    with pytest.raises(EvaluationError, match=words):
        precision_recall(np.array(scores), np.array(correct), n)


# Outcomes


def _frame(second: int, *, positives=(), candidate: int | None = None, accepted: bool = False):
    keyframes = [ImageRecord(str(i), Pose((10.0 * i, 0.0, 0.0)), 90.0) for i in range(3)]
    candidates = () if candidate is None else (Match(candidate, 0.9, keyframes[candidate].pose),)
    result = MatchResult(second * SECOND_NS, candidates, candidates[0] if accepted else None, "")
    return judge(ImageRecord("frame", Pose((1.0, 2.0, 5.0)), 80.0), result, np.array(positives, dtype=np.int64), 1.0, keyframes)


def test_the_four_outcomes():
    assert _frame(0, positives=[1, 2], candidate=1, accepted=True).outcome is Outcome.TRUE
    assert _frame(0, positives=[2], candidate=1, accepted=True).outcome is Outcome.FALSE
    assert _frame(0, positives=[], candidate=1, accepted=True).outcome is Outcome.FALSE
    assert _frame(0, positives=[1], candidate=1).outcome is Outcome.MISSED
    assert _frame(0, positives=[], candidate=1).outcome is Outcome.REJECTED
    assert _frame(0, positives=[]).outcome is Outcome.REJECTED


def test_errors_of_a_frame_are_horizontal():
    frame = _frame(0, positives=[1], candidate=1, accepted=True)
    assert frame.position_error_m == pytest.approx(np.hypot(9.0, 2.0)) and frame.heading_error_deg == pytest.approx(10.0)
    assert np.isnan(_frame(0).position_error_m) and _frame(0).best_score == -np.inf


def test_detection_delay_by_hand():
    def opportunity(second, accepted=False):
        return _frame(second, positives=[1], candidate=1, accepted=accepted)

    frames = [
        _frame(0), opportunity(1), opportunity(2), opportunity(4, True), opportunity(5, True),  # found after 3 s
        _frame(6), opportunity(7), opportunity(8),  # never found
        _frame(9), opportunity(10, True),  # found at once
    ]  # fmt: skip
    delay = detection_delay(frames)
    assert delay.n_stretches == 3 and delay.delays_s == (3.0, 0.0)


def test_choose_apart_keeps_order_and_distance():
    assert choose_apart([5, 6, 1, 9, 2, 20], 3, 4) == [5, 1, 9]
    assert choose_apart([5, 6, 1, 9, 2, 20], 3, 4, taken=[10]) == [5, 1, 20]
    assert choose_apart([5, 6], 5, 1) == [5, 6]


def test_images_at_one_position_are_drawn_apart_along_their_headings():
    places = [(0.0, 90.0), (0.0, 0.0), (0.0, None), (100.0, 0.0)]
    records = [ImageRecord(str(i), Pose((x, 0.0, 0.0)), heading) for i, (x, heading) in enumerate(places)]
    np.testing.assert_allclose(spread_by_heading(records), [(1.5, 0), (0, 1.5), (0, 0), (100, 0)], atol=1e-12)
