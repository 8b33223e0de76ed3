"""What the free parts of a manifest may hold where this package reads them: a stranger's may hold anything."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    """Known keys with their types, none of them needed; other keys are passed over. Only checked, never used: defaults mean nothing."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Weights(_Part):
    tensors: int
    ignored: dict[str, str]
    notes: list[str]


class _Origin(_Part):
    path: str
    digest: str


class _Inputs(_Part):
    """`inputs` of every kind: what an artefact was made from."""

    source: str = ""
    layout: str = ""
    gallery: str = ""
    gallery_digest: str = ""
    galleries: list[_Origin] = []


class _Details(_Part):
    """`details` of every kind; a key has one meaning whichever kind has it."""

    map_frame: str = ""
    images_in_gallery: bool = False
    index: bool = False
    thumbnails: bool = False
    skipped_images: dict[str, str] = {}
    weights: _Weights | None = None
    projected_from: dict[str, Any] = {}
    mean_spread: float | None = None
    query_network: str = ""
    preprocess: dict[str, Any] = {}
    gated: bool = False
    parity_source: str = ""


class KnownFields(_Part):
    """The parts of a manifest that hold what only some kinds have."""

    inputs: _Inputs = _Inputs()
    details: _Details = _Details()
