"""One self-contained HTML file from sections of tables, figures, picture pairs and text."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar, Literal

import cv2
import jinja2
import numpy as np

from asymvpr_core import __version__
from asymvpr_core.errors import EvaluationError
from asymvpr_core.manifest import write_text_atomically

Tone = Literal["good", "bad", "warn", "neutral"]
_TEMPLATES = Path(__file__).parent / "templates"
_PICTURE_WIDTH = 480
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Text:
    """Paragraphs, one string each."""

    paragraphs: tuple[str, ...]
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class KeyFigure:
    """One large number: value and unit as text ("93.5", "%"), what it is, and what qualifies it."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    tone: Tone = "neutral"


@dataclass(frozen=True)
class KeyFigures:
    """A row of large numbers."""

    figures: tuple[KeyFigure, ...]
    kind: ClassVar[str] = "key_figures"


@dataclass(frozen=True)
class Column:
    """Head of a table column; numbers are aligned right."""

    name: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of text cells; without columns the first cell of each row is its name.

    Raises:
        EvaluationError: a row with another number of cells than there are columns.
    """

    rows: tuple[tuple[str, ...], ...]
    columns: tuple[Column, ...] = ()
    caption: str = ""
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        width = len(self.columns) or (len(self.rows[0]) if self.rows else 0)
        for row in self.rows:
            if len(row) != width:
                raise EvaluationError(f"table '{self.caption}' has a row of {len(row)} cells", expected=f"{width}")


@dataclass(frozen=True)
class Figure:
    """A plot or picture, SVG or PNG bytes; `description` is read out where it cannot be seen."""

    image: bytes
    description: str
    caption: str = ""
    kind: ClassVar[str] = "figure"

    @property
    def uri(self) -> str:
        png = self.image.startswith(b"\x89PNG")
        return _uri("image/png" if png else "image/svg+xml", self.image)


@dataclass(frozen=True)
class ImagePair:
    """A query beside its match: two `(H, W, 3)` uint8 RGB pictures, or None where one cannot be shown.

    `facts` are (name, value with unit); `verdict` is a short sentence in the colour of `tone`,
    `note` what explains it.
    """

    left: np.ndarray | None
    right: np.ndarray | None
    left_label: str
    right_label: str
    verdict: str
    facts: tuple[tuple[str, str], ...] = ()
    tone: Tone = "neutral"
    note: str = ""

    @property
    def left_uri(self) -> str | None:
        return None if self.left is None else _jpeg_uri(self.left)

    @property
    def right_uri(self) -> str | None:
        return None if self.right is None else _jpeg_uri(self.right)


@dataclass(frozen=True)
class ImagePairs:
    """A grid of pairs."""

    pairs: tuple[ImagePair, ...]
    caption: str = ""
    kind: ClassVar[str] = "pairs"


@dataclass(frozen=True)
class BoardImage:
    """One picture of a board, `(H, W, 3)` uint8 RGB or None where it cannot be shown, in a frame of the colour of `tone`.

    `mark` is a word that says what the colour says, for those who cannot tell it.
    """

    image: np.ndarray | None
    label: str
    facts: tuple[str, ...] = ()
    tone: Tone = "neutral"
    mark: str = ""

    @property
    def uri(self) -> str | None:
        return None if self.image is None else _jpeg_uri(self.image)

    @property
    def description(self) -> str:
        return ", ".join(part for part in (self.label, self.mark, *self.facts) if part)


@dataclass(frozen=True)
class Board:
    """A query with its answers in the order of their scores; `verdict` is a short sentence in the colour of `tone`."""

    query: BoardImage
    answers: tuple[BoardImage, ...]
    verdict: str
    tone: Tone = "neutral"
    note: str = ""


@dataclass(frozen=True)
class Boards:
    """Boards one below the other."""

    boards: tuple[Board, ...]
    caption: str = ""
    kind: ClassVar[str] = "boards"


Block = Text | KeyFigures | Table | Figure | ImagePairs | Boards


@dataclass(frozen=True)
class Section:
    """A headed part of the report; `intro` says in a sentence or two what is seen."""

    title: str
    blocks: Sequence[Block]
    intro: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render_report(out_html: Path, title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> Path:
    """Write the report and return its path; nothing in it is loaded from elsewhere.

    Raises:
        EvaluationError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("report.html.j2").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        footer=footer,
        version=__version__,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    try:
        write_text_atomically(Path(out_html), html)
    except OSError as error:
        raise EvaluationError(f"{out_html} cannot be written: {error.strerror}", remedy="free space or give another --out") from error
    return Path(out_html)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent without its sign ("93.5"), or a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits, or a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def interval(value: float | None, bounds: Sequence[float] | None, *, share: bool = True) -> str:
    """ "93.5 (90.1 to 96.2)": a value and its interval, as percent where it is a `share`; without bounds the value alone."""
    show = percent if share else number
    return show(value) if value is None or bounds is None else f"{show(value)}\n({show(bounds[0])} to {show(bounds[1])})"


def picture(image: np.ndarray, most_px: int = _PICTURE_WIDTH) -> np.ndarray:
    """`image` shrunk to the width that a report shows, `(H, W, 3)` uint8 RGB; smaller ones stay."""
    height, width = image.shape[:2]
    if width <= most_px:
        return image
    return cv2.resize(image, (most_px, max(1, round(height * most_px / width))), interpolation=cv2.INTER_AREA)


def _jpeg_uri(image: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture(image), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return _uri("image/jpeg", data.tobytes())


def _uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
