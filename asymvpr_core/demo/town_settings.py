"""Settings of the rendered town: the streets, the two laps, the camera and the odometry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asymvpr_core.config import Settings

WeatherName = Literal["day", "overcast", "rain", "fog", "evening"]


class TownSettings(Settings):
    """The demo's rendered town and the two laps that are recorded in it.

    Street corners are named like the squares of a chessboard: "B3" is the second column from
    the west and the third row from the south. A route is a list of neighbouring corners.
    """

    seed: int = Field(30, ge=0, description="seed of the town, of what moves in it and of all noise")
    columns: int = Field(4, ge=2, le=9, description="street corners from west to east")
    rows: int = Field(3, ge=2, le=9, description="street corners from south to north")
    street_spacing_m: float = Field(62.0, ge=40.0, le=200.0, description="distance between neighbouring corners [m]")
    lookalike_streets: int = Field(2, ge=0, le=20, description="pairs of streets with the same houses, every other one in another colour")
    mapping_route: str = Field("A1 B1 C1 D1 D2 C2 B2 B3 A3", description="corners of the lap that the gallery is built from")
    live_route: str = Field("A2 A1 B1 C1 C2 B2 B3 C3", description="corners of the live lap; some streets should be new to the map")
    mapping_weather: WeatherName = Field("day", description="light and weather of the mapping lap")
    live_weather: tuple[WeatherName, ...] = Field(
        ("overcast", "rain", "evening"), min_length=1, description="light and weather of the live lap; several follow one another along it"
    )
    speed_m_s: float = Field(5.2, gt=0.0, le=20.0, description="speed on a straight street [m/s]; corners are taken slower")
    frame_rate_hz: float = Field(10.0, gt=0.0, le=60.0, description="frames per second of the camera [Hz]")
    max_frames: int | None = Field(None, ge=2, description="most frames of each lap; None: the whole route")
    live_lateral_offset_m: float = Field(0.7, ge=-1.5, le=1.5, description="how far left of the mapping lane the live lap drives [m]")
    heading_jitter_deg: float = Field(2.0, ge=0.0, le=20.0, description="standard deviation of the live camera's heading [deg]")
    image_width: int = Field(320, ge=32, le=1920, description="width of the pictures [px]")
    image_height: int = Field(240, ge=24, le=1440, description="height of the pictures [px]")
    horizontal_fov_deg: float = Field(90.0, ge=30.0, le=120.0, description="horizontal field of view [deg]")
    camera_height_m: float = Field(1.2, ge=0.3, le=2.5, description="height of the camera above the street [m]")
    horizon: float = Field(0.62, ge=0.3, le=0.7, description="row of the horizon as a share of the picture's height")
    jpeg_quality: int = Field(90, ge=30, le=100, description="quality of the recorded JPEG pictures")
    odometry_rate_hz: float = Field(20.0, gt=0.0, le=200.0, description="wheel odometry and ground-truth poses per second [Hz]")
    odometry_scale_error: float = Field(0.02, ge=-0.2, le=0.2, description="relative error of the wheel radius")
    odometry_distance_noise_m: float = Field(
        0.05, ge=0.0, le=1.0, description="standard deviation [m] of the way's error after one metre; grows with the root of the way"
    )
    odometry_yaw_bias_deg: float = Field(0.02, ge=-1.0, le=1.0, description="constant error of the yaw [deg] in every metre")
    odometry_yaw_noise_deg: float = Field(
        0.15, ge=0.0, le=5.0, description="standard deviation of the yaw's error [deg] after one metre; grows with the root of the way"
    )
    odometry_turn_noise_deg: float = Field(
        0.1,
        ge=0.0,
        le=5.0,
        description="standard deviation of the yaw's error [deg] after a turn by one degree; grows with the root of the turn",
    )
    odometry_seed: int | None = Field(None, ge=0, description="seed of the odometry's noise; None: the town's")
    storage: Literal["sqlite3", "mcap"] = Field("sqlite3", description="storage format of the two bags")
    processes: int = Field(2, ge=1, le=64, description="rendering processes; the pictures do not depend on it")
