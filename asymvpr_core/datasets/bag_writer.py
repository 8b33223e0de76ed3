"""Writes rosbag2 recordings without ROS: images, camera info, odometry and poses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from asymvpr_core.datasets.bag_storage import check_sqlite_path, standard_types
from asymvpr_core.errors import ArtefactError, BagError
from asymvpr_core.types import Pose
from asymvpr_core.work_folder import locked, remove_work

_STORAGE = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
_INFINITE = QosTime(9223372036, 854775807)  # RMW_DURATION_INFINITE, which 'ros2 bag record' writes for "not set"
# Reliable, so that players of the bag reach reliable and best-effort subscribers alike.
_QOS = Qos(
    history=QosHistory.KEEP_LAST,
    depth=10,
    reliability=QosReliability.RELIABLE,
    durability=QosDurability.VOLATILE,
    deadline=_INFINITE,
    lifespan=_INFINITE,
    liveliness=QosLiveliness.AUTOMATIC,
    liveliness_lease_duration=_INFINITE,
    avoid_ros_namespace_conventions=False,
)


class BagWriter:
    """A rosbag2 folder under construction; use as a context manager.

    The bag is written beside `path` under a temporary name and renamed when the block ends
    without an exception; otherwise nothing is left behind. Topics are created by their first
    message. A message's time in the bag is its header stamp. Metadata is of version 8, the
    newest that Humble, Jazzy and Kilted all read.

    Args:
        path: folder of the new bag; must not exist.
        storage: "sqlite3" or "mcap".

    Raises:
        BagError: the folder exists, cannot be written, is being written by another process, or the disk is full; also from every write.
    """

    def __init__(self, path: Path, storage: Literal["sqlite3", "mcap"] = "sqlite3"):
        if storage not in _STORAGE:
            raise BagError(f"storage '{storage}' is unknown", expected=" or ".join(_STORAGE))
        self.path = Path(path).absolute()
        self.storage = storage
        check_sqlite_path(self.path, storage)
        self._typestore = standard_types()
        self._types = self._typestore.types
        # The inner folder has the final name because the storage file is called after its folder.
        self._partial = self.path.parent / f".{self.path.name}.partial"
        self._lock = ExitStack()
        self._writer: Writer | None = None
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        if self.path.exists():
            raise BagError(f"{self.path} exists already", remedy="remove it or choose another folder")
        try:
            self._lock.enter_context(locked(self._partial))
        except ArtefactError as error:
            raise BagError(error.found, remedy=error.remedy) from error
        except OSError as error:
            raise self._write_error(error) from error
        try:
            if (self._partial / self.path.name).exists():
                shutil.rmtree(self._partial / self.path.name)  # of a killed process
            self._writer = Writer(self._partial / self.path.name, version=8, storage_plugin=_STORAGE[self.storage])
            self._writer.open()
        except Exception as error:
            self._discard()
            raise self._write_error(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self._writer is None:
            return
        if kind is not None:
            self._discard()
            return
        try:
            self._writer.close()
            os.rename(self._partial / self.path.name, self.path)
            remove_work(self._partial)
            self._lock.close()
        except Exception as error:
            self._discard()
            raise self._write_error(error) from error
        self._writer = None

    def write_compressed_image(self, topic: str, stamp_ns: int, frame_id: str, data: bytes, format: str = "jpeg") -> None:
        """Append a sensor_msgs/CompressedImage; `data` is the encoded file and is stored byte for byte."""
        header, payload = self._header(stamp_ns, frame_id), np.frombuffer(data, np.uint8)
        self._write(topic, stamp_ns, "sensor_msgs/msg/CompressedImage", header=header, format=format, data=payload)

    def write_image(
        self,
        topic: str,
        stamp_ns: int,
        frame_id: str,
        data: bytes | np.ndarray,
        *,
        height: int,
        width: int,
        encoding: str = "rgb8",
        step: int | None = None,
        is_bigendian: bool = False,
    ) -> None:
        """Append a sensor_msgs/Image; `step` is the bytes of a row, None where rows are not padded."""
        payload = np.frombuffer(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data, np.uint8)
        self._write(
            topic,
            stamp_ns,
            "sensor_msgs/msg/Image",
            header=self._header(stamp_ns, frame_id),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=int(is_bigendian),
            step=payload.size // max(height, 1) if step is None else step,
            data=payload,
        )

    def write_odometry(
        self,
        topic: str,
        stamp_ns: int,
        pose: Pose,
        frame_id: str = "odom",
        child_frame_id: str = "base_link",
        *,
        linear_m_s: Sequence[float] = (0.0, 0.0, 0.0),
        angular_rad_s: Sequence[float] = (0.0, 0.0, 0.0),
        pose_covariance: np.ndarray | None = None,
        twist_covariance: np.ndarray | None = None,
    ) -> None:
        """Append a nav_msgs/Odometry: `pose` of the child in `frame_id`, velocities in the child's frame, covariances (6, 6)."""
        types = self._types
        twist = types["geometry_msgs/msg/Twist"](linear=self._vector(linear_m_s), angular=self._vector(angular_rad_s))
        self._write(
            topic,
            stamp_ns,
            "nav_msgs/msg/Odometry",
            header=self._header(stamp_ns, frame_id),
            child_frame_id=child_frame_id,
            pose=types["geometry_msgs/msg/PoseWithCovariance"](pose=self._pose(pose), covariance=_covariance(pose_covariance)),
            twist=types["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=_covariance(twist_covariance)),
        )

    def write_pose(self, topic: str, stamp_ns: int, pose: Pose, frame_id: str = "map") -> None:
        """Append a geometry_msgs/PoseStamped in `frame_id`."""
        self._write(topic, stamp_ns, "geometry_msgs/msg/PoseStamped", header=self._header(stamp_ns, frame_id), pose=self._pose(pose))

    def write_nav_sat_fix(self, topic: str, stamp_ns: int, frame_id: str, lat_deg: float, lon_deg: float, *, has_fix: bool = True) -> None:
        """Append a sensor_msgs/NavSatFix on WGS84, height 0; without a fix the position is NaN."""
        lat_deg, lon_deg = (lat_deg, lon_deg) if has_fix else (float("nan"), float("nan"))
        self._write(
            topic,
            stamp_ns,
            "sensor_msgs/msg/NavSatFix",
            header=self._header(stamp_ns, frame_id),
            status=self._types["sensor_msgs/msg/NavSatStatus"](status=0 if has_fix else -1, service=1),
            latitude=float(lat_deg),
            longitude=float(lon_deg),
            altitude=0.0,
            position_covariance=np.zeros(9),
            position_covariance_type=0,
        )

    def write_camera_info(
        self, topic: str, stamp_ns: int, frame_id: str, width: int, height: int, fx: float, fy: float, cx: float, cy: float
    ) -> None:
        """Append a sensor_msgs/CameraInfo of a pinhole camera without distortion; fx, fy, cx, cy in pixels."""
        self._write(
            topic,
            stamp_ns,
            "sensor_msgs/msg/CameraInfo",
            header=self._header(stamp_ns, frame_id),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], np.float64),
            r=np.eye(3).ravel(),
            p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0], np.float64),
            binning_x=0,
            binning_y=0,
            roi=self._types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
        )

    def _write(self, topic: str, stamp_ns: int, msgtype: str, **fields: Any) -> None:
        if self._writer is None:
            raise BagError(f"bag {self.path} is not open for writing", remedy="write inside the 'with' block")
        connection = self._connections.get(topic)
        if connection is not None and connection.msgtype != msgtype:
            raise BagError(f"topic {topic} of {self.path} already holds {connection.msgtype}", remedy=f"write {msgtype} to another topic")
        try:
            if connection is None:
                connection = self._writer.add_connection(topic, msgtype, typestore=self._typestore, offered_qos_profiles=[_QOS])
                self._connections[topic] = connection
            self._writer.write(connection, stamp_ns, self._typestore.serialize_cdr(self._types[msgtype](**fields), msgtype))
        except Exception as error:
            raise self._write_error(error) from error

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        if stamp_ns < 0:
            raise BagError(f"stamp {stamp_ns} ns is negative", expected="nanoseconds since the epoch or since the start of a simulation")
        sec, nanosec = divmod(int(stamp_ns), 1_000_000_000)
        stamp = self._types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
        return self._types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)

    def _vector(self, xyz: Sequence[float]) -> Any:
        x, y, z = (float(v) for v in xyz)
        return self._types["geometry_msgs/msg/Vector3"](x=x, y=y, z=z)

    def _pose(self, pose: Pose) -> Any:
        (x, y, z), (qx, qy, qz, qw) = pose.position, pose.quaternion
        return self._types["geometry_msgs/msg/Pose"](
            position=self._types["geometry_msgs/msg/Point"](x=float(x), y=float(y), z=float(z)),
            orientation=self._types["geometry_msgs/msg/Quaternion"](x=float(qx), y=float(qy), z=float(qz), w=float(qw)),
        )

    def _discard(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):  # the storage may be broken already; its files go away below
                writer.abort()
        with suppress(OSError):  # what stays is removed by the next writer of this bag
            remove_work(self._partial)
        self._lock.close()

    def _write_error(self, error: Exception) -> BagError:
        if isinstance(error, WriterError | OSError) or type(error).__module__ in ("sqlite3", "apsw"):
            return BagError(f"bag {self.path} cannot be written: {error}", remedy="check permissions and free space")
        return BagError(f"a message for bag {self.path} cannot be written: {type(error).__name__}: {error}", remedy="correct its fields")


def _covariance(matrix: np.ndarray | None) -> np.ndarray:
    if matrix is None:
        return np.zeros(36)
    return np.asarray(matrix, dtype=np.float64).reshape(36)
