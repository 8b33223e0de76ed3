"""Drives both laps through the town and writes them as rosbag2, as a robot would have recorded them.

Topics, in both bags::

    /camera/image/compressed   sensor_msgs/CompressedImage, JPEG, frame `camera`
    /camera/camera_info        sensor_msgs/CameraInfo
    /odom                      nav_msgs/Odometry, `odom` → `base_link`, drifting; see route.wheel_odometry
    /ground_truth/pose         geometry_msgs/PoseStamped, base_link in `map`

The camera sits above base_link and looks along its +x axis.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.demo.render import Conditions, Renderer, View
from asymvpr_core.demo.route import LAPS, Lap, plan_lap, wheel_odometry
from asymvpr_core.demo.scene import build_scene
from asymvpr_core.demo.town import build_town
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.demo.traffic import Traffic
from asymvpr_core.demo.weather import WEATHERS, blend, sky_panorama, weather_at
from asymvpr_core.errors import DatasetError
from asymvpr_core.manifest import new_folder, write_text_atomically
from asymvpr_core.progress import Progress, silent
from asymvpr_core.types import Pose

IMAGE_TOPIC = "/camera/image/compressed"
CAMERA_INFO_TOPIC = "/camera/camera_info"
ODOMETRY_TOPIC = "/odom"
GROUND_TRUTH_TOPIC = "/ground_truth/pose"
SETTINGS_FILE = "town.json"
_CHUNK = 8  # frames a process takes at a time


@dataclass(frozen=True)
class DemoBags:
    """The two recordings."""

    mapping: Path
    live: Path


def render_demo_bags(out: Path, settings: TownSettings | None = None, progress: Progress = silent) -> DemoBags:
    """Render both laps into `out/mapping` and `out/live`; `out/town.json` keeps the settings.

    The pictures depend on the settings alone, not on the number of processes. With more than one
    process the calling script needs the usual `if __name__ == "__main__"`.

    Raises:
        ArtefactError: `out` exists already or cannot be written.
        SettingsError: a route that cannot be driven.
        BagError: a bag cannot be written.
        DatasetError: a rendering process was killed.
    """
    settings = TownSettings() if settings is None else settings
    town = build_town(settings)
    laps = [plan_lap(town, name) for name in LAPS]
    with new_folder(out) as staging, _frames(settings, laps) as frames:
        for lap in laps:
            images = progress(frames[lap.name], f"Rendering the {lap.name} lap", total=len(lap.frame_times_s))
            _write_lap(staging / lap.name, lap, settings, images)
        write_text_atomically(staging / SETTINGS_FILE, settings.model_dump_json(indent=2) + "\n")
    return DemoBags(Path(out) / "mapping", Path(out) / "live")


class FrameMaker:
    """Makes any frame of the two laps by itself: what the rendering processes share is the settings only."""

    def __init__(self, settings: TownSettings):
        town = build_town(settings)
        self.settings = settings
        self.laps: tuple[Lap, ...] = tuple(plan_lap(town, name) for name in LAPS)
        self.traffic = tuple(Traffic(town, lap.index) for lap in self.laps)
        self.renderer = Renderer(build_scene(town), settings)
        self._skies: dict[tuple[int, str], np.ndarray] = {}

    def view(self, lap_index: int, frame: int) -> View:
        """Where the camera is at a frame."""
        lap = self.laps[lap_index]
        x, y, yaw, pitch = lap.states(lap.frame_times_s[frame : frame + 1])[0].tolist()
        return View(x, y, yaw, pitch)

    def picture(self, lap_index: int, frame: int) -> np.ndarray:
        """Frame number `frame` of a lap (0 mapping, 1 live), (H, W, 3) uint8 RGB."""
        lap = self.laps[lap_index]
        time_s = float(lap.frame_times_s[frame])
        now, following, share = weather_at(lap.weather, time_s / max(lap.duration_s, 1e-9))
        weather, sky = WEATHERS[now], self._sky(lap_index, now)
        if share > 0:
            weather = blend(weather, WEATHERS[following], share)
            sky = sky + np.float32(share) * (self._sky(lap_index, following) - sky)
        around = lap.states(np.array([time_s - 0.05, time_s + 0.05]))[:, 2]
        shutter_s = 0.004 + 0.02 * weather.night
        conditions = Conditions(
            weather,
            sky,
            exposure=1.0 + 0.06 * math.sin(0.7 * time_s + lap_index) + 0.03 * math.sin(2.9 * time_s),
            turn_rad=float(around[1] - around[0]) / 0.1 * shutter_s,
            drops_seed=(self.settings.seed, 72, lap_index, int(time_s / 4)),  # the wiper passes every 4 s
        )
        cars, people = self.traffic[lap_index].at(time_s)
        rng = np.random.default_rng([self.settings.seed, 71, lap_index, frame])
        return self.renderer.render(self.view(lap_index, frame), conditions, cars, people, rng)

    def jpeg(self, job: tuple[int, int]) -> bytes:
        """The frame `job` = (lap, frame) as a JPEG file."""
        bgr = cv2.cvtColor(self.picture(*job), cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.settings.jpeg_quality])
        if not done:
            raise DatasetError(f"frame {job[1]} of the {LAPS[job[0]]} lap cannot be encoded as JPEG", remedy="choose another image size")
        return data.tobytes()

    def _sky(self, lap_index: int, name: str) -> np.ndarray:
        key = (lap_index, name)
        if key not in self._skies:
            self._skies[key] = sky_panorama(WEATHERS[name], [self.settings.seed, 73, lap_index, list(WEATHERS).index(name)])
        return self._skies[key]


_maker: FrameMaker | None = None  # of a rendering process


def _start_process(settings: TownSettings) -> None:
    global _maker
    cv2.setNumThreads(1)
    _maker = FrameMaker(settings)


def _make(job: tuple[int, int]) -> bytes:
    if _maker is None:
        raise DatasetError("a rendering process has no town")
    return _maker.jpeg(job)


@contextmanager
def _frames(settings: TownSettings, laps: list[Lap]) -> Iterator[dict[str, Iterator[bytes]]]:
    """Give an iterator over the JPEG files of each lap, in order."""
    jobs = {lap.name: [(lap.index, frame) for frame in range(len(lap.frame_times_s))] for lap in laps}
    if settings.processes == 1:
        maker = FrameMaker(settings)
        yield {name: map(maker.jpeg, todo) for name, todo in jobs.items()}
        return
    # Spawned, not forked: the caller may have threads (torch, OpenMP) that a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(settings.processes, mp_context=context, initializer=_start_process, initargs=(settings,))
    try:
        yield {name: pool.map(_make, todo, chunksize=_CHUNK) for name, todo in jobs.items()}
    except BrokenProcessPool as error:
        raise DatasetError("a rendering process ended unexpectedly", remedy="free memory, or render with processes=1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_lap(path: Path, lap: Lap, settings: TownSettings, images: Iterator[bytes]) -> None:
    truth = lap.poses(lap.odometry_times_s)
    odometry, speeds = wheel_odometry(lap.states(lap.odometry_times_s), lap.odometry_times_s, settings, lap.index)
    twist_covariance = _twist_covariance(settings)
    focal = settings.image_width / 2 / math.tan(math.radians(settings.horizontal_fov_deg) / 2)
    step = 0
    with BagWriter(path, storage=settings.storage) as bag:

        def write_poses(until_s: float) -> None:
            nonlocal step
            while step < len(truth) and lap.odometry_times_s[step] <= until_s + 1e-9:
                stamp = lap.stamp_ns(float(lap.odometry_times_s[step]))
                x, y, yaw = odometry[step].tolist()
                vx, vy, turn = speeds[step].tolist()
                bag.write_odometry(
                    ODOMETRY_TOPIC,
                    stamp,
                    Pose.from_xy_yaw(x, y, yaw),
                    linear_m_s=(vx, vy, 0.0),
                    angular_rad_s=(0.0, 0.0, turn),
                    twist_covariance=twist_covariance,
                )
                bag.write_pose(GROUND_TRUTH_TOPIC, stamp, truth[step], frame_id="map")
                step += 1

        for time_s, data in zip(lap.frame_times_s.tolist(), images, strict=True):
            write_poses(time_s)
            stamp = lap.stamp_ns(time_s)
            bag.write_camera_info(
                CAMERA_INFO_TOPIC,
                stamp,
                "camera",
                settings.image_width,
                settings.image_height,
                focal,
                focal,
                settings.image_width / 2,
                settings.image_height * settings.horizon,
            )
            bag.write_compressed_image(IMAGE_TOPIC, stamp, "camera", data)
        write_poses(math.inf)


def _twist_covariance(settings: TownSettings) -> np.ndarray:
    """(6, 6) of a message's speeds, at the speed of a straight street: the noise of one step over its duration."""
    step_m = settings.speed_m_s / settings.odometry_rate_hz
    speed_std = settings.odometry_distance_noise_m * math.sqrt(step_m) * settings.odometry_rate_hz
    yaw_rate_std = math.radians(settings.odometry_yaw_noise_deg) * math.sqrt(step_m) * settings.odometry_rate_hz
    # Never zero, which filters take for a perfect sensor or refuse.
    return np.diag([speed_std**2 + 1e-6] * 2 + [1e-6] * 3 + [yaw_rate_std**2 + 1e-6])
