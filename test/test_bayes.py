"""The Bayes filter and the odometry gate on made-up streets, where every descriptor and every step is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asymvpr_core.config import MatcherSettings
from asymvpr_core.retrieval import candidates
from asymvpr_core.retrieval.bayes import standardised_evidence
from asymvpr_core.retrieval.gate import OdometryGate
from asymvpr_core.retrieval.index import build_index
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.retrieval.odometry import Moment, OdometryMonitor, between, compose, drift_covariance
from asymvpr_core.retrieval.places import KeyframePlaces
from asymvpr_core.types import Keyframe, Pose, QueryFrame

S = 1_000_000_000
SPEED_M_S, FRAMES_HZ = 2.0, 4
# A square ring, 40 m a side, keyframes 1 m apart. Side 2 (south to north on the right is 1) has the houses of side 0.
SIDE_M, N_KEYFRAMES = 40, 160
TWIN_SIDE = 2


def ring_pose(way_m: float) -> Pose:
    """Pose on the ring after `way_m` from its corner (0, 0), counter-clockwise."""
    side, along = divmod(way_m % (4 * SIDE_M), SIDE_M)
    corner = [(0, 0), (SIDE_M, 0), (SIDE_M, SIDE_M), (0, SIDE_M)][int(side)]
    yaw = side * math.pi / 2
    return Pose.from_xy_yaw(corner[0] + along * math.cos(yaw), corner[1] + along * math.sin(yaw), yaw)


class Ring:
    """A gallery in which side 2 looks like side 0, so that no single frame can tell them apart."""

    path = "ring"

    def __init__(self) -> None:
        rows = np.random.default_rng(0).normal(size=(N_KEYFRAMES, 64))
        # All but equal: what differs is a tenth of what the pictures of one place differ by.
        rows[TWIN_SIDE * SIDE_M : (TWIN_SIDE + 1) * SIDE_M] = rows[:SIDE_M] + 0.05 * rows[SIDE_M : 2 * SIDE_M]
        self.descriptors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        poses = [ring_pose(i) for i in range(N_KEYFRAMES)]
        self.keyframes = [Keyframe(f"{i}", pose=p, stamp_ns=i * S, heading_deg=p.heading_deg) for i, p in enumerate(poses)]

    def __len__(self) -> int:
        return N_KEYFRAMES

    def seen_at(self, way_m: float, rng: np.random.Generator) -> np.ndarray:
        """Descriptor of a frame on the ring: the nearest keyframe's with noise, and on the twin side that of its model."""
        index = int(round(way_m)) % N_KEYFRAMES
        if index // SIDE_M == TWIN_SIDE:
            index -= TWIN_SIDE * SIDE_M
        view = self.descriptors[index] + rng.normal(scale=0.05, size=64)
        return (view / np.linalg.norm(view)).astype(np.float32)


def unknown(rng: np.random.Generator) -> np.ndarray:
    view = rng.normal(size=64)
    return (view / np.linalg.norm(view)).astype(np.float32)


def matcher(ring: Ring, **settings) -> Matcher:
    given = {
        "sequence": "bayes",
        "exclude_time_s": 0.0,
        "min_posterior": 0.99,
        "evidence_spacing_m": 1.0,
        "min_observations": 1.0,
        **settings,
    }
    return Matcher(ring, build_index(ring.descriptors), MatcherSettings(**given))


def drive(m: Matcher, ring: Ring, ways_m: np.ndarray, *, odometry: str = "good", start_s: float = 10_000.0, offset: Pose | None = None):
    """Answers along the ring, and whether each accepted one lies within 8 m; `odometry` good, none, or nan."""
    rng = np.random.default_rng(1)
    answers = []
    for i, way in enumerate(ways_m):
        pose = ring_pose(way) if offset is None else offset
        given = {"good": pose, "none": None, "nan": Pose((math.nan, 0.0, 0.0))}[odometry]
        answer = m.match(ring.seen_at(way, rng), QueryFrame(round((start_s + i / FRAMES_HZ) * S), given))
        answers.append((answer, answer.accepted and answer.match.pose.distance_m(ring_pose(way)) <= 8.0))
    return answers


