"""Metrics of a query set against hand-counted cases, brute force, scikit-learn, scipy, and other repositories' definitions."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from naive_metrics import naive_sweep
from scipy.stats import bootstrap
from sklearn.metrics import auc, average_precision_score, precision_recall_curve
from sklearn.neighbors import NearestNeighbors

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.bootstrap import compare, holm, intervals, resamples
from asymvpr_core.evaluation.predictions import Predictions, conditions_of
from asymvpr_core.evaluation.recall import predict
from asymvpr_core.evaluation.retrieval_metrics import point_statistics, recall_at_k, statistics, statistics_by_condition, sweep_of
from asymvpr_core.types import ImageRecord, Pose

NONE = np.array([], dtype=np.int64)


def make_predictions(indices, positives, scores=None, distances=None, conditions=None, name="system") -> Predictions:
    indices = np.array(indices)
    if scores is None:
        scores = np.linspace(0.9, 0.1, indices.size).reshape(indices.shape)
    distances = np.zeros(len(indices)) if distances is None else distances
    return Predictions(
        name, np.array(scores, dtype=np.float64), indices, [np.array(p, dtype=np.int64) for p in positives], np.array(distances), conditions
    )


def random_site(seed: int, n_queries=80, n_gallery=120, dimension=16):
    """Positions [m] and L2-normalised descriptors that know the position a little; some queries lie off the map."""
    rng = np.random.default_rng(seed)
    gallery_xy = rng.uniform(0, 400, (n_gallery, 2))
    query_xy = rng.uniform(0, 480, (n_queries, 2))
    projection = rng.normal(size=(4, dimension))

    def descriptors(xy):
        features = np.concatenate([np.sin(xy / 60), np.cos(xy / 60)], axis=1) @ projection + rng.normal(
            scale=0.9, size=(len(xy), dimension)
        )
        return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)

    return gallery_xy, query_xy, descriptors(gallery_xy), descriptors(query_xy)


def records(xy) -> list[ImageRecord]:
    return [ImageRecord(str(i), Pose((float(x), float(y), 0.0))) for i, (x, y) in enumerate(xy)]


def positives_within(query_xy, gallery_xy, radius_m) -> list[np.ndarray]:
    return [np.flatnonzero(np.hypot(*(gallery_xy - q).T) <= radius_m) for q in query_xy]


# Counted by hand


def test_three_queries_and_five_gallery_images_by_hand():
    predictions = make_predictions(
        [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 1, 3, 4]], [[0], [1, 2], [4]],
        scores=[[0.9, 0.5, 0.4, 0.3, 0.2], [0.8, 0.7, 0.6, 0.5, 0.4], [0.7, 0.6, 0.5, 0.4, 0.3]], distances=[3.0, 50.0, 40.0],
    )  # fmt: skip
    values = statistics(predictions, (1, 2, 3, 5))
    # Query 0 hits at rank 1, query 1 at rank 3, query 2 at rank 5; the one right best match has the highest score.
    assert values["recall_at_k"] == {"1": 1 / 3, "2": 1 / 3, "3": 2 / 3, "5": 1.0} == values["recall_at_k_of_all_queries"]
    assert values["average_precision"] == pytest.approx(1 / 3) and values["average_precision_of_best_match"] == 1.0
    assert (values["recall_at_full_precision"], values["full_precision_threshold"]) == (1 / 3, 0.9)
    assert (values["recall_at_99_precision"], values["max_f1"], values["max_f1_threshold"]) == (1 / 3, 0.5, 0.9)
    assert (values["median_position_error_m"], values["n_queries"], values["n_without_positive"]) == (40.0, 3, 0)


def test_queries_without_a_positive_are_counted_apart():
    predictions = make_predictions(
        [[0], [1], [1], [0]], [[0], [], [0], []], [[0.5], [0.9], [0.4], [0.3]], [1.0, np.nan, 80.0, 900.0],
        conditions=["day", "day", "night", "fog"],
    )  # fmt: skip
    values = statistics(predictions, (1,))
    assert (values["n_queries"], values["n_without_positive"]) == (4, 2)
    assert values["recall_at_k"] == {"1": 0.5} and values["recall_at_k_of_all_queries"] == {"1": 0.25}
    # The confident answer to query 1, which has no correct match, is a false match in the sweep.
    assert values["average_precision"] == pytest.approx(0.5 * 0.5) and values["recall_at_full_precision"] == 0.0
    assert values["median_position_error_m"] == 40.5
    by_condition = statistics_by_condition(predictions, (1,))
    assert list(by_condition) == ["day", "fog", "night"]
    assert by_condition["day"]["recall_at_k"] == {"1": 1.0} and by_condition["night"]["recall_at_k"] == {"1": 0.0}
    assert by_condition["fog"]["recall_at_k"] == {"1": None} and by_condition["fog"]["average_precision"] is None
    assert [by_condition[c]["n_without_positive"] for c in by_condition] == [1, 1, 0]
    assert statistics_by_condition(make_predictions([[0]], [[0]]), (1,)) == {}


def test_recall_at_99_precision_allows_one_in_a_hundred():
    # 99 right, then a wrong one, then a right one: precision is 100 %, 99 %, and above 99 % again.
    correct = np.array([True] * 99 + [False] + [True])
    indices = np.where(correct, 0, 1)[:, np.newaxis]
    predictions = make_predictions(indices, [[0]] * 101, np.linspace(0.9, 0.1, 101)[:, np.newaxis])
    values = statistics(predictions, (1,))
    assert values["recall_at_full_precision"] == 99 / 101 and values["recall_at_99_precision"] == 100 / 101


# Against brute force


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_equals_brute_force_on_random_data(seed):
    gallery_xy, query_xy, gallery, queries = random_site(seed)
    positives, settings = positives_within(query_xy, gallery_xy, 30.0), EvaluationSettings(k=(1, 5, 20), radius_m=30.0)
    predictions = predict("system", gallery, queries, records(query_xy), records(gallery_xy), positives, settings)
    values = statistics(predictions, settings.k)

    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    found, distances, best_scores, best_correct = dict.fromkeys(settings.k, 0), [], [], []
    n_evaluable = sum(len(p) > 0 for p in positives)
    assert 0 < n_evaluable < len(positives)
    for i, row in enumerate(scores):
        ranked = sorted(range(len(row)), key=lambda j, row=row: -row[j])
        near = [np.hypot(*(gallery_xy[j] - query_xy[i])) <= 30.0 for j in ranked]
        best_scores.append(float(np.float32(row[ranked[0]])))
        best_correct.append(near[0])
        if len(positives[i]):
            distances.append(np.hypot(*(gallery_xy[ranked[0]] - query_xy[i])))
            for k in found:
                found[k] += any(near[:k])
    assert values["recall_at_k"] == {str(k): pytest.approx(count / n_evaluable) for k, count in found.items()}
    assert values["recall_at_k_of_all_queries"] == {str(k): pytest.approx(count / len(positives)) for k, count in found.items()}
    assert values["median_position_error_m"] == pytest.approx(np.median(distances))
    average, f1, full = naive_sweep(best_scores, best_correct, n_evaluable, 1.0)
    assert (values["average_precision"], values["max_f1"], values["recall_at_full_precision"]) == pytest.approx((average, f1, full))
    assert values["recall_at_99_precision"] == pytest.approx(naive_sweep(best_scores, best_correct, n_evaluable, 0.99)[2])


@pytest.mark.parametrize("levels", [4, 10**6])  # few levels: many ties
def test_sweep_of_the_best_match_equals_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    scores = np.sort(rng.integers(0, levels, 150))[::-1] / levels
    correct = rng.random(150) < 0.3 + 0.6 * scores
    predictions = make_predictions(np.where(correct, 0, 1)[:, np.newaxis], [[0]] * 150, scores[:, np.newaxis])
    sweep = sweep_of(predictions)
    assert sweep.average_precision_of_best_match == pytest.approx(average_precision_score(correct, scores))
    precision, recall, _ = precision_recall_curve(correct, scores)
    assert sweep.area_of_best_match == pytest.approx(auc(recall, precision))
    assert sweep.average_precision == pytest.approx(average_precision_score(correct, scores) * correct.mean())


def test_no_correct_best_match_has_no_area():
    sweep = sweep_of(make_predictions([[1], [1]], [[0], [0]]))
    assert sweep.average_precision == 0.0 and sweep.average_precision_of_best_match is sweep.area_of_best_match is None


# The definitions of widely used repositories, written down again from their description


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_definitions_of_vpr_methods_evaluation(seed):
    """VPR-methods-evaluation and deep-visual-geo-localization-benchmark: L2 search of L2-normalised descriptors,
    positives within 25 m, and the share of *all* queries with one among the first K. Uncertainty evaluations of the
    best match: scikit-learn's curve of "best match correct" over the negative L2 distance."""
    gallery_xy, query_xy, gallery, queries = random_site(seed, n_queries=120)
    index = faiss.IndexFlatL2(gallery.shape[1])
    index.add(gallery)
    distances, ranked = index.search(queries, 20)
    theirs = NearestNeighbors(n_jobs=1).fit(gallery_xy).radius_neighbors(query_xy, radius=25, return_distance=False)
    recalls, counted = dict.fromkeys((1, 5, 10, 20), 0.0), len(queries)
    for row, positive in zip(ranked, theirs, strict=True):
        for k in recalls:
            recalls[k] += np.isin(row[:k], positive).any() / counted

    settings = EvaluationSettings(k=(1, 5, 10, 20))
    ours = predict(
        "system", gallery, queries, records(query_xy), records(gallery_xy), positives_within(query_xy, gallery_xy, 25.0), settings
    )
    np.testing.assert_array_equal(ours.indices, ranked)  # L2 and cosine order L2-normalised descriptors alike
    values = statistics(ours, settings.k)
    assert values["recall_at_k_of_all_queries"] == {str(k): pytest.approx(value) for k, value in recalls.items()}
    # The difference: we leave queries without a positive out of the count.
    share = 1 - values["n_without_positive"] / counted
    assert 0 < share < 1
    assert values["recall_at_k"] == {str(k): pytest.approx(value / share) for k, value in recalls.items()}
    best_correct = [row[0] in positive for row, positive in zip(ranked, theirs, strict=True)]
    assert values["average_precision_of_best_match"] == pytest.approx(average_precision_score(best_correct, -distances[:, 0]), abs=1e-6)
    precision, recall, _ = precision_recall_curve(best_correct, -distances[:, 0])
    assert values["area_of_best_match"] == pytest.approx(auc(recall, precision), abs=1e-6)


