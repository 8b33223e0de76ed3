"""THE image transform: gallery build, training, export and robot share this code.

Needs numpy and OpenCV, and Pillow for the rules of the published networks; so the robot's process
runs the same lines as the training.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from asymvpr_core.errors import ImageError

Triple = Annotated[tuple[float, float, float], Field()]


class Preprocess(BaseModel):
    """Resize, scale to [0, 1], subtract mean, divide by standard deviation.

    The settings travel with the network and are written into every manifest; a field that has its
    default is left out there.

    `fit`, the size of the result:

    - "squash": height x width, whatever the picture's aspect ratio (SALAD, BoQ, MixVPR, MegaLoc).
    - "shorter_side": the aspect ratio is kept and the shorter side becomes `height`; the longer
      one is int(height * longer / shorter), as torchvision's Resize(height) has it.
    - "native": the picture's own size.

    For the last two, both sides then go to the nearest multiple of `multiple_of`, halves to the
    even multiple as Python's round does (MegaLoc's rule, with 14).

    `resample`, the filter:

    - "area": area averaging where the image shrinks in both directions, bilinear otherwise;
      bilinear alone aliases on large frames. Done by OpenCV.
    - "bilinear", "bicubic": Pillow's, which widen when the image shrinks. They are those of
      torchvision's Resize, on PIL images and, with antialias=True, on tensors.

    `resize_dtype`, the numbers that are resized:

    - "uint8": the 8-bit picture, rounded and clipped to 8 bits again (SALAD and MixVPR: Resize
      bilinear, then ToTensor).
    - "float32": without rounding or clipping (BoQ: ToTensor, then Resize bicubic). Not for "area".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    mean: Triple
    std: Triple
    resample: Literal["area", "bilinear", "bicubic"] = "area"
    resize_dtype: Literal["uint8", "float32"] = "uint8"
    fit: Literal["squash", "shorter_side", "native"] = "squash"
    multiple_of: int = Field(1, ge=1, le=512)
    # The longest side where the picture decides: one of 1 x 100000 would otherwise ask for gigabytes.
    max_side: int = Field(4096, ge=1, le=16384)

    @model_validator(mode="after")
    def _check_combination(self) -> Preprocess:
        if self.resample == "area" and self.resize_dtype == "float32":
            raise ValueError("resample 'area' works on 8-bit pictures only; take resize_dtype 'uint8', or resample 'bilinear' or 'bicubic'")
        if self.fit == "shorter_side" and self.height != self.width:
            raise ValueError(f"fit 'shorter_side' needs height = width, the length of the shorter side; got {self.height} and {self.width}")
        if self.fit == "squash" and (self.height % self.multiple_of or self.width % self.multiple_of):
            raise ValueError(f"height {self.height} and width {self.width} are to be multiples of {self.multiple_of}")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The identity of a gallery's network is a digest of this: with defaults in it, each new field would
        # part the galleries and models that exist from those built later, though nothing differs.
        fields = type(self).model_fields
        return {name: value for name, value in serialise(self).items() if fields[name].is_required() or value != fields[name].default}

    @property
    def is_static(self) -> bool:
        """Whether every picture becomes height x width, so that a batch or a fixed input can hold them."""
        return self.fit == "squash"

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for a picture of `height` x `width`.

        Raises:
            ImageError: the longer side would be above `max_side`; not with fit "squash".
        """
        if self.is_static:
            return self.height, self.width
        target = (height, width)
        if self.fit == "shorter_side":
            longer = int(self.height * max(target) / min(target))
            target = (self.height, longer) if height <= width else (longer, self.height)
        rows, columns = (max(1, round(side / self.multiple_of)) * self.multiple_of for side in target)
        if max(rows, columns) > self.max_side:
            raise ImageError(
                f"image is {width} x {height} and would be described at {columns} x {rows}",
                expected=f"no side above {self.max_side}", remedy="crop or remove it",
            )  # fmt: skip
        return rows, columns

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize `(H, W, 3)` uint8 RGB to `(*output_size(H, W), 3)` of `resize_dtype`, 0 to 255.

        With "float32", bicubic values may lie a little outside of 0 to 255.

        Raises:
            ImageError: as `output_size`.
        """
        size = self.output_size(*image.shape[:2])
        if self.resize_dtype == "float32":
            image = image.astype(np.float32)
        if image.shape[:2] == size:
            return image
        if self.resample == "area":
            shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
            return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return _pillow_resize(image, size, self.resample)

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """Turn `(H, W, 3)` uint8 or float32 RGB, 0 to 255, into `(3, H, W)` float32, C-contiguous."""
        if image.dtype == np.uint8:  # by table: the same bits as below, in a third of the time
            planes = np.empty((3, *image.shape[:2]), dtype=np.float32)
            for channel, table in enumerate(_tables(self.mean, self.std)):
                cv2.LUT(np.ascontiguousarray(image[:, :, channel]), table, dst=planes[channel])
            return planes
        scale, offset = self.scale_and_offset
        return np.ascontiguousarray((image * scale - offset).transpose(2, 0, 1))

    @property
    def scale_and_offset(self) -> tuple[np.ndarray, np.ndarray]:
        """What turns 0 to 255 into the normalised number: x · scale − offset, (3,) float32 each; for a graph that does so itself."""
        return _scale_and_offset(self.mean, self.std)

    @staticmethod
    def check(image: np.ndarray) -> None:
        """Raise ImageError for what is not `(H, W, 3)` uint8 with at least one pixel."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ImageError(f"image is {image.dtype} {image.shape}", expected="(H, W, 3) uint8 RGB with H, W >= 1")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Turn one `(H, W, 3)` uint8 RGB image into the network's `(3, *output_size(H, W))` float32 input.

        Raises:
            ImageError: another shape or type, an image without pixels, or one that is too long.
        """
        self.check(image)
        return self.normalise(self.resize(image))


def _pillow_resize(image: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """Resize `(H, W, 3)` uint8 or float32 to `(*size, 3)` of the same type."""
    from PIL import Image  # here, so that a robot whose network does without never loads it

    filters = getattr(Image, "Resampling", Image)  # Pillow 9.0 has no Image.Resampling
    kernel = filters.BILINEAR if resample == "bilinear" else filters.BICUBIC
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size[::-1], kernel))
    # Pillow's pictures of floats have one channel.
    channels = [Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(3)]
    return np.stack([np.asarray(channel.resize(size[::-1], kernel)) for channel in channels], axis=2)


def _scale_and_offset(mean: Triple, std: Triple) -> tuple[np.ndarray, np.ndarray]:
    """What turns 0 to 255 into the normalised number: x · scale − offset, float32 of three channels."""
    deviations = np.asarray(std)
    return (1.0 / (255.0 * deviations)).astype(np.float32), (np.asarray(mean) / deviations).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _tables(mean: Triple, std: Triple) -> list[np.ndarray]:
    """The normalised number of each of the 256 values, for three channels."""
    scale, offset = _scale_and_offset(mean, std)
    return [np.arange(256, dtype=np.float32) * scale[channel] - offset[channel] for channel in range(3)]