def steps(first_m: float, last_m: float) -> np.ndarray:
    return np.arange(first_m, last_m, SPEED_M_S / FRAMES_HZ)


def counts(answers) -> tuple[int, int]:
    accepted = sum(answer.accepted for answer, _ in answers)
    return accepted, accepted - sum(right for _, right in answers)


def test_history_tells_twins_apart_where_single_frames_and_a_vote_cannot():
    ring = Ring()
    way = steps(45.0, 118.0)  # side 1, which is unique, then side 2, the twin of side 0
    accepted, false = counts(drive(matcher(ring, sequence="off"), ring, way))
    assert accepted == len(way) and false > 20
    answers = drive(matcher(ring), ring, way)
    accepted, false = counts(answers)
    assert false == 0 and accepted > 0.9 * len(way)
    on_twin = [answer for answer, _ in answers if answer.match and 82 <= answer.match.keyframe_index < 118]
    assert len(on_twin) > 60  # it goes on matching there, and is right


def test_beginning_on_a_twin_nothing_is_accepted_until_the_streets_differ():
    ring = Ring()
    answers = drive(matcher(ring), ring, steps(5.0, 60.0))
    on_twin = [answer for answer, _ in answers[: 2 * 33]]
    assert not any(answer.accepted for answer in on_twin)
    assert 0.4 < on_twin[-1].posterior < 0.6 and "of the best place is below 0.990" in on_twin[-1].reason
    assert counts(answers)[1] == 0 and sum(right for _, right in answers) > 20  # after the corner


def test_standing_before_a_place_proves_nothing_more():
    ring = Ring()
    m = matcher(ring)
    first, *rest = [answer for answer, _ in drive(m, ring, np.full(40, 60.0))]
    assert all(abs(answer.posterior - first.posterior) < 0.02 for answer in rest)
    assert not any(answer.accepted for answer in rest)


def test_a_place_is_followed_for_as_many_observations_as_asked_before_it_is_accepted():
    ring, way = Ring(), steps(42.0, 60.0)  # from a street that no other resembles; an observation is a metre
    first = {}
    for needed in (1.0, 5.0, 9.0):
        answers = [answer for answer, _ in drive(matcher(ring, min_observations=needed), ring, way)]
        first[needed] = float(way[[answer.accepted for answer in answers].index(True)])
        # The first frame is an observation, each metre one more; what comes into the map later than the rest counts less.
        assert needed - 1.0 <= first[needed] - 42.0 <= needed + 1.5
        if needed > 1.0:
            asked = [answer.reason for answer in answers if "observations" in answer.reason]
            assert asked and all(f"observations, {needed:g} needed" in reason and "known from" in reason for reason in asked)
    blind = [answer for answer, _ in drive(matcher(ring, min_observations=5.0, max_speed_m_s=4.0), ring, way, odometry="none")]
    assert not any(answer.accepted for answer in blind[: 4 * FRAMES_HZ])  # without odometry an observation is a second
    assert any(answer.reason.endswith("5 needed (without odometry one a second)") for answer in blind)


def test_a_robot_that_comes_to_a_twin_from_nowhere_waits_longer_than_the_twin_lasts():
    ring = Ring()
    # Only side 0 is in the map: the robot is on its twin, which the map does not have, and then in the open.
    ring.keyframes, ring.descriptors = ring.keyframes[:SIDE_M], ring.descriptors[:SIDE_M]
    full = Ring()
    for needed, accepts in ((1.0, True), (40.0, False)):
        m, rng = matcher(ring, min_observations=needed), np.random.default_rng(5)
        answers = []
        for i, way in enumerate(steps(80.0, 118.0)):
            frame = QueryFrame(round((10_000 + i / FRAMES_HZ) * S), ring_pose(way))
            answers.append(m.match(full.seen_at(way, rng), frame))
        assert any(answer.accepted for answer in answers) is accepts


