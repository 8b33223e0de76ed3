"""A recogniser that takes over another prior gallery: whole or not at all, and the session stays."""

from __future__ import annotations

import pytest
from tiny_artefacts import SECOND_NS, make_identity, make_model, make_picture, make_street

from asymvpr_core.config import MatcherSettings, SessionSettings
from asymvpr_core.errors import ArtefactError, RetrievalError
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import Pose, QueryFrame

OFF = MatcherSettings(sequence="off")


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def seen(recogniser: PlaceRecogniser, seed: int, second: int):
    return recogniser.process(make_picture(seed), QueryFrame(second * SECOND_NS, Pose((2.0 * seed, 0.0, 0.0))))


def test_matches_are_those_of_the_new_gallery_and_the_session_stays(tmp_path, model):
    session = SessionSettings(session_gallery=True, exclude_keyframes=1, exclude_distance_m=1.0)
    recogniser = PlaceRecogniser.open(make_street(tmp_path / "old"), model, OFF, session=session)
    for seed in range(6):
        seen(recogniser, seed, 100 + 10 * seed)
    recogniser.use_gallery_of(PlaceRecogniser.open(make_street(tmp_path / "new", spacing_m=-3.0, map_frame="new_map"), model, OFF))
    answer = seen(recogniser, 2, 200)
    assert recogniser.gallery.map_frame == "new_map"
    assert answer.prior.match.pose.position[0] == -6.0
    assert answer.session_closure.keyframe_pose.position[0] == 4.0  # keyframe 2 of before


def test_a_gallery_of_another_pair_is_refused_and_the_old_one_stays(tmp_path, model):
    recogniser = PlaceRecogniser.open(make_street(tmp_path / "old"), model, OFF)
    other_identity = make_identity("another_network")
    other = PlaceRecogniser.open(
        make_street(tmp_path / "other", identity=other_identity), make_model(tmp_path / "other_model", other_identity), OFF
    )
    with pytest.raises(ArtefactError, match=other_identity.pair_id):
        recogniser.use_gallery_of(other)
    assert recogniser.gallery.path == tmp_path / "old" and seen(recogniser, 3, 100).prior.match.pose.position[0] == 6.0


def test_a_gallery_that_the_settings_cannot_use_is_refused_and_the_old_one_stays(tmp_path, model):
    recogniser = PlaceRecogniser.open(make_street(tmp_path / "old"), model, OFF)
    other = PlaceRecogniser.open(make_street(tmp_path / "new"), model, OFF)
    recogniser.matcher_settings = MatcherSettings(geometric_verification="fundamental")  # neither gallery has thumbnails
    with pytest.raises(RetrievalError, match="thumbnails"):
        recogniser.use_gallery_of(other)
    assert recogniser.gallery.path == tmp_path / "old"


def test_a_recogniser_without_a_prior_gallery_has_none_to_give(tmp_path, model):
    recogniser = PlaceRecogniser.open(make_street(tmp_path / "old"), model, OFF)
    with pytest.raises(RetrievalError, match="no prior gallery"):
        recogniser.use_gallery_of(PlaceRecogniser.open(None, model, OFF, session=SessionSettings(session_gallery=True)))
