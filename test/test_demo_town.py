"""The demo's town: same pictures from the same seed, right geometry, odometry that drifts, bags that can be read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from asymvpr_core.demo.objects import ObjectPainter
from asymvpr_core.demo.record import FrameMaker, render_demo_bags
from asymvpr_core.demo.render import Conditions, Renderer, View
from asymvpr_core.demo.route import plan_lap, wheel_odometry
from asymvpr_core.demo.scene import build_scene
from asymvpr_core.demo.town import build_town, inset, parse_route
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.demo.traffic import Billboard, Car, Traffic
from asymvpr_core.demo.weather import WEATHERS, sky_panorama, weather_at
from asymvpr_core.errors import ArtefactError, SettingsError
from asymvpr_core.settings_files import make_settings
from asymvpr_core.types import angle_difference_deg

TINY = {
    "columns": 2,
    "rows": 2,
    "street_spacing_m": 45.0,
    "mapping_route": "A1 B1 B2 A2",
    "live_route": "A2 A1 B1 B2",
    "image_width": 96,
    "image_height": 72,
    "max_frames": 40,
    "lookalike_streets": 0,
    "processes": 1,
}


def tiny(**changes: object) -> TownSettings:
    return make_settings(TownSettings, **{**TINY, **changes})


@pytest.fixture(scope="module")
def maker() -> FrameMaker:
    return FrameMaker(tiny())


@pytest.fixture(scope="module")
def default_town():
    return build_town(TownSettings())


# --- plan ---------------------------------------------------------------------------------------


def test_inset_moves_each_side_by_its_own_distance():
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    assert np.allclose(inset(square, [1, 2, 3, 4]), [[4, 1], [8, 1], [8, 7], [4, 7]])


def test_buildings_leave_the_streets_free(default_town):
    """No house stands nearer to the middle of a street than its half width."""
    lots = [lot for block in default_town.blocks for lot in block.lots]
    assert len(lots) > 100
    for street in default_town.inner_streets():
        a, b = default_town.corners[street.start], default_town.corners[street.end]
        along = (b - a) / np.linalg.norm(b - a)
        for lot in lots:
            offset = lot.footprint - a
            beside = (offset @ along > 0) & (offset @ along < np.linalg.norm(b - a))
            away = np.abs(offset[:, 0] * along[1] - offset[:, 1] * along[0])
            assert (away[beside] >= street.half_width_m - 1e-6).all()


def test_outline_holds_every_house_in_metres(default_town):
    outline = default_town.outline()
    houses = sum(lot.kind == "house" for block in default_town.blocks for lot in block.lots)
    assert len(outline) == houses + 2  # a park and a church
    assert all(shape.shape[1] == 2 for shape in outline)
    points = np.concatenate(outline)
    corners = np.stack(list(default_town.corners.values()))
    assert (points >= corners.min(axis=0)).all() and (points <= corners.max(axis=0)).all()
    assert len(default_town.street_lines()) == 4 * 2 + 3 * 3


def test_lookalike_streets_share_their_designs(default_town):
    designs: dict[int, int] = {}
    for street in default_town.inner_streets():
        designs[street.design] = designs.get(street.design, 0) + 1
    assert sorted(designs.values())[-3:] == [1, 2, 2]
    plain = build_town(TownSettings(lookalike_streets=0))
    assert len({street.design for street in plain.inner_streets()}) == len(plain.inner_streets())


@pytest.mark.parametrize(
    ("route", "part"),
    [
        ("A1 E1", "E1"),
        ("A1 C1", "jumps from A1 to C1"),
        ("A1 B1 A1", "turns round at B1"),
        ("A1", "1 corners"),
        ("A1 ??", "??"),
        ("", "0 corners"),
    ],
)
def test_impossible_routes_are_refused(route, part):
    with pytest.raises(SettingsError) as error:
        parse_route(route, TownSettings())
    assert part in str(error.value)


def test_impossible_route_leaves_no_folder(tmp_path):
    with pytest.raises(SettingsError):
        render_demo_bags(tmp_path / "bags", tiny(live_route="A1 D9"))
    assert list(tmp_path.iterdir()) == []


# --- geometry -----------------------------------------------------------------------------------


def wall_depth_by_hand(town, view: View, tangent_left: float) -> float:
    """Distance along the viewing direction to the nearest house edge, a loop over all footprints."""
    cos, sin = math.cos(view.yaw_rad), math.sin(view.yaw_rad)
    ray = np.array([cos - sin * tangent_left, sin + cos * tangent_left])
    nearest = math.inf
    for outline in town.outline():
        for k in range(len(outline)):
            a, b = outline[k], outline[(k + 1) % len(outline)]
            matrix = np.column_stack([ray, a - b])
            if abs(np.linalg.det(matrix)) < 1e-9:
                continue
            depth, share = np.linalg.solve(matrix, a - (view.x, view.y))
            if depth > 0 and 0 <= share <= 1:
                nearest = min(nearest, float(depth))
    return nearest


def test_walls_are_where_the_plan_says(maker):
    """Depth at the horizon against a ray-by-ray intersection with the footprints."""
    town = build_town(maker.settings)
    height, width = maker.settings.image_height, maker.settings.image_width
    focal = width / 2 / math.tan(math.radians(maker.settings.horizontal_fov_deg) / 2)
    row = int(maker.settings.horizon * height) - 1  # just above the horizon: no ground there
    compared = 0
    for lap, frame in ((0, 3), (0, 30), (1, 20)):
        state = maker.view(lap, frame)
        view = View(state.x, state.y, state.yaw_rad)
        depth = maker.renderer.depth(view)
        for column in range(4, width, 9):
            expected = wall_depth_by_hand(town, view, (width / 2 - column - 0.5) / focal)
            if not math.isfinite(expected) or expected > 60:
                continue
            # The picture is rendered finer than it is stored: allow a column to either side.
            low, high = sorted(wall_depth_by_hand(town, view, (width / 2 - column - 0.5 + shift) / focal) for shift in (-0.7, 0.7))
            assert 0.99 * min(low, expected) <= depth[row, column] <= 1.01 * max(high, expected)
            compared += 1
    assert compared >= 15


def test_ground_depth_and_horizon_follow_the_camera_height(maker):
    view = maker.view(0, 5)
    settings = maker.settings
    focal = settings.image_width / 2 / math.tan(math.radians(settings.horizontal_fov_deg) / 2)
    depth = maker.renderer.depth(View(view.x, view.y, view.yaw_rad))
    row = settings.image_height - 2
    expected = focal * settings.camera_height_m / (row + 0.5 - settings.image_height * settings.horizon)
    assert depth[row, settings.image_width // 2] == pytest.approx(expected, rel=0.02)
    tilted = maker.renderer.depth(View(view.x, view.y, view.yaw_rad, math.radians(3)))
    assert tilted[row, settings.image_width // 2] > expected * 1.04  # the horizon moved down


def test_camera_turned_left_sees_things_move_right(maker):
    """REP-103: yaw is counter-clockwise, so a façade's edge moves to larger columns."""
    view = maker.view(0, 5)
    focal = maker.settings.image_width / 2
    turn = math.atan(10 / focal)
    row = int(maker.settings.horizon * maker.settings.image_height) - 1
    left = maker.renderer.depth(View(view.x, view.y, view.yaw_rad + turn))[row]
    straight = maker.renderer.depth(View(view.x, view.y, view.yaw_rad))[row]
    middle = maker.settings.image_width // 2
    assert left[middle + 10] == pytest.approx(straight[middle], rel=0.1)