def test_the_match_is_looked_for_in_the_middle_of_the_place():
    ring, rng = Ring(), np.random.default_rng(6)
    m = matcher(ring, score_threshold=0.4)
    drive(m, ring, steps(45.0, 70.0))
    # Resembles the right keyframe, and one seven metres ahead still more: within the agreement radius, but not where the robot is.
    both = 0.6 * ring.seen_at(70.0, rng) + 0.8 * ring.seen_at(77.0, rng)
    answer = m.match((both / np.linalg.norm(both)).astype(np.float32), QueryFrame(round(10_012.5 * S), ring_pose(70.0)))
    assert answer.candidates[0].keyframe_index == 77 and answer.accepted
    assert answer.match.keyframe_index == 70


def test_a_kidnapped_robot_is_found_again_and_never_at_its_old_place():
    ring = Ring()
    m = matcher(ring)
    assert sum(right for _, right in drive(m, ring, steps(45.0, 60.0))) > 10
    # Carried to side 3, with odometry that noticed nothing: it goes on as if the robot had driven straight on.
    rng, answers = np.random.default_rng(2), []
    for i, way in enumerate(steps(125.0, 150.0)):
        frame = QueryFrame(round((10_010 + i / FRAMES_HZ) * S), ring_pose(60.0 + i * SPEED_M_S / FRAMES_HZ - 0.0))
        answer = m.match(ring.seen_at(way, rng), frame)
        answers.append((answer, answer.accepted and answer.match.pose.distance_m(ring_pose(way)) <= 8.0))
    accepted, false = counts(answers)
    assert false == 0 and accepted > 25  # of 50 frames


def test_a_pause_keeps_the_belief_with_odometry_and_ends_it_without():
    ring = Ring()
    for odometry, kept in (("good", True), ("none", False)):
        m = matcher(ring, max_speed_m_s=4.0)
        drive(m, ring, steps(45.0, 70.0), odometry=odometry)
        answer, _ = drive(m, ring, np.array([70.0]), odometry=odometry, start_s=11_000.0)[0]
        assert answer.accepted is kept, answer.reason


def test_without_odometry_it_is_slower_but_right():
    ring = Ring()
    answers = drive(matcher(ring, max_speed_m_s=4.0), ring, steps(45.0, 118.0), odometry="none")
    accepted, false = counts(answers)
    assert false == 0 and accepted > 30
    assert not answers[0][0].accepted


def test_odometry_that_is_no_number_counts_as_missing_and_is_reported():
    ring = Ring()
    answer, _ = drive(matcher(ring), ring, np.array([60.0]), odometry="nan")[0]
    assert answer.reason.endswith("(odometry is not finite)") and math.isfinite(answer.posterior)


def test_a_jump_of_odometry_forgets_what_was_believed():
    ring = Ring()
    m = matcher(ring, max_speed_m_s=5.0)
    before = [answer for answer, _ in drive(m, ring, steps(45.0, 70.0))]
    assert before[-1].accepted
    far = Pose.from_xy_yaw(500.0, 0.0, 0.0)
    answer, _ = drive(m, ring, np.array([70.0]), start_s=10_012.75, offset=far)[0]
    assert not answer.accepted and "odometry jumped" in answer.reason and "forgotten" in answer.reason


def test_a_frame_of_nowhere_is_not_accepted_and_the_belief_survives_one():
    ring = Ring()
    m = matcher(ring)
    drive(m, ring, steps(45.0, 70.0))
    rng = np.random.default_rng(3)
    answer = m.match(unknown(rng), QueryFrame(round(10_012.5 * S), ring_pose(70.0)))
    assert not answer.accepted
    assert drive(m, ring, np.array([71.0]), start_s=10_013.0)[0][1]
    fresh = matcher(ring)
    for i in range(100):
        answer = fresh.match(unknown(rng), QueryFrame((20_000 + i) * S, Pose.from_xy_yaw(1000.0 + 1.5 * i, 0.0, 0.0)))
        assert not answer.accepted
    assert "that the gallery does not show it" in answer.reason


