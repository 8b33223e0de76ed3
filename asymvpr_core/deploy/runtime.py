"""Run an exported query model on the robot: image in, descriptor out. No training imports.

A query model is a folder: `manifest.json` with the pair that it belongs to, `model.onnx`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import ValidationError

from asymvpr_core.config import RuntimeSettings
from asymvpr_core.errors import ArtefactError, DeployError
from asymvpr_core.manifest import Manifest, read_manifest, verify_files
from asymvpr_core.preprocess import Preprocess

MODEL = "model.onnx"


@dataclass(frozen=True)
class QueryModel:
    """An exported query network ready to describe frames; not thread-safe per instance by contract."""

    path: Path
    manifest: Manifest
    preprocess: Preprocess
    session: onnxruntime.InferenceSession

    @staticmethod
    def open(path: Path, settings: RuntimeSettings | None = None) -> QueryModel:
        """Open a query model after testing its checksum.

        Raises:
            ArtefactError: missing or damaged artefact.
            DeployError: the runtime refuses the model, or it does not fit its manifest.
        """
        path, settings = Path(path), settings or RuntimeSettings()
        manifest = read_manifest(path, "model")
        verify_files(path, manifest, [MODEL])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path / MODEL), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own family without a common base
            raise DeployError(
                f"{path / MODEL} is refused by onnxruntime: {error}", remedy="export it again with 'asymvpr export'"
            ) from error
        return QueryModel(path, manifest, _check_fit(path, manifest, session), session)

    @property
    def dimension(self) -> int:
        """Dimension of the descriptors."""
        return self.manifest.gallery_network.dimension

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Describe one `(H, W, 3)` uint8 RGB image: `(D,)` float32, L2-normalised.

        Raises:
            ImageError: another shape or type.
        """
        return self.encode_batch(self.preprocess(image)[np.newaxis])[0]

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        """Describe pre-processed images `(B, 3, H, W)` float32: `(B, D)` float32, L2-normalised."""
        return self.session.run(["descriptor"], {"image": inputs})[0]


def _check_fit(path: Path, manifest: Manifest, session: onnxruntime.InferenceSession) -> Preprocess:
    """The pre-processing that the manifest states, once the network's input and output agree with it."""
    remedy = "export it again with 'asymvpr export'"
    try:
        preprocess = Preprocess.model_validate(manifest.details.get("preprocess"))
    except ValidationError as error:
        raise ArtefactError(f"the manifest of model {path} holds no pre-processing", remedy=remedy) from error
    if not preprocess.is_static:
        raise ArtefactError(f"the manifest of model {path} has pre-processing of fit '{preprocess.fit}'", expected="squash", remedy=remedy)
    dimension = manifest.gallery_network.dimension
    found = [(node.name, list(node.shape[1:])) for node in (*session.get_inputs(), *session.get_outputs())]
    expected = [("image", [3, preprocess.height, preprocess.width]), ("descriptor", [dimension])]
    if found != expected:
        raise DeployError(f"{path / MODEL} has input and output {found}", expected=f"{expected} by its manifest", remedy=remedy)
    return preprocess
