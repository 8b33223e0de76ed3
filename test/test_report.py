"""The HTML report: self-contained, escaped, complete; the figures are drawings that hold their data."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from tiny_artefacts import make_picture

from asymvpr_core.errors import EvaluationError
from asymvpr_core.evaluation.loop_closure import precision_recall
from asymvpr_core.evaluation.plots import (
    BAD,
    GOOD,
    PointGroup,
    plot_map,
    plot_precision_recall,
    plot_recall,
    plot_score_distance,
    plot_timeline,
)
from asymvpr_core.evaluation.report import (
    Board,
    BoardImage,
    Boards,
    Column,
    Figure,
    ImagePair,
    ImagePairs,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    interval,
    number,
    percent,
    render_report,
)


class _Page(HTMLParser):
    """Collects what the tests ask about; a tag that is closed wrongly fails the parse."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, f"tags left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attributes)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.ids |= {value for name, value in attrs if name == "id"}

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)


def _group(label: str, style, xy: list[tuple[float, float]], matched=None) -> PointGroup:
    points = np.array(xy, dtype=float).reshape(-1, 2)
    there = points + 1.0 if matched is None else np.array(matched, dtype=float)
    distance = np.linalg.norm(there - points, axis=1)
    return PointGroup(label, style, points, there, np.linspace(0.4, 0.9, len(points)), distance, np.arange(len(points), dtype=float))


def _everything() -> list[Section]:
    svg = plot_map([_group("true match", GOOD, [(0, 0), (1, 2)])], np.array([[0.0, 0.0], [2.0, 2.0]]))
    _, png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))
    facts = (("score", "0.91"),)
    pair = ImagePair(make_picture(1), None, "frame at 1.5 s", "gallery image 3", "False match", facts, "bad", "why it was accepted")
    table = Table((("latency", "12.5"),), (Column("what", numeric=False), Column("value", "ms")))
    return [
        Section("Key numbers", [KeyFigures((KeyFigure("precision", "98.5", "%", "2 false", "bad"),))], "What counts."),
        Section("Text & table", [Text(("One paragraph.",)), table]),
        Section("Figures", [Figure(svg, "a map", "the caption"), Figure(png.tobytes(), "a picture")]),
        Section("Pairs", [ImagePairs((pair,), "Query left.")]),
    ]


def test_report_holds_everything_and_loads_nothing(tmp_path):
    html = render_report(tmp_path / "report.html", "A title", _everything(), subtitle="a subtitle", footer="a footer").read_text()
    page = _Page(html)
    for words in (
        "A title", "a subtitle", "a footer", "What counts.", "precision", "98.5", "2 false", "One paragraph.", "value", "[ms]", "12.5",
        "the caption", "Query left.", "False match", "why it was accepted", "frame at 1.5 s", "score", "0.91", "no picture",
    ):  # fmt: skip
        assert words in page.text
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert not re.search(r"<script|@import|url\(", html)
    assert {link[1:] for link in page.links if link.startswith("#")} == page.ids == {"key-numbers", "text-table", "figures", "pairs"}
    assert all(image["alt"] for image in page.images)


def test_pictures_survive_the_report(tmp_path):
    page = _Page(render_report(tmp_path / "report.html", "Title", _everything()).read_text())
    kinds = [image["src"].split(";")[0] for image in page.images]
    assert kinds == ["data:image/svg+xml", "data:image/png", "data:image/jpeg"]
    jpeg = base64.b64decode(page.images[2]["src"].split(",")[1])
    shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert shown.shape == (120, 160, 3)
    assert np.abs(shown.astype(int) - make_picture(1)).mean() < 5  # JPEG's loss, and red is still red


def test_boards_say_in_words_what_their_colours_say(tmp_path):
    answers = (
        BoardImage(make_picture(1), "1", ("score 0.9", "3.0 m"), "good", "✓ correct"),
        BoardImage(None, "2", ("score 0.8",), "bad", "✗ wrong"),
    )
    board = Board(BoardImage(make_picture(0), "query 7", ("night",)), answers, "Wrong", "bad", "why <it> is wrong")
    html = render_report(tmp_path / "report.html", "Title", [Section("Failures", [Boards((board,), "the caption")])]).read_text()
    page = _Page(html)
    for words in ("the caption", "query 7", "night", "✓ correct", "✗ wrong", "3.0 m", "no picture", "why <it> is wrong", "Wrong"):
        assert words in page.text
    assert [image["alt"] for image in page.images] == ["query 7, night", "1, ✓ correct, score 0.9, 3.0 m"]
    assert html.count('class="tone-good"') == 1 and html.count('class="tone-bad"') == 1 and "--answers: 2" in html


def test_the_report_has_a_dark_side_that_is_not_printed(tmp_path):
    html = render_report(tmp_path / "report.html", "Title", _everything()).read_text()
    assert "@media screen and (prefers-color-scheme: dark)" in html
    assert '<meta name="viewport" content="width=device-width' in html and "@media print" in html


def test_interval():
    assert interval(0.935, (0.901, 0.962)) == "93.5\n(90.1 to 96.2)"
    assert interval(0.4, (0.1, 0.8), share=False) == "0.40\n(0.10 to 0.80)"
    assert interval(0.935, None) == "93.5" and interval(None, (0.0, 1.0)) == "–"


