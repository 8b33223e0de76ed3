"""Prediction boards: a query and what it was answered, as pictures in green and red frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from asymvpr_core.config import EvaluationSettings
from asymvpr_core.errors import ImageError
from asymvpr_core.evaluation.encoders import Images
from asymvpr_core.evaluation.predictions import Predictions
from asymvpr_core.evaluation.protocol import horizontal_distance_m
from asymvpr_core.evaluation.report import Board, BoardImage, Boards, Section, Tone, number, picture
from asymvpr_core.types import ImageRecord

_ANSWERS = 5
_WIDTH_PX = 240
_MARKS: dict[Tone, str] = {"good": "✓ correct", "bad": "✗ wrong", "neutral": ""}


def board_sections(predictions: Predictions, queries: Images, gallery: Images, settings: EvaluationSettings) -> list[Section]:
    """The failures, most confident first, and, unless `only_wrong`, the correct matches, least confident first.

    Pictures of the two ends of the same list: where a threshold would go wrong first from either side.
    """
    if settings.boards == 0:
        return []
    if not predictions.judged:
        return _unjudged_sections(predictions, queries, gallery, settings.boards)
    by_score = np.argsort(-predictions.scores[:, 0], kind="stable")
    wrong = by_score[~predictions.correct[by_score]][: settings.boards]
    right = by_score[::-1][predictions.correct[by_score[::-1]]][: settings.boards]
    sections = []
    if len(wrong):
        caption = f"{len(wrong)} of {int((~predictions.correct).sum())} queries whose best match is wrong; the most confident first."
        boards = load_boards(predictions, wrong.tolist(), queries, gallery)
        sections.append(Section("Failures", [Boards(boards, caption)], "Green frames are correct matches, red ones are not."))
    if len(right) and not settings.only_wrong:
        caption = f"{len(right)} of {int(predictions.correct.sum())} queries whose best match is correct; the least confident first."
        boards = load_boards(predictions, right.tolist(), queries, gallery)
        sections.append(Section("Correct, but barely", [Boards(boards, caption)]))
    return sections


def _unjudged_sections(predictions: Predictions, queries: Images, gallery: Images, most: int) -> list[Section]:
    """The most and the least confident answers, without colours: nobody knows which are correct."""
    by_score = np.argsort(-predictions.scores[:, 0], kind="stable")
    first = by_score[:most]
    last = by_score[len(first) :][::-1][:most]
    sections = []
    for title, rows, order in (("Most confident answers", first, "most"), ("Least confident answers", last, "least")):
        if len(rows):
            caption = f"{len(rows)} of {len(predictions)} queries by the score of their best answer, the {order} confident first."
            sections.append(Section(title, [Boards(load_boards(predictions, rows.tolist(), queries, gallery), caption)]))
    return sections


def load_boards(predictions: Predictions, rows: Sequence[int], queries: Images, gallery: Images) -> tuple[Board, ...]:
    """The boards of some queries, in the order of `rows`; a picture that is gone is left out, and the board says so."""
    answers = {row: [i for i in predictions.indices[row, :_ANSWERS].tolist() if i >= 0] for row in rows}
    missed = {row: _nearest_positive(predictions, row, queries, gallery) for row in rows}
    asked = _pictures(queries, rows)
    found = _pictures(gallery, [i for row in rows for i in (*answers[row], *([] if missed[row] is None else [missed[row]]))])
    boards = []
    for row in rows:
        query, images = queries.records[row], []
        for rank, index in enumerate(answers[row]):
            facts = (f"score {predictions.scores[row, rank]:.3f}", *_distance(query, gallery.records[index]))
            tone: Tone = "neutral" if not predictions.judged else "good" if predictions.hits[row, rank] else "bad"
            images.append(BoardImage(found.get(index), str(rank + 1), facts, tone, _MARKS[tone]))
        nearest = missed[row]
        if nearest is not None:
            distance = _distance(query, gallery.records[nearest])
            label = "nearest correct" if distance else "a correct one"
            images.append(BoardImage(found.get(nearest), label, (f"gallery image {nearest}", *distance)))
        condition = () if predictions.conditions is None else (predictions.conditions[row],)
        boards.append(Board(BoardImage(asked.get(row), f"query {row}", condition), tuple(images), *_verdict(predictions, row)))
    return tuple(boards)


def _nearest_positive(predictions: Predictions, row: int, queries: Images, gallery: Images) -> int | None:
    """The correct gallery image that lies nearest, where no answer that is shown is correct; without positions the middle one."""
    positives = predictions.ground_truth[row].tolist() if predictions.judged else []
    if not positives or predictions.hits[row, :_ANSWERS].any():
        return None
    if not all(_distance(queries.records[row], gallery.records[index]) for index in positives):
        return int(positives[len(positives) // 2])  # of a window of frames the query's own
    return int(min(positives, key=lambda index: horizontal_distance_m(queries.records[row], gallery.records[index])))


def _distance(query: ImageRecord, image: ImageRecord) -> tuple[str, ...]:
    """How far apart the two lie, as a fact of a board; none where nobody knows."""
    distance = horizontal_distance_m(query, image)
    return () if np.isnan(distance) else (f"{number(distance, 1)} m",)


def _verdict(predictions: Predictions, row: int) -> tuple[str, Tone, str]:
    """(verdict, tone, note) of a query."""
    if not predictions.judged:
        return "Not judged", "neutral", ""
    if predictions.correct[row]:
        return "Correct", "good", ""
    if not predictions.evaluable[row]:
        return "Wrong", "warn", "The gallery holds no correct match."
    hits = np.flatnonzero(predictions.hits[row])
    if len(hits):
        return "Wrong", "bad", f"The first correct match is number {hits[0] + 1}."
    return "Wrong", "bad", f"No correct match among the first {predictions.indices.shape[1]}."


def _pictures(images: Images, wanted: Iterable[int]) -> dict[int, np.ndarray]:
    order = sorted(set(wanted))
    try:
        return {index: picture(image, _WIDTH_PX) for index, image in images.read_images(order)}
    except ImageError:
        found: dict[int, np.ndarray] = {}
        for index in order:  # one by one, so that only what is gone is missing
            try:
                found |= {i: picture(image, _WIDTH_PX) for i, image in images.read_images([index])}
            except ImageError:
                continue
        return found
