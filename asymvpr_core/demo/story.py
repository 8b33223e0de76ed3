"""The whole story in one function: two recordings in, gallery, query model, live matches and a report out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from asymvpr_core.config import (
    EvaluationSettings,
    ExportSettings,
    GallerySettings,
    MatcherSettings,
    RuntimeSettings,
    SourceSettings,
    TrainSettings,
)
from asymvpr_core.datasets.bag_dataset import BagDataset
from asymvpr_core.demo.live import SLAM_FOLDER, find_slam, replay_live, require_ros
from asymvpr_core.demo.recordings import Recordings, find_own, mapping_dataset, own_recordings, rendered_recordings
from asymvpr_core.demo.report import Comparison, DemoResult, write_demo_report
from asymvpr_core.demo.slam import SlamResult, evaluate_slam, odometry_topic, recorded_closures
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.deploy.export import export_model
from asymvpr_core.errors import ArtefactError, EvaluationError
from asymvpr_core.evaluation.bag import BagResult, evaluate_run
from asymvpr_core.evaluation.recorded import compare_candidates, evaluate_recorded, read_recording
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import write_text_atomically
from asymvpr_core.progress import Progress, silent
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.settings_files import make_settings
from asymvpr_core.training.run import train

T = TypeVar("T")

SETTINGS_FILE, METRICS, REPORT = "demo.json", "metrics.json", "report.html"


@dataclass
class DemoSettings:
    """What the demo does; a smaller town and shorter training make it a test.

    `source` names the topics of the user's own bags; `matcher` and `evaluation` are None where the recordings choose what fits them.
    """

    town: TownSettings
    training: TrainSettings
    gallery: GallerySettings = field(default_factory=GallerySettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    matcher: MatcherSettings | None = None
    evaluation: EvaluationSettings | None = None
    rate: float = 1.5

    @staticmethod
    def resolve(seed: int, config: Path | None = None) -> DemoSettings:
        """The embedded default (default networks, small-site recipe, default town), changed by a settings file.

        Raises:
            SettingsError: the file has unknown or wrong settings.
        """
        town = TownSettings()
        own = config is not None
        return DemoSettings(
            town=town.model_copy(update={"seed": town.seed + seed}),
            training=make_settings(TrainSettings, config, recipe="small_site", seed=seed),
            gallery=make_settings(GallerySettings, config),
            runtime=make_settings(RuntimeSettings, config),
            source=make_settings(SourceSettings, config),
            matcher=make_settings(MatcherSettings, config) if own else None,
            evaluation=make_settings(EvaluationSettings, config) if own else None,
        )


def run_demo(
    out: Path, source: Path | None = None, seed: int = 0, progress: Progress = silent, settings: DemoSettings | None = None
) -> DemoResult:
    """Run every stage into `out` and return what came out; `out/report.html` shows it.

    Artefacts that an earlier run of the same settings left in `out` are used again; evaluation,
    live run and report are always made anew.

    Args:
        source: folder with the user's own two recordings; None renders the town.
        seed: of the town and of the training.

    Raises:
        ArtefactError: `out` holds a demo of other settings, or something else.
        AsymvprError: whatever a stage raises.
    """
    out, settings = Path(out), settings or DemoSettings.resolve(seed)
    require_ros()
    if source is not None:
        find_own(source)  # a wrong path must not leave a folder that belongs to it
    _claim(out, source, settings)
    clock = _Clock()
    recordings = clock("recordings", lambda: _recordings(out, source, settings, progress))
    recordings = recordings.with_settings(settings.matcher, settings.evaluation)
    gallery = clock.once(
        out / "gallery", lambda path: build_gallery(mapping_dataset(recordings, progress), settings.gallery, path, progress=progress)
    )
    models = {name: _model(name, training, gallery, out, clock, progress) for name, training in _trainings(settings.training).items()}
    live = recordings.open_live()
    odometry = odometry_topic(live.root, live.pose_topic)
    offline = {
        name: _evaluate(name, live, gallery, model, recordings, settings, out, odometry, clock, progress) for name, model in models.items()
    }
    slam_script, no_slam = _slam_script(odometry)
    records = clock("live", lambda: _run_live(live, gallery, models["trained"], recordings, settings, out, odometry, slam_script, progress))
    published = evaluate_recorded(
        records,
        live.trajectory(),
        Gallery.open(gallery),
        recordings.evaluation,
        matcher=recordings.matcher,
        frame_stamps_ns=live.stamps_ns,
    )
    result = DemoResult(
        out=out,
        description=recordings.description,
        offline=offline["trained"],
        live=published.metrics,
        identical_candidates=compare_candidates(records, offline["trained"].frames),
        comparison=[Comparison(name, item.metrics, item.sweep) for name, item in offline.items()],
        seconds=clock.seconds,
        outline=recordings.outline,
        slam=None if slam_script is None else _evaluate_slam(out / "live" / SLAM_FOLDER, live, records),
        no_slam=no_slam,
        report=out / REPORT,
    )
    write_text_atomically(out / METRICS, json.dumps(result.metrics(), indent=2) + "\n")
    write_demo_report(result)
    return result


def _trainings(trained: TrainSettings) -> dict[str, TrainSettings]:
    """The trained query network, and what it is compared with: its own start, and a random last layer."""
    return {
        "trained": trained,
        "aligned": trained.model_copy(update={"epochs": 0}),
        "untrained": trained.model_copy(update={"epochs": 0, "init": "random"}),
    }


def _recordings(out: Path, source: Path | None, settings: DemoSettings, progress: Progress) -> Recordings:
    if source is None:
        return rendered_recordings(out / "recordings", settings.town, progress)
    return own_recordings(source, out / "recordings", settings.source, progress)


def _model(name: str, training: TrainSettings, gallery: Path, out: Path, clock: _Clock, progress: Progress) -> Path:
    run = clock.once(out / f"run_{name}", lambda path: train(gallery, training, path, progress=progress))
    return clock.once(out / f"model_{name}", lambda path: export_model(run, path, ExportSettings(), progress=progress))


def _evaluate(
    name: str, live: BagDataset, gallery: Path, model: Path, recordings: Recordings, settings: DemoSettings, out: Path,
    odometry: str | None, clock: _Clock, progress: Progress,
) -> BagResult:  # fmt: skip
    recogniser = PlaceRecogniser.open(gallery, model, recordings.matcher, settings.runtime)
    where = _renewed(out / f"evaluation_{name}")
    return clock(where.name, lambda: evaluate_run(live, recogniser, recordings.evaluation, where, progress, odometry_topic=odometry))


def _run_live(
    live: BagDataset, gallery: Path, model: Path, recordings: Recordings, settings: DemoSettings, out: Path, odometry: str | None,
    slam_script: Path | None, progress: Progress,
) -> list[dict[str, Any]]:  # fmt: skip
    recording = replay_live(
        live.root,
        live.image_topic,
        live.image_type,
        gallery,
        model,
        _renewed(out / "live"),
        rate=settings.rate,
        matcher=recordings.matcher,
        runtime=settings.runtime,
        odometry_topic=odometry,
        slam=slam_script,
        progress=progress,
    )
    return read_recording(recording)


def _slam_script(odometry: str | None) -> tuple[Path | None, str]:
    """The pose graph to run beside the node; None, with the reason, where it cannot run."""
    if odometry is None:
        return None, "the live recording has no odometry topic of its own"
    try:
        return find_slam(), ""
    except EvaluationError as error:
        return None, str(error)


def _evaluate_slam(folder: Path, live: BagDataset, records: list[dict[str, Any]]) -> SlamResult:
    return evaluate_slam(folder, live.trajectory(), recorded_closures(records))


def _claim(out: Path, source: Path | None, settings: DemoSettings) -> None:
    """Refuse a folder that holds something else, or a demo whose artefacts belong to other settings."""
    mine = json.loads(json.dumps({
        "source": None if source is None else {"path": str(Path(source).resolve()), **settings.source.model_dump(mode="json")},
        "town": settings.town.model_dump(mode="json") if source is None else None,
        "gallery": settings.gallery.model_dump(mode="json"),
        "training": settings.training.model_dump(mode="json"),
    }))  # fmt: skip
    record = out / SETTINGS_FILE
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and not out.is_dir() or held and SETTINGS_FILE not in held:
        raise ArtefactError(f"{out} exists and is no demo", remedy="give another --out")
    if held - {SETTINGS_FILE}:
        try:
            theirs = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtefactError(f"{record} is damaged", remedy="give another --out, or remove the folder") from error
        if theirs != mine:
            raise ArtefactError(f"{out} holds a demo of other settings", remedy="give another --out, or remove it")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(record, json.dumps(mine, indent=2) + "\n")


class _Clock:
    """Runs steps and remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[[], T]) -> T:
        """Run a step under its name."""
        begin = time.monotonic()
        result = step()
        self.seconds[name] = time.monotonic() - begin
        return result

    def once(self, path: Path, make: Callable[[Path], Path]) -> Path:
        """Make an artefact unless an earlier run left it: artefacts are complete or absent, and their readers check them."""
        if not path.exists():
            self(path.name, lambda: make(path))
        return path


def _renewed(path: Path) -> Path:
    """Remove the demo's own result of an earlier run."""
    if path.exists():
        shutil.rmtree(path)
    return path
