"""Which stamps are matched: by the node's clock, wall or simulated."""

from __future__ import annotations

import pytest

from asymvpr_ros.frame_age import age_s, fault_of_stamp

SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(
    ("stamp_s", "now_s", "limit_s", "fault"),
    [
        (100.0, 101.0, 2.0, None),
        (100.0, 102.0, 2.0, None),
        (100.0, 102.5, 2.0, "2.500 s old, at most 2 s"),
        (100.0, 500.0, 0.0, None),
        (100.0, 98.0, 2.0, None),
        (100.0, 97.5, 2.0, "2.500 s in the future"),
        (100.0, 0.0, 2.0, None),  # simulated time has not begun
        (0.0, 0.0, 2.0, "no stamp"),
        (0.0, 100.0, 0.0, "no stamp"),
    ],
)
def test_stale_future_and_missing_stamps(stamp_s, now_s, limit_s, fault):
    found = fault_of_stamp(int(stamp_s * SECOND_NS), int(now_s * SECOND_NS), limit_s)
    assert found is None if fault is None else fault in found


def test_age_is_unknown_before_simulated_time_begins():
    assert age_s(3 * SECOND_NS, 5 * SECOND_NS) == 2.0
    assert age_s(5 * SECOND_NS, 3 * SECOND_NS) == -2.0
    assert age_s(5 * SECOND_NS, 0) is None
