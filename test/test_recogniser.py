"""Gallery, query model and matcher as one object, on real artefacts in miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_artefacts import PREPROCESS, SECOND_NS, make_gallery, make_identity, make_model, make_picture, make_street, revisit

import asymvpr_core
from asymvpr_core.config import MatcherSettings, RuntimeSettings
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.errors import ArtefactError, DeployError, RetrievalError, SettingsError
from asymvpr_core.manifest import digest_of
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import QueryFrame

LATER = 10_000 * SECOND_NS
OFF = MatcherSettings(sequence="off", score_threshold=0.8)


def at(stamp_ns: int) -> QueryFrame:
    return QueryFrame(stamp_ns)


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    folder = tmp_path_factory.mktemp("street")
    return make_street(folder / "gallery"), make_model(folder / "model")


def test_a_revisited_place_is_recognised_and_an_unknown_one_is_not(street):
    recogniser = PlaceRecogniser.open(*street, OFF, RuntimeSettings(threads=1))
    for seed in range(12):
        result = recogniser.process(revisit(make_picture(seed)), at(LATER + seed * SECOND_NS)).prior
        assert result.accepted and result.match.keyframe_index == seed and result.match.pose.position == (2.0 * seed, 0.0, 0.0)
    unknown = recogniser.process(make_picture(999), at(LATER + 60 * SECOND_NS)).prior
    assert not unknown.accepted and "below the threshold" in unknown.reason
    assert len(recogniser.gallery) == 12 and recogniser.model.dimension == 192


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"details": {}}, "holds no pre-processing; export it again"),
        ({"details": {"preprocess": {**PREPROCESS.model_dump(mode="json"), "height": 32}}}, r"expected \[\('image', \[3, 32, 64\]\)"),
        (
            {"gallery_network": {**make_identity().model_dump(), "dimension": 8}},
            r"\('descriptor', \[192\]\).* expected .*\('descriptor', \[8\]\)",
        ),
    ],
    ids=["no pre-processing", "another size", "another dimension"],
)
def test_a_model_that_does_not_fit_its_manifest_is_refused(tmp_path, change, reason):
    manifest = make_model(tmp_path / "model") / "manifest.json"
    content = json.loads(manifest.read_text()) | change
    manifest.write_text(json.dumps({**content, "manifest_sha256": digest_of(content)}))
    with pytest.raises((ArtefactError, DeployError), match=reason):
        QueryModel.open(tmp_path / "model")


def test_loop_closure_carries_both_stamps_and_poses(street):
    recogniser = PlaceRecogniser.open(*street, OFF)
    answer = recogniser.process(revisit(make_picture(5)), at(LATER))
    edge = answer.prior_closure
    assert (edge.keyframe_index, edge.keyframe_stamp_ns, edge.query_stamp_ns) == (5, 6 * SECOND_NS, LATER)
    assert edge.keyframe_pose == edge.query_pose == answer.prior.match.pose
    assert edge.covariance is answer.prior.covariance
    assert (answer.frame, answer.session, answer.session_closure, answer.keyframe_added) == (at(LATER), None, None, False)
    assert recogniser.process(make_picture(999), at(LATER)).prior_closure is None


def test_no_loop_closure_where_the_keyframe_has_no_stamp(street, tmp_path):
    gallery = make_street(tmp_path / "gallery", 3, stamps_ns=[None] * 3)
    answer = PlaceRecogniser.open(gallery, street[1], OFF).process(make_picture(1), at(LATER))
    assert answer.prior.accepted and answer.prior_closure is None


def test_reset_and_changed_settings_start_a_new_vote(street):
    recogniser = PlaceRecogniser.open(*street, MatcherSettings(sequence="vote", sequence_length=2, min_votes=2))
    picture = make_picture(3)
    assert not recogniser.process(picture, at(LATER)).prior.accepted
    recogniser.reset()
    assert not recogniser.process(picture, at(LATER + 1)).prior.accepted
    assert recogniser.process(picture, at(LATER + 2)).prior.accepted
    with pytest.raises(SettingsError, match="min_votes"):
        recogniser.change_settings(MatcherSettings(sequence="vote", sequence_length=2, min_votes=3))
    assert recogniser.process(picture, at(LATER + 3)).prior.accepted  # a refused change leaves the old settings and their vote
    recogniser.change_settings(MatcherSettings(sequence="off"))
    assert recogniser.process(picture, at(LATER + 4)).prior.accepted


def test_artefacts_of_different_pairs_are_refused_naming_both(street, tmp_path):
    other = make_model(tmp_path / "other", make_identity("another_network"))
    with pytest.raises(ArtefactError, match="grid8_mean.*another_network"):
        PlaceRecogniser.open(street[0], other)


def test_a_flipped_byte_is_refused_naming_the_file(street, tmp_path):
    gallery = make_street(tmp_path / "gallery", 3)
    for name in ("index.json", "descriptors.npy", "keyframes.csv"):
        whole = (gallery / name).read_bytes()
        (gallery / name).write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        with pytest.raises(ArtefactError, match=f"{name} is damaged"):
            PlaceRecogniser.open(gallery, street[1])
        (gallery / name).write_bytes(whole)
    PlaceRecogniser.open(gallery, street[1])


def test_an_empty_gallery_is_refused(street, tmp_path):
    with pytest.raises(RetrievalError, match="is empty"):
        PlaceRecogniser.open(make_gallery(tmp_path / "gallery", [], []), street[1])


def test_the_robots_process_imports_no_training_library():
    code = (
        "import sys, asymvpr_core.retrieval.recogniser\n"
        "heavy = {'torch', 'timm', 'lightning', 'matplotlib', 'jinja2', 'rclpy', 'rosbags'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(asymvpr_core.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