def test_objects_hide_behind_walls_and_show_before_them(maker):
    scene, settings = maker.renderer.scene, maker.settings
    painter = ObjectPainter(scene.sprites, 48.0, settings.camera_height_m, (72, 96))
    things = ([Car(12.0, 0.0, 0.0, 0, 0)], [Billboard("tree0", 15.0, 3.0)])
    for wall_m, painted in ((5.0, False), (50.0, True)):
        image = np.zeros((72, 96, 3), np.float32)
        painter.paint(image, np.full((72, 96), wall_m, np.float32), (0.0, 0.0, 0.0), 36.0, WEATHERS["day"], *things)
        assert bool((image > 0).any()) is painted
    columns = np.flatnonzero((image[30:50] > 0).any(axis=(0, 2)))
    assert columns.min() < 48 < columns.max() + 1  # the car straddles the middle; the tree stands to the left
    assert columns.min() < 40


# --- laps ---------------------------------------------------------------------------------------


def test_default_laps_have_the_promised_length_and_overlap_in_part(default_town):
    mapping, live = plan_lap(default_town, "mapping"), plan_lap(default_town, "live")
    assert 900 <= len(mapping.frame_times_s) <= 1200
    assert 800 <= len(live.frame_times_s) <= 1000
    a, b = mapping.states(mapping.frame_times_s), live.states(live.frame_times_s)
    nearest = np.hypot(b[:, None, 0] - a[None, :, 0], b[:, None, 1] - a[None, :, 1]).min(axis=1)
    assert 0.4 < (nearest < 5).mean() < 0.8
    assert 0.1 < (nearest > 25).mean() < 0.5