# Intervals and paired tests


def _system(correct, name="system", evaluable=None) -> Predictions:
    correct = np.asarray(correct, dtype=bool)
    evaluable = np.ones(len(correct), bool) if evaluable is None else np.asarray(evaluable)
    return make_predictions(
        np.where(correct & evaluable, 0, 1)[:, np.newaxis], [[0] if e else [] for e in evaluable],
        np.linspace(0.9, 0.1, len(correct))[:, np.newaxis], name=name,
    )  # fmt: skip


def test_intervals_equal_those_of_scipy():
    correct = np.random.default_rng(1).random(120) < 0.6
    settings = EvaluationSettings(k=(1,), bootstrap_resamples=4000, confidence=0.9)
    low, high = intervals(_system(correct), settings)["recall@1"]
    expected = bootstrap((correct.astype(float),), np.mean, method="percentile", confidence_level=0.9, n_resamples=4000, rng=0)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)
    mean = correct.mean()
    assert low < mean < high and high - low == pytest.approx(2 * 1.645 * np.sqrt(mean * (1 - mean) / 120), rel=0.1)


def test_intervals_are_the_same_for_the_same_seed_and_keep_both_kinds_of_queries():
    evaluable = np.array([True] * 3 + [False] * 40)
    system = _system([True, False, True] + [False] * 40, evaluable=evaluable)
    settings = EvaluationSettings(k=(1,), bootstrap_resamples=50)
    assert intervals(system, settings) == intervals(system, settings)
    drawn = list(resamples(evaluable, settings))
    assert not np.array_equal(drawn, list(resamples(evaluable, settings.model_copy(update={"seed": 1}))))
    assert len(drawn) == 50 and all(len(rows) == 43 and evaluable[rows].sum() == 3 for rows in drawn)
    assert intervals(system, settings.model_copy(update={"bootstrap_resamples": 0})) == {}