def test_large_pictures_are_shrunk_with_their_aspect_ratio():
    pair = ImagePair(np.zeros((900, 1600, 3), np.uint8), None, "", "", "")
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(pair.left_uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (270, 480, 3)


def test_text_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('x')</script> & \"quotes\""
    pair = ImagePair(make_picture(0), None, evil, evil, evil, ((evil, evil),), note=evil)
    blocks = [
        Text((evil,)), KeyFigures((KeyFigure(evil, evil, evil, evil),)), Table(((evil,),), (Column(evil, evil),), evil),
        Figure(b"\x89PNG", evil, evil), ImagePairs((pair,), evil),
    ]  # fmt: skip
    html = render_report(tmp_path / "report.html", evil, [Section(evil, blocks, evil)] * 3, subtitle=evil, footer=evil).read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    _Page(html)


def test_uneven_tables_and_unwritable_reports_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="row of 1 cells; expected 2"):
        Table((("a", "b"), ("c",)), caption="uneven")
    with pytest.raises(EvaluationError, match="cannot be written"):
        render_report(tmp_path / "missing" / "report.html", "Title", [])


@pytest.mark.parametrize(("value", "shown"), [(0.935, "93.5"), (1.0, "100.0"), (None, "–")])
def test_percent(value, shown):
    assert percent(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(1.005, "1.00"), (float("nan"), "–"), (float("inf"), "–"), (None, "–")])
def test_number(value, shown):
    assert number(value) == shown


def _count(svg: bytes, collection: int) -> int:
    """How many markers a scatter drew: matplotlib writes one <use> for each."""
    text = svg.decode()
    part = re.search(rf'<g id="PathCollection_{collection}">(.*?)\n   </g>', text, re.S)
    return part.group(1).count("<use ")


def test_map_draws_every_point_link_and_polygon():
    gallery = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]])
    true = _group("true match", GOOD, [(1, 1), (11, 1)], [(0, 0), (10, 0)])
    false = _group("false match", BAD, [(19, 1)], [(0, 0)])
    square = np.array([[2.0, 4.0], [6.0, 4.0], [6.0, 8.0], [2.0, 8.0]])
    svg = plot_map([true, false], gallery, [square, square + 8])
    assert [_count(svg, i) for i in (1, 2, 3)] == [3, 2, 1]
    text = svg.decode()
    assert text.count('id="PolyCollection_1"') == 1 and text.count('id="LineCollection_') == 2
    assert plot_map([true, false], gallery, [square, square + 8]) == svg  # the same data gives the same bytes


@pytest.mark.parametrize("span", [(0.0, 0.0), (1000.0, 1.0), (1.0, 1000.0), (30.0, 30.0)])
def test_maps_of_any_shape_have_a_sensible_size(span):
    gallery = np.array([[448_200.0, 5_411_800.0], [448_200.0 + span[0], 5_411_800.0 + span[1]]])
    width, height = (float(v) for v in re.search(rb'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"', plot_map([], gallery)).groups())
    assert width == pytest.approx(547.2) and 0.25 < height / width < 1.1


def test_a_large_gallery_is_drawn_as_a_picture():
    # A million markers as vectors would be a file of a hundred megabytes.
    grid = np.stack(np.meshgrid(np.arange(100.0), np.arange(100.0)), axis=-1).reshape(-1, 2)
    assert len(plot_map([], grid)) < 200_000


def test_recall_over_k_draws_every_system():
    hits = {"a": np.array([[True, False], [False, True]]), "b": np.array([[True, True], [False, False]])}
    svg = plot_recall(hits).decode()
    assert "a, Recall@1 50.0 %" in svg and "b, Recall@1 50.0 %" in svg


def test_many_curves_have_their_legend_outside():
    sweep = precision_recall(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    many = plot_precision_recall([(name, sweep) for name in "abcd"]).decode()
    assert "a, AP 0.833" in many and "at 100 % precision" not in many
    assert "a: recall 50.0 % at 100 % precision" in plot_precision_recall([(name, sweep) for name in "ab"]).decode()


def test_other_plots_draw_every_finite_point():
    group = _group("false match", BAD, [(0, 0), (1, 0), (2, 0)], [(0, 1), (np.nan, np.nan), (500, 0)])
    assert _count(plot_score_distance([group], 10.0, 0.5), 1) == 2
    assert _count(plot_timeline([group], 0.5), 1) == 3


def test_plots_without_a_point_are_empty_not_broken():
    nothing = _group("true match", GOOD, [], np.zeros((0, 2)))
    for svg in (plot_score_distance([nothing], 10.0), plot_timeline([nothing])):
        assert svg.startswith(b"<?xml") and b"PathCollection" not in svg
    assert _count(plot_map([nothing], np.zeros((1, 2))), 1) == 1


def test_precision_recall_plot_takes_several_curves_and_none():
    sweep = precision_recall(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    empty = precision_recall(np.zeros(0), np.zeros(0, bool), 0)
    one = plot_precision_recall([("trained", sweep)], (0.5, 1.0))
    two = plot_precision_recall([("trained", sweep), ("untrained", sweep), ("nothing", empty)])
    assert one.count(b'id="line2d_') < two.count(b'id="line2d_')
    assert b"#1f6fb2" in one and b"#c7772b" not in one and b"#c7772b" in two
