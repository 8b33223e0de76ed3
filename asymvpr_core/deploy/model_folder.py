"""A query model on disk: the variants of one network, and how near each comes to the trained one. No training imports.

Folder: `manifest.json`, `model.onnx` and what else was exported beside it, `self_test.npz`.
Format version 1 had `model.onnx` alone, which takes pre-processed float32 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from asymvpr_core.arrays import load_arrays
from asymvpr_core.errors import ArtefactError, DeployError
from asymvpr_core.manifest import Manifest, read_manifest, verify_files
from asymvpr_core.preprocess import Preprocess

MODEL, SELF_TEST = "model.onnx", "self_test.npz"
EXPORT_AGAIN = "export it again with 'asymvpr export'"

FilePrecision = Literal["fp32", "fp16", "int8"]
Format = Literal["onnx", "openvino"]
RuntimeName = Literal["onnxruntime", "openvino"]


class Variant(BaseModel):
    """One file of the network: its format, and the precision of its numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    format: Format
    precision: FilePrecision

    @staticmethod
    def named(format_: Format, precision: FilePrecision) -> Variant:
        """The variant with the name that it has in every folder."""
        name = "model" if precision == "fp32" else f"model_{precision}"
        return Variant(file=f"{name}.onnx" if format_ == "onnx" else f"{name}.xml", format=format_, precision=precision)

    @property
    def files(self) -> list[str]:
        """All files that it consists of: an OpenVINO IR has its weights in a second one."""
        return [self.file] if self.format == "onnx" else [self.file, self.file.removesuffix(".xml") + ".bin"]


class Parity(BaseModel):
    """How near a file comes to the trained network in one runtime and inference precision.

    `recall_at_1` and `torch_recall_at_1` are shares of `recall_views` augmented gallery images whose best
    match in the gallery is of their own place; None where that was not measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    runtime: RuntimeName
    precision: str
    min_cosine: float
    mean_cosine: float
    tolerance: float
    images: int
    recall_at_1: float | None = None
    torch_recall_at_1: float | None = None
    recall_views: int = 0
    forced: bool = False

    @property
    def holds(self) -> bool:
        """Whether the file may be run so: near enough, or accepted with --force."""
        return self.min_cosine >= self.tolerance or self.forced


@dataclass(frozen=True)
class ModelFolder:
    """A query-model folder whose manifest has been read and checked; its files are verified when they are opened.

    `folded` says that the graph takes the resized picture `(1, H, W, 3)` and normalises it itself; otherwise
    it takes normalised planes `(B, 3, H, W)` float32.
    """

    path: Path
    manifest: Manifest
    preprocess: Preprocess
    variants: tuple[Variant, ...]
    parity: tuple[Parity, ...]
    tolerances: dict[str, float]
    folded: bool

    @staticmethod
    def open(path: Path) -> ModelFolder:
        """Read the manifest of a query model.

        Raises:
            ArtefactError: missing, unfinished or damaged, of a newer format, or a manifest that lacks what a model has.
        """
        path = Path(path)
        manifest = read_manifest(path, "model")
        details = manifest.details
        preprocess = preprocess_of(path, manifest)
        if not preprocess.is_static:
            found = f"the manifest of model {path} has pre-processing of fit '{preprocess.fit}'"
            raise ArtefactError(found, expected="squash", remedy=EXPORT_AGAIN)
        if "variants" not in details:  # format version 1
            return ModelFolder(path, manifest, preprocess, (Variant.named("onnx", "fp32"),), (), {}, folded=False)
        try:
            variants = TypeAdapter(tuple[Variant, ...]).validate_python(details["variants"])
            parity = TypeAdapter(tuple[Parity, ...]).validate_python(details.get("parity", []))
            tolerances = TypeAdapter(dict[str, float]).validate_python(details.get("tolerances", {}))
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ArtefactError(f"the manifest of model {path} describes its variants wrongly ('{where}')", remedy=EXPORT_AGAIN) from error
        return ModelFolder(path, manifest, preprocess, variants, parity, tolerances, folded=True)

    @property
    def dimension(self) -> int:
        """Dimension of the descriptors."""
        return self.manifest.gallery_network.dimension

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input: (H, W, 3) of the folded graph, otherwise (3, H, W)."""
        height, width = self.preprocess.height, self.preprocess.width
        return (height, width, 3) if self.folded else (3, height, width)

    @property
    def input_dtype(self) -> str:
        """Type of one input: "uint8", or "float32"."""
        return self.preprocess.resize_dtype if self.folded else "float32"

    def variant(self, runtime: RuntimeName, precision: str) -> Variant:
        """The file that `runtime` runs at `precision`; an OpenVINO IR before an ONNX file, bf16 from that of fp32.

        Raises:
            DeployError: there is none.
        """
        wanted = "fp32" if precision == "bf16" else precision
        formats = ("openvino", "onnx") if runtime == "openvino" else ("onnx",)
        for format_ in formats:
            for variant in self.variants:
                if (variant.format, variant.precision) == (format_, wanted):
                    return variant
        there = ", ".join(f"{variant.file} ({variant.precision})" for variant in self.variants)
        raise DeployError(
            f"model {self.path} has no variant of precision {wanted}; it has {there}",
            remedy=f"export it again with --precision fp32,{wanted}, or set precision to auto",
        )

    def verify(self, variant: Variant) -> Path:
        """The path of a variant's file, after a test of its checksum.

        Raises:
            ArtefactError: missing, truncated or damaged.
        """
        verify_files(self.path, self.manifest, variant.files)
        return self.path / variant.file

    def parity_of(self, variant: Variant, runtime: RuntimeName, precision: str) -> Parity | None:
        """What the export measured of `variant` in `runtime`; None where it did not."""
        wanted = (variant.file, runtime, precision)
        return next((row for row in self.parity if (row.file, row.runtime, row.precision) == wanted), None)

    def self_test(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Inputs `(N, *input_shape)` and the trained network's descriptors (N, D) of them; None where the model has none.

        Raises:
            ArtefactError: damaged, or of another shape than the model.
        """
        if SELF_TEST not in self.manifest.files:
            return None
        verify_files(self.path, self.manifest, [SELF_TEST])
        inputs, descriptors = load_arrays(self.path / SELF_TEST, ("inputs", "descriptors"), EXPORT_AGAIN)
        if inputs.shape[1:] != self.input_shape or descriptors.shape != (len(inputs), self.dimension) or not len(inputs):
            raise ArtefactError(
                f"{self.path / SELF_TEST} has shapes {inputs.shape} and {descriptors.shape}",
                expected=f"(N, {', '.join(map(str, self.input_shape))}) and (N, {self.dimension})", remedy=EXPORT_AGAIN,
            )  # fmt: skip
        return inputs, descriptors


def preprocess_of(path: Path, manifest: Manifest) -> Preprocess:
    """The image transform that the manifest of a model or a run gives. Raises ArtefactError where it gives none."""
    try:
        return Preprocess.model_validate(manifest.details.get("preprocess"))
    except ValidationError as error:
        remedy = EXPORT_AGAIN if manifest.kind == "model" else "train it again with 'asymvpr train'"
        raise ArtefactError(f"the manifest of {manifest.kind} {path} holds no pre-processing", remedy=remedy) from error
