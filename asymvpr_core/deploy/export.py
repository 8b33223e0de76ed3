"""Export a trained query network to ONNX, and refuse it when it no longer says what torch says."""

from __future__ import annotations

import logging
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from asymvpr_core.config import ExportSettings
from asymvpr_core.deploy.runtime import MODEL
from asymvpr_core.errors import ArtefactError, DeployError, ImageError
from asymvpr_core.gallery.several import open_galleries
from asymvpr_core.gallery.store import PROJECTION
from asymvpr_core.manifest import GalleryNetworkIdentity, Manifest, new_folder, read_manifest, verify_files, write_manifest
from asymvpr_core.memory.origin import origin_paths
from asymvpr_core.networks.projection import ProjectedNetwork, Projection
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.preprocess import Preprocess
from asymvpr_core.progress import Progress, silent

WEIGHTS = "weights.safetensors"


def export_model(
    run_path: Path, out: Path, settings: ExportSettings, *, projection_from: Path | None = None, progress: Progress = silent
) -> Path:
    """Export the best weights of a training run to the query model `out`; returns `out`.

    Args:
        projection_from: a gallery that was projected from the one the run was trained against; its
            projection becomes the last part of the model, which then belongs to that gallery.

    Parity with torch is measured on real images of the run's gallery where they can be read, and
    on seeded noise otherwise; the manifest says which, and the smallest cosine.

    Raises:
        ArtefactError: the run is missing or damaged, `out` exists or cannot be written, or
            `projection_from` was not projected from the run's gallery.
        DeployError: the exported model differs from the torch model by more than allowed.
    """
    run_path, out = Path(run_path), Path(out)
    run = read_manifest(run_path, "run")
    verify_files(run_path, run, [WEIGHTS])
    spec = network_spec(run.details["query_network"])
    network = QueryNetwork(spec, run.gallery_network.dimension, gated=bool(run.details.get("gated", False)))
    network.load(run_path / WEIGHTS)
    network.eval()
    identity = run.gallery_network
    module: nn.Module = network
    if projection_from is not None:
        identity, projection = _projection_of(Path(projection_from), run, run_path)
        module = ProjectedNetwork(network, projection).eval()
    preprocess = Preprocess.model_validate(run.details["preprocess"])
    with new_folder(out) as staging:
        for opset in progress((settings.opset,), "export to ONNX", 1):
            _to_onnx(module, preprocess, staging / MODEL, opset)
        inputs, source = _parity_inputs(run, preprocess, settings.parity_images)
        parity = _parity(module, staging / MODEL, inputs, progress)
        if parity < settings.min_cosine:
            raise DeployError(
                f"the exported model of {run_path} has cosine {parity:.6f} to the torch model",
                expected=f"at least {settings.min_cosine}",
                remedy="report the versions of torch and onnxruntime as a bug",
            )
        write_manifest(
            staging, "model", identity,
            settings=settings.model_dump(mode="json"),
            inputs={"run": str(run_path.resolve()), "weights_sha256": run.files[WEIGHTS].sha256},
            versions={
                "python": platform.python_version(), "torch": torch.__version__,
                "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__,
            },
            details={
                "query_network": spec.name,
                "preprocess": preprocess.model_dump(mode="json"),
                "parity": {"min_cosine": parity, "images": len(inputs), "source": source},
            },
        )  # fmt: skip
    return out


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


def _to_onnx(network: nn.Module, preprocess: Preprocess, path: Path, opset: int) -> None:
    example = torch.zeros(2, 3, preprocess.height, preprocess.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network, (example,), path, input_names=["image"], output_names=["descriptor"], opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    onnx.checker.check_model(str(path))


def _parity_inputs(run: Manifest, preprocess: Preprocess, count: int) -> tuple[np.ndarray, str]:
    """(images, 3, H, W) float32: images spread over the run's gallery, or seeded noise when it is gone."""
    paths = origin_paths(run)
    if paths and all((path / "manifest.json").exists() for path in paths):
        gallery = open_galleries(paths, verify=False)
        chosen = np.unique(np.linspace(0, len(gallery) - 1, count).astype(int))
        try:
            return np.stack([preprocess(gallery.read_image(int(i))) for i in chosen]), "gallery"
        except ImageError as error:
            logging.getLogger(__name__).warning("parity is measured on noise: %s", error)
    noise = np.random.default_rng(0).integers(0, 256, (count, preprocess.height, preprocess.width, 3), dtype=np.uint8)
    return np.stack([preprocess(image) for image in noise]), "noise"


def _parity(network: nn.Module, path: Path, inputs: np.ndarray, progress: Progress) -> float:
    """Smallest cosine between torch and onnxruntime, one image at a time as the robot runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # torch's threads are in this process too, and the two pools would wait for each other
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    smallest = 1.0
    for image in progress(inputs, "check parity", len(inputs)):
        exported: Any = session.run(["descriptor"], {"image": image[np.newaxis]})[0]
        with torch.inference_mode():
            original = network(torch.from_numpy(image[np.newaxis])).numpy()
        smallest = min(smallest, float((exported * original).sum()))
    return smallest
