"""`runtime: auto`: the fastest runtime, precision and thread count of this machine, among those that keep parity.

Measured once for a model and machine, and remembered beside the model, or in the user's cache folder
where the model's cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import TypeAdapter, ValidationError

from asymvpr_core import __version__
from asymvpr_core.config import RuntimeSettings
from asymvpr_core.deploy.model_folder import ModelFolder, RuntimeName
from asymvpr_core.deploy.openvino_session import openvino_version
from asymvpr_core.deploy.report import Measured, Notes
from asymvpr_core.deploy.runtimes import open_session, precisions_of, why_not
from asymvpr_core.deploy.session import Choice, Session, cosines
from asymvpr_core.errors import ArtefactError, DeployError
from asymvpr_core.json_files import read_json
from asymvpr_core.manifest import write_text_atomically

TUNING = "tuning.json"
_RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
_SECONDS, _FEWEST, _MOST = 0.5, 3, 15  # of one measurement: time, fewest and most runs
# What has to be gained before more threads, or less than onnxruntime's fp32, is taken: the rest of the robot has
# work for the cores too, and a gain below this does not stand out of the noise of a measurement.
_MARGIN = 0.9


def tune(
    folder: ModelFolder, settings: RuntimeSettings, notes: Notes, *, again: bool = False
) -> tuple[Measured, tuple[Measured, ...], str]:
    """The way to run `folder` here, everything that was compared, and the file that remembers it ("" where none does).

    Whatever `settings` fix is not varied. What cannot be considered goes to `notes` with its reason.

    Args:
        again: measure, whatever is remembered.

    Raises:
        ArtefactError: a damaged file of the model.
        DeployError: nothing can be run.
    """
    key = machine_key(folder, settings)
    path, measured = (None, None) if again else _remembered(folder, key)
    if path is not None and measured is not None:
        _explain_absent(settings, notes)
        return best_of(measured), measured, str(path)
    measured = tuple(sorted(_measure_all(folder, settings, notes), key=lambda row: row.latency_ms))
    if not measured:
        raise DeployError(
            f"nothing runs model {folder.path} on this machine: {'; '.join(notes.lines)}",
            remedy="set runtime and precision by hand",
        )
    return best_of(measured), measured, _remember(folder, key, measured, notes)


def best_of(measured: tuple[Measured, ...]) -> Measured:
    """The fastest, unless what is simpler comes near: fewer threads first, then onnxruntime's fp32, then fp32."""
    ranked = sorted(measured, key=lambda row: (row.choice.threads, row.choice.precision != "fp32", row.choice.runtime != "onnxruntime"))
    best = ranked[0]
    for row in ranked[1:]:
        if row.latency_ms < _MARGIN * best.latency_ms:
            best = row
    return best


def candidates(folder: ModelFolder, settings: RuntimeSettings, notes: Notes) -> Iterator[Choice]:
    """The ways to run `folder` that are worth a measurement, without their thread counts (1 in all of them)."""
    for runtime in _RUNTIMES if settings.provider == "cpu" else ("onnxruntime",):
        reason = why_not(runtime)
        if reason is not None:
            notes.add(f"openvino is not considered: {reason}" if runtime == "openvino" else reason)
            continue
        wanted = precisions_of(runtime, settings.provider) if settings.precision == "auto" else (settings.precision,)
        for precision in wanted:
            try:
                variant = folder.variant(runtime, precision)
            except DeployError:
                continue  # not exported: nothing to choose
            parity = folder.parity_of(variant, runtime, precision)
            if parity is not None and not parity.holds:
                notes.add(f"{runtime} {precision} is not considered: cosine {parity.min_cosine:.4f} to the trained network at export")
                continue
            if runtime == "onnxruntime" and precision == "bf16":
                continue
            yield Choice(runtime, settings.provider, precision, 1)


def thread_counts(settings: RuntimeSettings) -> tuple[int, ...]:
    """The thread counts to compare: powers of two up to the cores that this process may use, at most 16."""
    if settings.threads:
        return (settings.threads,)
    if settings.provider != "cpu":
        return (1,)
    cores = usable_cores()
    counts = [count for count in (1, 2, 4, 8, 16) if count <= cores]
    return tuple(counts) if counts[-1] == min(cores, 16) else (*counts, cores)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def self_test(folder: ModelFolder, session: Session, precision: str, *, images: int | None = None) -> float | None:
    """Smallest cosine of what `session` makes of the stored images to the trained network; None without any.

    Raises:
        ArtefactError: a damaged self-test.
        DeployError: below the tolerance of `precision`.
    """
    stored = folder.self_test()
    if stored is None:
        return None
    inputs, expected = (array[:images] for array in stored)
    described = np.concatenate([session.run(one[np.newaxis]) for one in inputs])
    cosine = float(cosines(described, expected).min())
    tolerance = folder.tolerances.get(precision, 0.0)
    if not cosine >= tolerance:  # also where it is NaN
        raise DeployError(
            f"{session.version} gives model {folder.path} in {precision} cosine {cosine:.6f} to the trained network on this machine",
            expected=f"at least {tolerance}", remedy="set another runtime or precision, or install another release of the runtime",
        )  # fmt: skip
    return cosine