def test_a_perfect_system_has_no_spread_and_undefined_metrics_have_no_interval():
    found = intervals(_system([True] * 20), EvaluationSettings(k=(1,), bootstrap_resamples=100))
    assert found["recall@1"] == (1.0, 1.0)
    hopeless = intervals(_system([False] * 20), EvaluationSettings(k=(1,), bootstrap_resamples=100))
    assert hopeless["recall@1"] == (0.0, 0.0) and "average_precision_of_best_match" not in hopeless


def test_mcnemar_by_hand():
    # One query right with the first alone, five with the second alone: p = 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    first = [True] * 4 + [True] + [False] * 5 + [False] * 3
    second = [True] * 4 + [False] + [True] * 5 + [False] * 3
    (pair,) = compare([_system(first, "a"), _system(second, "b")], EvaluationSettings(k=(1,), bootstrap_resamples=200))
    assert (pair.first, pair.second, pair.n_queries, pair.only_first, pair.only_second) == ("a", "b", 13, 1, 5)
    assert pair.mcnemar_p == pair.mcnemar_p_holm == pytest.approx(14 / 64)
    difference = next(d for d in pair.differences if d.metric == "recall@1")
    assert difference.value == pytest.approx(4 / 13) and difference.low <= 4 / 13 <= difference.high
    assert pair.as_json()["differences"]["recall@1"]["value"] == difference.value