def test_live_lap_drives_beside_the_mapped_lane_with_other_headings():
    settings = tiny(live_route="A1 B1 B2 A2", max_frames=None, live_lateral_offset_m=1.0, heading_jitter_deg=3.0)
    town = build_town(settings)
    mapping, live = plan_lap(town, "mapping"), plan_lap(town, "live")
    a, b = mapping.states(mapping.frame_times_s), live.states(live.frame_times_s)
    apart = np.hypot(b[:, None, 0] - a[None, :, 0], b[:, None, 1] - a[None, :, 1])
    nearest = apart.argmin(axis=1)
    to_left = (b[:, 0] - a[nearest, 0]) * -np.sin(a[nearest, 2]) + (b[:, 1] - a[nearest, 1]) * np.cos(a[nearest, 2])
    assert to_left.mean() == pytest.approx(1.0, abs=0.3)
    turned = np.array([angle_difference_deg(x, y) for x, y in zip(np.degrees(b[:, 2]), np.degrees(a[nearest, 2]), strict=True)])
    assert 1.0 < turned.std() < 8.0


def test_odometry_drifts_within_bounds():
    settings = TownSettings()
    lap = plan_lap(build_town(settings), "mapping")
    times = lap.odometry_times_s
    states = lap.states(times)
    poses, speeds = wheel_odometry(states, times, settings, lap.index)
    assert np.allclose(poses[0], 0)
    # The true path in the frame of its own first pose.
    shift, yaw = states[:, :2] - states[0, :2], states[0, 2]
    truth = np.column_stack([np.cos(yaw) * shift[:, 0] + np.sin(yaw) * shift[:, 1], -np.sin(yaw) * shift[:, 0] + np.cos(yaw) * shift[:, 1]])
    length = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    error = np.linalg.norm(poses[:, :2] - truth, axis=1)
    assert 0.005 * length < error[-1] < 0.15 * length
    assert error[100] < error[-1]
    assert abs(math.degrees(poses[-1, 2] - (states[-1, 2] - yaw))) < 30
    assert 3.0 < speeds[:, 0].mean() < 6.0


def test_odometry_without_errors_is_the_truth():
    settings = TownSettings(
        odometry_scale_error=0, odometry_distance_noise_m=0, odometry_yaw_bias_deg=0, odometry_yaw_noise_deg=0, odometry_turn_noise_deg=0
    )
    times = np.arange(40) * 0.1
    states = np.column_stack([times, 0.2 * times**2, 0.1 * times])
    poses, _ = wheel_odometry(states, times, settings, 0)
    assert np.allclose(poses, states)


def spread_of_odometry(step_s: float, yaw_rate: float, seeds: int = 60, **settings: float) -> tuple[float, float]:
    """Standard deviation of way [m] and yaw [deg] after 100 m at 5 m/s, over seeds of the noise."""
    times = np.arange(round(20 / step_s) + 1) * step_s
    yaw = yaw_rate * times
    steps = 5.0 * step_s * np.column_stack([np.cos(yaw[:-1]), np.sin(yaw[:-1])])
    states = np.column_stack([np.vstack([[0, 0], np.cumsum(steps, axis=0)]), yaw])
    ways, yaws = [], []
    for seed in range(seeds):
        poses, _ = wheel_odometry(states, times, TownSettings(odometry_seed=seed, **settings), 0)
        ways.append(np.hypot(*np.diff(poses[:, :2], axis=0).T).sum())
        yaws.append(math.degrees(poses[-1, 2]))
    return float(np.std(ways)), float(np.std(yaws))


