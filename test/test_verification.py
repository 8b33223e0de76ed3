"""Geometric verification: pairs of features that fit one fundamental matrix, on pictures whose geometry is known."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY
from tiny_artefacts import make_gallery, make_model, make_street

from asymvpr_core.config import MatcherSettings, SessionSettings
from asymvpr_core.errors import ArtefactError, RetrievalError
from asymvpr_core.gallery.store import decode_thumbnail, encode_thumbnail, thumbnail_name
from asymvpr_core.manifest import FileEntry, digest_of, sha256_of
from asymvpr_core.retrieval.index import build_index
from asymvpr_core.retrieval.matcher import Matcher
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.retrieval.verification import ThumbnailVerifier
from asymvpr_core.types import Pose, QueryFrame

S = 1_000_000_000
ON = MatcherSettings(sequence="off", score_threshold=0.3, geometric_verification="fundamental", min_inliers=20)


def textured(seed: int) -> np.ndarray:
    """(240, 320, 3) picture full of corners, unlike any of another seed."""
    rng = np.random.default_rng(seed)
    picture = np.full((240, 320, 3), 128, np.uint8)
    for _ in range(120):
        x, y, w, h = rng.integers(0, [300, 220, 60, 50])
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), rng.integers(0, 256, 3).tolist(), -1)
    return picture


def seen_from_beside(picture: np.ndarray) -> np.ndarray:
    """The same scene, a flat wall, from another place and in other light."""
    corners = np.float32([[0, 0], [320, 0], [320, 240], [0, 240]])
    moved = corners + np.float32([[12, 6], [-6, 2], [-14, -4], [8, -10]])
    warped = cv2.warpPerspective(picture, cv2.getPerspectiveTransform(corners, moved), (320, 240), borderMode=cv2.BORDER_REPLICATE)
    return np.clip(warped * 0.8 + 10, 0, 255).astype(np.uint8)


def test_the_same_place_fits_and_another_does_not():
    thumbnails = [encode_thumbnail(textured(seed), 480) for seed in range(3)]
    verifier = ThumbnailVerifier(lambda index: decode_thumbnail(thumbnails[index], "test"))
    frame = seen_from_beside(textured(1))
    inliers = [verifier.verify(frame, index) for index in range(3)]
    assert inliers[1] > 60 > 20 > max(inliers[0], inliers[2])
    assert verifier.verify(frame, 1) == inliers[1]  # the same answer for the same pictures
    assert verifier.verify(np.full((240, 320, 3), 90, np.uint8), 1) == 0  # a wall without features


def test_thumbnails_are_grey_and_as_large_as_asked():
    thumbnail = decode_thumbnail(encode_thumbnail(textured(0), 100), "test")
    assert thumbnail.shape == (75, 100) and thumbnail.dtype == np.uint8
    assert decode_thumbnail(encode_thumbnail(textured(0), 1000), "test").shape == (240, 320)  # never enlarged
    with pytest.raises(ArtefactError, match="cannot be decoded"):
        decode_thumbnail(b"no jpeg", "test")


def with_thumbnails(path, pictures):
    """Add thumbnails to a made-up gallery, as `gallery build --thumbnails` stores them."""
    (path / "thumbnails").mkdir()
    content = json.loads((path / "manifest.json").read_text())
    for index, picture in enumerate(pictures):
        file = path / thumbnail_name(index)
        file.write_bytes(encode_thumbnail(picture, 480))
        content["files"][thumbnail_name(index)] = FileEntry(bytes=file.stat().st_size, sha256=sha256_of(file)).model_dump()
    content["details"]["thumbnails"] = True
    (path / "manifest.json").write_text(json.dumps({**content, "manifest_sha256": digest_of(content)}))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    pictures = [textured(seed) for seed in range(4)]
    gallery = make_gallery(folder / "gallery", pictures, [Pose.from_xy_yaw(5.0 * i, 0, 0) for i in range(4)])
    return with_thumbnails(gallery, pictures), make_model(folder / "model")


def test_a_verified_match_says_how_many_pairs_fit(world):
    recogniser = PlaceRecogniser.open(*world, ON)
    answer = recogniser.process(seen_from_beside(textured(2)), QueryFrame(1000 * S)).prior
    assert answer.match.keyframe_index == 2 and answer.inliers > 60
    assert answer.reason.endswith(f"{answer.inliers} feature pairs fit")


def test_what_does_not_fit_is_refused_with_the_count(world):
    # Blurred, the pictures' colours still match, and no feature does.
    frame = cv2.GaussianBlur(textured(2), (0, 0), 12)
    assert (
        PlaceRecogniser.open(*world, ON.model_copy(update={"geometric_verification": "off"}))
        .process(frame, QueryFrame(1000 * S))
        .prior.accepted
    )
    answer = PlaceRecogniser.open(*world, ON).process(frame, QueryFrame(1000 * S)).prior
    assert not answer.accepted and answer.inliers < 20 and answer.covariance is None
    assert answer.reason == f"{answer.inliers} feature pairs fit one fundamental matrix, 20 needed"


def test_the_session_is_verified_too(world, tmp_path):
    settings = SessionSettings(session_gallery=True, session_score_threshold=0.3, exclude_keyframes=1, exclude_distance_m=1.0)
    recogniser = PlaceRecogniser.open(None, world[1], ON.model_copy(update={"exclude_time_s": 5.0}), session=settings)
    for i in range(4):
        recogniser.process(textured(i), QueryFrame(10 * i * S, Pose.from_xy_yaw(5.0 * i, 0, 0)))
    answer = recogniser.process(seen_from_beside(textured(1)), QueryFrame(100 * S, Pose.from_xy_yaw(40.0, 0, 0))).session
    assert answer.match.keyframe_index == 1 and answer.inliers > 60
    saved = recogniser.save_session(tmp_path / "saved")
    following = PlaceRecogniser.open(saved, world[1], ON, session=settings)
    assert following.process(seen_from_beside(textured(3)), QueryFrame(10_000 * S)).prior.inliers > 60
    # Switched off and on again, the session begins anew: keyframes of the time between have no thumbnails.
    recogniser.change_settings(ON.model_copy(update={"geometric_verification": "off"}))
    assert len(recogniser.session) == 0


def test_a_gallery_without_thumbnails_is_refused_with_the_remedy(world, tmp_path):
    bare = make_street(tmp_path / "bare", 3)
    with pytest.raises(RetrievalError, match="holds no thumbnails; build it with 'asymvpr gallery build --thumbnails'"):
        PlaceRecogniser.open(bare, world[1], ON)
    recogniser = PlaceRecogniser.open(bare, world[1], ON.model_copy(update={"geometric_verification": "off"}))
    with pytest.raises(RetrievalError, match="holds no thumbnails"):
        recogniser.change_settings(ON)
    assert recogniser.matcher_settings.geometric_verification == "off"
    with pytest.raises(RetrievalError, match="no pictures to compare with"):
        Matcher(recogniser.gallery, build_index(recogniser.gallery.descriptors), ON)


def test_off_imports_nothing_for_it(world):
    code = (
        "import sys; from pathlib import Path; from asymvpr_core.retrieval.recogniser import PlaceRecogniser\n"
        f"PlaceRecogniser.open(Path({str(world[0])!r}), Path({str(world[1])!r}))\n"
        "assert 'asymvpr_core.retrieval.verification' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
