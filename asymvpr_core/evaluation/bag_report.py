"""The report of a recorded run, as sections that the demo puts into its own report too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asymvpr_core.evaluation.loop_closure import PrecisionRecall
from asymvpr_core.evaluation.outcomes import FrameOutcome, Outcome
from asymvpr_core.evaluation.plots import (
    BAD,
    GOOD,
    IGNORED,
    MISSED,
    NEUTRAL,
    PointGroup,
    plot_map,
    plot_precision_recall,
    plot_score_distance,
    plot_timeline,
)
from asymvpr_core.evaluation.report import (
    Block,
    Column,
    Figure,
    ImagePairs,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    number,
    percent,
    render_report,
)
from asymvpr_core.evaluation.similarity_plot import plot_similarity

if TYPE_CHECKING:
    from asymvpr_core.evaluation.bag import BagResult

_STYLES = {Outcome.TRUE: GOOD, Outcome.FALSE: BAD, Outcome.MISSED: MISSED, Outcome.REJECTED: NEUTRAL, Outcome.IGNORED: IGNORED}


def write_bag_report(out_html: Path, result: BagResult) -> None:
    """Write the report of one run.

    Raises:
        EvaluationError: the file cannot be written.
    """
    metrics = result.metrics
    subtitle = f"{metrics['encoder']['name']} on {metrics['source']['path']} against {metrics['gallery']['path']}"
    sections = [
        Section("Summary", [summary_figures(metrics), summary_table(metrics)]),
        map_section(result),
        precision_recall_section(result),
        Section("Similarity", [similarity_figure(result)]),
        *pair_sections(result),
        protocol_section(metrics),
    ]
    render_report(out_html, "Place recognition along a recorded run", sections, subtitle=subtitle)


def summary_figures(metrics: dict[str, Any]) -> KeyFigures:
    """The numbers that decide: matches, precision, recall, error, latency."""
    false, accepted = metrics["n_false"], metrics["n_accepted"]
    error, latency = metrics["position_error_m"], metrics["latency_ms"]
    first_recall = list(metrics["recall_at_k"].items())[:1]
    return KeyFigures((
        KeyFigure("accepted matches", str(accepted), "", f"of {metrics['n_frames']} frames"),
        KeyFigure(
            "precision of accepted", percent(metrics["precision_of_accepted"]), "%", f"{false} false",
            "neutral" if not accepted else "good" if not false else "bad",
        ),
        KeyFigure("recall of accepted", percent(metrics["recall_of_accepted"]), "%", f"of {metrics['n_opportunities']} opportunities"),
        *[KeyFigure(f"Recall@{k}", percent(value), "%", "candidates, before threshold and vote") for k, value in first_recall],
        KeyFigure("recall at 100 % precision", percent(metrics["recall_at_full_precision"]), "%", "best candidate alone, any threshold"),
        KeyFigure("average precision", number(metrics["average_precision"], 3), "", "best candidate alone"),
        KeyFigure("position error, median", number(error["median"]), "m", f"95 %: {number(error['p95'])} m"),
        KeyFigure("frame latency, median", number(latency["p50"], 1), "ms", f"95 %: {number(latency['p95'], 1)} ms"),
    ))  # fmt: skip


def summary_table(metrics: dict[str, Any]) -> Table:
    """Everything counted, one row each, with units."""
    error, heading, latency, delay = (metrics[k] for k in ("position_error_m", "heading_error_deg", "latency_ms", "detection_delay_s"))
    rows = [
        ("frames with ground truth", str(metrics["n_frames"]), ""),
        ("revisit opportunities", str(metrics["n_opportunities"]), ""),
        *([("matches in the ignored ring", str(metrics["n_ignored"]), "")] if metrics["protocol"]["ignore_ring_m"] else []),
        ("frames without a correct keyframe", str(metrics["n_without_positive"]), ""),
        ("accepted: true / false", f"{metrics['n_true']} / {metrics['n_false']}", ""),
        ("missed opportunities", str(metrics["n_missed"]), ""),
        *[(f"recall@{k}", percent(value), "%") for k, value in metrics["recall_at_k"].items()],
        ("largest F1", number(metrics["max_f1"], 3), ""),
        ("threshold of the largest F1", number(metrics["max_f1_threshold"], 3), "cosine"),
        ("recall at 100 % precision, best candidate alone", percent(metrics["recall_at_full_precision"]), "%"),
        ("recall at 100 % precision, after agreement", percent(metrics["with_agreement"]["recall_at_full_precision"]), "%"),
        ("threshold of 100 % precision, best candidate alone", number(metrics["full_precision_threshold"], 3), "cosine"),
        ("position error: median / 95 %", f"{number(error['median'])} / {number(error['p95'])}", "m"),
        ("heading error: median / 95 %", f"{number(heading['median'], 1)} / {number(heading['p95'], 1)}", "deg"),
        ("latency: 50 / 95 / 99 %", " / ".join(number(latency[p], 1) for p in ("p50", "p95", "p99")), "ms"),
        ("frames that would have been dropped live", str(metrics["n_would_drop"]), ""),
        ("detection delay: median / longest", f"{number(delay['median'], 1)} / {number(delay['max'], 1)}", "s"),
        ("stretches of revisits found", f"{delay['n_found']} of {delay['n_stretches']}", ""),
    ]
    return Table(tuple(rows), (Column("quantity", numeric=False), Column("value"), Column("unit", numeric=False)))


def map_section(result: BagResult, background: Sequence[np.ndarray] = ()) -> Section:
    """Where the run matched, and how the score went along it.

    Args:
        background: polygons (V, 2) [m] beneath the map, such as outlines of buildings.
    """
    groups = outcome_groups(result.frames)
    threshold = result.metrics["protocol"]["matcher"]["score_threshold"]
    return Section(
        "Map and matches",
        [
            map_figure(result, background),
            Figure(
                plot_timeline(groups, threshold), "Best score over time, coloured by outcome.",
                "Score of each frame's best candidate. Frames above the threshold may still be rejected for want of agreement over time.",
            ),
        ],
        f"True: {result.metrics['protocol']['correct_match']}. Missed: such a keyframe exists, but no match was accepted.",
    )  # fmt: skip


def map_figure(result: BagResult, background: Sequence[np.ndarray] = (), title: str = "") -> Figure:
    """The run on the map, coloured by outcome; `title` takes the place of the explanation."""
    groups = outcome_groups(result.frames)
    counts = ", ".join(f"{len(group.xy)} {group.label}" for group in groups)
    caption = "Each frame at its true position; a line leads from an accepted frame to the keyframe that it was matched to."
    plot = plot_map(groups, result.gallery.positions[:, :2], background)
    return Figure(plot, f"Map of the run: {counts}.", f"{title}: {counts}." if title else caption)


def similarity_figure(result: BagResult, title: str = "") -> Figure:
    """Every frame against every keyframe, with the accepted matches."""
    marks = []
    for outcome in (Outcome.TRUE, Outcome.FALSE):
        rows = [i for i, frame in enumerate(result.frames) if frame.outcome is outcome]
        matched = [frame.judged.keyframe_index for frame in result.frames if frame.outcome is outcome and frame.judged is not None]
        marks.append((outcome.value, _STYLES[outcome], np.array(rows), np.array(matched)))
    caption = (
        "Dark: similar. A revisit is a dark line along which the matches lie; a look-alike place is another one. Where there are many "
        "frames or keyframes, a cell is the largest similarity of its block."
    )
    plot = plot_similarity(result.descriptors, np.asarray(result.gallery.descriptors), marks)
    return Figure(plot, "Similarity of every frame to every keyframe.", f"{title}. {caption}" if title else caption)


def precision_recall_section(result: BagResult, others: Sequence[tuple[str, PrecisionRecall]] = ()) -> Section:
    """Precision-recall curve, with those of other models for comparison, and score against distance."""
    metrics = result.metrics
    point = None
    if metrics["precision_of_accepted"] is not None and metrics["recall_of_accepted"] is not None:
        point = (metrics["recall_of_accepted"], metrics["precision_of_accepted"])
    protocol = metrics["protocol"]
    blocks: list[Block] = [
        Figure(
            plot_precision_recall([(metrics["encoder"]["name"], result.sweep), *others], point),
            "Precision over recall of the best candidate, for every threshold.",
            "Curve: best candidate of each frame at every threshold, by itself. Diamond: what was accepted, with agreement over time.",
        ),
        Figure(
            plot_score_distance(outcome_groups(result.frames), protocol["radius_m"], protocol["matcher"]["score_threshold"]),
            "Score over distance of each frame's match.",
            "A good descriptor puts everything right of the dashed line below everything left of it.",
        ),
    ]
    return Section("Precision and recall", blocks)


def pair_sections(result: BagResult) -> list[Section]:
    """Best and worst matches as pictures; a section without pairs is left out."""
    sections = []
    if result.pairs.best:
        caption = "Query left, matched gallery image right. Highest scores among the true matches, spread over the run."
        sections.append(Section("Best matches", [ImagePairs(result.pairs.best, caption)]))
    if result.pairs.worst:
        caption = "Accepted false matches first, then wrong candidates that were rejected, then true matches that lie farthest off."
        sections.append(Section("Worst matches", [ImagePairs(result.pairs.worst, caption)]))
    return sections


def protocol_section(metrics: dict[str, Any], ways: Mapping[str, dict[str, Any]] | None = None) -> Section:
    """How everything above was counted, and with what.

    Args:
        ways: settings of the matcher by their names, where several were tried; None: those of the metrics.
    """
    protocol, gallery, encoder = metrics["protocol"], metrics["gallery"], metrics["encoder"]
    several = ways is not None
    tried = ways or {"matcher": protocol["matcher"]}
    matchers = [(f"matcher, {name}" if several else name, _listed(values)) for name, values in tried.items()]
    skipped = f"; {metrics['n_skipped']} skipped: {metrics['skipped']}" if metrics["n_skipped"] else ""
    rules = (
        ("correct match", protocol["correct_match"]),
        ("opportunity", protocol["opportunity"]),
        ("ignored ring", f"matches up to {protocol['ignore_ring_m']:g} m beyond the radius are neither true nor false"),
        ("yaw limit", "none" if protocol["max_yaw_deg"] is None else f"{protocol['max_yaw_deg']:g} deg"),
        ("excluded by time", f"keyframes within {protocol['exclude_time_s']:g} s of the frame"),
        ("recall@K", protocol["recall_at_k"]),
        ("average precision", protocol["average_precision"]),
        ("precision of accepted", protocol["precision_of_accepted"]),
        ("recall of accepted", protocol["recall_of_accepted"]),
        ("after agreement", protocol["with_agreement"]),
        ("frames dropped live", protocol["n_would_drop"]),
        ("errors", protocol["errors"]),
        ("latency", protocol["latency_ms"]),
        ("frames", protocol["frames"] + skipped),
        *matchers,
        ("gallery", f"{gallery['path']}: {gallery['n_keyframes']} keyframes in frame '{gallery['map_frame']}'"),
        ("gallery network", f"{gallery['network']}, {gallery['dimension']}-D, pair {gallery['pair_id']}"),
        *([] if several else [("query network", f"{encoder['name']}, pair {encoder['pair_id']}"), ("run", metrics["source"]["path"])]),
    )
    return Section("Protocol", [Table(rules)])


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items())


def outcome_groups(frames: Sequence[FrameOutcome]) -> list[PointGroup]:
    """Frames by outcome, as the plots take them; outcomes without a frame are left out."""
    start_ns = frames[0].result.stamp_ns if frames else 0
    groups = []
    for outcome, style in _STYLES.items():
        chosen = [frame for frame in frames if frame.outcome is outcome]
        if chosen:
            groups.append(
                PointGroup(
                    outcome.value,
                    style,
                    np.array([_position(frame) for frame in chosen]),
                    np.array([_judged_position(frame) for frame in chosen]),
                    np.array([frame.best_score for frame in chosen]),
                    np.array([frame.position_error_m for frame in chosen]),
                    np.array([(frame.result.stamp_ns - start_ns) / 1e9 for frame in chosen]),
                )
            )
    return groups


def _judged_position(frame: FrameOutcome) -> tuple[float, float]:
    if frame.judged is None or frame.judged.pose is None:
        return np.nan, np.nan
    return frame.judged.pose.position[:2]


def _position(frame: FrameOutcome) -> tuple[float, float]:
    assert frame.record.pose is not None  # checked before the run
    return frame.record.pose.position[:2]