def test_cameras_have_beliefs_of_their_own():
    ring = Ring()
    m = matcher(ring)
    drive(m, ring, steps(45.0, 70.0))
    rng = np.random.default_rng(4)
    other = m.match(ring.seen_at(70.0, rng), QueryFrame(round(10_012.5 * S), ring_pose(70.0), "rear"))
    same = m.match(ring.seen_at(70.0, rng), QueryFrame(round(10_012.5 * S), ring_pose(70.0), ""))
    assert same.accepted and not other.accepted and other.posterior < 0.9


def test_evidence_is_bounded_grows_with_the_score_and_does_not_depend_on_the_scale():
    scores = np.random.default_rng(0).normal(size=400)
    evidence = standardised_evidence(np.array([-9.0, 0.0, 2.0, 4.0, 6.0, 60.0]), scores)
    assert (np.diff(evidence) > 0).all() and evidence[0] >= -2.0 and evidence[-1] <= 4.0
    np.testing.assert_allclose(standardised_evidence(0.3 * np.array([4.0]) + 0.1, 0.3 * scores + 0.1), evidence[3])
    np.testing.assert_array_equal(standardised_evidence(np.array([5.0]), np.zeros(7)), [0.0])  # too few to tell


def test_a_likelihood_can_be_given():
    ring = Ring()
    settings = MatcherSettings(sequence="bayes", exclude_time_s=0.0, min_posterior=0.95, min_observations=1.0)
    m = Matcher(ring, build_index(ring.descriptors), settings,
                likelihood=lambda scores, reference: np.where(scores > 0.8, 9.0, -9.0))  # fmt: skip
    assert m.match(ring.descriptors[60], QueryFrame(10_000 * S)).accepted  # one frame suffices such a likelihood


def test_motion_composes():
    rng = np.random.default_rng(0)
    for start, end in rng.normal(size=(20, 2, 3)):
        np.testing.assert_allclose(compose(start, between(start, end)), end, atol=1e-12)
    np.testing.assert_allclose(compose(np.array([1.0, 2.0, math.pi / 2]), np.array([3.0, 0.0, 0.0])), [1.0, 5.0, math.pi / 2])


def test_places_near_a_point_are_those_of_a_naive_search():
    rng = np.random.default_rng(0)
    places = KeyframePlaces(cell_m=5.0)
    for x, y in rng.uniform(-60, 60, (300, 2)):
        places.add(Pose((x, y, 0.0)), None)
    points = rng.uniform(-70, 70, (40, 2))
    for radius in (0.5, 4.0, 17.0):
        found = set(zip(*(side.tolist() for side in places.near(points, radius)), strict=True))
        distance = np.linalg.norm(points[:, None] - places.positions[None, :, :2], axis=2)
        assert found == set(zip(*(side.tolist() for side in np.nonzero(distance <= radius)), strict=True))


def moment(x: float, y: float, yaw: float, travelled: float) -> Moment:
    return Moment(0, "", np.array([x, y, yaw]), travelled)


def test_the_gate_refuses_what_odometry_cannot_explain():
    settings = MatcherSettings(odom_gate_sigma=3.0, odometry_drift=0.05, odometry_yaw_drift_deg_m=0.1)
    gate, covariance = OdometryGate(settings), np.diag([1.0, 1.0, math.radians(10) ** 2])
    here = np.array([100.0, 50.0, math.pi / 2])  # the map is turned by 90 degrees against odometry
    assert gate.check(here, covariance, moment(0, 0, 0, 0.0)) == (True, "")
    gate.accept(here, covariance, moment(0, 0, 0, 0.0))
    ahead = moment(10, 0, 0, 10.0)
    passed, reason = gate.check(np.array([100.0, 60.0, math.pi / 2]), covariance, ahead)
    assert passed and reason == "0.0 sigma from odometry"
    # Along the street: variances 1 + 1 of the two matches, 0.5^2 of 10 m of drift; nothing else acts in this direction.
    _, reason = gate.check(np.array([100.0, 63.0, math.pi / 2]), covariance, ahead)
    assert reason == f"{3.0 / math.sqrt(2.25):.1f} sigma from odometry"
    passed, reason = gate.check(np.array([162.0, 60.0, math.pi / 2]), covariance, ahead)
    assert not passed and "sigma from where odometry expects it, 3 allowed" in reason


