"""Describe a dataset's images on many processes or machines, with Ray Data; the chunks are those of a local build, bit for bit.

Each chunk is one task. Workers open the dataset and the network for themselves, so that all of them need
the images and the weights file under the paths that the driver sees, and the same versions of the libraries.
A worker that dies is replaced and its chunk described again; finished chunks lie with the driver, and a
killed driver continues from them.
"""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions

from asymvpr_core.config import EngineSettings, GallerySettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.errors import GalleryError
from asymvpr_core.gallery.describe import (
    ChunkResult,
    Description,
    collect,
    describe_chunk,
    missing_chunks,
    prepared_inputs,
    save_chunk,
)  # fmt: skip
from asymvpr_core.networks.cpu import prepare_cpu
from asymvpr_core.networks.loading import LoadedNetwork, load_network
from asymvpr_core.progress import Progress

_CONNECT_TIMEOUT_S = 10.0


def describe_on_ray(
    source: Dataset, settings: GallerySettings, engine: EngineSettings, network: LoadedNetwork, weights: Path | None, work: Path,
    progress: Progress,
) -> Description:  # fmt: skip
    """As `describe`, on the workers of a Ray cluster; returns the same.

    Raises:
        GalleryError: a dataset that is read from front to back (a bag), no cluster at the address, workers
            that load other weights, or a worker's error.
    """
    if source.layout == "bag":
        raise GalleryError(
            f"{source.root} is a bag, which is read from front to back",
            expected="a folder or csv for --engine ray",
            remedy="use --engine local",
        )
    chunks = missing_chunks(source, settings, work)
    if chunks:
        with _cluster(engine):
            tasks = ray.data.from_items([{"start": chunk.start, "stop": chunk.stop} for chunk in chunks], override_num_blocks=len(chunks))
            described = tasks.map_batches(
                ChunkDescriber, batch_size=1, num_cpus=settings.threads,
                compute=ray.data.ActorPoolStrategy(size=_workers(engine, settings, len(chunks))),
                fn_constructor_kwargs={
                    "source": source, "settings": settings, "weights": weights, "weights_sha256": network.weights_sha256,
                },
            )  # fmt: skip
            rows = progress(described.iter_rows(), f"describe chunks with {settings.network} on Ray", len(chunks))
            try:
                for row in rows:
                    save_chunk(work, range(row["start"], row["stop"]), _unpack(row))
            except ray.exceptions.RayError as error:
                raise GalleryError(f"a Ray worker failed: {_last_line(error)}", remedy="mend it and give the same command again") from error
    return collect(source, settings, work)


class ChunkDescriber:
    """A Ray worker: opens the network once and describes one chunk a call."""

    def __init__(self, source: Dataset, settings: GallerySettings, weights: Path | None, weights_sha256: str):
        prepare_cpu(settings.threads)
        self.source, self.settings = source, settings
        self.network = load_network(settings.network, weights)
        if self.network.weights_sha256 != weights_sha256:
            raise GalleryError(
                f"a worker's weights of {settings.network} have checksum {self.network.weights_sha256[:12]}",
                expected=f"{weights_sha256[:12]}, the driver's",
                remedy="give all machines the same weights file",
            )

    def __call__(self, task: dict[str, np.ndarray]) -> dict[str, Any]:
        start, stop = int(task["start"][0]), int(task["stop"][0])
        # No dataset but a bag keeps pictures in the work folder, so that none is needed here.
        inputs = prepared_inputs(self.source, list(range(start, stop)), self.network.spec.preprocess, Path())
        result = describe_chunk(inputs, self.source, self.network, self.settings.batch_size)
        packed = io.BytesIO()
        np.save(packed, result.features, allow_pickle=False)
        record = json.dumps({"kept": result.kept, "errors": result.errors})
        return {"start": [start], "stop": [stop], "features": [packed.getvalue()], "record": [record]}


def _unpack(row: dict[str, Any]) -> ChunkResult:
    record = json.loads(row["record"])
    features = np.load(io.BytesIO(row["features"]), allow_pickle=False)
    return ChunkResult(features, record["kept"], {int(index): reason for index, reason in record["errors"].items()})


def _workers(engine: EngineSettings, settings: GallerySettings, chunks: int) -> int:
    """As many as were asked for, or as the cluster has cores for; never more than chunks."""
    fitting = max(1, int(ray.cluster_resources().get("CPU", 1)) // settings.threads)
    return min(engine.workers or fitting, chunks)


@contextmanager
def _cluster(engine: EngineSettings) -> Iterator[None]:
    """A connection to the cluster at the address, or a local cluster that ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    started = not ray.is_initialized()
    if started and engine.address is not None:
        _check_reachable(engine.address)
    if started:
        local: dict[str, Any] = {"num_cpus": engine.local_cpus, "include_dashboard": False} if engine.address is None else {}
        try:
            ray.init(address=engine.address or "local", log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(engine.address, error) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto": Ray finds the cluster of this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> GalleryError:
    return GalleryError(
        f"no Ray cluster answers at {address or 'this machine'}: {_last_line(error)}",
        remedy="start one with 'ray start --head', correct --ray-address, or leave it out for a local one",
    )


def _last_line(error: Exception) -> str:
    """What the worker said; Ray puts its whole traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
