"""The matcher's decisions on fabricated descriptors: every rule on a case that can be counted by hand."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from asymvpr_core.config import MatcherSettings
from asymvpr_core.errors import RetrievalError, SettingsError
from asymvpr_core.retrieval.index import build_index
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.types import Keyframe, Pose, QueryFrame

S = 1_000_000_000
LATER = 10_000 * S  # far from every keyframe's stamp


def at(stamp_ns: int) -> QueryFrame:
    return QueryFrame(stamp_ns)


def _gallery(poses: list[Pose | None], stamps: list[int | None] | None = None) -> SimpleNamespace:
    """A gallery whose descriptor i is the i-th unit vector."""
    stamps = stamps or [i * S for i in range(len(poses))]
    keyframes = [
        Keyframe(f"{i}.jpg", pose=pose, stamp_ns=stamp, heading_deg=pose.heading_deg if pose else None)
        for i, (pose, stamp) in enumerate(zip(poses, stamps, strict=True))
    ]
    positions = np.array([p.position if p else (np.nan,) * 3 for p in poses]).reshape(-1, 3)

    class Fake(SimpleNamespace):
        def __len__(self):
            return len(self.keyframes)

    dimension = max(len(poses), 1)
    return Fake(path="gallery", keyframes=keyframes, positions=positions, descriptors=np.eye(dimension, dtype=np.float32)[: len(poses)])


def _matcher(gallery, **settings) -> Matcher:
    return Matcher(gallery, build_index(gallery.descriptors), MatcherSettings(**{"sequence": "off", **settings}))


def _street(n: int = 10, spacing_m: float = 2.0) -> list[Pose]:
    return [Pose.from_xy_yaw(i * spacing_m, 0.0, 0.0) for i in range(n)]


def _looks_like(*weights: tuple[int, float], dimension: int = 10) -> np.ndarray:
    """A descriptor with the given cosines to keyframes; the rest of its length goes nowhere."""
    descriptor = np.zeros(dimension, np.float32)
    for index, cosine in weights:
        descriptor[index] = cosine
    return descriptor


def test_best_candidate_above_the_threshold_is_accepted():
    result = _matcher(_gallery(_street()), top_k=3).match(_looks_like((4, 0.8), (5, 0.6), (1, 0.1)), at(LATER))
    assert [c.keyframe_index for c in result.candidates] == [4, 5, 1]
    assert [c.score for c in result.candidates] == pytest.approx([0.8, 0.6, 0.1])
    assert result.match == result.candidates[0] and result.match.pose.position == (8.0, 0.0, 0.0)
    assert result.stamp_ns == LATER and "0.800" in result.reason


@pytest.mark.parametrize(("score", "accepted"), [(0.4999, False), (0.5, True), (0.51, True)])
def test_threshold_is_inclusive_and_reported(score, accepted):
    result = _matcher(_gallery(_street()), score_threshold=0.5).match(_looks_like((4, score)), at(LATER))
    assert result.accepted is accepted
    assert (result.covariance is not None) is accepted
    if not accepted:
        assert result.reason == f"best score {score:.3f} is below the threshold 0.500"
        assert len(result.candidates) == 5  # candidates are given before any threshold


def test_keyframes_close_in_time_are_no_candidates():
    gallery = _gallery(_street())  # keyframe i at second i
    descriptor = _looks_like((4, 0.6), (3, 0.5), (5, 0.4), (2, 0.3), (6, 0.2), (9, 0.1))
    result = _matcher(gallery, exclude_time_s=2.0, top_k=3).match(descriptor, at(4 * S))
    # 3, 4 and 5 are closer than 2 s; 2 and 6 are exactly 2 s away and stay.
    assert [c.keyframe_index for c in result.candidates] == [2, 6, 9]
    result = _matcher(gallery, exclude_time_s=0.0, top_k=1).match(descriptor, at(4 * S))
    assert result.candidates[0].keyframe_index == 4


def test_exclusion_equals_a_naive_filter_on_random_data():
    rng = np.random.default_rng(0)
    descriptors = rng.normal(size=(60, 8)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    stamps = [None if i % 7 == 0 else int(s) for i, s in enumerate(rng.integers(0, 100 * S, 60))]
    gallery = _gallery(_street(60), stamps)
    gallery.descriptors = descriptors
    matcher = _matcher(gallery, exclude_time_s=20.0, top_k=6)
    for query, stamp in zip(descriptors[::5], rng.integers(0, 100 * S, 12).tolist(), strict=True):
        similarity = descriptors @ query
        allowed = [i for i in np.argsort(-similarity) if stamps[i] is None or abs(stamps[i] - stamp) >= 20 * S]
        assert [c.keyframe_index for c in matcher.match(query, at(stamp)).candidates] == allowed[:6]


def test_everything_excluded_is_a_rejection_with_a_reason():
    result = _matcher(_gallery(_street(3)), exclude_time_s=30.0).match(_looks_like((1, 1.0), dimension=3), at(1 * S))
    assert not result.accepted and result.candidates == ()
    assert result.reason == "all 3 keyframes were taken within 30 s of the frame"


def test_keyframes_without_stamp_are_never_excluded():
    gallery = _gallery(_street(3), [None, 1 * S, None])
    result = _matcher(gallery, exclude_time_s=30.0).match(_looks_like((1, 1.0), (2, 0.7), dimension=3), at(1 * S))
    assert {c.keyframe_index for c in result.candidates} == {0, 2} and result.match.keyframe_index == 2


def test_vote_needs_agreeing_frames():
    matcher = _matcher(_gallery(_street()), sequence="vote", sequence_length=4, min_votes=3)
    decisions = [matcher.match(_looks_like((i, 0.9)), at(LATER + i * S)) for i in (4, 5, 6)]
    assert [d.accepted for d in decisions] == [False, False, True]
    assert decisions[0].reason == "1 of the last 1 frames agree, 3 needed"
    assert decisions[1].reason == "2 of the last 2 frames agree, 3 needed"
    assert decisions[2].reason == "score 0.900 reaches the threshold 0.550, 3 of the last 3 frames agree"


def test_one_outlier_does_not_stop_the_vote_and_is_not_accepted():
    matcher = _matcher(_gallery(_street(10, spacing_m=6.0)), sequence="vote", sequence_length=5, min_votes=4)
    accepted = [matcher.match(_looks_like((i, 0.9)), at(LATER + t * S)).accepted for t, i in enumerate((4, 4, 4, 4, 9, 4))]
    assert accepted == [False, False, False, True, False, True]


def test_frames_below_the_threshold_do_not_vote():
    matcher = _matcher(_gallery(_street()), sequence="vote", sequence_length=5, min_votes=3)
    results = [matcher.match(_looks_like((4, score)), at(LATER + t * S)) for t, score in enumerate((0.9, 0.3, 0.9, 0.9))]
    assert [r.accepted for r in results] == [False, False, False, True]
    assert results[2].reason == "2 of the last 3 frames agree, 3 needed"


def test_votes_leave_with_the_window():
    matcher = _matcher(_gallery(_street()), sequence="vote", sequence_length=3, min_votes=3)
    seen = [(4, 0.9), (4, 0.9), (9, 0.1), (4, 0.9), (4, 0.9), (4, 0.9)]
    accepted = [matcher.match(_looks_like(w), at(LATER + t * S)).accepted for t, w in enumerate(seen)]
    assert accepted == [False, False, False, False, False, True]


@pytest.mark.parametrize(("yaw_deg", "accepted"), [(0.0, True), (44.0, True), (46.0, False), (180.0, False)])
def test_agreement_asks_for_yaw_too(yaw_deg, accepted):
    poses = [Pose.from_xy_yaw(0, 0, 0), Pose.from_xy_yaw(1, 0, math.radians(yaw_deg))]
    matcher = _matcher(_gallery(poses), sequence="vote", sequence_length=2, min_votes=2, agreement_yaw_deg=45.0)
    matcher.match(_looks_like((1, 0.9), dimension=2), at(LATER))
    assert matcher.match(_looks_like((0, 0.9), dimension=2), at(LATER + S)).accepted is accepted


@pytest.mark.parametrize(("gap_s", "accepted"), [(3.0, True), (3.1, False), (-0.1, False)])
def test_a_pause_or_a_backward_jump_starts_a_new_vote(gap_s, accepted):
    matcher = _matcher(_gallery(_street()), sequence="vote", sequence_length=2, min_votes=2, max_frame_gap_s=3.0)
    matcher.match(_looks_like((4, 0.9)), at(LATER))
    assert matcher.match(_looks_like((4, 0.9)), at(LATER + round(gap_s * S))).accepted is accepted


def test_the_same_frame_twice_is_one_vote():
    matcher = _matcher(_gallery(_street()), sequence="vote", sequence_length=3, min_votes=2)
    assert [matcher.match(_looks_like((4, 0.9)), at(LATER)).accepted for _ in range(3)] == [False, False, False]


def test_reset_forgets_the_vote():
    matcher = _matcher(_gallery(_street()), sequence="vote", sequence_length=2, min_votes=2)
    matcher.match(_looks_like((4, 0.9)), at(LATER))
    matcher.reset()
    assert not matcher.match(_looks_like((4, 0.9)), at(LATER + S)).accepted


def test_covariance_is_at_least_half_the_local_spacing_and_positive_definite():
    poses = [Pose.from_xy_yaw(x, 0.0, 0.0) for x in (0.0, 1.0, 2.0, 12.0, 22.0)]
    for index, spacing_m in ((1, 1.0), (4, 10.0)):
        covariance = _matcher(_gallery(poses), top_k=1).match(_looks_like((index, 0.9), dimension=5), at(LATER)).covariance
        assert covariance.shape == (6, 6)
        np.testing.assert_array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)[:3]), spacing_m / 2)


def test_covariance_grows_with_the_spread_of_agreeing_candidates_only():
    descriptor = _looks_like((4, 0.9), (5, 0.3), (0, 0.2))
    alone = _matcher(_gallery(_street()), top_k=1, agreement_radius_m=3.0).match(descriptor, at(LATER)).covariance
    spread = _matcher(_gallery(_street()), top_k=3, agreement_radius_m=3.0).match(descriptor, at(LATER)).covariance
    # Candidates 4 and 5 agree, 2 m apart along x: mean square 0² and 2² is 2. Candidate 0 is 8 m away.
    np.testing.assert_allclose(spread[:3, :3] - alone[:3, :3], np.diag([2.0, 0.0, 0.0]), atol=1e-12)


def test_covariance_grows_with_the_spread_of_the_vote():
    matcher = _matcher(_gallery(_street()), sequence="vote", sequence_length=3, min_votes=3, top_k=1)
    steady = [matcher.match(_looks_like((4, 0.9)), at(LATER + t * S)) for t in range(3)][-1].covariance
    matcher.reset()
    moving = [matcher.match(_looks_like((i, 0.9)), at(LATER + i * S)) for i in (2, 3, 4)][-1].covariance
    # Best candidates 4, 2 and 0 m from the match: mean square 20 / 3.
    np.testing.assert_allclose(moving[:3, :3] - steady[:3, :3], np.diag([20 / 3, 0.0, 0.0]), atol=1e-12)


def test_covariance_of_yaw_grows_with_the_yaw_of_agreeing_candidates():
    poses = [Pose.from_xy_yaw(0, 0, 0), Pose.from_xy_yaw(1, 0, math.radians(30))]
    alone = _matcher(_gallery(poses), top_k=1).match(_looks_like((0, 0.9), (1, 0.8), dimension=2), at(LATER)).covariance
    spread = _matcher(_gallery(poses), top_k=2).match(_looks_like((0, 0.9), (1, 0.8), dimension=2), at(LATER)).covariance
    assert spread[5, 5] - alone[5, 5] == pytest.approx(math.radians(30) ** 2 / 2)


@pytest.mark.parametrize("poses", [[Pose((1.0, 2.0, 0.0))], [Pose((1.0, 2.0, 0.0))] * 4])
def test_covariance_of_a_single_position_is_not_zero(poses):
    covariance = _matcher(_gallery(poses), agreement_radius_m=8.0).match(_looks_like((0, 0.9), dimension=len(poses)), at(LATER)).covariance
    np.testing.assert_allclose(np.diag(covariance)[:3], 16.0)
    assert (np.diag(covariance) > 0).all()


def test_what_the_matcher_refuses():
    with pytest.raises(RetrievalError, match="is empty"):
        _matcher(_gallery([]))
    with pytest.raises(RetrievalError, match="1 of 2 keyframes .* no pose"):
        _matcher(_gallery([Pose((0, 0, 0)), None]))
    with pytest.raises(RetrievalError, match="holds 3 descriptors of 10-D; expected 10 of 10-D"):
        Matcher(_gallery(_street()), build_index(np.eye(10, dtype=np.float32)[:3]))
    with pytest.raises(SettingsError, match="min_votes is 4; expected at most sequence_length, 3"):
        _matcher(_gallery(_street()), sequence="vote", sequence_length=3, min_votes=4)
    with pytest.raises(RetrievalError, match="9-D, the index holds 10-D"):
        _matcher(_gallery(_street())).match(np.zeros(9, np.float32), at(LATER))


def test_without_headings_the_orientation_is_said_to_be_unknown():
    gallery = _gallery(_street())
    gallery.keyframes = [dataclasses.replace(k, heading_deg=None) for k in gallery.keyframes]
    unknown = _matcher(gallery, sequence="off").match(_looks_like((3, 0.9)), at(LATER)).covariance
    assert np.array_equal(np.diag(unknown)[3:], [9999.0] * 3)  # rtabmap: ignore these axes
    gallery.keyframes = [dataclasses.replace(k, heading_deg=90.0) for k in gallery.keyframes]
    known = _matcher(gallery, sequence="off").match(_looks_like((3, 0.9)), at(LATER)).covariance
    assert (np.diag(known)[3:] < 1.0).all()
    np.testing.assert_array_equal(known[:3, :3], unknown[:3, :3])
