"""Export a trained query network for the robot, and refuse what no longer says what the trained network says."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from asymvpr_core.config import ExportSettings
from asymvpr_core.deploy.model_folder import MODEL, SELF_TEST, FilePrecision, Parity, Variant, preprocess_of
from asymvpr_core.deploy.onnx_files import write_fp16, write_ir, write_onnx
from asymvpr_core.deploy.openvino_session import openvino_version, why_no_openvino
from asymvpr_core.deploy.parity import ParityCheck, Pictures, Views, ways_to_run
from asymvpr_core.deploy.quantise import SCHEMES, QuantisationInput
from asymvpr_core.errors import ArtefactError, DeployError
from asymvpr_core.gallery.several import AnyGallery, open_galleries
from asymvpr_core.gallery.store import PROJECTION
from asymvpr_core.manifest import (
    MANIFEST_NAME,
    GalleryNetworkIdentity,
    Manifest,
    new_folder,
    read_manifest,
    verify_files,
    write_manifest,
)  # fmt: skip
from asymvpr_core.memory.origin import origin_paths
from asymvpr_core.networks.projection import ProjectedNetwork, Projection
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.progress import Progress, silent

_LOG = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"


def export_model(
    run_path: Path, out: Path, settings: ExportSettings, *, projection_from: Path | None = None, progress: Progress = silent
) -> Path:
    """Export the best weights of a training run to the query model `out`; returns `out`.

    Every variant that `settings` ask for is compared with the trained network, in every runtime of this machine
    that will run it, on pictures of the run's gallery where they can be read, and on seeded noise otherwise. The
    manifest holds all comparisons.

    Args:
        projection_from: a gallery that was projected from the one the run was trained against; its
            projection becomes the last part of the model, which then belongs to that gallery.

    Raises:
        ArtefactError: the run is missing or damaged, `out` exists or cannot be written, or
            `projection_from` was not projected from the run's gallery.
        DeployError: a variant differs from the trained network by more than allowed (unless `settings.force`), an
            operator has no equivalent, a runtime is missing, or int8 has no pictures to calibrate with.
    """
    run_path, out = Path(run_path), Path(out)
    run = read_manifest(run_path, "run")
    verify_files(run_path, run, [WEIGHTS])
    if "query_network" not in run.details:
        raise ArtefactError(f"the manifest of run {run_path} does not name its query_network", remedy="train it again with 'asymvpr train'")
    preprocess = preprocess_of(run_path, run)
    if not preprocess.is_static:
        found = f"{run.details['query_network']} takes pictures of any size (fit '{preprocess.fit}')"
        raise DeployError(found, expected="a network of one input size", remedy="train a query network of fit 'squash'")
    identity, module = _network(run_path, run, projection_from)
    gallery = _galleries(origin_paths(run))
    searched = gallery if projection_from is None else _galleries([Path(projection_from)])
    calibration = _calibration(settings, gallery, preprocess)
    pictures = Pictures.of_gallery(gallery, preprocess, settings.parity_images)
    count = 0 if set(settings.precisions) == {"fp32"} else settings.recall_views  # of fp32 the cosines say enough
    views = Views.of_gallery(gallery, run, preprocess, searched, count)
    check = ParityCheck(module, preprocess, pictures, views, settings.tolerances, progress)
    with new_folder(out) as staging:
        written = _Written(staging, settings, check)
        for _ in progress((MODEL,), "export to ONNX", 1):
            write_onnx(module, preprocess, staging / MODEL, settings.opset)
        written.add(Variant.named("onnx", "fp32"))
        if "fp16" in settings.precisions:
            variant = Variant.named("onnx", "fp16")
            write_fp16(staging / MODEL, staging / variant.file)
            written.add(variant)
        if "int8" in settings.precisions:
            _add_int8(written, calibration, progress)
        if "openvino" in settings.formats:
            for source in list(written.variants):
                variant = Variant.named("openvino", source.precision)
                write_ir(staging / source.file, staging / variant.file, fp16=source.precision == "fp16")
                written.add(variant)
        if settings.self_test_images:
            count = settings.self_test_images
            np.savez_compressed(staging / SELF_TEST, inputs=pictures.inputs[:count], descriptors=check.expected[:count])
        write_manifest(
            staging, "model", identity,
            settings=settings.model_dump(mode="json"),
            inputs={"run": str(run_path.resolve()), "weights_sha256": run.files[WEIGHTS].sha256},
            versions=_versions(),
            details={
                "query_network": run.details["query_network"],
                "preprocess": preprocess.model_dump(mode="json"),
                "opset": settings.opset,
                "variants": [variant.model_dump(mode="json") for variant in written.variants],
                "parity": [row.model_dump(mode="json") for row in written.parity],
                "parity_source": pictures.source,
                "tolerances": settings.tolerances,
                **written.details,
            },
        )  # fmt: skip
    return out


@dataclass
class _Written:
    """The variants that the folder holds so far, each with its comparisons."""

    folder: Path
    settings: ExportSettings
    check: ParityCheck
    variants: list[Variant] = field(default_factory=list)
    parity: list[Parity] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def compare(self, variant: Variant, *, recall: bool = True) -> list[Parity]:
        """A written file's comparisons, in all runtimes of this machine."""
        return [self.check.compare(self.folder, variant, way, recall=recall) for way in ways_to_run(variant)]

    def add(self, variant: Variant) -> None:
        """Keep a written file, once it agrees with the trained network where it has to.

        It has to in the runtime that it was written for, in its own precision. What else can run it (OpenVINO an
        ONNX file, bf16) is written down, and `runtime: auto` passes over what does not agree.

        Raises:
            DeployError: it does not agree, and is not forced.
        """
        written_for = "openvino" if variant.format == "openvino" else "onnxruntime"
        for row in self.compare(variant):
            needed = row.runtime == written_for and row.precision == variant.precision
            if not row.holds and needed and not self.settings.force:
                raise DeployError(
                    f"{row.file} has cosine {row.min_cosine:.6f} to the trained network in {row.runtime}",
                    expected=f"at least {row.tolerance}", remedy=_remedy(variant.precision),
                )  # fmt: skip
            if not row.holds:
                _LOG.warning(
                    "%s in %s %s has cosine %.6f to the trained network, below %s", row.file, row.runtime, row.precision, row.min_cosine,
                    row.tolerance,
                )  # fmt: skip
            if row.recall_at_1 is not None and row.torch_recall_at_1 is not None and row.recall_at_1 < row.torch_recall_at_1 - 0.005:
                _LOG.warning(
                    "%s in %s %s finds %.1f %% of %d views, torch %.1f %%", row.file, row.runtime, row.precision, 100 * row.recall_at_1,
                    row.recall_views, 100 * row.torch_recall_at_1,
                )  # fmt: skip
            forced = not row.holds and needed
            self.parity.append(row.model_copy(update={"forced": True}) if forced else row)
        self.variants.append(variant)


