"""Choose the pairs that a person should see, best and worst, and read their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import ImageError
from asymvpr_core.evaluation.outcomes import FrameOutcome, Outcome
from asymvpr_core.evaluation.report import ImagePair, Tone, number, picture
from asymvpr_core.retrieval.joint import PriorGallery

N_PAIRS = 6


@dataclass(frozen=True)
class PairChoice:
    """A query and a gallery image to be shown side by side, and what to write beneath."""

    query_index: int
    keyframe_index: int
    verdict: str
    tone: Tone
    query_label: str
    facts: tuple[tuple[str, str], ...]
    note: str = ""


@dataclass(frozen=True)
class PicturePairs:
    """Pairs of a run: `best` are true matches, `worst` are wrong or farthest off, the worst first."""

    best: tuple[ImagePair, ...]
    worst: tuple[ImagePair, ...]


def choose_apart(order: Iterable[int], count: int, min_gap: int, taken: Sequence[int] = ()) -> list[int]:
    """The first `count` of `order` that are at least `min_gap` from each other and from those `taken`.

    Neighbouring frames of a run look alike, so that without a gap all pairs would show one moment.
    """
    chosen: list[int] = []
    for index in order:
        if len(chosen) == count:
            break
        if all(abs(index - other) >= min_gap for other in (*chosen, *taken)):
            chosen.append(index)
    return chosen


def picture_pairs(frames: Sequence[FrameOutcome], dataset: Dataset, gallery: PriorGallery) -> PicturePairs:
    """Best and worst pairs of a run, spread over it.

    Best: true matches by score. Worst: false matches by score, then rejected frames whose best
    candidate is wrong by score, then the true matches that are farthest off.
    """
    gap = max(1, len(frames) // (4 * N_PAIRS))
    by_score = sorted((i for i, f in enumerate(frames) if f.judged is not None), key=lambda i: -frames[i].best_score)
    best = choose_apart([i for i in by_score if frames[i].outcome is Outcome.TRUE], N_PAIRS, gap)
    false = [i for i in by_score if frames[i].outcome is Outcome.FALSE]
    wrong = [i for i in by_score if not frames[i].result.accepted and not frames[i].judged_correct]
    far = sorted((i for i in by_score if frames[i].outcome is Outcome.TRUE), key=lambda i: -frames[i].position_error_m)
    worst: list[int] = []
    for order in (false, wrong, far):
        worst += choose_apart(order, N_PAIRS - len(worst), gap, (*worst, *best) if order is far else worst)
    start_ns = frames[0].result.stamp_ns if frames else 0
    choices = [_choice(i, frames[i], start_ns) for i in (*best, *worst)]
    pairs = load_pairs(choices, dataset, gallery)
    return PicturePairs(tuple(pairs[: len(best)]), tuple(pairs[len(best) :]))


def load_pairs(choices: Sequence[PairChoice], dataset: Dataset, gallery: PriorGallery) -> list[ImagePair]:
    """Read the pictures of `choices`, in their order; a gallery picture that is gone is left out, and the label says so."""
    wanted = sorted({choice.query_index for choice in choices})
    queries = {index: picture(image) for index, image in dataset.read_images(wanted)}
    pairs = []
    for choice in choices:
        label, keyframe = f"gallery image {choice.keyframe_index}", None
        try:
            keyframe = picture(gallery.read_image(choice.keyframe_index))
        except ImageError:
            label += ", its file cannot be read any more"
        query = queries[choice.query_index]
        pairs.append(ImagePair(query, keyframe, choice.query_label, label, choice.verdict, choice.facts, choice.tone, choice.note))
    return pairs


def _choice(index: int, frame: FrameOutcome, start_ns: int) -> PairChoice:
    assert frame.judged is not None  # only such frames are chosen
    verdict, tone, note = "Wrong candidate, rejected", "warn", frame.result.reason
    if frame.outcome is Outcome.TRUE:
        verdict, tone, note = "True match", "good", ""
    elif frame.outcome is Outcome.FALSE:
        verdict, tone = "False match, accepted", "bad"
    facts = [("score", f"{frame.judged.score:.3f}"), ("distance", f"{number(frame.position_error_m, 1)} m")]
    if frame.heading_error_deg == frame.heading_error_deg:  # not NaN
        facts.append(("heading error", f"{frame.heading_error_deg:.0f} deg"))
    label = f"frame at {(frame.result.stamp_ns - start_ns) / 1e9:.1f} s"
    return PairChoice(index, frame.judged.keyframe_index, verdict, tone, label, tuple(facts), note)  # type: ignore[arg-type]
