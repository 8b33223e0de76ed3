"""The node in this process on a live graph: cameras, odometry, triggers, QoS, and what each output does with them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from live_node import CANDIDATES, POSE, listen, of_stamp, own_node, send_odometry, show, show_with_odometry, wait_for
from live_ros import Graph, image_message, open_graph
from nav_msgs.msg import Path as PathMessage
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger
from tiny_artefacts import SECOND_NS, make_model, make_picture, make_street
from visualization_msgs.msg import MarkerArray

from asymvpr_core.types import Pose
from asymvpr_ros.conversions import stamp_ns

pytestmark = pytest.mark.slow

SPACING_M = 2.0
INITIAL, GLOBAL = "initialpose", "global_pose"
ALL_PRIOR = [POSE, CANDIDATES, "place_match/image", "place_match/markers", "loop_closure", INITIAL, GLOBAL]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory) -> tuple[Path, Path]:
    """A gallery of 12 keyframes along +x, 2 m apart, and its model."""
    folder = tmp_path_factory.mktemp("artefacts")
    return make_street(folder / "gallery", spacing_m=SPACING_M), make_model(folder / "model")


@pytest.fixture
def graph() -> Iterator[Graph]:
    with open_graph() as graph:
        for topic in (INITIAL, GLOBAL):
            graph.listen(PoseWithCovarianceStamped, topic)
        yield listen(graph)


def test_initialpose_is_an_event_carried_to_the_newest_odometry(graph, artefacts):
    with own_node(graph, artefacts, outputs=ALL_PRIOR, base_frame="base_link") as node:
        show(graph, 3)
        values = wait_for(graph, "initialpose is held back: first localisation cannot be carried to now: no odometry has come yet")
        assert values["held_back"] and not graph.heard[INITIAL]
        # Odometry that is none, or of another body, is refused with its reason.
        wait_for(graph, "finite numbers", meanwhile=lambda: send_odometry(graph, time.time_ns(), Pose((math.nan, 0.0, 0.0))))
        wait_for(graph, "moves frame 'camera', and base_frame is 'base_link'",
                 meanwhile=lambda: send_odometry(graph, time.time_ns(), Pose((0.0, 0.0, 0.0)), child="camera"))  # fmt: skip
        wait_for(graph, "gives the motion of frame 'base_link' in itself",
                 meanwhile=lambda: send_odometry(graph, time.time_ns(), Pose((0.0, 0.0, 0.0)), frame="base_link"))  # fmt: skip
        assert node._inputs.odometry.latest is None and not graph.heard[INITIAL]

        stamp = show_with_odometry(graph, node, 4, 100.0, 101.0)
        (pose,) = graph.wait_until(lambda: graph.heard[INITIAL], "the initial pose")
        # The image lies half way between the two: odometry has gone on by half a metre since.
        assert pose.pose.pose.position.x == pytest.approx(4 * SPACING_M + 0.5)
        assert (pose.header.frame_id, stamp_ns(pose.header.stamp)) == ("map", stamp + 50_000_000)
        (match,) = graph.wait_until(lambda: of_stamp(graph.heard[POSE], stamp), "the match itself")
        assert match.pose.pose.position.x == 4 * SPACING_M and min(pose.pose.covariance[7 * i] for i in range(6)) > 0
        (pose,) = graph.wait_until(lambda: of_stamp(graph.heard[GLOBAL], stamp), "rtabmap's pose")
        assert pose.header.frame_id == "base_link"

        show(graph, 5)
        assert len(graph.heard[INITIAL]) == 1  # an event and no stream
        answer = graph.call(Trigger, "/place_recognition/trigger_localization", Trigger.Request())
        assert answer.success and "next confident match" in answer.message
        show_with_odometry(graph, node, 6, 102.0)
        graph.wait_until(lambda: len(graph.heard[INITIAL]) == 2, "the initial pose that the service asked for")
        graph.publisher(PoseWithCovarianceStamped, "trigger_hint").publish(PoseWithCovarianceStamped())
        graph.wait_until(lambda: node._pipeline.events.asked, "the hint")
        show_with_odometry(graph, node, 7, 103.0)
        graph.wait_until(lambda: len(graph.heard[INITIAL]) == 3, "the initial pose that the hint asked for")
        values = wait_for(graph, "accepted")
        assert values["localisations"] == "3" and "/trigger_hint" in values["last_localisation"] and values["waiting_for"] == ""
        assert int(values["odometry_refused"]) >= 2


def test_a_kidnapped_robot_is_localised_anew_and_new_odometry_is_no_kidnapping(graph, artefacts):
    with own_node(graph, artefacts, outputs=[CANDIDATES, INITIAL], relocalisation_distance_m=5.0, max_image_age_s=0.0) as node:
        seconds = itertools.count(1000)

        def see(seeds: list[int], odometry_x: float) -> None:
            for seed in seeds:
                show_with_odometry(graph, node, seed, odometry_x, stamp=next(seconds) * SECOND_NS)

        see([0, 0], 0.0)
        assert len(graph.wait_until(lambda: graph.heard[INITIAL], "the first")) == 1
        see([9, 9, 9], 0.0)  # 18 m away, and odometry says that nothing moved
        graph.wait_until(lambda: len(graph.heard[INITIAL]) == 2, "the recovery")
        assert "3 matches agree that the robot is 18.0 m from where odometry put it" in node._status._words["last_localisation"]
        see([9, 9, 9, 9], 5000.0)
        _, _, values = graph.wait_for_status(lambda level, message, values: values["accepted"] == "9", "all frames")
        assert values["odometry_restarts"] == "1" and len(graph.heard[INITIAL]) == 2


def test_a_trigger_is_answered_within_the_cooldown(graph, artefacts):
    with own_node(graph, artefacts, cooldown_s=1000.0):
        first, second = show(graph, 1), show(graph, 2)
        graph.wait_until(lambda: of_stamp(graph.heard[POSE], first), "the first pose")
        assert not of_stamp(graph.heard[POSE], second)
        assert graph.call(Trigger, "/place_recognition/trigger_localization", Trigger.Request()).success
        graph.wait_until(lambda: of_stamp(graph.heard[POSE], show(graph, 400)) or of_stamp(graph.heard[POSE], show(graph, 3)), "the answer")
        assert not of_stamp(graph.heard[POSE], show(graph, 4))  # answered once


def test_several_cameras_are_matched_and_reported_one_by_one(graph, artefacts):
    with own_node(graph, artefacts, camera_names=["front", "rig/left"]):
        for seed, topic in ((2, "front/image"), (7, "rig/left/image")):
            stamp = show(graph, seed, topic=topic)
            (pose,) = graph.wait_until(lambda stamp=stamp: of_stamp(graph.heard[POSE], stamp), "the pose")
            assert pose.pose.pose.position.x == seed * SPACING_M
        broken = image_message(make_picture(1), time.time_ns(), "infrared12")
        wait_for(graph, "frame skipped: camera rig/left: ", meanwhile=lambda: graph.publisher(Image, "rig/left/image").publish(broken))
        # One camera dies: the other goes on, and the node says which one is missing.
        graph.forget_publisher(Image, "rig/left/image")
        wait_for(graph, "no image on /rig/left/image for ", meanwhile=lambda: show(graph, 2, topic="front/image"))
        (_, front, front_values), (level, left, left_values) = graph.camera_statuses("front")[-1], graph.camera_statuses("rig/left")[-1]
        assert "images matched" in front and "nobody publishes it" in left and level == DiagnosticStatus.WARN
        assert int(front_values["frames_processed"]) >= 2 and int(left_values["frames_failed"]) >= 1
        assert front_values["frames_failed"] == "0" and left_values["image_topic"] == "/rig/left/image"
        # Its driver starts again.
        stamp = show(graph, 8, topic="rig/left/image")
        graph.wait_until(lambda: of_stamp(graph.heard[POSE], stamp), "a pose after the restart")


def test_a_publisher_of_another_qos_is_named_until_it_is_gone(graph, artefacts):
    overrides = {"qos_overrides./image.subscription.reliability": "reliable"}
    with own_node(graph, artefacts, **overrides):
        best_effort = graph.node.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
        level, message, values = graph.wait_for_status(
            lambda level, message, values: "offers another reliability than this node asks for" in message, "the mismatch"
        )
        assert level == DiagnosticStatus.WARN and "set qos_overrides./image.subscription.reliability" in message
        assert values["qos_faults"] == message
        graph.node.destroy_publisher(best_effort)
        show(graph, 2)
        assert wait_for(graph, "accepted")["qos_faults"] == ""
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        graph.listen(PathMessage, "loop_closure", latched)  # the node offers volatile: the listener gets nothing
        values = wait_for(graph, "a subscriber of /loop_closure asks for another durability than this node offers")
        assert "set qos_overrides./loop_closure.publisher.durability" in values["qos_faults"]


def test_disabled_matching_ignores_frames_until_it_is_enabled(graph, artefacts):
    with own_node(graph, artefacts):
        show(graph, 1)
        assert graph.call(SetBool, "/place_recognition/enable", SetBool.Request(data=False)).success
        camera, before = graph.publisher(Image, "image"), len(graph.heard[CANDIDATES])
        values = wait_for(graph, "matching is disabled", meanwhile=lambda: camera.publish(image_message(make_picture(1), time.time_ns())))
        graph.wait_for_status(lambda level, message, values: int(values["frames_ignored"]) > 0, "ignored frames")
        assert values["enabled"] == "false" and len(graph.heard[CANDIDATES]) == before
        refused = graph.call(Trigger, "/place_recognition/trigger_localization", Trigger.Request())
        assert not refused.success and "disabled" in refused.message
        assert graph.call(SetBool, "/place_recognition/enable", SetBool.Request(data=True)).success
        show(graph, 2)


def test_a_late_subscriber_sees_the_keyframes_and_a_picture_is_built_for_one(graph, artefacts):
    with own_node(graph, artefacts):
        show(graph, 1)
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        heard = graph.listen(MarkerArray, "place_match/markers", latched)
        graph.wait_until(lambda: {m.ns for array in heard for m in array.markers} >= {"keyframes", "matches"}, "latched markers")
        points = {marker.ns: len(marker.points) for array in heard for marker in array.markers}
        assert points["keyframes"] == 12 and points["matches"] == 1
        boards = graph.listen(Image, "place_match/image")
        graph.wait_until(lambda: boards, "a picture", meanwhile=lambda: show(graph, 2))
        assert boards[0].header.frame_id == "map" and boards[0].height == 264


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"outputs": ["lio_loop/loop_closure_detection"]}, "needs the session gallery, which is off"),
        ({"outputs": ["global_pose"]}, "'base_frame' is not set"),
        ({"gallery_path": "", "session_gallery": False}, "there is nothing to match with"),
        ({"model_path": ""}, "'model_path' is not set"),
        ({"publish_tf": True}, "tf2_msgs is not installed"),
        ({"base_frame": "map"}, "in frame 'map', which base_frame names as the one that moves"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_with_the_reason(graph, artefacts, values, reason, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tf2_msgs.msg", None)
    with own_node(graph, artefacts, active=False, **values) as node:
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        level, message, _ = graph.wait_for_status(lambda level, message, values: reason in message, reason)
        assert level == DiagnosticStatus.ERROR
        for service in ("trigger_localization", "reset_session", "save_session", "load_gallery"):
            answer = graph.call(Trigger, f"/place_recognition/{service}", Trigger.Request())
            assert not answer.success and answer.message


def test_missing_odometry_is_said_where_an_output_waits_for_it(graph, artefacts):
    with own_node(graph, artefacts, outputs=[CANDIDATES, INITIAL]):
        wait_for(graph, "no odometry on /odom, which initialpose needs; nobody publishes it", meanwhile=lambda: show(graph, 400))


def test_a_gallery_of_another_site_gives_no_pose(graph, artefacts, tmp_path):
    with own_node(graph, artefacts, gallery_path=str(make_street(tmp_path / "elsewhere", first_seed=500))):
        stamps = [show(graph, seed) for seed in range(5)]
        wait_for(graph, "rejected: best score")
        assert not any(of_stamp(graph.heard[POSE], stamp) for stamp in stamps)


def test_a_bag_that_starts_again_is_a_new_run(graph, artefacts):
    with own_node(graph, artefacts, cooldown_s=1000.0, max_image_age_s=0.0) as node:

        def play(second: int, seed: int) -> None:
            for shift_ms in (-100, 100):
                send_odometry(graph, second * SECOND_NS + shift_ms * 1_000_000, Pose((float(second), 0.0, 0.0)))
            newest = second * SECOND_NS + 100_000_000
            graph.wait_until(lambda: (node._inputs.odometry.latest or (0,))[0] == newest, "odometry")
            before = len(graph.heard[CANDIDATES])
            graph.publisher(Image, "image").publish(image_message(make_picture(seed), second * SECOND_NS))
            graph.wait_until(lambda: len(graph.heard[CANDIDATES]) > before, f"candidates at {second} s")

        for loop in range(2):
            play(101, 3)
            graph.wait_until(lambda loop=loop: len(graph.heard[POSE]) == loop + 1, f"the pose of loop {loop}")
            play(104, 4)
        _, _, values = graph.wait_for_status(lambda level, message, values: "not published, cooldown" in values["last_reason"], "cooldown")
        assert values["odometry_restarts"] == "1" and len(graph.heard[POSE]) == 2
