"""Geometric verification: feature pairs of a frame and a keyframe's thumbnail that fit one fundamental matrix.

Imported only where it is switched on. SIFT (Lowe, IJCV 2004) with his ratio test in both directions, and
OpenCV's USAC_MAGSAC (Barath et al., "MAGSAC++", CVPR 2020) for the matrix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import cv2
import numpy as np

from asymvpr_core.config import THUMBNAIL_SIDE_PX
from asymvpr_core.errors import RetrievalError
from asymvpr_core.gallery.store import decode_thumbnail, encode_thumbnail
from asymvpr_core.retrieval.joint import PriorGallery
from asymvpr_core.retrieval.session import Verification

_FEATURES = 500  # a picture; more cost time and add weak ones
_RATIO = 0.8  # of best to second-best distance (Lowe, section 7.1)
_REPROJECTION_PX = 2.0
_CONFIDENCE, _MOST_ITERATIONS = 0.999, 2000
_FEWEST_PAIRS = 8  # below, a fundamental matrix fits anything
_KEPT = 64  # keyframes whose features are remembered: the same ones are asked for from frame to frame

Features = tuple[np.ndarray, np.ndarray]  # positions (F, 2) [px], descriptors (F, 128) float32


class ThumbnailVerifier:
    """Compares frames with thumbnails. Not thread-safe."""

    def __init__(self, read_thumbnail: Callable[[int], np.ndarray]):
        """`read_thumbnail` gives the (H, W) uint8 grey thumbnail of a keyframe."""
        self._read = read_thumbnail
        self._detector = cv2.SIFT.create(nfeatures=_FEATURES)
        self._matcher = cv2.BFMatcher(cv2.NORM_L2)
        self._known: OrderedDict[int, Features] = OrderedDict()

    def verify(self, image: np.ndarray, keyframe_index: int) -> int:
        """Number of feature pairs between an `(H, W, 3)` RGB image and a keyframe that fit one fundamental matrix."""
        # Through the same size and JPEG as the thumbnail: features of another scale would not be found again.
        frame = self._features(decode_thumbnail(encode_thumbnail(image, THUMBNAIL_SIDE_PX), "of the frame"))
        if keyframe_index not in self._known:
            self._known[keyframe_index] = self._features(self._read(keyframe_index))
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(keyframe_index)
        return count_inliers(frame, self._known[keyframe_index], self._matcher)

    def _features(self, grey: np.ndarray) -> Features:
        keypoints, descriptors = self._detector.detectAndCompute(grey, None)
        if descriptors is None:
            return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
        return np.asarray(cv2.KeyPoint.convert(keypoints), dtype=np.float32).reshape(-1, 2), descriptors


def count_inliers(a: Features, b: Features, matcher: cv2.DescriptorMatcher) -> int:
    """Pairs that are each other's best by the ratio test and fit one fundamental matrix; 0 where there are fewer than 8 pairs."""
    forward, backward = _best(matcher, a[1], b[1]), _best(matcher, b[1], a[1])
    pairs = [(i, j) for i, j in forward.items() if backward.get(j) == i]
    if len(pairs) < _FEWEST_PAIRS:
        return 0
    left, right = (list(side) for side in zip(*pairs, strict=True))
    ours, theirs = np.ascontiguousarray(a[0][left]), np.ascontiguousarray(b[0][right])
    cv2.setRNGSeed(0)  # the same answer for the same pictures
    try:
        matrix, inliers = cv2.findFundamentalMat(ours, theirs, cv2.USAC_MAGSAC, _REPROJECTION_PX, _CONFIDENCE, _MOST_ITERATIONS)
    except cv2.error:  # all pairs in one point, or the like: no matrix
        return 0
    return 0 if matrix is None or inliers is None else int(inliers.sum())


def _best(matcher: cv2.DescriptorMatcher, queries: np.ndarray, others: np.ndarray) -> dict[int, int]:
    if len(queries) == 0 or len(others) < 2:
        return {}
    found = matcher.knnMatch(queries, others, k=2)
    return {first.queryIdx: first.trainIdx for first, second in found if first.distance < _RATIO * second.distance}


def gallery_verifier(gallery: PriorGallery) -> ThumbnailVerifier:
    """A verifier over the thumbnails of a gallery.

    Raises:
        RetrievalError: the gallery has none.
    """
    if not gallery.has_thumbnails:
        raise RetrievalError(
            f"geometric_verification is on and gallery {gallery.path} holds no thumbnails",
            remedy="build it with 'asymvpr gallery build --thumbnails', or set geometric_verification to off",
        )
    return ThumbnailVerifier(gallery.read_thumbnail)


def session_verification() -> Verification:
    """What a session gallery needs to verify its matches."""
    return Verification(
        verifier=lambda thumbnails: ThumbnailVerifier(lambda index: decode_thumbnail(thumbnails[index], "of the session")),
        thumbnail=lambda image: encode_thumbnail(image, THUMBNAIL_SIDE_PX),
    )