def probe_input(folder: ModelFolder) -> np.ndarray:
    """An input `(1, *input_shape)` to run a model with where no picture is at hand: the same noise every time."""
    noise = np.random.default_rng(0).integers(0, 256, folder.input_shape)
    return np.asarray(noise if folder.folded else (noise - 128) / 64, dtype=folder.input_dtype)[np.newaxis]


def engine_cache(folder: ModelFolder) -> Path:
    """Folder for what a runtime compiles for this machine; made when it is not there."""
    path = _user_cache(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def machine_key(folder: ModelFolder, settings: RuntimeSettings) -> str:
    """Digest of everything that a measurement depends on: machine, versions, model, settings."""
    facts = {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "versions": {"asymvpr": __version__, "onnxruntime": onnxruntime.__version__, "openvino": openvino_version()},
        "providers": onnxruntime.get_available_providers(),
        "model": {name: entry.sha256 for name, entry in folder.manifest.files.items()},
        "settings": settings.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def remembered(folder: ModelFolder) -> dict[str, tuple[Measured, ...]]:
    """All measurements that are remembered of this model, by key, this machine's and others'."""
    found: dict[str, tuple[Measured, ...]] = {}
    for path in _places(folder):
        found |= _read(path)
    return found


def _measure_all(folder: ModelFolder, settings: RuntimeSettings, notes: Notes) -> Iterator[Measured]:
    for candidate in candidates(folder, settings, notes):
        cosine: float | None = None
        for threads in thread_counts(settings):
            choice = Choice(candidate.runtime, candidate.provider, candidate.precision, threads)
            try:
                session = open_session(folder, choice, engine_cache(folder) if settings.provider == "tensorrt" else None)
                if threads == thread_counts(settings)[0]:
                    cosine = self_test(folder, session, choice.precision)
                yield Measured(choice, _latency_ms(folder, session), cosine)
            except DeployError as error:
                notes.add(f"{choice.runtime} {choice.precision} is not considered: {error}")
                break


def _latency_ms(folder: ModelFolder, session: Session) -> float:
    """Median time of one image."""
    image = probe_input(folder)
    session.run(image)  # the first run allocates
    seconds: list[float] = []
    while len(seconds) < _FEWEST or (sum(seconds) < _SECONDS and len(seconds) < _MOST):
        begin = time.perf_counter()
        session.run(image)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


def _explain_absent(settings: RuntimeSettings, notes: Notes) -> None:
    """Say again what was not considered when the remembered measurement was made: its key holds, so the reason does."""
    reason = why_not("openvino") if settings.provider == "cpu" else None
    if reason is not None:
        notes.add(f"openvino is not considered: {reason}")


def _remembered(folder: ModelFolder, key: str) -> tuple[Path | None, tuple[Measured, ...] | None]:
    for path in _places(folder):
        rows = _read(path).get(key)
        if rows:
            return path, rows
    return None, None


def _remember(folder: ModelFolder, key: str, measured: tuple[Measured, ...], notes: Notes) -> str:
    """Write a measurement to the first place that can be written; the place, or ""."""
    reasons = []
    for path in _places(folder):
        entries = {name: [asdict(row) for row in rows] for name, rows in _read(path).items()} | {key: [asdict(row) for row in measured]}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, json.dumps(entries, indent=2) + "\n")
            return str(path)
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
    notes.add(f"the measurement is not remembered, and the next start measures again ({'; '.join(reasons)})")
    return ""


def _places(folder: ModelFolder) -> tuple[Path, Path]:
    return folder.path / TUNING, _user_cache(folder) / TUNING


def _user_cache(folder: ModelFolder) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asymvpr" / "runtime"
    return base / (folder.manifest.manifest_sha256 or "unknown")[:16]


def _read(path: Path) -> dict[str, tuple[Measured, ...]]:
    """The measurements in a file; none where it is missing, or no longer what was written: then it is measured again."""
    try:
        raw = read_json(path, "remove it")
        return TypeAdapter(dict[str, tuple[Measured, ...]]).validate_python(raw)
    except (OSError, ArtefactError, ValidationError):
        return {}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    # ARM kernels give no name but the numbers of implementer and part.
    wanted = ("model name", "CPU implementer", "CPU part")
    found = sorted({line.partition(":")[2].strip() for line in lines if line.startswith(wanted)})
    return " ".join(found) or platform.processor() or platform.machine()
