"""`place_match/image`: the frame beside its best keyframe, for people."""

from __future__ import annotations

import array
from collections.abc import Callable

import cv2
import numpy as np
from sensor_msgs.msg import Image

from asymvpr_core.errors import AsymvprError
from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.types import MatchResult
from asymvpr_ros.outputs.answer import Answer, FrameNames
from asymvpr_ros.outputs.output import Output

_HEIGHT, _STRIP = 240, 24
_ACCEPTED, _REJECTED, _PALE = (40, 200, 60), (220, 60, 40), (230, 230, 230)


class PictureOutput(Output):
    """The frame on the left, its best keyframe on the right, score and decision below; only built while someone subscribes."""

    topic, message_type, depth = "place_match/image", Image, 1

    def begin(self, gallery: PriorGallery | None, names: FrameNames) -> None:
        """Forget the keyframe's picture: its index means another gallery."""
        self._shown: tuple[int, np.ndarray] | None = None

    def messages(self, answer: Answer) -> list[Image]:
        """The picture, where the frame was compared with the prior gallery."""
        if answer.prior is None or self.publishers[0].get_subscription_count() == 0:
            return []
        board = match_board(answer.image, answer.prior, lambda index: self._keyframe_picture(answer.gallery, index))
        height, width = board.shape[:2]
        data = array.array("B")  # rclpy takes this without looking at every byte
        data.frombytes(board.tobytes())
        return [Image(header=answer.header, height=height, width=width, encoding="rgb8", step=3 * width, data=data)]

    def _keyframe_picture(self, gallery: PriorGallery | None, index: int) -> np.ndarray | None:
        if gallery is None:
            return None
        if self._shown is None or self._shown[0] != index:
            try:
                self._shown = (index, _picture(gallery, index))
            except (AsymvprError, OSError):  # a robot often carries the gallery without its pictures
                return None
        return self._shown[1]


def _picture(gallery: PriorGallery, index: int) -> np.ndarray:
    """RGB picture of a keyframe: its thumbnail where the gallery has them, else the image, from wherever it is."""
    if gallery.has_thumbnails:
        return cv2.cvtColor(gallery.read_thumbnail(index), cv2.COLOR_GRAY2RGB)
    return gallery.read_image(index)


def match_board(image: np.ndarray, result: MatchResult, picture_of: Callable[[int], np.ndarray | None]) -> np.ndarray:
    """`(264, W, 3)` uint8 RGB: frame, best keyframe (grey where it has no picture), and the decision in words."""
    query = _scaled(image)
    best = result.candidates[0] if result.candidates else None
    found = None if best is None else picture_of(best.keyframe_index)
    right = np.full_like(query, 90) if found is None else _scaled(found)
    if found is None:
        _write(right, "no candidate" if best is None else "no picture of this keyframe", (8, _HEIGHT // 2))
    strip = np.zeros((_STRIP, query.shape[1] + right.shape[1], 3), np.uint8)
    score = "" if best is None else f"keyframe {best.keyframe_index}  score {best.score:.3f}  "
    _write(strip, score + ("accepted" if result.accepted else "rejected"), (6, 17), _ACCEPTED if result.accepted else _REJECTED)
    return np.vstack([np.hstack([query, right]), strip])


def _scaled(image: np.ndarray) -> np.ndarray:
    width = max(1, round(image.shape[1] * _HEIGHT / image.shape[0]))
    return cv2.resize(image, (width, _HEIGHT), interpolation=cv2.INTER_AREA)


def _write(canvas: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int] = _PALE) -> None:
    cv2.putText(canvas, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
