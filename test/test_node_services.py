"""The node's services on a live graph: another gallery under load, the session, and ends in the middle of a job."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_node import CANDIDATES, POSE, listen, of_stamp, own_node, show, show_with_odometry
from live_ros import Graph, RosProcess, image_message, open_graph, parameters
from nav_msgs.msg import Path as PathMessage
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from tiny_artefacts import SECOND_NS, make_identity, make_model, make_picture, make_street

from asymvpr_ros import services
from asymvpr_ros.configuration import open_recogniser
from asymvpr_ros.conversions import stamp_ns

pytestmark = pytest.mark.slow

LOAD = "/place_recognition/load_gallery"
# A driver that waits for its subscriber: nothing is lost on the way, so that the node's own losses can be counted.
RELIABLE = {"qos_overrides./image.subscription.reliability": "reliable", "qos_overrides./image.subscription.depth": 10}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory) -> tuple[Path, Path]:
    """A gallery of 12 keyframes along +x, 2 m apart, and its model."""
    folder = tmp_path_factory.mktemp("artefacts")
    return make_street(folder / "gallery"), make_model(folder / "model")


@pytest.fixture
def graph() -> Iterator[Graph]:
    with open_graph() as graph:
        yield listen(graph)


def set_path(node, name: str, path: Path | str) -> None:
    (result,) = node.set_parameters([Parameter(name, value=str(path))])
    assert result.successful, result.reason


def test_a_gallery_is_reloaded_under_load_without_a_lost_frame_or_a_wrong_pose(graph, artefacts, tmp_path, monkeypatch):
    # The same pictures at other places in another map: a frame that met one gallery and was said in the other's frame would show.
    other = make_street(tmp_path / "other", spacing_m=-3.0, map_frame="other_map")
    answered_meanwhile: list[int] = []

    def slow(settings):
        """Open the gallery, and be done only when three more frames were answered: a large gallery, whatever the machine."""
        recogniser, begun = open_recogniser(settings), len(graph.heard[CANDIDATES])
        deadline_s = time.monotonic() + 15
        while len(graph.heard[CANDIDATES]) < begun + 3 and time.monotonic() < deadline_s:
            time.sleep(0.005)
        answered_meanwhile.append(len(graph.heard[CANDIDATES]) - begun)
        return recogniser

    monkeypatch.setattr(services, "open_recogniser", slow)
    with own_node(graph, artefacts, **RELIABLE) as node:
        set_path(node, "gallery_path", other)
        camera = graph.publisher(Image, "image")
        client = graph.node.create_client(Trigger, LOAD)
        graph.wait_until(client.service_is_ready, "the service")
        loading, sent = client.call_async(Trigger.Request()), []
        while len(sent) < 200 and not (loading.done() and len(graph.heard[CANDIDATES]) > 10 and sent[-1][2]):
            seed, stamp, done = len(sent) % 12, time.time_ns(), loading.done()
            camera.publish(image_message(make_picture(seed), stamp))
            sent.append((seed, stamp, done))
            graph.wait_until(lambda stamp=stamp: of_stamp(graph.heard[CANDIDATES], stamp), f"frame {len(sent)}")
        answer = loading.result()
        assert answer.success and "12 keyframes in frame 'other_map'" in answer.message
        assert answered_meanwhile[0] >= 3  # matching went on while the gallery was read
        frames = set()
        for seed, stamp, _ in sent:
            (candidates,) = of_stamp(graph.heard[CANDIDATES], stamp)
            frame = candidates.header.frame_id
            frames.add(frame)
            assert candidates.poses[0].position.x == pytest.approx(seed * (2.0 if frame == "map" else -3.0))
        assert frames == {"map", "other_map"} and graph.heard[CANDIDATES][-1].header.frame_id == "other_map"
        poses = {stamp_ns(m.header.stamp): m for m in graph.heard[POSE]}
        assert all(p.pose.pose.position.x * (1 if p.header.frame_id == "map" else -1) >= 0 for p in poses.values())
        _, _, values = graph.wait_for_status(lambda level, message, values: values["gallery"] == str(other), "the new identity")
        assert values["map_frame"] == "other_map"
        assert values["frames_dropped"] == values["frames_failed"] == values["frames_stale"] == "0"
        assert int(values["frames_received"]) == int(values["frames_processed"]) == len(sent)


def test_a_gallery_that_is_refused_leaves_the_old_one_in_use(graph, artefacts, tmp_path):
    another_pair = make_street(tmp_path / "another_pair", identity=make_identity("another_network"))
    damaged = tmp_path / "damaged"
    shutil.copytree(artefacts[0], damaged)
    whole = (damaged / "descriptors.npy").read_bytes()
    (damaged / "descriptors.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with own_node(graph, artefacts) as node:
        for path, reason in ((another_pair, make_identity().pair_id), (damaged, "is damaged"), (tmp_path / "nowhere", "nowhere")):
            set_path(node, "gallery_path", path)
            answer = graph.call(Trigger, LOAD, Trigger.Request())
            assert not answer.success and reason in answer.message
        set_path(node, "gallery_path", "")
        assert "'gallery_path' is not set" in graph.call(Trigger, LOAD, Trigger.Request()).message
        stamp = show(graph, 5)
        (pose,) = graph.wait_until(lambda: of_stamp(graph.heard[POSE], stamp), "a pose of the old gallery")
        assert pose.pose.pose.position.x == 10.0


def test_session_services_say_what_is_missing(graph, artefacts):
    with own_node(graph, artefacts) as node:
        assert "'session_path' is not set" in graph.call(Trigger, "/place_recognition/save_session", Trigger.Request()).message
        set_path(node, "session_path", "/somewhere")
        for service in ("save_session", "reset_session"):
            answer = graph.call(Trigger, f"/place_recognition/{service}", Trigger.Request())
            assert not answer.success and "session gallery is off" in answer.message


SESSION = {
    "gallery_path": "", "session_gallery": True, "exclude_keyframes": 2, "exclude_distance_m": 5.0, "max_image_age_s": 0.0,
    "outputs": ["loop_closure", "lio_loop/loop_closure_detection", "place_match/markers"],
}  # fmt: skip


def drive(graph: Graph, node, seeds: list[int], begin_s: int) -> None:
    """Show the places, 10 s and 2 m apart, as odometry says too."""
    for step, seed in enumerate(seeds):
        show_with_odometry(graph, node, seed, 2.0 * seed, stamp=(begin_s + 10 * step) * SECOND_NS)


def test_a_session_closes_its_own_loops_is_saved_and_is_the_next_ones_prior_gallery(graph, artefacts, tmp_path):
    edges, pairs = graph.listen(PathMessage, "loop_closure"), graph.listen(Float64MultiArray, "lio_loop/loop_closure_detection")
    saved = tmp_path / "session"
    with own_node(graph, artefacts, **SESSION, session_path=str(saved)) as node:
        drive(graph, node, [0, 1, 2, 3, 4, 5], begin_s=100)
        assert not edges and not pairs
        drive(graph, node, [0], begin_s=160)
        (edge,) = graph.wait_until(lambda: edges, "the loop closure")
        assert edge.header.frame_id == "odom"  # no map is known: the poses are odometry's
        assert [stamp_ns(pose.header.stamp) for pose in edge.poses] == [100 * SECOND_NS, 160 * SECOND_NS]
        assert [pose.pose.position.x for pose in edge.poses] == pytest.approx([0.0, 0.0])
        assert list(graph.wait_until(lambda: pairs, "LIO-SAM's pair")[0].data) == [160.0, 100.0]
        _, _, values = graph.wait_for_status(lambda level, message, values: values["session_published"] == "1", "the count")
        assert (values["session_keyframes"], values["gallery"]) == ("7", "") and "accepted" in values["last_session_reason"]
        answer = graph.call(Trigger, "/place_recognition/save_session", Trigger.Request())
        assert answer.success and str(saved) in answer.message
        again = graph.call(Trigger, "/place_recognition/save_session", Trigger.Request())
        assert not again.success and "exists" in again.message
        assert graph.call(Trigger, "/place_recognition/reset_session", Trigger.Request()).success
        drive(graph, node, [0], begin_s=170)
        assert len(edges) == 1  # nothing is left to close a loop with
        # Odometry that jumps is in another frame: the session must not mix the two.
        drive(graph, node, [1, 2, 3, 4, 5], begin_s=180)
        show_with_odometry(graph, node, 0, 9000.0, stamp=230 * SECOND_NS)
        show_with_odometry(graph, node, 1, 9002.0, stamp=240 * SECOND_NS)
        _, _, values = graph.wait_for_status(lambda level, message, values: values["odometry_restarts"] == "1", "the restart")
        assert values["session_keyframes"] == "2" and len(edges) == 1
        # Nobody knows what odometry did while the node was inactive: the next activation begins a new session.
        assert node.trigger_deactivate() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert len(node._pipeline.recogniser.session) == 0
    with own_node(graph, artefacts, gallery_path=str(saved), max_image_age_s=0.0, exclude_time_s=0.0) as node:
        stamp = show_with_odometry(graph, node, 4, 0.0, stamp=1000 * SECOND_NS)
        (pose,) = graph.wait_until(lambda: of_stamp(graph.heard[POSE], stamp), "a pose in the saved session")
        assert (pose.header.frame_id, pose.pose.pose.position.x) == ("odom", pytest.approx(8.0))


def test_a_session_is_kept_when_a_prior_gallery_is_loaded_beside_it(graph, artefacts, tmp_path):
    edges = graph.listen(PathMessage, "loop_closure")
    other = make_street(tmp_path / "other", map_frame="other_map")
    outputs = ["loop_closure", CANDIDATES, POSE]
    with own_node(graph, artefacts, **{**SESSION, "gallery_path": str(artefacts[0]), "outputs": outputs}) as node:
        drive(graph, node, [0, 1, 2, 3, 4, 5], begin_s=100)
        set_path(node, "gallery_path", other)
        assert graph.call(Trigger, LOAD, Trigger.Request()).success
        drive(graph, node, [0], begin_s=160)
        stamp = 160 * SECOND_NS
        frames = graph.wait_until(
            lambda: found if len(found := {e.header.frame_id for e in of_stamp(edges, stamp)}) == 2 else None, "both edges"
        )
        assert frames == {"other_map", "odom"}


def test_services_of_an_inactive_node(graph, artefacts, tmp_path):
    other = make_street(tmp_path / "other", map_frame="other_map")
    with own_node(graph, artefacts, active=False) as node:
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        answer = graph.call(Trigger, "/place_recognition/trigger_localization", Trigger.Request())
        assert not answer.success and "not active" in answer.message
        set_path(node, "gallery_path", other)
        assert graph.call(Trigger, LOAD, Trigger.Request()).success
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        stamp = show(graph, 5)
        (pose,) = graph.wait_until(lambda: of_stamp(graph.heard[POSE], stamp), "a pose")
        assert pose.header.frame_id == "other_map"
        assert node.trigger_deactivate() == node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        assert "not configured" in graph.call(Trigger, LOAD, Trigger.Request()).message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_under_load_and_in_the_middle_of_a_reload_ends_the_process_with_0(graph, artefacts, tmp_path, number):
    arguments = parameters(gallery_path=artefacts[0], model_path=artefacts[1], sequence="off")
    with RosProcess("place_recognition_node", arguments, tmp_path / "log", stop_with=number) as process:
        show(graph, 3)
        camera = graph.publisher(Image, "image")
        client = graph.node.create_client(Trigger, LOAD)
        graph.wait_until(client.service_is_ready, "the service")
        client.call_async(Trigger.Request())
        for seed in range(10):
            camera.publish(image_message(make_picture(seed), time.time_ns()))
        assert process.stop() == 0, process.log
        assert "Traceback" not in process.log
