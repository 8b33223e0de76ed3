"""Several prior galleries as one, from the recogniser to the live node; what diagnostics say of the search."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from descriptor_gallery import make_gallery, unit_rows
from test_cli import run
from tiny_artefacts import SECOND_NS, encode_jpeg, make_identity, make_model, make_picture, make_street, revisit
from tiny_artefacts import make_gallery as make_pictured

from asymvpr_core import verification
from asymvpr_core.config import IndexSettings, MatcherSettings, NodeSettings, SessionSettings
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.errors import ArtefactError, RetrievalError
from asymvpr_core.gallery.store import DESCRIPTORS, Gallery
from asymvpr_core.retrieval.building import index_gallery
from asymvpr_core.retrieval.gallery_index import open_index
from asymvpr_core.retrieval.joint import JointGallery, PriorCondition
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.types import Pose, QueryFrame

OFF = MatcherSettings(sequence="off", score_threshold=0.8)
LATER = 10_000 * SECOND_NS


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> dict[str, Path]:
    """Two streets of one pair in one frame (pictures 0 to 5 and 6 to 11), one in another frame, one of another pair, the model."""
    folder = tmp_path_factory.mktemp("town")
    return {
        "north": make_street(folder / "north", 6),
        "south": make_street(folder / "south", 6, spacing_m=-2.0, first_seed=6),
        "cellar": make_street(folder / "cellar", 3, first_seed=20, map_frame="cellar"),
        "foreign": make_street(folder / "foreign", 3, first_seed=30, identity=make_identity("other")),
        "model": make_model(folder / "model"),
    }


def test_a_recogniser_matches_against_several_galleries(town):
    recogniser = PlaceRecogniser.open([town["north"], town["south"]], town["model"], OFF)
    assert len(recogniser.gallery) == 12
    for seed in range(12):
        answer = recogniser.process(revisit(make_picture(seed)), QueryFrame(LATER + seed * SECOND_NS))
        match = answer.prior.match
        assert answer.prior.accepted and match.keyframe_index == seed
        assert recogniser.gallery_of(seed) == town["north" if seed < 6 else "south"]
        expected = 2.0 * seed if seed < 6 else -2.0 * (seed - 6)
        assert match.pose.position == (expected, 0.0, 0.0)
        assert answer.prior_closure.keyframe_stamp_ns == (1 + seed % 6) * SECOND_NS
    np.testing.assert_array_equal(recogniser.gallery.read_image(7), Gallery.open(town["south"]).read_image(1))
    assert recogniser.condition == PriorCondition("exact + exact", 0, "passed", "")


def test_the_filter_over_several_galleries_is_that_over_one(tmp_path, monkeypatch):
    """A gallery so large that the filter samples rows of it: those of two galleries have to be those of one with all keyframes."""
    monkeypatch.setattr("asymvpr_core.retrieval.candidates.breadth", lambda dimension: 8)
    rows = unit_rows(60, 16)
    whole = Gallery.open(make_gallery(tmp_path / "whole", rows, np.zeros(60, int)))
    parts = [make_gallery(tmp_path / name, part, np.zeros(len(part), int)) for name, part in (("a", rows[:25]), ("b", rows[25:]))]
    joint = JointGallery.open(parts)
    np.testing.assert_array_equal(np.asarray(joint.descriptors), rows)
    settings = MatcherSettings(sequence="bayes")
    one, several = Matcher(whole, open_index(whole), settings), Matcher(joint, joint, settings)
    for number in (3, 4, 5):
        found = [matcher.match(rows[number], QueryFrame(number * SECOND_NS)) for matcher in (one, several)]
        assert [m.score for m in found[0].candidates] == pytest.approx([m.score for m in found[1].candidates])
        # The positions of the second gallery are those of the first again, so that only the search is compared.
        assert found[0].candidates[0].keyframe_index == found[1].candidates[0].keyframe_index == number


def test_galleries_that_cannot_be_searched_as_one_are_refused_by_name(town):
    with pytest.raises(RetrievalError, match=r"cellar is in the map frame 'cellar', .*north in 'map'"):
        PlaceRecogniser.open([town["north"], town["cellar"]], town["model"], OFF)
    with pytest.raises(ArtefactError, match=r"foreign was made by \(other.*one pair"):
        PlaceRecogniser.open([town["north"], town["foreign"]], town["model"], OFF)
    with pytest.raises(ArtefactError, match="given twice"):
        PlaceRecogniser.open([town["north"], town["north"]], town["model"], OFF)
    with pytest.raises(ArtefactError, match="a precision is asked for, and 2 galleries are searched as one.*set a score threshold"):
        PlaceRecogniser.open([town["north"], town["south"]], town["model"], OFF.model_copy(update={"target_precision": 0.9}))
    assert PlaceRecogniser.open([], town["model"], OFF, session=SessionSettings(session_gallery=True)).gallery is None


def test_the_node_s_galleries_are_those_of_both_parameters():
    assert NodeSettings().prior_paths == []
    assert NodeSettings(gallery_path="a", gallery_paths=("", "b", "c")).prior_paths == [Path("a"), Path("b"), Path("c")]
    assert NodeSettings(gallery_paths=("b",)).prior_paths == [Path("b")]


def test_a_search_that_falls_back_to_the_exact_one_is_counted(tmp_path):
    """The lists that are read hold fewer rows than are asked for: the rest is searched for exactly, and that is said."""
    rows = unit_rows(800, 16)
    gallery = Gallery.open(make_gallery(tmp_path / "map", rows, np.zeros(800, int)))
    index_gallery(gallery.path, IndexSettings(kind="ivfpq", recall=0.1, queries=10))
    index = open_index(gallery)
    index.search(rows[:1], 10)
    before = PriorCondition.of(gallery, index).answered_exactly
    assert len(set(index.search(rows[:2], 800)[1][0].tolist())) == 800
    assert PriorCondition.of(gallery, index).answered_exactly == before + 2


def test_the_check_behind_the_work_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "_AT_ONCE_BYTES", 0)
    path = make_gallery(tmp_path / "map", unit_rows(40, 16), np.zeros(40, int))
    whole = Gallery.open(path, verify="auto")
    whole.verification.wait(30)
    assert PriorCondition.of(whole, open_index(whole)).verification == "passed"
    data = bytearray((path / DESCRIPTORS).read_bytes())
    data[-1] ^= 1
    (path / DESCRIPTORS).write_bytes(data)
    damaged = Gallery.open(path, verify="auto")
    index = open_index(damaged)
    damaged.verification._thread.join(30)
    condition = PriorCondition.of(damaged, index)
    assert condition.verification.startswith("damaged: ") and "descriptors.npy" in condition.damage and "rebuild with" in condition.damage


def test_evaluate_bag_of_two_halves_is_that_of_the_whole(town, tmp_path):
    """A run past eight places, twice at the wrong one, against a street in one gallery and in two."""
    with BagWriter(tmp_path / "live") as bag:
        for i, seed in enumerate([0, 1, 2, 9, 4, 5, 6, 1]):
            stamp_ns = LATER + i * SECOND_NS
            bag.write_compressed_image("/camera/image/compressed", stamp_ns, "camera", encode_jpeg(revisit(make_picture(seed), i)))
            bag.write_pose("/pose", stamp_ns, Pose.from_xy_yaw(2.0 * i, 0.3, 0.0))
    poses = [Pose.from_xy_yaw(2.0 * i, 0.0, 0.0) for i in range(12)]
    pictures = [make_picture(seed) for seed in range(12)]
    whole = make_pictured(tmp_path / "whole", pictures, poses)
    halves = [make_pictured(tmp_path / "west", pictures[:5], poses[:5]), make_pictured(tmp_path / "east", pictures[5:], poses[5:])]
    arguments = ["evaluate", "bag", tmp_path / "live", "--model", town["model"], "--ground-truth", "/pose", "--radius-m", "1"]
    arguments += ["--sequence", "off", "--score-threshold", "0.8"]
    written = {}
    for name, galleries in (("one", [whole]), ("two", halves)):
        code, _, stderr = run(*arguments, *(word for path in galleries for word in ("--gallery", path)), "--out", tmp_path / name)
        assert code == 0, stderr
        written[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert (written["one"]["n_true"], written["one"]["n_false"]) == (6, 2)
    for key in ("n_frames", "n_true", "n_false", "n_missed", "average_precision", "max_f1", "recall_at_k", "position_error_m"):
        assert written["one"][key] == written["two"][key], key
    assert written["two"]["gallery"]["path"] == f"{halves[0]} + {halves[1]}" and written["two"]["gallery"]["n_keyframes"] == 12
    with open(tmp_path / "two" / "matches.csv", newline="") as file:
        assert [row["keyframe_index"] for row in csv.DictReader(file)] == ["0", "1", "2", "9", "4", "5", "6", "1"]


@pytest.mark.slow
def test_the_live_node_matches_against_several_and_says_which(town, tmp_path):
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from live_node import listen, own_node, show, wait_for
    from live_ros import open_graph
    from rclpy.parameter import Parameter
    from std_srvs.srv import Trigger

    artefacts = town["north"], town["model"]
    with open_graph() as graph, own_node(listen(graph), artefacts, gallery_paths=[str(town["south"])]) as node:
        show(graph, 8)
        graph.wait_for_status(lambda level, message, values: values["last_match_gallery"] == str(town["south"]), "the gallery of place 8")
        values = wait_for(graph, "")
        assert values["gallery"] == f"{town['north']} + {town['south']}" and values["gallery_keyframes"] == "12"
        assert values["index"] == "exact + exact" and values["gallery_verification"] == "passed"
        show(graph, 2)
        graph.wait_for_status(lambda level, message, values: values["last_match_gallery"] == str(town["north"]), "the gallery of place 2")

        client = graph.node.create_client(Trigger, "/place_recognition/load_gallery")
        graph.wait_until(client.service_is_ready, "the service")

        def load(*paths: Path | str) -> Trigger.Response:
            (result,) = node.set_parameters([Parameter("gallery_paths", value=[str(path) for path in paths])])
            assert result.successful, result.reason
            answer = client.call_async(Trigger.Request())
            graph.wait_until(answer.done, "the answer")
            return answer.result()

        refused = load(town["south"], town["cellar"])
        assert not refused.success and "'cellar'" in refused.message and len(node._pipeline.recogniser.gallery) == 12
        loaded = load("")
        assert loaded.success and "6 keyframes" in loaded.message
        assert len(node._pipeline.recogniser.gallery) == 6


@pytest.mark.slow
def test_the_node_warns_of_a_search_that_fell_back_and_of_damage():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from diagnostic_msgs.msg import DiagnosticStatus

    from asymvpr_ros.diagnostics import NodeStatus, NodeView

    status = NodeStatus("/node")
    status.entered("active")

    def said(prior: PriorCondition) -> tuple[bytes, str, dict[str, str]]:
        report = status.report(NodeView({}, prior=prior))[0]
        return report.level, report.message, {value.key: value.value for value in report.values}

    level, message, values = said(PriorCondition("ivfpq", 3, "1 of 1 running"))
    assert level == DiagnosticStatus.WARN and message.startswith(
        "3 frames were answered by exact search, which is slower: the index (ivfpq)"
    )
    assert (values["index"], values["index_answered_exactly"], values["gallery_verification"]) == ("ivfpq", "3", "1 of 1 running")
    assert said(PriorCondition("ivfpq", 3, "passed"))[0] == DiagnosticStatus.OK  # none since the last report
    level, message, values = said(PriorCondition("exact", 0, "damaged: x is damaged; rebuild", "x is damaged; rebuild"))
    assert level == DiagnosticStatus.WARN and message == "x is damaged; rebuild"
    assert values["gallery_verification"].startswith("damaged")
