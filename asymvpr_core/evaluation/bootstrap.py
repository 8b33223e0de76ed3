"""How sure a metric is: bootstrap over queries, and paired tests between systems on the same queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import binomtest

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.predictions import Predictions
from asymvpr_core.evaluation.retrieval_metrics import point_statistics


def resamples(evaluable: np.ndarray, settings: EvaluationSettings) -> Iterator[np.ndarray]:
    """Yield `bootstrap_resamples` times Q query numbers, drawn with replacement; the same for the same seed.

    Queries with and without a correct match are drawn separately, so that the number of each stays: no
    resample is without a query that can be found.

    Args:
        evaluable: (Q,) bool, whether the gallery holds a correct match.
    """
    generator = np.random.default_rng(settings.seed)
    strata = [np.flatnonzero(evaluable), np.flatnonzero(~evaluable)]
    for _ in range(settings.bootstrap_resamples):
        yield np.concatenate([stratum[generator.integers(0, len(stratum), len(stratum))] for stratum in strata if len(stratum)])


def intervals(predictions: Predictions, settings: EvaluationSettings) -> dict[str, tuple[float, float]]:
    """Percentile interval of every metric of `point_statistics` that is defined in each resample; empty without resamples."""
    drawn = [point_statistics(predictions, settings.k, rows) for rows in resamples(predictions.evaluable, settings)]
    return {} if not drawn else _percentiles(drawn, settings.confidence)


def _percentiles(drawn: list[dict[str, float | None]], confidence: float) -> dict[str, tuple[float, float]]:
    tail = 50 * (1 - confidence)
    found = {}
    for name in drawn[0]:
        values = [sample[name] for sample in drawn]
        if all(value is not None for value in values):
            low, high = np.percentile(np.array(values, dtype=np.float64), [tail, 100 - tail])
            found[name] = (float(low), float(high))
    return found


@dataclass(frozen=True)
class Difference:
    """Second minus first system in one metric; the interval and `p_value` come from the paired bootstrap."""

    metric: str
    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class PairedComparison:
    """Two systems on the same queries.

    `only_first` and `only_second` count the queries (of those with a correct match) whose best match is
    correct with that system alone. `mcnemar_p` is McNemar's exact two-sided test on them, `mcnemar_p_holm`
    the same after Holm's correction for all pairs that were compared.
    """

    first: str
    second: str
    n_queries: int
    only_first: int
    only_second: int
    mcnemar_p: float
    mcnemar_p_holm: float
    differences: tuple[Difference, ...]

    def as_json(self) -> dict[str, Any]:
        """The comparison as it goes into `metrics.json`."""
        values = {name: value for name, value in vars(self).items() if name != "differences"}
        return values | {"differences": {d.metric: {k: v for k, v in vars(d).items() if k != "metric"} for d in self.differences}}


COMPARISON_PROTOCOL = {
    "difference": "second minus first; the same resampled queries for both (paired bootstrap), percentile interval",
    "p_value": "of the paired bootstrap, two-sided: twice the smaller share of resamples on one side of zero",
    "mcnemar_p": "McNemar's exact test on Recall@1: binomial test of the queries that one system alone answers correctly",
    "mcnemar_p_holm": "the same after Holm's correction for all compared pairs",
}


def compare(systems: Sequence[Predictions], settings: EvaluationSettings) -> list[PairedComparison]:
    """Compare every two systems on the same queries, in the order of `systems`; empty for fewer than two.

    Raises:
        EvaluationError: two systems of one name, or of other queries or another ground truth.
    """
    names = [system.name for system in systems]
    check_names(names)
    for system in systems[1:]:
        _check_same_queries(systems[0], system)
    tests = [_mcnemar(first, second) for first, second in combinations(systems, 2)]
    corrected = holm([test[2] for test in tests])
    resampled = _resampled(systems, settings)
    found = []
    for (i, j), test, p_holm in zip(combinations(range(len(systems)), 2), tests, corrected, strict=True):
        differences = _differences(systems[i], systems[j], resampled[i], resampled[j], settings)
        n_queries = int(systems[i].evaluable.sum())
        found.append(PairedComparison(names[i], names[j], n_queries, *test, p_holm, differences))
    return found


def check_names(names: Sequence[str]) -> None:
    """Raise EvaluationError where two systems that are to be compared are called alike."""
    if len(set(names)) != len(names):
        raise EvaluationError(f"several of the compared systems are called alike: {', '.join(names)}", expected="different names")


def _check_same_queries(a: Predictions, b: Predictions) -> None:
    if len(a) != len(b) or not all(np.array_equal(p, q) for p, q in zip(a.ground_truth, b.ground_truth, strict=True)):
        raise EvaluationError(
            f"{a.name} and {b.name} were not evaluated on the same queries and gallery", expected="one query set and one ground truth",
            remedy="compare systems of one evaluation",
        )  # fmt: skip


def _mcnemar(first: Predictions, second: Predictions) -> tuple[int, int, float]:
    only_first = int((first.evaluable & first.correct & ~second.correct).sum())
    only_second = int((first.evaluable & second.correct & ~first.correct).sum())
    discordant = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's step-down correction, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    count, largest, corrected = len(p_values), 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _resampled(systems: Sequence[Predictions], settings: EvaluationSettings) -> list[list[dict[str, float | None]]]:
    if len(systems) < 2:
        return [[] for _ in systems]
    draws = list(resamples(systems[0].evaluable, settings))
    return [[point_statistics(system, settings.k, rows) for rows in draws] for system in systems]


def _differences(
    first: Predictions,
    second: Predictions,
    first_drawn: list[dict[str, float | None]],
    second_drawn: list[dict[str, float | None]],
    settings: EvaluationSettings,
) -> tuple[Difference, ...]:
    before, after = point_statistics(first, settings.k), point_statistics(second, settings.k)
    drawn: list[dict[str, float | None]] = [
        {name: None if a[name] is None or b[name] is None else b[name] - a[name] for name in a}  # type: ignore[operator]
        for a, b in zip(first_drawn, second_drawn, strict=True)
    ]
    found = []
    for name, (low, high) in (_percentiles(drawn, settings.confidence) if drawn else {}).items():
        a, b = before[name], after[name]
        if a is not None and b is not None:
            values = np.array([sample[name] for sample in drawn], dtype=np.float64)
            # One is added to both, so that a finite number of resamples never claims p = 0.
            below, above = (1 + (values <= 0).sum()) / (1 + len(values)), (1 + (values >= 0).sum()) / (1 + len(values))
            found.append(Difference(name, b - a, low, high, float(min(1.0, 2 * min(below, above)))))
    return tuple(found)