def test_odometry_noise_grows_with_the_root_of_way_and_turn_whatever_the_rate():
    for step_s in (0.05, 0.2):
        way_m, yaw_deg = spread_of_odometry(step_s, 0.0, odometry_yaw_noise_deg=0.2, odometry_distance_noise_m=0.03)
        assert way_m == pytest.approx(0.3, rel=0.25) and yaw_deg == pytest.approx(2.0, rel=0.25)
    quarter_turns = math.radians(400) / 20
    _, yaw_deg = spread_of_odometry(0.1, quarter_turns, odometry_yaw_noise_deg=0.0, odometry_turn_noise_deg=0.1)
    assert yaw_deg == pytest.approx(2.0, rel=0.25)  # 0.1 deg times the root of 400


def test_odometry_has_a_seed_of_its_own():
    times = np.arange(40) * 0.1
    states = np.column_stack([times, 0 * times, 0 * times])
    first, same, other = (
        wheel_odometry(states, times, TownSettings(seed=town, odometry_seed=seed), 0)[0] for town, seed in ((1, 5), (2, 5), (1, 6))
    )
    assert np.array_equal(first, same) and not np.allclose(first, other)


def test_traffic_differs_between_laps_and_moves():
    town = build_town(TownSettings())
    mapping, live = Traffic(town, 0), Traffic(town, 1)
    first, later, other = (set(t.at(s)[0]) for t, s in ((mapping, 0.0), (mapping, 2.0), (live, 0.0)))
    parked = {car for car in first if not car.moving}
    assert parked and parked <= later
    assert {car for car in first if car.moving}.isdisjoint(later)
    parked_live = {car for car in other if not car.moving}
    assert parked & parked_live and parked - parked_live and parked_live - parked  # some cars stay, most are others
    assert set(mapping.at(0.0)[1]).isdisjoint(mapping.at(2.0)[1])


# --- pictures -----------------------------------------------------------------------------------


def test_weathers_change_the_picture_of_one_place(maker):
    view = maker.view(0, 10)
    pictures = {}
    for name, weather in WEATHERS.items():
        conditions = Conditions(weather, sky_panorama(weather, [1]))
        pictures[name] = maker.renderer.render(view, conditions, [], [], np.random.default_rng(0)).astype(float)
    brightness = {name: picture.mean() for name, picture in pictures.items()}
    assert brightness["day"] > brightness["evening"] + 20
    assert np.abs(pictures["rain"] - pictures["overcast"]).mean() > 10


def test_fog_swallows_what_is_far(maker):
    view = maker.view(0, 10)
    clear = replace(WEATHERS["fog"], fog_per_m=0.0, noise=0.0, lens_drops=0.0, wet=0.0)
    thick = replace(clear, fog_per_m=0.2)
    sky = sky_panorama(clear, [1])
    far = (maker.renderer.depth(view) > 30) & np.isfinite(maker.renderer.depth(view))
    assert far.sum() > 50
    away = []
    for weather in (clear, thick):
        picture = maker.renderer.render(view, Conditions(weather, sky), [], [], np.random.default_rng(0)).astype(float)
        away.append(np.abs(picture - weather.fog_colour).mean(axis=2)[far])
    assert np.median(away[1]) < 5 < np.median(away[0])


def test_weather_fades_from_one_to_the_next():
    names = ("overcast", "rain", "evening")
    assert weather_at(names, 0.0) == ("overcast", "rain", 0.0)
    now, following, share = weather_at(names, 1 / 3 - 0.03)
    assert (now, following) == ("overcast", "rain") and share == pytest.approx(0.5)
    assert weather_at(names, 1.0) == ("evening", "evening", 1.0)