def test_the_gate_opens_again_for_matches_that_agree_with_one_another():
    gate, covariance = OdometryGate(MatcherSettings(odom_gate_sigma=3.0, odom_gate_reopen_m=20.0)), np.diag([1.0, 1.0, 0.03])
    gate.accept(np.zeros(3), covariance, moment(0, 0, 0, 0.0))
    passed = [gate.check(np.array([x, 300.0, 0.0]), covariance, moment(x, 0, 0, x))[0] for x in np.arange(1.0, 25.0, 4.0)]
    assert passed == [False] * 5 + [True]
    gate.accept(np.zeros(3), covariance, moment(0, 0, 0, 0.0))
    jumping = [gate.check(np.array([x, 300.0 + 90 * (i % 2), 0]), covariance, moment(x, 0, 0, x))[0] for i, x in enumerate(range(1, 25))]
    assert not any(jumping)  # they disagree with one another
    assert gate.check(np.array([0.0, 300.0, 0.0]), covariance, Moment(0, "", None, 1.0)) == (True, "")  # no odometry, no gate


def test_the_monitor_adds_up_the_way_and_not_the_noise():
    monitor, rng = OdometryMonitor(MatcherSettings(max_speed_m_s=2.0)), np.random.default_rng(0)
    for i in range(200):
        still = monitor.observe(QueryFrame(i * S // 10, Pose((0.005 * rng.normal(), 0.0, 0.0))))
    assert still.travelled_m == 0.0
    for i in range(50):
        moving = monitor.observe(QueryFrame((20 + i) * S, Pose((1.0 * i, 0.0, 0.0))))
    assert moving.travelled_m == pytest.approx(49.0, abs=0.1) and not moving.jumped
    gone = monitor.observe(QueryFrame(70 * S, Pose((60.0, 0.0, 0.0))))
    assert gone.jumped and gone.fault == "odometry jumped 11.0 m in 1.00 s" and gone.travelled_m == moving.travelled_m
    turned = monitor.observe(QueryFrame(70 * S + 1, Pose.from_xy_yaw(60.0, 0.0, 2.0)))
    assert turned.jumped and "115 deg" in turned.fault


def test_drift_grows_with_the_way():
    settings = MatcherSettings(odometry_drift=0.1, odometry_yaw_drift_deg_m=1.0)
    covariance = drift_covariance(np.array([10.0, 0.0, 0.0]), 10.0, settings)
    yaw = math.radians(10.0)
    np.testing.assert_allclose(np.diag(covariance), [1.0, 1.0 + (5 * yaw) ** 2, yaw**2])
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_the_filter_looks_at_fewer_keyframes_the_longer_descriptors_are():
    assert [candidates.breadth(d) for d in (64, 512, 1024, 8448, 12288)] == [2048, 2048, 1024, 128, 128]


def test_a_gallery_of_which_only_the_best_are_scored_is_driven_through_alike(monkeypatch):
    """32 of 160 keyframes are scored: the same places are accepted, and none wrong."""
    ring = Ring()
    whole = drive(matcher(ring), ring, steps(45.0, 75.0))
    monkeypatch.setattr(candidates, "breadth", lambda dimension: 32)
    narrow = drive(matcher(ring), ring, steps(45.0, 75.0))
    assert sum(right for _, right in narrow) >= 0.9 * sum(right for _, right in whole) > 0
    assert all(right for answer, right in narrow if answer.accepted)
