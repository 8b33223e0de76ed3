"""The report of a calibration: thresholds, reliability diagram, what was shown and what held on unseen frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from asymvpr_core.evaluation.calibration_fit import Samples
from asymvpr_core.evaluation.drawing import CURVES, INK, MARKERS, MUTED, STYLE, legend_above, new_figure, to_svg
from asymvpr_core.evaluation.held_out import HeldOut
from asymvpr_core.evaluation.report import (
    Block,
    Column,
    Figure,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    number,
    percent,
    render_report,
)
from asymvpr_core.retrieval.calibration import OperatingPoints, ScoreCalibration, Search

if TYPE_CHECKING:
    from asymvpr_core.evaluation.calibrate import CalibrationResult

_RIGHT, _WRONG = "#16866b", "#cf3f2e"
_BASIS = {"run": "a labelled run", "gallery": "the gallery's own pictures"}
_TARGETS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def write_calibration_report(out_html: Path, result: CalibrationResult) -> None:
    """Write the report of a calibration.

    Raises:
        EvaluationError: the file cannot be written.
    """
    calibration = result.calibration
    target = calibration.settings["calibration"]["target_precision"]
    parts: dict[Search, ScoreCalibration | None] = {"prior": calibration.prior, "session": calibration.session}
    sections = [
        Section("Summary", [_key_figures(parts["prior"], result, target), *[Text((reason,)) for reason in result.missing.values()]]),
        Section(
            "Reliability",
            [
                Figure(
                    plot_reliability(result.held_out), "Share of right candidates over their stated probability.",
                    "Each frame's probability comes from the two thirds of the frames that it is not in. On the diagonal, 0.8 means "
                    "that four of five are right. Below it, the calibration promises too much.",
                ),
                _held_out_table(result),
            ],
            "Does the stated probability hold on frames that the calibration has not seen?",
        ),
    ]  # fmt: skip
    for search, scores in parts.items():
        if scores is not None:
            sections.append(_search_section(search, scores, result.samples[search], target))
    sections.append(_protocol_section(result))
    subtitle = f"{calibration.model['path']} on gallery {calibration.gallery['path']}"
    render_report(out_html, "Calibration of a gallery", sections, subtitle=subtitle)


def plot_reliability(tried: Mapping[Search, HeldOut]) -> bytes:
    """SVG of the reliability diagram; markers grow with the number of frames."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.4)
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1.0, ls=(0, (4, 3)), label="calibrated")
        for row, (name, found) in enumerate(tried.items()):
            bins = found.bins()
            x, y = [b.probability for b in bins], [b.share for b in bins]
            colour, marker = CURVES[row % len(CURVES)], MARKERS[row % len(MARKERS)]
            label = f"{name}, calibration error {found.calibration_error:.3f}"
            axes.plot(x, y, color=colour, lw=1.2, zorder=3)
            sizes = [20 + 180 * b.frames / len(found.correct) for b in bins]
            axes.scatter(x, y, s=sizes, c=colour, marker=marker, linewidths=0, zorder=4, label=label, clip_on=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("stated probability")
        axes.set_ylabel("share that was right")
        axes.grid(True)
        legend_above(figure, axes)
        return to_svg(figure)


def plot_scores(samples: Samples, scores: ScoreCalibration, threshold: float | None) -> bytes:
    """SVG of the scores of right and wrong candidates, with the probability over the score."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(3.6)
        edges = np.linspace(float(samples.scores.min()), float(samples.scores.max()) + 1e-9, 41)
        for name, chosen, colour in (("right", samples.correct, _RIGHT), ("wrong", ~samples.correct, _WRONG)):
            label = f"{name} ({int(chosen.sum())})"
            axes.hist(samples.scores[chosen], bins=edges.tolist(), color=colour, alpha=0.55, label=label)
        axes.set_xlabel("score of the best candidate (cosine)")
        axes.set_ylabel("frames")
        other = axes.twinx()
        grid = np.linspace(edges[0], edges[-1], 400)
        axes.plot([], [], color=INK, lw=1.6, label="probability of being right")
        other.plot(grid, scores.probability(grid), color=INK, lw=1.6)
        other.set_ylim(0, 1.02)
        other.set_ylabel("probability")
        other.spines["right"].set_visible(True)
        if threshold is not None:
            axes.axvline(threshold, color=INK, lw=1.0, ls=(0, (1, 2)), label=f"threshold {threshold:.3f}")
        legend_above(figure, axes)
        return to_svg(figure)


def _key_figures(prior: ScoreCalibration | None, result: CalibrationResult, target: float) -> KeyFigures:
    assert prior is not None  # without it nothing is written
    figures = []
    for way, points in _ways(prior).items():
        threshold = points.threshold_for(target)
        note = f"for a precision of {target:g}" if threshold is not None else f"{points.best_bound:.3f} is the most that was shown"
        figures.append(KeyFigure(f"threshold, {way}", number(threshold, 3), "", note))
    figures.append(
        KeyFigure("frames", str(prior.frames), "", f"{prior.correct} with a right best candidate, from {_BASIS[prior.basis]}")
    )  # fmt: skip
    errors = result.calibration.errors
    if errors is not None:
        yaw = "" if errors.yaw_std_deg is None else f"yaw {errors.yaw_std_deg:.1f} deg"
        figures.append(KeyFigure("standard deviation of a match", number(errors.position_std_m), "m", yaw))
    return KeyFigures(tuple(figures))


def _ways(scores: ScoreCalibration) -> dict[str, OperatingPoints]:
    """The thresholds by what they are for."""
    ways: dict[str, OperatingPoints] = {"single frames": scores.single}
    if scores.agreed is not None:
        ways[f"sequence {scores.agreed.settings['sequence']}"] = scores.agreed
    return ways


def _held_out_table(result: CalibrationResult) -> Table:
    splits = {f"{search}, single frames": found.splits for search, found in result.held_out.items()}
    prior = result.calibration.prior
    if prior is not None and prior.agreed is not None:
        splits = {f"prior, {list(_ways(prior))[-1]}": result.held_out_agreed, **splits}
    rows = [
        (
            name, f"{part} of {len(parts)}", number(split.threshold, 3), str(split.frames), str(split.accepted),
            percent(split.precision, 2), percent(split.recall),
        )
        for name, parts in splits.items()
        for part, split in enumerate(parts, start=1)
    ]  # fmt: skip
    columns = (
        Column("search", numeric=False), Column("part", numeric=False), Column("threshold"), Column("frames"), Column("accepted"),
        Column("precision", "%"), Column("recall", "%"),
    )  # fmt: skip
    target = result.calibration.settings["calibration"]["target_precision"]
    caption = (
        f"Each third of the frames at the threshold that the other two thirds give for {target:g}. "
        "A dash as threshold: two thirds of the frames cannot show so much."
    )
    return Table(tuple(rows), columns, caption)


def _search_section(search: str, scores: ScoreCalibration, samples: Samples, target: float) -> Section:
    ways = _ways(scores)
    rows = [
        (f"{wanted:g}", *[number(points.threshold_for(wanted), 3) for points in ways.values()]) for wanted in sorted({*_TARGETS, target})
    ]
    columns = (Column("wanted precision", numeric=False), *[Column(f"threshold, {way}") for way in ways])
    blocks: list[Block] = [
        Figure(
            plot_scores(samples, scores, scores.single.threshold_for(target)),
            f"Scores of right and wrong best candidates, {search} search, frame by frame.",
        ),
        Table(tuple(rows), columns, "A dash: these frames cannot show so much."),
    ]
    intro = f"Counted on {scores.frames} frames from {_BASIS[scores.basis]}; {scores.correct} have a right best candidate."
    return Section(f"{search.capitalize()} search", blocks, intro)


def _protocol_section(result: CalibrationResult) -> Section:
    calibration = result.calibration
    settings = {**calibration.settings["calibration"], **{k: v for k, v in calibration.settings.items() if k != "calibration"}}
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if not isinstance(value, dict))
    rows = [(name.replace("_", " "), "none" if value is None else str(value)) for name, value in calibration.protocol.items()]
    rows += [("settings", shown), ("gallery", calibration.gallery["path"]), ("pair", calibration.gallery["pair_id"])]
    rows += [("query model", calibration.model["path"])]
    return Section("Protocol", [Table(tuple(rows))])
