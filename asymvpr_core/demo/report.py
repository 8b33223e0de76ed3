"""The demo's result: the short table for the terminal and the report with everything drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asymvpr_core.demo.slam import SlamResult, slam_section
from asymvpr_core.evaluation.bag import BagResult
from asymvpr_core.evaluation.bag_report import map_section, pair_sections, precision_recall_section, protocol_section
from asymvpr_core.evaluation.loop_closure import PrecisionRecall
from asymvpr_core.evaluation.report import Column, KeyFigure, KeyFigures, Section, Table, Text, number, percent, render_report


@dataclass(frozen=True)
class Comparison:
    """One query network on the live recording."""

    name: str
    metrics: dict[str, Any]
    sweep: PrecisionRecall


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured: the live node's published matches, and three query networks on the same frames.

    `identical_candidates` is (identical, compared) between the live node and the offline evaluation. `slam` is what the
    pose graph made of the node's closures; None where none ran, for the reason `no_slam`.
    """

    out: Path
    description: str
    offline: BagResult
    live: dict[str, Any]
    identical_candidates: tuple[int, int]
    comparison: list[Comparison]
    seconds: dict[str, float]
    outline: Sequence[np.ndarray]
    slam: SlamResult | None
    no_slam: str
    report: Path

    def metrics(self) -> dict[str, Any]:
        """Everything measured, as it goes into `metrics.json`."""
        identical, compared = self.identical_candidates
        return {
            "description": self.description,
            "live": self.live,
            "live_and_offline_candidates": {"identical": identical, "compared": compared},
            "slam": self.slam.metrics() if self.slam else {"left_out": self.no_slam},
            "offline": {item.name: item.metrics for item in self.comparison},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def live_rows(self) -> list[tuple[str, str, str]]:
        """The live run as (quantity, value, unit)."""
        live, error, latency = self.live, self.live["position_error_m"], self.live["latency_ms"]
        identical, compared = self.identical_candidates
        return [
            ("frames sent / dropped", f"{live['n_frames_sent']} / {live['n_frames_dropped']}", ""),
            ("published matches", str(live["n_published"]), ""),
            ("precision of published", percent(live["precision_of_published"]), "%"),
            ("revisit opportunities", str(live["n_opportunities"]), ""),
            ("recall of published", percent(live["recall_of_published"]), "%"),
            ("recall at 100 % precision", percent(self.offline.metrics["recall_at_full_precision"]), "%"),
            ("position error: median / 95 %", f"{number(error['median'])} / {number(error['p95'])}", "m"),
            ("frame latency: p50 / p95", f"{number(latency['p50'], 1)} / {number(latency['p95'], 1)}", "ms"),
            ("same candidates as offline", f"{identical} of {compared}", "frames"),
            *self._slam_rows(),
        ]

    def _slam_rows(self) -> list[tuple[str, str, str]]:
        if self.slam is None:
            return [("trajectory error", f"left out: {self.no_slam}", "")]
        before, after = self.slam.odometry.rmse_m, self.slam.corrected.rmse_m
        return [("trajectory error: odometry / after loop closures", f"{number(before)} / {number(after)}", "m")]

    def comparison_rows(self) -> list[tuple[str, ...]]:
        """One row a query network: name, Recall@1 and @5, average precision, recall at 100 % precision, matches, false."""
        rows = []
        for item in self.comparison:
            m = item.metrics
            recalls = [percent(m["recall_at_k"].get(k)) for k in ("1", "5")]
            full = percent(m["recall_at_full_precision"])
            rows.append((item.name, *recalls, number(m["average_precision"], 3), full, str(m["n_accepted"]), str(m["n_false"])))
        return rows


COMPARISON_COLUMNS = (
    Column("network", numeric=False),
    Column("Recall@1", "%"),
    Column("Recall@5", "%"),
    Column("AP"),
    Column("R@100P", "%"),
    Column("accepted"),
    Column("false"),
)


def write_demo_report(result: DemoResult) -> None:
    """Write `result.report`, one self-contained HTML file.

    Raises:
        EvaluationError: it cannot be written.
    """
    offline, others = result.offline, [(item.name, item.sweep) for item in result.comparison if item.name != "trained"]
    sections = [
        Section("The live node", [_key_figures(result), _live_table(result)], _LIVE_INTRO),
        *([slam_section(result.slam, result.outline)] if result.slam else []),
        map_section(offline, result.outline),
        Section("Trained against untrained", [_comparison_table(result)], _COMPARISON_INTRO),
        precision_recall_section(offline, others),
        *pair_sections(offline),
        Section("How this was made", [_seconds_table(result), Text((f"Recordings: {result.description}.",))]),
        protocol_section(offline.metrics),
    ]
    render_report(result.report, "Recognising places while driving", sections, subtitle=result.description)


_LIVE_INTRO = (
    "A gallery was built from the mapping recording by the heavy network; the light query network was trained against it, exported, "
    "and run by the ROS 2 node while the live recording was replayed over ROS 2. These are the poses that the node published."
)
_COMPARISON_INTRO = (
    "The same light network on the same frames: trained; aligned in closed form only; and with a random last layer. "
    "Recall and average precision (AP) count the best candidates before threshold and vote, R@100P is the recall that a threshold "
    "without any false match reaches; accepted and false count what the matcher let through."
)


def _key_figures(result: DemoResult) -> KeyFigures:
    live, error = result.live, result.live["position_error_m"]
    false = live["n_false"]
    return KeyFigures((
        KeyFigure("published matches", str(live["n_published"]), "", f"on {live['n_opportunities']} revisit opportunities"),
        KeyFigure("precision", percent(live["precision_of_published"]), "%", f"{false} false", "bad" if false else "good"),
        KeyFigure("position error, median", number(error["median"]), "m", f"95 %: {number(error['p95'])} m"),
        *_slam_figure(result),
        KeyFigure("frame latency, median", number(live["latency_ms"]["p50"], 1), "ms", f"{live['n_frames_dropped']} frames dropped"),
    ))  # fmt: skip


def _slam_figure(result: DemoResult) -> tuple[KeyFigure, ...]:
    if result.slam is None:
        return ()
    before, after = result.slam.odometry.rmse_m, result.slam.corrected.rmse_m
    return (KeyFigure("trajectory error", number(after), "m", f"odometry alone: {number(before)} m", "good" if after < before else "bad"),)


def _live_table(result: DemoResult) -> Table:
    return Table(tuple(result.live_rows()), (Column("quantity", numeric=False), Column("value"), Column("unit", numeric=False)))


def _comparison_table(result: DemoResult) -> Table:
    return Table(tuple(result.comparison_rows()), COMPARISON_COLUMNS)


def _seconds_table(result: DemoResult) -> Table:
    rows = tuple((name, number(seconds, 1)) for name, seconds in result.seconds.items())
    return Table(
        rows, (Column("step", numeric=False), Column("time", "s")), "Steps of this run; artefacts that were there already took none."
    )
