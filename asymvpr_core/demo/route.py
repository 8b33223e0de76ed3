"""How a lap is driven: the path through the streets, the speed along it, and what the wheels measure of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from asymvpr_core.demo.town import Corner, Town, parse_route
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.types import Pose

LapName = Literal["mapping", "live"]
LAPS: tuple[LapName, LapName] = ("mapping", "live")

LANE_M = 1.35  # right of the street's middle
_CORNER_RADIUS_M = 8.5
_END_M = 5.0  # a lap starts and ends this far from its first and last corner
_STEP_M = 0.1
_START_NS = {"mapping": 1_750_000_000_000_000_000, "live": 1_750_110_000_000_000_000}  # the live lap is a day later


@dataclass(frozen=True)
class Lap:
    """One drive. Times are seconds since its start; poses are those of base_link in the frame `map`."""

    name: LapName
    start_ns: int
    corners: tuple[Corner, ...]
    weather: tuple[str, ...]
    frame_times_s: np.ndarray
    odometry_times_s: np.ndarray
    _times_s: np.ndarray  # of the samples of the path
    _path: np.ndarray  # (N, 3): x, y [m], yaw [rad, unwrapped]
    _pitch_rad: np.ndarray

    @property
    def index(self) -> int:
        """0 for the mapping lap, 1 for the live one."""
        return LAPS.index(self.name)

    @property
    def duration_s(self) -> float:
        return float(self.frame_times_s[-1])

    def stamp_ns(self, time_s: float) -> int:
        """Stamp of a time of this lap, to the microsecond."""
        return self.start_ns + round(time_s * 1e6) * 1000

    def states(self, times_s: np.ndarray) -> np.ndarray:
        """(N, 4): x, y [m], yaw [rad, unwrapped], pitch of the camera [rad] at the given times."""
        columns = [*self._path.T, self._pitch_rad]
        return np.stack([np.interp(times_s, self._times_s, column) for column in columns], axis=1)

    def poses(self, times_s: np.ndarray) -> list[Pose]:
        """True poses of base_link in `map` at the given times."""
        return [Pose.from_xy_yaw(x, y, yaw) for x, y, yaw, _ in self.states(times_s).tolist()]


def plan_lap(town: Town, name: LapName) -> Lap:
    """Plan one of the two laps.

    Raises:
        SettingsError: a route that cannot be driven.
    """
    settings = town.settings
    live = name == "live"
    rng = np.random.default_rng([settings.seed, 61, int(live)])
    corners = parse_route(settings.live_route if live else settings.mapping_route, settings)
    middle = _round_corners(np.stack([town.corners[c] for c in corners]))
    arc = np.arange(len(middle)) * _STEP_M
    sway = _wander(rng, arc, 14.0, 60.0) * (0.3 if live else 0.12)
    lateral = -LANE_M + (settings.live_lateral_offset_m if live else 0.0) + sway  # to the left of the middle
    tangent = np.gradient(middle, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    place = middle + lateral[:, None] * np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    motion = np.gradient(place, axis=0)
    yaw = np.unwrap(np.arctan2(motion[:, 1], motion[:, 0]))
    bend = np.abs(np.gradient(yaw)) / _STEP_M
    smooth = np.convolve(np.pad(bend, 30, mode="edge"), np.ones(61) / 61, mode="valid")
    speed = settings.speed_m_s * (1 + 0.12 * _wander(rng, arc, 20.0, 80.0)) / (1 + 5.0 * smooth)
    times = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(place, axis=0), axis=1) / speed[1:])])
    jitter = _wander(rng, times, 1.6, 9.0) * np.radians(settings.heading_jitter_deg if live else min(0.6, settings.heading_jitter_deg))
    pitch = _wander(rng, times, 0.5, 4.0) * np.radians(0.45)
    frames = int(times[-1] * settings.frame_rate_hz) + 1
    frames = min(frames, settings.max_frames or frames)
    last = (frames - 1) / settings.frame_rate_hz
    return Lap(
        name,
        _START_NS[name],
        tuple(corners),
        settings.live_weather if live else (settings.mapping_weather,),
        np.arange(frames) / settings.frame_rate_hz,
        # One sample more than needed, so that the last frame lies between two.
        np.arange(int(np.ceil(last * settings.odometry_rate_hz)) + 1) / settings.odometry_rate_hz,
        times,
        np.column_stack([place, yaw + jitter]),
        pitch,
    )


def _round_corners(points: np.ndarray) -> np.ndarray:
    """Sample a polyline (N, 2) every _STEP_M, its corners replaced by arcs, its ends cut off by _END_M."""
    pieces = []
    direction = np.diff(points, axis=0)
    length = np.linalg.norm(direction, axis=1)
    direction /= length[:, None]
    start = points[0] + direction[0] * _END_M
    for k in range(1, len(points) - 1):
        a, b = direction[k - 1], direction[k]
        turn = float(np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b))
        cut = min(_CORNER_RADIUS_M * np.tan(abs(turn) / 2), 0.4 * length[k - 1], 0.4 * length[k])
        entry = points[k] - a * cut
        pieces.append(np.stack([start, entry]))
        if abs(turn) > 1e-3:
            radius = cut / np.tan(abs(turn) / 2)
            centre = entry + np.sign(turn) * radius * np.array([-a[1], a[0]])
            angle = np.arctan2(*(entry - centre)[::-1]) + np.linspace(0, turn, max(3, int(abs(turn) / 0.05)))
            pieces.append(centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        start = points[k] + b * cut
    pieces.append(np.stack([start, points[-1] - direction[-1] * _END_M]))
    line = np.concatenate(pieces)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    line = line[np.concatenate([[True], steps > 1e-6])]
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    samples = np.arange(0, arc[-1], _STEP_M)
    return np.stack([np.interp(samples, arc, line[:, 0]), np.interp(samples, arc, line[:, 1])], axis=1)


def _wander(rng: np.random.Generator, at: np.ndarray, shortest: float, longest: float) -> np.ndarray:
    """Smooth noise of unit standard deviation along `at`, a sum of waves between two wavelengths."""
    waves = 6
    length = np.exp(rng.uniform(np.log(shortest), np.log(longest), waves))
    phase = rng.uniform(0, 2 * np.pi, waves)
    return np.sqrt(2 / waves) * np.sin(2 * np.pi * at[:, None] / length + phase).sum(axis=1)


def wheel_odometry(states: np.ndarray, times_s: np.ndarray, settings: TownSettings, lap_index: int) -> tuple[np.ndarray, np.ndarray]:
    """What the wheels say: poses (N, 3) x, y, yaw in the frame `odom`, and speeds (N, 3) vx, vy [m/s], yaw rate [rad/s].

    Odometry starts at zero. Each step's true motion gets the error of the wheels' scale, a yaw bias in
    proportion to the way, and random errors whose variances are in proportion to the way and to the turn
    (Thrun, Burgard, Fox: Probabilistic Robotics, section 5.4); the errors add up along the lap. What they
    add up to does not depend on `odometry_rate_hz`.

    Args:
        states: (N, >= 3) true x, y [m], yaw [rad, unwrapped] in `map`.
    """
    seed = settings.seed if settings.odometry_seed is None else settings.odometry_seed
    rng = np.random.default_rng([seed, 62, lap_index])
    dt = np.diff(times_s)
    step = np.diff(states[:, :2], axis=0)
    yaw = states[:-1, 2]
    forward = np.cos(yaw) * step[:, 0] + np.sin(yaw) * step[:, 1]
    sideways = -np.sin(yaw) * step[:, 0] + np.cos(yaw) * step[:, 1]
    way_m, turn = np.hypot(forward, sideways), np.diff(states[:, 2])
    way_error_m = settings.odometry_scale_error * way_m + settings.odometry_distance_noise_m * np.sqrt(way_m) * rng.standard_normal(len(dt))
    yaw_noise_deg = np.hypot(
        settings.odometry_yaw_noise_deg * np.sqrt(way_m), settings.odometry_turn_noise_deg * np.sqrt(np.abs(np.degrees(turn)))
    )
    turn = turn + np.radians(settings.odometry_yaw_bias_deg * way_m + yaw_noise_deg * rng.standard_normal(len(dt)))
    # The wheels roll too far or too short along the true direction; standing still, there is no way to err on.
    scale = 1 + np.divide(way_error_m, way_m, out=np.zeros_like(way_m), where=way_m > 0)
    forward, sideways = forward * scale, sideways * scale
    heading = np.concatenate([[0.0], np.cumsum(turn)])
    dx = np.cos(heading[:-1]) * forward - np.sin(heading[:-1]) * sideways
    dy = np.sin(heading[:-1]) * forward + np.cos(heading[:-1]) * sideways
    poses = np.column_stack([np.concatenate([[0.0], np.cumsum(dx)]), np.concatenate([[0.0], np.cumsum(dy)]), heading])
    speeds = np.column_stack([forward, sideways, turn]) / dt[:, None]
    return poses, np.vstack([speeds[:1], speeds])
