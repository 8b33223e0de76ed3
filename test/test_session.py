"""The session gallery: which frames become keyframes, what the recent past excludes, bounded memory, saving and opening again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_artefacts import make_identity, make_model, make_picture, make_street, revisit

from asymvpr_core.config import MatcherSettings, SessionSettings
from asymvpr_core.errors import ArtefactError, RetrievalError, SettingsError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import verify_files
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.retrieval.session import SessionGallery
from asymvpr_core.types import Pose, QueryFrame

S = 1_000_000_000
DIMENSION = 300
OFF = MatcherSettings(sequence="off", exclude_time_s=5.0)
ON = SessionSettings(session_gallery=True, exclude_keyframes=2, exclude_distance_m=4.0, session_score_threshold=0.8)


def view(place: int) -> np.ndarray:
    """Descriptor of a place: the unit vector of its number."""
    row = np.zeros(DIMENSION, dtype=np.float32)
    row[place] = 1.0
    return row


def at(x: float, second: float, camera: str = "", yaw: float = 0.0) -> QueryFrame:
    return QueryFrame(round(second * S), Pose.from_xy_yaw(x, 0.0, yaw), camera)


def session(matcher: MatcherSettings = OFF, **settings) -> SessionGallery:
    return SessionGallery(DIMENSION, matcher, ON.model_copy(update=settings))


def test_keyframes_come_by_way_and_by_turn():
    gallery = session(min_keyframe_distance_m=1.0, min_keyframe_yaw_deg=15.0)
    way = [(0.0, 0.0), (0.4, 0.0), (0.9, 0.0), (1.0, 0.0), (1.5, 0.0), (1.5, 14.9), (1.5, 15.0), (2.4, 15.0), (2.5, 15.0)]
    added = [gallery.process(view(i), at(x, i, yaw=math.radians(deg)))[1] for i, (x, deg) in enumerate(way)]
    assert added == [True, False, False, True, False, False, True, False, True]
    assert [keyframe.stamp_ns for keyframe in gallery.keyframes] == [0, 3 * S, 6 * S, 8 * S]


def test_without_odometry_a_second_stands_for_a_metre_and_edges_have_no_poses():
    gallery = session(min_keyframe_distance_m=2.0)
    added = [gallery.process(view(i), QueryFrame(i * S))[1] for i in range(20)]
    assert added == [i % 2 == 0 for i in range(20)]
    result, _ = gallery.process(view(4), QueryFrame(30 * S))
    assert result.accepted and result.match.pose is None
    edge = gallery.closure(result)
    assert (edge.keyframe_stamp_ns, edge.query_stamp_ns, edge.keyframe_pose, edge.query_pose) == (4 * S, 30 * S, None, None)
    assert (np.diag(edge.covariance) > 0).all()


def test_a_revisit_is_found_and_the_recent_past_is_not():
    gallery = session()
    for i in range(10):
        result, _ = gallery.process(view(i), at(i, i))
        assert not result.accepted
    assert result.reason.startswith("best score 0.000 is below") and len(result.candidates) == 5  # 0..4, taken at least 5 s ago
    result, added = gallery.process(view(3), at(9.5, 10.0))
    assert result.match.keyframe_index == 3 and result.match.score == pytest.approx(1.0, abs=1e-3) and not added
    edge = gallery.closure(result)
    assert (edge.keyframe_stamp_ns, edge.keyframe_pose) == (3 * S, Pose.from_xy_yaw(3.0, 0.0, 0.0))
    assert edge.query_pose == edge.keyframe_pose  # in the frame of odometry: "these two are at the same place"


@pytest.mark.parametrize(
    ("settings", "matcher", "allowed"),
    [
        ({"exclude_keyframes": 0, "exclude_distance_m": 0.0}, {"exclude_time_s": 3.5}, 7),  # 0..6 are at least 3.5 s before 10
        ({"exclude_keyframes": 4, "exclude_distance_m": 0.0}, {"exclude_time_s": 0.0}, 6),
        ({"exclude_keyframes": 0, "exclude_distance_m": 15.0}, {"exclude_time_s": 0.0}, 3),  # 2 m a keyframe: 0, 2 and 4 of 20 m
    ],
)
def test_the_recent_past_is_counted_in_seconds_keyframes_and_metres(settings, matcher, allowed):
    gallery = session(OFF.model_copy(update={"top_k": 20, **matcher}), **settings)
    for i in range(10):
        gallery.process(view(i), at(2.0 * i, i))
    result, _ = gallery.process(view(50), at(20.0, 10.0))
    assert sorted(candidate.keyframe_index for candidate in result.candidates) == list(range(allowed))


def test_a_full_session_keeps_every_other_keyframe_of_each_camera_and_goes_on():
    gallery = session(session_capacity=16, exclude_keyframes=0, exclude_distance_m=1.0)
    for i in range(40):
        for number, camera in enumerate(("front", "rear")):
            gallery.process(view(2 * i + number), at(float(i), i + 0.1 * number, camera))
        assert len(gallery) <= 16
    kept = {camera: [k.pose.position[0] for k in gallery.keyframes if k.camera == camera] for camera in ("front", "rear")}
    assert kept["front"][0] == kept["rear"][0] == 0.0 and kept["front"][-1] > 30  # the whole run is covered
    assert abs(len(kept["front"]) - len(kept["rear"])) <= 1
    index = next(i for i, k in enumerate(gallery.keyframes) if k.camera == "front" and k.pose.position[0] == 8.0)
    assert gallery.process(view(16), at(41.0, 60.0, "front"))[0].match.keyframe_index == index  # indices are the new ones


def test_the_session_begins_anew_where_frames_cannot_be_compared():
    for frame, note in (
        (at(500.0, 10.5), "odometry jumped 491.0 m in 1.50 s; the session gallery begins anew"),
        (at(9.0, 2.0), "stamps went back by 7.00 s; the session gallery begins anew"),
    ):
        gallery = session()
        for i in range(10):
            gallery.process(view(i), at(i, i))
        result, added = gallery.process(view(1), frame)
        assert not result.accepted and note in result.reason and added and len(gallery) == 1
    gallery = session()
    for i in range(10):
        gallery.process(view(i), QueryFrame(i * S))
    result, _ = gallery.process(view(1), at(0.0, 10.0))
    assert "odometry has come" in result.reason and len(gallery) == 1
    # A frame without odometry is matched, and becomes no keyframe of a session that has poses.
    assert gallery.process(view(2), QueryFrame(20 * S))[1] is False


def test_the_gate_knows_from_the_first_frame_where_odometry_is():
    gallery = session(OFF.model_copy(update={"odom_gate_sigma": 3.0}))
    for i in range(60):
        gallery.process(view(i), at(float(i), i))
    far, _ = gallery.process(view(3), at(60.0, 60.0))  # looks like the place 57 m behind; 60 m of way drift by 3 m
    assert not far.accepted and "sigma from where odometry expects it" in far.reason
    for i in range(60):  # back to the start
        gallery.process(view(100 + i), at(60.0 - i, 61.0 + i))
    near, _ = gallery.process(view(3), at(4.0, 121.0))
    assert near.accepted, near.reason


def test_the_filter_runs_within_the_session():
    matcher = MatcherSettings(sequence="bayes", exclude_time_s=5.0, min_posterior=0.95, evidence_spacing_m=1.0)
    gallery = session(matcher)
    for i in range(80):
        result, _ = gallery.process(view(i), at(i, i))
        assert not result.accepted
    drifted = [gallery.process(view(i), at(81.0 + i, 81.0 + i))[0] for i in range(20)]  # another lap: the robot does not know
    assert not drifted[0].accepted and drifted[-1].accepted and drifted[-1].match.keyframe_index == 19
    assert all(result.match.keyframe_index == i for i, result in enumerate(drifted) if result.accepted)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("session") / "model")


def lap(recogniser: PlaceRecogniser, start_s: float, places: range, *, seed: int = 0):
    return [recogniser.process(revisit(make_picture(i), seed), at(2.0 * (i + (start_s > 0) * 20), start_s + i)) for i in places]


def test_a_session_alone_is_saved_and_is_the_prior_gallery_of_the_next_run(model, tmp_path):
    recogniser = PlaceRecogniser.open(None, model, OFF, session=ON)
    first = lap(recogniser, 0.0, range(12))
    assert all(answer.prior is None and answer.keyframe_added and not answer.session.accepted for answer in first)
    again = lap(recogniser, 100.0, range(6), seed=1)
    assert all(answer.session.accepted and answer.session_closure.keyframe_stamp_ns == i * S for i, answer in enumerate(again))
    path = recogniser.save_session(tmp_path / "saved", "odom")
    gallery = Gallery.open(path)
    verify_files(path, gallery.manifest)
    assert (len(gallery), gallery.map_frame, gallery.manifest.inputs["layout"]) == (18, "odom", "session")
    assert gallery.keyframes[3].pose == Pose.from_xy_yaw(6.0, 0.0, 0.0) and gallery.keyframes[3].stamp_ns == 3 * S
    with pytest.raises(ArtefactError, match="exists already"):
        recogniser.save_session(path)
    following = PlaceRecogniser.open(path, model, OFF.model_copy(update={"score_threshold": 0.1}), session=ON)
    answer = following.process(revisit(make_picture(7), 3), QueryFrame(10_000 * S))
    assert answer.prior.match.keyframe_index == 7 and "threshold 0.800" in answer.prior.reason  # light against light
    assert answer.prior_closure.keyframe_stamp_ns == 7 * S


def test_a_saved_session_belongs_to_its_own_model(model, tmp_path):
    recogniser = PlaceRecogniser.open(None, model, OFF, session=ON)
    lap(recogniser, 0.0, range(3))
    path = recogniser.save_session(tmp_path / "saved")
    other = make_model(tmp_path / "other")
    manifest_bytes = (other / "model.onnx").read_bytes()
    assert manifest_bytes == (model / "model.onnx").read_bytes()
    PlaceRecogniser.open(path, other, OFF)  # the same network, exported again
    with pytest.raises(ArtefactError, match="saved by a session of the query model"):
        PlaceRecogniser.open(path, _another_network(tmp_path / "another"), OFF)


def _another_network(path):
    """A model of the same pair whose weights differ."""
    import json

    import onnx

    from asymvpr_core.manifest import digest_of, sha256_of

    make_model(path)
    network = onnx.load(path / "model.onnx")
    network.doc_string = "another"
    onnx.save(network, path / "model.onnx")
    content = json.loads((path / "manifest.json").read_text())
    file = path / "model.onnx"
    content["files"]["model.onnx"] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (path / "manifest.json").write_text(json.dumps({**content, "manifest_sha256": digest_of(content)}))
    return path


def test_what_a_session_refuses(model, tmp_path):
    with pytest.raises(SettingsError, match="no gallery to match against"):
        PlaceRecogniser.open(None, model)
    recogniser = PlaceRecogniser.open(None, model, OFF, session=ON)
    with pytest.raises(RetrievalError, match="is empty"):
        recogniser.save_session(tmp_path / "saved")
    recogniser.process(make_picture(0), QueryFrame(S))
    with pytest.raises(RetrievalError, match="have no poses; expected odometry"):
        recogniser.save_session(tmp_path / "saved")
    with pytest.raises(SettingsError, match="no gallery to match against"):
        recogniser.change_settings(OFF, SessionSettings())
    assert recogniser.session is not None and len(recogniser.session) == 1
    prior_only = PlaceRecogniser.open(make_street(tmp_path / "gallery", 3), model, OFF)
    for call in (prior_only.reset_session, lambda: prior_only.save_session(tmp_path / "saved")):
        with pytest.raises(RetrievalError, match="the session gallery is off"):
            call()
    with pytest.raises(ArtefactError, match="pair"):
        PlaceRecogniser.open(make_street(tmp_path / "g2", 3, identity=make_identity("other")), model, OFF, session=ON)


def test_settings_change_and_the_keyframes_stay(model):
    recogniser = PlaceRecogniser.open(None, model, OFF, session=ON)
    lap(recogniser, 0.0, range(12))
    recogniser.change_settings(OFF.model_copy(update={"top_k": 2}), ON.model_copy(update={"session_score_threshold": 0.999999}))
    answer = recogniser.process(revisit(make_picture(2), 5), at(60.0, 100.0))
    assert len(recogniser.session) == 13 and len(answer.session.candidates) == 2 and not answer.session.accepted
    with pytest.raises(SettingsError, match="min_votes"):
        recogniser.change_settings(MatcherSettings(sequence="vote", sequence_length=2, min_votes=3))
    assert recogniser.matcher_settings.top_k == 2
    recogniser.reset()
    assert len(recogniser.session) == 13
    recogniser.reset_session()
    assert len(recogniser.session) == 0


def test_prior_and_session_both_answer(model, tmp_path):
    recogniser = PlaceRecogniser.open(make_street(tmp_path / "gallery", 12), model, OFF, session=ON)
    lap(recogniser, 10_000.0, range(12))
    answer = recogniser.process(revisit(make_picture(4), 7), at(200.0, 20_000.0))
    assert answer.prior.match.keyframe_index == answer.session.match.keyframe_index == 4
    assert (answer.prior_closure.keyframe_stamp_ns, answer.session_closure.keyframe_stamp_ns) == (5 * S, 10_004 * S)
    assert answer.prior_closure.keyframe_pose.position[0] == 8.0 and answer.session_closure.keyframe_pose.position[0] == 48.0
