"""Rigid transforms: composed, inverted, and carried on by odometry. No scipy: the robot's process does without."""

from __future__ import annotations

from asymvpr_core.types import Pose

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


def compose(T_a_b: Pose, T_b_c: Pose) -> Pose:
    """T_a_c = T_a_b · T_b_c."""
    rotated = _rotate(T_a_b.quaternion, T_b_c.position)
    position = tuple(p + r for p, r in zip(T_a_b.position, rotated, strict=True))
    return Pose(position, _multiply(T_a_b.quaternion, T_b_c.quaternion))  # type: ignore[arg-type]


def inverse(T_a_b: Pose) -> Pose:
    """T_b_a of a pose with a unit quaternion."""
    x, y, z, w = T_a_b.quaternion
    conjugate = (-x, -y, -z, w)
    bx, by, bz = _rotate(conjugate, T_a_b.position)
    return Pose((-bx, -by, -bz), conjugate)


def carried_on(T_map_base: Pose, odometry_then: Pose, odometry_now: Pose) -> Pose:
    """T_map_base(now) = T_map_base(then) · T_odom_base(then)⁻¹ · T_odom_base(now)."""
    return compose(T_map_base, compose(inverse(odometry_then), odometry_now))


def _multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def _rotate(q: Quaternion, v: Vector) -> Vector:
    x, y, z, w = q
    rx, ry, rz, _ = _multiply(_multiply(q, (*v, 0.0)), (-x, -y, -z, w))
    return rx, ry, rz
