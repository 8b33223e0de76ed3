"""Run an exported query model on the robot: image in, descriptor out. No training imports.

A query model is a folder: `manifest.json` with the pair that it belongs to, `model.onnx`, and what
else was exported beside it (docs/artefacts.md). Which runtime runs it: docs/runtimes.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asymvpr_core.config import RuntimeSettings
from asymvpr_core.deploy.model_folder import MODEL, ModelFolder, Variant
from asymvpr_core.deploy.report import Measured, Notes, RuntimeReport
from asymvpr_core.deploy.runtimes import open_session
from asymvpr_core.deploy.session import Choice, Session
from asymvpr_core.deploy.tuning import engine_cache, probe_input, self_test, tune
from asymvpr_core.errors import DeployError, ImageError, SettingsError
from asymvpr_core.manifest import Manifest
from asymvpr_core.preprocess import Preprocess

__all__ = ["MODEL", "QueryModel"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueryModel:
    """An exported query network ready to describe frames; not thread-safe per instance by contract.

    `report` says what runs it and why: `report.summary`, `report.as_diagnostics()`.
    """

    folder: ModelFolder
    session: Session
    report: RuntimeReport

    @staticmethod
    def open(path: Path, settings: RuntimeSettings | None = None) -> QueryModel:
        """Open a query model after testing its checksum, and run it once: the first run of a network is slow.

        With `runtime: auto`, the first opening on a machine measures, for some seconds (`tuning.tune`).

        Raises:
            ArtefactError: missing or damaged artefact, or one of a newer format.
            DeployError: a runtime, provider or variant that is not there, a model that the runtime refuses or
                that does not fit its manifest, or descriptors that are not the trained network's.
            SettingsError: settings that contradict each other.
        """
        settings = settings or RuntimeSettings()
        check_settings(settings)
        folder = ModelFolder.open(Path(path))
        notes = Notes()
        measured: tuple[Measured, ...] = ()
        remembered_in, latency_ms = "", None
        if settings.runtime == "auto":
            best, measured, remembered_in = tune(folder, settings, notes)
            choice, latency_ms = best.choice, best.latency_ms
        else:
            precision = "fp32" if settings.precision == "auto" else settings.precision
            choice = Choice(settings.runtime, settings.provider, precision, settings.fixed_threads)
        session = open_session(folder, choice, engine_cache(folder) if choice.provider == "tensorrt" else None)
        cosine = _first_run(folder, session, choice, notes)
        report = RuntimeReport(choice, session.version, latency_ms, cosine, measured, tuple(notes.lines), remembered_in)
        _LOG.info("model %s runs in %s", folder.path, report.summary)
        return QueryModel(folder, session, report)

    @property
    def path(self) -> Path:
        """The model's folder."""
        return self.folder.path

    @property
    def manifest(self) -> Manifest:
        """The folder's manifest."""
        return self.folder.manifest

    @property
    def preprocess(self) -> Preprocess:
        """The image transform; its normalisation is part of the graph."""
        return self.folder.preprocess

    @property
    def variant(self) -> Variant:
        """The file that runs."""
        return self.folder.variant(self.report.choice.runtime, self.report.choice.precision)

    @property
    def dimension(self) -> int:
        """Dimension of the descriptors."""
        return self.folder.dimension

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """One input of the network, of `(H, W, 3)` uint8 RGB: the resized picture. Prepared images of a model can be stacked.

        Raises:
            ImageError: another shape or type.
        """
        if not self.folder.folded:
            return self.preprocess(image)
        self.preprocess.check(image)
        return np.ascontiguousarray(self.preprocess.resize(image))

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Describe one `(H, W, 3)` uint8 RGB image: `(D,)` float32, L2-normalised.

        Raises:
            ImageError: another shape or type.
            DeployError: the runtime fails.
        """
        return self._run(self.prepare(image)[np.newaxis])[0]

    def encode_batch(self, inputs: np.ndarray) -> np.ndarray:
        """Describe images that `prepare` has made, stacked `(B, …)`: `(B, D)` float32, L2-normalised.

        Raises:
            ImageError: inputs of another shape or type.
            DeployError: the runtime fails.
        """
        expected = self.folder.input_shape
        if inputs.shape[1:] != expected or inputs.dtype != self.folder.input_dtype:
            raise ImageError(
                f"the query model was given inputs of {inputs.dtype} {inputs.shape}",
                expected=f"{self.folder.input_dtype} (B, {', '.join(map(str, expected))})", remedy="make them with 'prepare'",
            )  # fmt: skip
        if not self.folder.folded:
            return self._run(inputs)
        rows = [self._run(one[np.newaxis]) for one in inputs]  # the graph's batch is 1
        return np.concatenate(rows) if rows else np.empty((0, self.dimension), np.float32)

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        try:
            return self.session.run(inputs)
        except Exception as error:  # the runtimes have no common base, and onnxruntime none of its own
            raise DeployError(
                f"{self.session.version} failed on an image: {' '.join(str(error).split())}", remedy="set another runtime or provider"
            ) from error


def check_settings(settings: RuntimeSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingsError: bf16 or a provider with a runtime that has none.
    """
    if settings.precision == "bf16" and settings.runtime == "onnxruntime":
        raise SettingsError(
            "precision 'bf16' is OpenVINO's alone", expected="runtime openvino or auto", remedy="set runtime, or another precision"
        )
    if settings.provider != "cpu" and settings.runtime == "openvino":
        raise SettingsError(
            f"provider '{settings.provider}' is onnxruntime's alone", expected="runtime onnxruntime or auto",
            remedy="set runtime, or provider to cpu",
        )  # fmt: skip


def _first_run(folder: ModelFolder, session: Session, choice: Choice, notes: Notes) -> float | None:
    """Run the session once, on an image whose descriptor is known where there is one; its cosine.

    One image, which costs the run that the warm-up needs anyway, where the export has measured this very way to run
    the file; otherwise all images of the self-test.
    """
    parity = folder.parity_of(folder.variant(choice.runtime, choice.precision), choice.runtime, choice.precision)
    known = parity is not None and choice.provider == "cpu"
    if parity is not None and parity.forced:
        notes.add(f"exported with --force: cosine {parity.min_cosine:.4f} to the trained network, {parity.tolerance} asked for")
        session.run(probe_input(folder))
        return None
    cosine = self_test(folder, session, choice.precision, images=1 if known else None)
    if cosine is None:
        described = session.run(probe_input(folder))
        if not np.isfinite(described).all():
            raise DeployError(f"{session.version} gives model {folder.path} descriptors that are no numbers", remedy="set another runtime")
        if not known and folder.folded:
            notes.add(f"{choice.runtime} {choice.precision} was never compared with the trained network")
    return cosine
