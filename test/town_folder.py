"""A small folder of named pictures for tests of the offline stages: places along a street, in two looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_artefacts import encode_jpeg, make_picture, revisit

SPACING_M = 10.0


def make_folder(root: Path, places: int = 6, looks: int = 2, first_seed: int = 0) -> Path:
    """Write `places` x `looks` JPEG pictures named `@east@north@…@.jpg`, looks 1 m apart, heading north."""
    root.mkdir(parents=True)
    for place in range(places):
        picture = make_picture(first_seed + place)
        for look in range(looks):
            east, north = 500_000 + place * SPACING_M + look, 5_000_000.0
            image = picture if look == 0 else revisit(picture, look, brightness=1.0 - 0.1 * look)
            name = f"@{east:.2f}@{north:.2f}@31@U@@@p{place:03d}_{look}@@0@@@@@@.jpg"
            (root / name).write_bytes(encode_jpeg(np.asarray(image)))
    return root