def _calibration(settings: ExportSettings, gallery: AnyGallery | None, preprocess: Preprocess) -> np.ndarray:
    """Pictures (N, H, W, 3) for int8, none where it is not wanted. What cannot be written is refused here, before minutes of work."""
    reason = why_no_openvino() if "openvino" in settings.formats else None
    if reason is not None:
        raise DeployError(f"an OpenVINO file was asked for, and {reason}", remedy="pip install openvino, or leave --format openvino out")
    if "int8" not in settings.precisions:
        return np.empty((0, 1, 1, 3))
    pictures = Pictures.of_gallery(gallery, preprocess, settings.calibration_images, apart_from=settings.parity_images)
    if pictures.source != "gallery":
        raise DeployError(
            "int8 has no pictures to calibrate with: those of the run's gallery cannot be read", expected="the gallery and its images",
            remedy="put them back where the run's manifest says they are, or leave int8 out",
        )  # fmt: skip
    return pictures.inputs


def _add_int8(written: _Written, calibration: np.ndarray, progress: Progress) -> None:
    """Write int8 by the first scheme that keeps parity, or by the one that comes nearest, which `_Written.add` then judges."""
    variant = Variant.named("onnx", "int8")
    path = written.folder / variant.file
    tried: list[tuple[float, bytes, str]] = []
    with QuantisationInput(written.folder / MODEL) as source:
        for scheme in progress(SCHEMES, "quantise to int8", len(SCHEMES)):
            source.write(path, calibration, scheme)
            rows = written.compare(variant, recall=False)
            tried.append((min(row.min_cosine for row in rows), path.read_bytes(), scheme.name))
            if all(row.holds for row in rows):
                break
    _, content, name = max(tried, key=lambda attempt: attempt[0])
    path.write_bytes(content)
    written.details["int8"] = {"scheme": name, "calibration_images": len(calibration)}
    written.add(variant)


def _remedy(precision: FilePrecision) -> str:
    if precision == "fp32":
        return "report the versions of torch and the runtime as a bug, or write it anyway with --force"
    return f"leave {precision} out, or write it anyway with --force"


def _network(run_path: Path, run: Manifest, projection_from: Path | None) -> tuple[GalleryNetworkIdentity, nn.Module]:
    """The trained network, with the projection behind it where one is wanted, and what its descriptors are comparable with."""
    spec = network_spec(run.details["query_network"])
    network = QueryNetwork(spec, run.gallery_network.dimension, gated=bool(run.details.get("gated", False)))
    network.load(run_path / WEIGHTS)
    network.eval()
    if projection_from is None:
        return run.gallery_network, network
    identity, projection = _projection_of(Path(projection_from), run, run_path)
    return identity, ProjectedNetwork(network, projection).eval()


def _projection_of(gallery: Path, run: Manifest, run_path: Path) -> tuple[GalleryNetworkIdentity, Projection]:
    """Identity and projection of a gallery that was projected from the run's own."""
    manifest = read_manifest(gallery, "gallery")
    origin = manifest.details.get("projected_from")
    if not isinstance(origin, dict) or origin.get("pair") != run.gallery_network.pair_id:
        raise ArtefactError(
            f"gallery {gallery} was not projected from the gallery that {run_path} was trained against",
            expected=f"one that 'asymvpr gallery project' made of a gallery of pair {run.gallery_network.pair_id}",
            remedy="project that gallery, or leave --projection-from out",
        )
    verify_files(gallery, manifest, [PROJECTION])
    return manifest.gallery_network, Projection.load(gallery / PROJECTION)


def _galleries(paths: list[Path]) -> AnyGallery | None:
    """The galleries at `paths` as one; None where one of them is gone."""
    there = bool(paths) and all((path / MANIFEST_NAME).exists() for path in paths)
    return open_galleries(paths, verify=False) if there else None


def _versions() -> dict[str, str]:
    def found() -> Iterator[tuple[str, str]]:
        yield "python", platform.python_version()
        yield "torch", torch.__version__
        yield "onnx", onnx.__version__
        yield "onnxruntime", onnxruntime.__version__
        if openvino_version():
            yield "openvino", openvino_version()

    return dict(found())
