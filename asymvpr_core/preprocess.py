"""THE image transform: gallery build, training, export and robot share this code.

Needs numpy and OpenCV only, so that the robot's process runs the same lines as the training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from asymvpr_core.errors import ImageError

Triple = Annotated[tuple[float, float, float], Field()]


class Preprocess(BaseModel):
    """Resize to (height, width), scale to [0, 1], subtract mean, divide by standard deviation.

    The image is squeezed to the input size without keeping its aspect ratio (as SALAD and BoQ
    do). Resize rule: area averaging where the image shrinks in both directions, bilinear
    otherwise; bilinear alone aliases on large frames. The settings travel with the network and
    are written into every manifest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    mean: Triple
    std: Triple

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize `(H, W, 3)` uint8 RGB to `(height, width, 3)` uint8 RGB."""
        height, width = image.shape[:2]
        if (height, width) == (self.height, self.width):
            return image
        shrinks = height >= self.height and width >= self.width
        return cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """Turn `(H, W, 3)` uint8 RGB into `(3, H, W)` float32, C-contiguous."""
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        offset = (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        return np.ascontiguousarray((image.astype(np.float32) * scale - offset).transpose(2, 0, 1))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Turn one `(H, W, 3)` uint8 RGB image into the network's `(3, height, width)` float32 input.

        Raises:
            ImageError: another shape or type, or an image without pixels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ImageError(f"image is {image.dtype} {image.shape}", expected="(H, W, 3) uint8 RGB with H, W >= 1")
        return self.normalise(self.resize(image))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode JPEG, PNG, … bytes to `(H, W, 3)` uint8 RGB; grey becomes three channels, EXIF rotation is applied.

    Args:
        data: the encoded file.
        name: what the error message calls the image.

    Raises:
        ImageError: not an image, or truncated.
    """
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-1024:]:
        # OpenCV decodes a truncated JPEG to a picture that is part grey, with a warning only.
        raise ImageError(f"image {name} is a truncated JPEG ({len(data)} bytes)", remedy="replace or remove it")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise ImageError(
            f"image {name} cannot be decoded ({len(data)} bytes)", expected="a JPEG or PNG file", remedy="replace or remove it"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # IMREAD_COLOR_RGB is not in the OpenCV of older distributions


def read_image(path: Path) -> np.ndarray:
    """Read an image file to `(H, W, 3)` uint8 RGB.

    Raises:
        ImageError: missing, unreadable, truncated or not an image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"image {path} cannot be read: {error.strerror}", remedy="check the path") from error
    return decode_image(data, str(path))