def test_pictures_are_reproducible_and_show_different_places(maker):
    again = FrameMaker(tiny())
    for job in ((0, 0), (0, 39), (1, 20)):
        assert np.array_equal(maker.picture(*job), again.picture(*job))
    here, there = maker.picture(0, 0).astype(float), maker.picture(0, 39).astype(float)
    assert np.abs(here - there).mean() > 15
    assert here.shape == (72, 96, 3)
    other = FrameMaker(tiny(seed=8)).picture(0, 0).astype(float)
    assert np.abs(here - other).mean() > 10


def test_a_view_away_from_all_walls_is_ground_and_sky():
    settings = tiny()
    renderer = Renderer(build_scene(build_town(settings)), settings)
    depth = renderer.depth(View(500.0, 500.0, math.radians(45)))
    horizon = int(settings.image_height * settings.horizon)
    assert np.isinf(depth[: horizon - 1]).all()
    assert np.isfinite(depth[horizon + 2 :]).all()


# --- bags ---------------------------------------------------------------------------------------


def read_bag(path: Path) -> dict[str, list]:
    messages: dict[str, list] = {}
    with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        for connection, stamp, raw in reader.messages():
            messages.setdefault(connection.topic, []).append((stamp, reader.deserialize(raw, connection.msgtype)))
    return messages


def test_bags_hold_what_a_robot_records_whatever_the_number_of_processes(tmp_path):
    seen: list[tuple[str, int | None]] = []

    def progress(items, description, total=None, completed=0):
        seen.append((description, total))
        yield from items

    bags = render_demo_bags(tmp_path / "one", tiny(max_frames=12), progress)
    assert seen == [("Rendering the mapping lap", 12), ("Rendering the live lap", 12)]
    parallel = render_demo_bags(tmp_path / "two", tiny(max_frames=12, processes=2, storage="mcap"))
    for ours, theirs in ((bags.mapping, parallel.mapping), (bags.live, parallel.live)):
        first, second = read_bag(ours), read_bag(theirs)
        assert sorted(first) == ["/camera/camera_info", "/camera/image/compressed", "/ground_truth/pose", "/odom"]
        for (_, a), (_, b) in zip(first["/camera/image/compressed"], second["/camera/image/compressed"], strict=True):
            assert bytes(a.data) == bytes(b.data)
    check_bag(read_bag(bags.mapping), tiny(max_frames=12))
    with pytest.raises(ArtefactError):
        render_demo_bags(tmp_path / "one", tiny(max_frames=2))


def check_bag(messages: dict[str, list], settings: TownSettings) -> None:
    images, infos = messages["/camera/image/compressed"], messages["/camera/camera_info"]
    odometry, truth = messages["/odom"], messages["/ground_truth/pose"]
    assert len(images) == len(infos) == 12
    assert len(odometry) == len(truth) == 23  # 1.1 s at 20 Hz, both ends included
    stamps = [stamp for stamp, _ in images]
    assert np.diff(stamps).tolist() == [100_000_000] * 11
    lap = plan_lap(build_town(settings), "mapping")
    for stamp, message in images:
        assert message.header.frame_id == "camera" and message.format == "jpeg"
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp
        assert cv2.imdecode(np.asarray(message.data), cv2.IMREAD_COLOR).shape == (72, 96, 3)
    info = infos[0][1]
    assert (info.width, info.height, info.k[0], info.k[2], info.k[5]) == (
        96,
        72,
        pytest.approx(48.0),
        48.0,
        pytest.approx(72 * settings.horizon),
    )
    first = truth[0][1]
    expected = lap.poses(np.array([0.0]))[0]
    assert first.header.frame_id == "map"
    assert (first.pose.position.x, first.pose.position.y) == pytest.approx(expected.position[:2])
    assert first.pose.orientation.z == pytest.approx(expected.quaternion[2])
    assert truth[0][0] <= stamps[0] and truth[-1][0] >= stamps[-1]  # every image lies between two poses
    start = odometry[0][1]
    assert (start.header.frame_id, start.child_frame_id) == ("odom", "base_link")
    assert (start.pose.pose.position.x, start.pose.pose.orientation.w) == (0.0, 1.0)
