"""Small real rosbag2 files for tests: a robot drives a straight line past pictures that tell their frame."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from asymvpr_core.config import SourceSettings
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.types import Pose

START_NS = 1_700_000_000_000_000_123
TENTH_NS = 100_000_000
IMAGE, RAW, ODOM, TRUTH, INFO = "/camera/image/compressed", "/camera/image", "/odom", "/ground_truth/pose", "/camera/camera_info"
STORAGES = ("sqlite3", "mcap")
SUFFIX = {"sqlite3": "db3", "mcap": "mcap"}
EVERY = SourceSettings(image_topic=IMAGE, pose_topic=TRUTH, keyframes=None)


def picture(index: int) -> np.ndarray:
    """(12, 16, 3) uint8 RGB whose red channel tells the frame."""
    rgb = np.full((12, 16, 3), (0, 60, 200), np.uint8)
    rgb[..., 0] = 4 * index
    return rgb


def encode(rgb: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes()


def drive(path: Path, storage: str = "sqlite3", *, frames: int = 21, raw: bool = False) -> Path:
    """A bag of a robot that drives along +y at 2 m/s: a picture every 0.1 s, poses every 0.1 s shifted by half of that."""
    with BagWriter(path, storage) as writer:
        for i in range(frames):
            pose_ns, image_ns = START_NS + i * TENTH_NS, START_NS + i * TENTH_NS + TENTH_NS // 2
            pose = Pose.from_xy_yaw(5.0, 0.2 * i, math.pi / 2)
            writer.write_pose(TRUTH, pose_ns, pose, "map")
            writer.write_odometry(ODOM, pose_ns, Pose.from_xy_yaw(0.2 * i, 0.0, 0.0), "odom", "base_link", linear_m_s=(2.0, 0.0, 0.0))
            writer.write_compressed_image(IMAGE, image_ns, "camera", encode(picture(i)))
            writer.write_camera_info(INFO, image_ns, "camera", 16, 12, 10.0, 10.0, 8.0, 6.0)
            if raw:
                writer.write_image(RAW, image_ns, "camera", picture(i), height=12, width=16)
    return path


def only_images(path: Path, stamps_ns: list[int], *, payload: bytes | None = None) -> Path:
    with BagWriter(path) as writer:
        for stamp_ns in stamps_ns:
            writer.write_compressed_image(IMAGE, stamp_ns, "camera", payload or encode(picture(0)))
    return path
