"""The matcher at one threshold after another, against a matcher that is run anew at each."""

from __future__ import annotations

import numpy as np
import pytest
from test_bayes import Ring, S, ring_pose

from asymvpr_core.config import MatcherSettings
from asymvpr_core.evaluation import decisions
from asymvpr_core.evaluation.decisions import decide, judge_by
from asymvpr_core.evaluation.encoded_run import EncodedRun
from asymvpr_core.retrieval.index import build_index
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.types import QueryFrame


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        (MatcherSettings(sequence="off"), 1),
        (MatcherSettings(sequence="bayes", evidence_spacing_m=1.0), 1),
        (MatcherSettings(sequence="vote", sequence_length=3, min_votes=2), decisions.N_THRESHOLDS),
        (MatcherSettings(sequence="off", odom_gate_sigma=2.0), decisions.N_THRESHOLDS),
    ],
    ids=["off", "bayes", "vote", "gate"],
)
def test_decisions_are_those_of_a_matcher_with_each_threshold(settings: MatcherSettings, passes: int, monkeypatch):
    ring, rng = Ring(), np.random.default_rng(1)
    ways_m = np.arange(60.0, 130.0, 1.0)  # also along the side that looks like another one
    queries = np.stack([ring.seen_at(way, rng) for way in ways_m])
    stamps, odometry = [round((10_000 + way) * S) for way in ways_m], [ring_pose(way) for way in ways_m]
    run = EncodedRun(None, None, stamps, queries, np.zeros(len(ways_m)), odometry)  # type: ignore[arg-type]  # no picture, no network
    true = [int(way) for way in ways_m]
    made = []
    monkeypatch.setattr(decisions, "Matcher", lambda *given, **named: made.append(1) or Matcher(*given, **named))
    index = build_index(ring.descriptors)
    found = decide(run, ring, index, settings, judge_by([np.array([i]) for i in true], lambda frame, match: False))  # type: ignore[arg-type]
    assert len(made) == passes and len(found.thresholds) == decisions.N_THRESHOLDS
    for row, threshold in enumerate(found.thresholds):
        matcher = Matcher(ring, index, settings.model_copy(update={"score_threshold": float(threshold)}))  # type: ignore[arg-type]
        for frame, place in enumerate(true):
            match = matcher.match(queries[frame], QueryFrame(stamps[frame], odometry[frame])).match
            assert found.accepted[row, frame] == (match is not None)
            assert found.right[row, frame] == (match is not None and match.keyframe_index == place)
    counts = found.accepted.sum(axis=1)
    assert counts[0] > counts[-1], "the thresholds make no difference"
    assert found.right.any()
    if settings.sequence == "off" and settings.odom_gate_sigma == 0:  # what the others are there to prevent
        assert (found.accepted & ~found.right).any()