def test_equal_systems_do_not_differ_and_different_ones_do():
    rng = np.random.default_rng(2)
    correct = rng.random(300) < 0.5
    settings = EvaluationSettings(k=(1,), bootstrap_resamples=300)
    (pair,) = compare([_system(correct, "a"), _system(correct, "b")], settings)
    assert pair.mcnemar_p == 1.0 and {d.p_value for d in pair.differences} == {1.0} and {d.value for d in pair.differences} == {0.0}
    (pair,) = compare([_system(correct, "a"), _system(correct | (rng.random(300) < 0.5), "b")], settings)
    assert pair.mcnemar_p < 1e-6
    recall = next(d for d in pair.differences if d.metric == "recall@1")
    assert recall.low > 0 and recall.p_value == pytest.approx(2 / 301)  # never zero: the resamples are finite


def test_paired_intervals_are_narrower_than_unpaired_ones():
    # Two systems that mostly agree: the pairing takes the difficulty of the queries out of the difference.
    rng = np.random.default_rng(3)
    first = rng.random(200) < 0.5
    second = np.where(rng.random(200) < 0.05, ~first, first)
    settings = EvaluationSettings(k=(1,), bootstrap_resamples=500)
    (pair,) = compare([_system(first, "a"), _system(second, "b")], settings)
    difference = next(d for d in pair.differences if d.metric == "recall@1")
    low, high = intervals(_system(first), settings)["recall@1"]
    assert difference.high - difference.low < 0.6 * (high - low)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.3 times 4, 3, 2, 1, never falling.
    assert holm([0.3, 0.01, 0.03, 0.02]) == pytest.approx([0.3, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_only_systems_on_the_same_queries_are_compared():
    settings = EvaluationSettings(k=(1,), bootstrap_resamples=10)
    with pytest.raises(EvaluationError, match="called alike"):
        compare([_system([True]), _system([True])], settings)
    with pytest.raises(EvaluationError, match="a and b were not evaluated on the same queries"):
        compare([_system([True], "a"), _system([True, False], "b")], settings)
    with pytest.raises(EvaluationError, match="not evaluated on the same queries"):
        compare([_system([True, True], "a"), _system([True, False], "b", evaluable=[True, False])], settings)
    assert compare([_system([True], "a")], settings) == []


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": np.zeros((0, 3)), "indices": np.zeros((0, 3), int), "positives": [], "distances_m": NONE}, "at least one query"),
        ({"scores": np.zeros((2, 0)), "indices": np.zeros((2, 0), int)}, "at least one query and one answer"),
        ({"scores": np.zeros((2, 2))}, r"scores of shape \(2, 2\) and indices of shape \(2, 3\)"),
        ({"scores": np.array([[0.5, 0.4, 0.3], [0.5, np.nan, 0.3]])}, "a score that is NaN, the first at query 1"),
        ({"scores": np.array([[0.5, 0.4, 0.3], [0.5, 0.6, 0.3]])}, "not sorted, the first at query 1"),
        ({"positives": [NONE]}, "2 queries, and positives for 1"),
        ({"distances_m": np.zeros(3)}, "2 queries, and distances for 3"),
        ({"conditions": ["day"]}, "2 queries, and conditions for 1"),
    ],
)
def test_bad_predictions_are_refused(changes, words):
    good = {
        "name": "system", "scores": np.array([[0.5, 0.4, -np.inf], [0.5, -np.inf, -np.inf]]), "indices": np.zeros((2, 3), int),
        "positives": [NONE, NONE], "distances_m": np.zeros(2),
    }  # fmt: skip
    Predictions(**good)
    with pytest.raises(EvaluationError, match=words):
        Predictions(**{**good, **changes})


def test_query_sets_of_which_nothing_can_be_found_are_refused():
    with pytest.raises(EvaluationError, match="none of 2 queries has a correct match"):
        statistics(make_predictions([[0], [1]], [[], []]), (1,))
    assert point_statistics(make_predictions([[0]], [[]]), (1,))["recall@1"] is None


def test_k_beyond_the_gallery_counts_all_of_it():
    assert recall_at_k(np.array([[1, 0]]), [np.array([0])], (1, 2, 50)) == {1: 0.0, 2: 1.0, 50: 1.0}


# Conditions, and no ground truth


def test_conditions_are_those_of_the_records():
    def records(*conditions):
        return [ImageRecord(f"{i}.jpg", condition=condition) for i, condition in enumerate(conditions)]

    assert conditions_of(records("night", "day", "")) == ("night", "day", "(none)")
    assert conditions_of(records("", "")) is None
    assert conditions_of(records(*[f"remark {i}" for i in range(100)])) is None  # remarks, no conditions


def test_what_nobody_can_judge_is_not_judged():
    answers = Predictions("unknown", np.ones((2, 1)), np.zeros((2, 1), np.int64), None, np.full(2, np.nan))
    assert not answers.judged and not answers.subset(np.array([1]), "one").judged
    for ask in (lambda: answers.correct, lambda: answers.evaluable, lambda: statistics(answers, (1,)), lambda: sweep_of(answers)):
        with pytest.raises(EvaluationError, match="unknown has no ground truth"):
            ask()
