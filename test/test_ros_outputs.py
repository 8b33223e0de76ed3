"""What each output makes of an answer: hand-made answers, hand-counted messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy
from tiny_artefacts import SECOND_NS, make_picture, make_street
from visualization_msgs.msg import Marker

from asymvpr_core.config import NodeSettings
from asymvpr_core.errors import SettingsError
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.types import LoopClosure, Match, MatchResult, Pose, QueryFrame, Recognition
from asymvpr_ros.conversions import stamp_ns
from asymvpr_ros.outputs import OUTPUTS, Answer, FrameNames, Localisation, TransformOutput, make_outputs, refusal_of
from asymvpr_ros.outputs.picture import match_board
from asymvpr_ros.qos import QosFaults

NAMES = FrameNames("map", "odom", "base_link")
PLACE, ODOMETRY = Pose.from_xy_yaw(10.0, 2.0, 0.5), Pose.from_xy_yaw(1.0, 0.0, 0.0)
COVARIANCE = np.diag([1.0, 2.0, 3.0, 0.1, 0.2, 0.3])


@pytest.fixture
def node() -> Iterator[LifecycleNode]:
    rclpy.init()
    node = LifecycleNode("place_recognition")
    yield node
    node.destroy_node()
    rclpy.shutdown()


def make(node: LifecycleNode, topic: str):
    (output,) = make_outputs(node, QosFaults(node.get_logger().warning), [topic], transform=False)
    output.begin(None, NAMES)
    return output


def answer_at(second: float = 100.0, *, accepted: bool = True, keyframe_second: float = 1.0, **changes) -> Answer:
    """An answer in which both galleries agree on keyframe 5; `changes` are of the answer."""
    stamp = round(second * SECOND_NS)
    match = Match(5, 0.9, PLACE)
    result = MatchResult(stamp, (match, Match(6, 0.4, Pose((12.0, 2.0, 0.0)))), match if accepted else None, "reason", COVARIANCE)
    prior_edge = LoopClosure(5, round(keyframe_second * SECOND_NS), PLACE, stamp, PLACE, COVARIANCE)
    session_edge = replace(prior_edge, keyframe_pose=ODOMETRY, query_pose=ODOMETRY)
    recognition = Recognition(QueryFrame(stamp, ODOMETRY), result, result, prior_edge, session_edge, keyframe_added=False)
    values = {"announce_prior": accepted, "announce_session": accepted, **changes}
    return Answer(recognition, NAMES, make_picture(1), **values)


def test_every_output_of_the_settings_has_its_class():
    (kind,) = {choices for choices in [NodeSettings.model_fields["outputs"].annotation]}
    assert set(kind.__args__[0].__args__) == set(OUTPUTS)


def test_the_pose_has_the_map_frame_the_image_stamp_and_the_covariance(node):
    (message,) = make(node, "place_match/pose").messages(answer_at(100.25))
    assert (message.header.frame_id, stamp_ns(message.header.stamp)) == ("map", 100_250_000_000)
    assert (message.pose.pose.position.x, message.pose.pose.position.y) == (10.0, 2.0)
    assert [message.pose.covariance[7 * i] for i in range(6)] == [1.0, 2.0, 3.0, 0.1, 0.2, 0.3]
    for silent in (answer_at(accepted=False), answer_at(announce_prior=False)):
        assert make(node, "place_match/pose").messages(silent) == []


def test_candidates_come_for_every_frame_that_met_the_prior_gallery(node):
    output = make(node, "place_match/candidates")
    (message,) = output.messages(answer_at(accepted=False))
    assert [pose.position.x for pose in message.poses] == [10.0, 12.0]
    answer = answer_at()
    assert output.messages(replace(answer, recognition=replace(answer.recognition, prior=None))) == []


def test_loop_closures_are_in_the_map_and_within_the_session_in_the_odometry_frame(node):
    output = make(node, "loop_closure")
    prior, session = output.messages(answer_at(100.0))
    for message, frame, x in ((prior, "map", 10.0), (session, "odom", 1.0)):
        assert {message.header.frame_id, *(pose.header.frame_id for pose in message.poses)} == {frame}
        assert [stamp_ns(pose.header.stamp) for pose in message.poses] == [SECOND_NS, 100 * SECOND_NS]
        assert [pose.pose.position.x for pose in message.poses] == [x, x]
    assert [m.header.frame_id for m in output.messages(answer_at(announce_prior=False))] == ["odom"]
    answer = answer_at(announce_prior=False)
    without_poses = replace(answer.recognition.session_closure, keyframe_pose=None, query_pose=None)
    assert output.messages(replace(answer, recognition=replace(answer.recognition, session_closure=without_poses))) == []


def test_lio_sam_gets_pairs_of_seconds_at_most_one_a_second_and_30_s_apart(node):
    output = make(node, "lio_loop/loop_closure_detection")
    assert [list(m.data) for m in output.messages(answer_at(100.5, keyframe_second=20.25))] == [[100.5, 20.25]]
    assert output.messages(answer_at(101.4)) == []  # 0.9 s after the last
    assert len(output.messages(answer_at(101.5))) == 1
    assert output.messages(answer_at(110.0, keyframe_second=80.1)) == []  # 29.9 s apart
    assert len(output.messages(answer_at(110.0, keyframe_second=80.0))) == 1
    assert output.messages(answer_at(120.0, announce_session=False)) == []
    assert len(output.messages(answer_at(50.0))) == 1  # a bag that starts again


def test_global_pose_names_the_moving_frame(node):
    (message,) = make(node, "global_pose").messages(answer_at())
    assert message.header.frame_id == "base_link" and message.pose.pose.position.x == 10.0
    assert min(message.pose.covariance[7 * i] for i in range(6)) > 0


def test_initialpose_only_with_a_localisation_event(node):
    output = make(node, "initialpose")
    assert output.messages(answer_at()) == []
    event = Localisation(Pose((11.0, 2.0, 0.0)), 101 * SECOND_NS, COVARIANCE, "first localisation")
    (message,) = output.messages(answer_at(localisation=event))
    assert (message.header.frame_id, stamp_ns(message.header.stamp)) == ("map", 101 * SECOND_NS)
    assert message.pose.pose.position.x == 11.0


def test_markers_show_keyframes_once_and_matches_as_they_come(node, tmp_path):
    output = make(node, "place_match/markers")
    sent: list[list] = [[], []]
    output.publishers = [SimpleNamespace(publish=messages.append) for messages in sent]
    output.begin(Gallery.open(make_street(tmp_path / "gallery")), NAMES)
    (keyframes,) = sent[1][0].markers
    assert (keyframes.action, keyframes.header.frame_id, [p.x for p in keyframes.points]) == (
        Marker.ADD,
        "map",
        [2.0 * i for i in range(12)],
    )
    assert {marker.action for marker in sent[0][0].markers} == {Marker.DELETE}  # nothing to show yet
    output.publish(answer_at(accepted=False))
    assert len(sent[0]) == 1
    answer = answer_at()
    output.publish(replace(answer, recognition=replace(answer.recognition, keyframe_added=True), session_keyframes=1))
    shown = {marker.ns: marker for marker in sent[0][1].markers}
    assert [(p.x, p.y) for p in shown["matches"].points] == [(10.0, 2.0)]
    assert (shown["session_keyframes"].header.frame_id, len(shown["session_keyframes"].points)) == ("odom", 1)
    assert len(shown["session_edges"].points) == 2
    assert len(sent[1]) == 1
    assert output.qos().durability == DurabilityPolicy.TRANSIENT_LOCAL


def test_the_picture_is_built_only_for_subscribers_and_shows_both_sides(node, tmp_path):
    output = make(node, "place_match/image")
    assert output.messages(answer_at()) == []
    output.publishers = [SimpleNamespace(get_subscription_count=lambda: 1)]
    gallery = Gallery.open(make_street(tmp_path / "gallery"))
    (message,) = output.messages(answer_at(gallery=gallery))
    board = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
    assert (message.encoding, message.step) == ("rgb8", 3 * message.width)
    assert board.shape == (264, 640, 3)  # two pictures of 160 x 120 at 240 rows
    for left, seed in ((0, 1), (320, 5)):
        shown = board[0:240:2, left : left + 320 : 2].astype(int)
        assert np.abs(shown - make_picture(seed).astype(int)).mean() < 8


def test_a_gallery_without_pictures_still_gives_a_board(tmp_path):
    result = answer_at().prior
    assert match_board(make_picture(0), result, lambda index: None).shape == (264, 640, 3)
    empty = replace(result, candidates=(), match=None)
    assert match_board(make_picture(0), empty, lambda index: make_picture(index)).shape == (264, 640, 3)


@pytest.mark.parametrize(
    ("topic", "prior", "session", "reason"),
    [
        ("initialpose", False, True, "output initialpose needs a prior gallery"),
        ("global_pose", False, True, "output global_pose needs a prior gallery"),
        ("lio_loop/loop_closure_detection", True, False, "needs the session gallery, which is off; set 'session_gallery' to true"),
        ("loop_closure", True, False, ""),
        ("place_match/pose", False, True, ""),
    ],
)
def test_an_output_without_what_it_needs_is_refused(topic, prior, session, reason):
    found = refusal_of([OUTPUTS[topic]], prior=prior, session=session)
    assert reason in found and bool(found) == bool(reason)


def test_tf_without_its_message_is_refused_and_leaves_no_publisher(node, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_msgs.msg", None)
    before = len(list(node.publishers))
    with pytest.raises(SettingsError, match="publish_tf is set, but the ROS package tf2_msgs is not installed"):
        make_outputs(node, QosFaults(print), ["loop_closure"], transform=True)
    assert len(list(node.publishers)) == before


def test_the_transform_puts_the_robot_where_it_was_matched():
    output, sent = TransformOutput.__new__(TransformOutput), []
    output.publishers, output.message_type = [SimpleNamespace(publish=sent.append)], SimpleNamespace
    output.begin(None, NAMES)
    output.repeat(7)
    assert sent == []  # nothing is known yet: no identity is sent
    quarter = Pose.from_xy_yaw(10.0, 2.0, np.pi / 2)
    answer = answer_at()
    match = Match(5, 0.9, quarter)
    output.publish(replace(answer, recognition=replace(answer.recognition, prior=replace(answer.prior, match=match))))
    output.repeat(7)
    (transform,) = sent[0].transforms
    assert (transform.header.frame_id, transform.child_frame_id, stamp_ns(transform.header.stamp)) == ("map", "odom", 7)
    # odom's (1, 0) must come out at (10, 2) after a quarter turn: the origin lies one metre below.
    assert (transform.transform.translation.x, transform.transform.translation.y) == pytest.approx((10.0, 1.0))
    assert transform.transform.rotation.z == pytest.approx(np.sqrt(0.5))
