"""How old an image is, and whether its stamp allows to match it."""

from __future__ import annotations

_REMEDY = "set use_sim_time and publish /clock for a bag, or correct the clocks"


def age_s(stamp_ns: int, now_ns: int) -> float | None:
    """Age of an image in seconds, negative for a stamp in the future; None while simulated time has not begun (`now_ns` is 0)."""
    return (now_ns - stamp_ns) / 1e9 if now_ns > 0 else None


def fault_of_stamp(stamp_ns: int, now_ns: int, limit_s: float) -> str | None:
    """Why an image of this stamp must not be matched, or None; a limit of 0 allows any age."""
    if stamp_ns <= 0:
        return "the image has no stamp; the camera driver must fill header.stamp"
    age = age_s(stamp_ns, now_ns)
    if limit_s == 0 or age is None:
        return None
    if age > limit_s:
        return f"the image is {age:.3f} s old, at most {limit_s:g} s are allowed (max_image_age_s); {_REMEDY}"
    if age < -limit_s:
        return f"the image's stamp lies {-age:.3f} s in the future; {_REMEDY}"
    return None
