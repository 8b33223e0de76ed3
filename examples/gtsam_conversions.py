"""Poses and covariances between this package, with ROS's conventions, and GTSAM."""

from __future__ import annotations

from collections.abc import Sequence

import gtsam
import numpy as np

from asymvpr_core.types import Pose

# ROS: x, y, z, roll, pitch, yaw, along the axes of the frame. GTSAM: rotation first, along the axes of the pose.
_ROTATION_FIRST = [3, 4, 5, 0, 1, 2]


def to_gtsam(pose: Pose) -> gtsam.Pose3:
    """GTSAM's form of a pose."""
    x, y, z, w = pose.quaternion
    return gtsam.Pose3(gtsam.Rot3.Quaternion(w, x, y, z), np.array(pose.position))


def from_gtsam(pose: gtsam.Pose3) -> Pose:
    """This package's form of a pose."""
    q = pose.rotation().toQuaternion()
    x, y, z = pose.translation().tolist()
    return Pose((x, y, z), (q.x(), q.y(), q.z(), q.w()))


def _axes(pose: gtsam.Pose3) -> np.ndarray:
    """(6, 6): turns both halves of a vector from the pose's own axes into those of its frame."""
    rotation = pose.rotation().matrix()
    return np.block([[rotation, np.zeros((3, 3))], [np.zeros((3, 3)), rotation]])


def covariance_to_gtsam(pose: gtsam.Pose3, covariance: np.ndarray) -> np.ndarray:
    """(6, 6) of `pose` as GTSAM writes it, from ROS's."""
    axes = _axes(pose)
    return axes.T @ covariance[np.ix_(_ROTATION_FIRST, _ROTATION_FIRST)] @ axes


def covariance_from_gtsam(pose: gtsam.Pose3, covariance: np.ndarray) -> np.ndarray:
    """(6, 6) of `pose` as ROS writes it, from GTSAM's."""
    axes = _axes(pose)
    return (axes @ covariance @ axes.T)[np.ix_(_ROTATION_FIRST, _ROTATION_FIRST)]


def is_covariance(matrix: Sequence[float] | np.ndarray) -> bool:
    """Whether it is a (6, 6) finite, symmetric matrix with positive eigenvalues."""
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape != (6, 6) or not np.isfinite(values).all() or not np.allclose(values, values.T, rtol=1e-6, atol=1e-9):
        return False
    return bool(np.linalg.eigvalsh(values).min() > 1e-9)
