"""The image transform against a naive one, and against the transforms of the published networks."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from pydantic import ValidationError

from asymvpr_core.errors import ImageError
from asymvpr_core.preprocess import Preprocess

STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SHAPE = {"height": 32, "width": 48, **STATISTICS}
SQUARE = {"height": 320, "width": 320, **STATISTICS}
IMAGENET = Preprocess(**SHAPE)
BILINEAR = Preprocess(**SHAPE, resample="bilinear")
BICUBIC_FLOAT = Preprocess(**SHAPE, resample="bicubic", resize_dtype="float32")
MULTIPLES = Preprocess(**SQUARE, fit="shorter_side", multiple_of=32, resample="bicubic")
NATIVE = Preprocess(**SHAPE, fit="native", multiple_of=14, resample="bilinear")
RED = np.full((10, 20, 3), (255, 0, 0), np.uint8)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalising_by_table_gives_the_bits_of_the_arithmetic():
    image = np.arange(768, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3)
    for mean, std in [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)]:
        preprocess = Preprocess(height=16, width=16, mean=mean, std=std)
        by_table = preprocess.normalise(image)
        assert by_table.flags.c_contiguous and np.array_equal(by_table, preprocess.normalise(image.astype(np.float32)))


def test_normalise_equals_the_formula():
    image = random_image(32, 48)
    expected = np.empty((3, 32, 48))
    for channel in range(3):
        for row in range(32):
            for column in range(48):
                value = image[row, column, channel] / 255.0
                expected[channel, row, column] = (value - IMAGENET.mean[channel]) / IMAGENET.std[channel]
    result = IMAGENET(image)
    assert result.shape == (3, 32, 48)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_shrinking_averages_areas():
    image = random_image(64, 96)  # exactly twice the input: each output pixel is the mean of four
    expected = image.reshape(32, 2, 48, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(IMAGENET.resize(image) - expected).max() <= 0.51  # rounding to uint8


def test_a_fine_pattern_does_not_alias():
    # Black and white columns: the area mean is grey; bilinear sampling would keep stripes.
    stripes = np.zeros((320, 480, 3), np.uint8)
    stripes[:, ::2] = 255
    assert IMAGENET.resize(stripes).std() < 1.0


def test_enlarging_keeps_a_flat_image_flat():
    assert (IMAGENET.resize(RED) == (255, 0, 0)).all()


def test_the_aspect_ratio_is_not_kept():
    left_half_white = np.zeros((64, 960, 3), np.uint8)
    left_half_white[:, :480] = 255
    resized = IMAGENET.resize(left_half_white)
    assert (resized[:, :23] == 255).all() and (resized[:, 25:] == 0).all()


def test_an_image_of_the_right_size_is_untouched():
    image = random_image(32, 48)
    assert np.array_equal(IMAGENET.resize(image), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_other_shapes_and_types_are_refused(image: np.ndarray):
    with pytest.raises(ImageError, match=r"expected \(H, W, 3\) uint8 RGB"):
        IMAGENET(image)


def test_settings_survive_json():
    assert Preprocess.model_validate_json(IMAGENET.model_dump_json()) == IMAGENET
    with pytest.raises(ValidationError):
        Preprocess.model_validate({**IMAGENET.model_dump(), "crop": 0.9})


def test_manifests_from_before_the_resize_rules_load():
    before = '{"height":32,"width":48,"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]}'
    assert Preprocess.model_validate_json(before) == IMAGENET


def test_fields_at_their_default_stay_out_of_manifests():
    # Or every pair of gallery and model from before a field existed would get another identity.
    assert set(IMAGENET.model_dump(mode="json")) == {"height", "width", "mean", "std"}
    settings = IMAGENET.model_copy(update={"resample": "bicubic", "resize_dtype": "float32"})
    assert set(settings.model_dump(mode="json")) == {"height", "width", "mean", "std", "resample", "resize_dtype"}


@pytest.mark.parametrize("settings", [BILINEAR, BICUBIC_FLOAT, MULTIPLES, NATIVE], ids=["bilinear", "bicubic", "shorter_side", "native"])
def test_resize_rules_survive_json(settings: Preprocess):
    assert Preprocess.model_validate_json(settings.model_dump_json()) == settings
    assert Preprocess.model_validate(settings.model_dump(mode="json")) == settings


SIZES = [(480, 640), (20, 30), (100, 31), (17, 333), (48, 32), (32, 100), (1, 1), (1, 500)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_default_rule_is_opencvs(height: int, width: int):
    image = random_image(height, width)
    kind = cv2.INTER_AREA if height >= 32 and width >= 48 else cv2.INTER_LINEAR
    expected = cv2.resize(image, (48, 32), interpolation=kind)
    assert np.array_equal(IMAGENET.resize(image), expected)
    scaled = expected.astype(np.float32) * (1 / (255 * np.asarray(IMAGENET.std))).astype(np.float32)
    scaled -= (np.asarray(IMAGENET.mean) / np.asarray(IMAGENET.std)).astype(np.float32)
    assert np.array_equal(IMAGENET(image), scaled.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_8_bit_resizing_is_that_of_torchvision_on_pil_images(resample: str, height: int, width: int):
    transforms = pytest.importorskip("torchvision.transforms", reason="needs torchvision")
    image = random_image(height, width)
    resize = transforms.Resize((32, 48), interpolation=transforms.InterpolationMode(resample))
    result = Preprocess(**SHAPE, resample=resample).resize(image)
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.asarray(resize(Image.fromarray(image))))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_float_resizing_is_that_of_torch_on_tensors(resample: str, height: int, width: int):
    functional = pytest.importorskip("torch.nn.functional", reason="needs torch")
    image = random_image(height, width)
    tensor = functional.torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None] / 255)
    expected = functional.interpolate(tensor, (32, 48), mode=resample, antialias=True, align_corners=False)[0].numpy()
    settings = Preprocess(**SHAPE, resample=resample, resize_dtype="float32")
    result = settings.resize(image)
    assert result.shape == (32, 48, 3) and result.dtype == np.float32
    assert np.abs(result.transpose(2, 0, 1) / 255 - expected).max() <= 1e-5
    mean, std = (np.asarray(values)[:, None, None] for values in (settings.mean, settings.std))
    np.testing.assert_allclose(settings(image), (expected - mean) / std, atol=5e-5)


def test_float_resizing_keeps_what_8_bits_clip():
    edge = np.zeros((64, 96, 3), np.uint8)
    edge[:, 48:] = 255
    overshoot = BICUBIC_FLOAT.resize(edge)
    assert overshoot.min() < -1 and overshoot.max() > 256
    assert np.ptp(Preprocess(**SHAPE, resample="bicubic").resize(edge).astype(int)) == 255


def test_a_float_picture_of_the_right_size_keeps_its_values():
    image = random_image(32, 48)
    assert BICUBIC_FLOAT.resize(image).dtype == np.float32
    assert np.array_equal(BICUBIC_FLOAT(image), IMAGENET(image))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (320, 426)),
        (640, 480, (426, 320)),
        (100, 100, (320, 320)),
        (320, 999, (320, 999)),
        (7, 9, (320, 411)),
        (3, 1, (960, 320)),
    ],
)
def test_the_shorter_side_rule(height: int, width: int, expected: tuple[int, int]):
    settings = Preprocess(**SQUARE, fit="shorter_side", resample="bilinear")
    assert settings.output_size(height, width) == expected
    transforms = pytest.importorskip("torchvision.transforms", reason="needs torchvision")
    image = random_image(height, width)
    official = transforms.Resize(320)(Image.fromarray(image))
    assert official.size == expected[::-1]
    assert np.array_equal(settings.resize(image), np.asarray(official))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    # 21 and 35 lie half-way between multiples of 14 and go to the even one; nothing becomes 0.
    [(480, 640, (476, 644)), (14, 28, (14, 28)), (1, 6, (14, 14)), (21, 35, (28, 28)), (22, 20, (28, 14))],
)
def test_native_size_goes_to_the_nearest_multiple(height: int, width: int, expected: tuple[int, int]):
    assert NATIVE.output_size(height, width) == expected
    assert NATIVE(random_image(height, width)).shape == (3, *expected)


def test_the_shorter_side_and_multiples_together():
    assert MULTIPLES.output_size(480, 640) == (320, 416)  # 426 is nearer to 416 than to 448
    assert MULTIPLES(random_image(48, 64)).shape == (3, 320, 416)


def test_native_size_without_multiples_changes_no_pixel():
    image = random_image(37, 53)
    assert np.array_equal(Preprocess(**SHAPE, fit="native").resize(image), image)


def test_squashing_gives_one_size_whatever_the_picture():
    assert [IMAGENET.output_size(*size) for size in SIZES] == [(32, 48)] * len(SIZES)
    assert IMAGENET.is_static and not NATIVE.is_static and not MULTIPLES.is_static


@pytest.mark.parametrize("resample", ["area", "bilinear", "bicubic"])
def test_a_very_long_picture_is_squashed(resample: str):
    assert Preprocess(**SHAPE, resample=resample)(np.zeros((1, 100_000, 3), np.uint8)).shape == (3, 32, 48)


@pytest.mark.parametrize("settings", [MULTIPLES, NATIVE], ids=["shorter_side", "native"])
def test_a_very_long_picture_of_its_own_size_is_refused(settings: Preprocess):
    with pytest.raises(ImageError, match=r"image is 100000 x 1 and would be described at \d+ x \d+; expected no side above 4096"):
        settings(np.zeros((1, 100_000, 3), np.uint8))


def test_the_bound_on_the_longer_side_is_a_setting():
    settings = Preprocess(**SHAPE, fit="native", max_side=64)
    assert settings(random_image(64, 64)).shape == (3, 64, 64)
    with pytest.raises(ImageError, match="image is 64 x 65 .*no side above 64"):
        settings(random_image(65, 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize_dtype": "float32"}, "'area' works on 8-bit pictures only"),
        ({"fit": "shorter_side"}, "needs height = width.* got 32 and 48"),
        ({"multiple_of": 14}, "height 32 and width 48 are to be multiples of 14"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"resample": "nearest"}, "resample"),
        ({"fit": "crop"}, "fit"),
        ({"max_side": 100_000}, "max_side"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        Preprocess(**{**SHAPE, **fields})


def test_pillow_is_loaded_only_when_a_network_needs_it():
    code = """
import sys
import numpy as np
from asymvpr_core.preprocess import Preprocess
def pillow():
    return any(name.partition(".")[0] == "PIL" for name in sys.modules)
settings = Preprocess(height=4, width=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
image = np.zeros((8, 8, 3), np.uint8)
settings(image)
print(pillow())
settings.model_copy(update={"resample": "bilinear"})(image)
print(pillow())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]
