"""Loop closures on rendered towns: how many are false, and what they do for drifting odometry.

    python benchmarks/town_trajectory.py --folder out/towns --seeds 1 2 3 --out out/town_trajectory.json
    python benchmarks/town_trajectory.py --folder out/towns --seeds 11 12 --matcher sequence=off --matcher sequence=bayes

For each seed a town (seed 30 + N) with its look-alike streets, its odometry, a gallery and a trained query network are made as
`asymvpr demo` makes them, and kept in the folder. Then every frame of the live lap goes through the recogniser of the node,
with the odometry of its time, and the closures into examples/pose_graph.py, in the order of their stamps, as they would live.
Without --matcher the node's default settings are measured; each --matcher is a row of its own.

False: the keyframe is not within 10 m and 45 degrees of the frame's true place. Recall: frames with a true closure among those
that have a correct keyframe. Trajectory error: as in the demo's report, from a true start, and of the shape alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from pose_graph import PoseGraph
from pose_graph_inputs import Closure, GraphSettings

from asymvpr_core.config import EvaluationSettings, ExportSettings, GallerySettings, MatcherSettings, SessionSettings, TrainSettings
from asymvpr_core.datasets.bag_odometry import read_odometry
from asymvpr_core.datasets.ground_truth import find_positives
from asymvpr_core.datasets.trajectory import Trajectory
from asymvpr_core.demo.record import ODOMETRY_TOPIC
from asymvpr_core.demo.recordings import Recordings, mapping_dataset, rendered_recordings
from asymvpr_core.demo.route import plan_lap, wheel_odometry
from asymvpr_core.demo.slam import compare_trajectories
from asymvpr_core.demo.town import build_town
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.deploy.export import export_model
from asymvpr_core.errors import AsymvprError
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_core.settings_files import make_settings
from asymvpr_core.training.run import train
from asymvpr_core.types import ImageRecord, LoopClosure, Pose, QueryFrame

COLUMNS = (
    "town", "settings", "closures", "false", "recall %", "odometry m", "after m", "ratio", "shape: odometry m", "after m", "ratio",
)  # fmt: skip


class Artefacts:
    """What the demo makes of one town, made where it is missing, and its live frames' descriptors."""

    def __init__(self, folder: Path, seed: int, epochs: int | None, threads: int, town: dict[str, Any]):
        self.folder, name = folder / f"seed_{seed}", "trained" if epochs is None else f"epochs_{epochs}"
        self.gallery, self.model = self.folder / "gallery", self.folder / f"model_{name}"
        run, self._descriptors = self.folder / f"run_{name}", self.folder / f"descriptors_{name}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = make_settings(TownSettings, **{"seed": TownSettings().seed + seed, **town})
        self.recordings: Recordings = rendered_recordings(self.folder / "recordings", settings)
        changes = {} if epochs is None else {"epochs": epochs}
        if not self.gallery.exists():
            build_gallery(mapping_dataset(self.recordings), GallerySettings(threads=threads), self.gallery)
        if not run.exists():
            train(self.gallery, make_settings(TrainSettings, recipe="small_site", seed=seed, threads=threads, workers=0, **changes), run)
        if not self.model.exists():
            export_model(run, self.model, ExportSettings())
        self.live = self.recordings.open_live()
        self.truth, self.odometry = self.live.trajectory(), read_odometry(self.live.root, ODOMETRY_TOPIC)

    def drive_with(self, drift_seed: int) -> None:
        """Take other noise of the same odometry: the pictures do not depend on it."""
        path = self.folder / "recordings" / "town.json"
        settings = TownSettings.model_validate_json(path.read_text(encoding="utf-8")).model_copy(update={"odometry_seed": drift_seed})
        lap = plan_lap(build_town(settings), "live")
        times = lap.odometry_times_s
        states, _ = wheel_odometry(lap.states(times), times, settings, lap.index)
        poses = [Pose.from_xy_yaw(x, y, yaw) for x, y, yaw in states.tolist()]
        self.odometry = Trajectory([lap.stamp_ns(time) for time in times.tolist()], poses, name=f"odometry of seed {drift_seed}")

    def descriptors(self, recogniser: PlaceRecogniser) -> np.ndarray:
        """(F, D) of the live frames; computed once."""
        if not self._descriptors.exists():
            images = self.live.read_images(list(range(len(self.live.records))))
            np.save(self._descriptors, np.stack([recogniser.model.encode(image) for _, image in images]))
        return np.load(self._descriptors)


class _Remembered:
    """In place of the query model: gives the descriptor that was computed before."""

    def __init__(self, model: Any):
        self.manifest, self.path = model.manifest, model.path
        self.descriptor = np.zeros(0, dtype=np.float32)

    def encode(self, image: np.ndarray) -> np.ndarray:
        return self.descriptor


def find_closures(town: Artefacts, matcher: MatcherSettings, session: SessionSettings) -> list[LoopClosure]:
    """Every closure that the recogniser accepts along the live lap, in order."""
    recogniser = PlaceRecogniser.open(town.gallery, town.model, matcher, session=session)
    descriptors = town.descriptors(recogniser)
    remembered = recogniser.model = _Remembered(recogniser.model)  # type: ignore[assignment]
    # Only geometric verification looks at the picture.
    pictures = town.live.read_images(list(range(len(descriptors)))) if matcher.geometric_verification != "off" else ()
    images = (image for _, image in pictures) if pictures else (np.zeros((1, 1, 3), np.uint8) for _ in descriptors)
    closures = []
    for descriptor, image, stamp in zip(descriptors, images, town.live.stamps_ns, strict=True):
        remembered.descriptor = descriptor
        answer = recogniser.process(image, QueryFrame(stamp, town.odometry.at(stamp, 1.0)))
        closures += [closure for closure in (answer.prior_closure, answer.session_closure) if closure is not None]
    return closures


def drive(odometry: Trajectory, closures: list[LoopClosure], settings: GraphSettings) -> PoseGraph:
    """The pose graph after the whole lap, fed in the order of the stamps."""
    graph, waiting = PoseGraph(settings), [c for c in closures if c.keyframe_pose is not None and c.query_pose is not None]
    for stamp, pose in zip(odometry.stamps_ns.tolist(), odometry.poses, strict=True):
        graph.add_odometry(stamp, pose)
        while waiting and graph.covers(waiting[0].query_stamp_ns):
            c = waiting.pop(0)
            graph.add_closure(Closure(c.keyframe_stamp_ns, c.keyframe_pose, c.query_stamp_ns, c.query_pose, c.covariance))
        graph.optimise()
    return graph


def judge(town: Artefacts, closures: list[LoopClosure], evaluation: EvaluationSettings) -> dict[str, Any]:
    """False closures and recall, by the rule of the demo."""
    gallery = PlaceRecogniser.open(town.gallery, town.model).gallery
    keyframes = {keyframe.stamp_ns: keyframe for keyframe in gallery.keyframes}
    frames = {record.stamp_ns: record for record in town.live.records}
    limits = (evaluation.radius_m, evaluation.max_yaw_deg)

    def is_true(closure: LoopClosure) -> bool:
        place = keyframes.get(closure.keyframe_stamp_ns) or frames.get(closure.keyframe_stamp_ns)
        return place is not None and len(find_positives([frames[closure.query_stamp_ns]], [place], *limits)[0]) > 0

    true = [closure for closure in closures if is_true(closure)]
    opportunities = [len(found) > 0 for found in find_positives(town.live.records, gallery.keyframes, *limits)]
    found = {closure.query_stamp_ns for closure in true if closure.keyframe_stamp_ns in keyframes}
    false = [closure for closure in closures if not is_true(closure)]
    return {
        "n_frames": len(town.live.records),
        "n_opportunities": sum(opportunities),
        "n_closures": len(closures),
        "n_false": len(false),
        "n_within_session": sum(closure.keyframe_stamp_ns not in keyframes for closure in closures),
        "recall": len(found) / sum(opportunities) if any(opportunities) else None,
        "false_pairs": [_pair(closure, keyframes, frames) for closure in false],
    }


def _pair(closure: LoopClosure, keyframes: dict[int, ImageRecord], frames: dict[int, ImageRecord]) -> dict[str, Any]:
    keyframe, frame = keyframes.get(closure.keyframe_stamp_ns) or frames[closure.keyframe_stamp_ns], frames[closure.query_stamp_ns]
    apart = frame.pose.distance_m(keyframe.pose), frame.pose.yaw_distance_deg(keyframe.pose)
    return {"frame": frame.name, "keyframe": keyframe.name, "distance_m": round(apart[0], 2), "yaw_deg": round(apart[1], 1)}


def measure(town: Artefacts, label: str, matcher: MatcherSettings, session: SessionSettings, graph: GraphSettings) -> dict[str, Any]:
    """Closures and trajectory errors of one lap with one set of settings."""
    begin = time.perf_counter()
    closures = find_closures(town, matcher, session)
    driven = drive(town.odometry, closures, graph)
    errors = compare_trajectories(driven.odometry(), driven.corrected(), town.truth, in_map=driven.in_map, counts=vars(driven.counts))
    return {
        "town": town.recordings.description,
        "settings": label,
        **judge(town, closures, town.recordings.evaluation),
        **errors.metrics(),
        "matcher": matcher.model_dump(mode="json"),
        "session": session.model_dump(mode="json"),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def table_row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""

    def number(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    shape = [result[part] and result[part]["rmse_m"] for part in ("odometry_shape", "corrected_shape")]
    cells = [
        name, result["settings"], str(result["n_closures"]), str(result["n_false"]),
        number(None if result["recall"] is None else 100 * result["recall"], 1), number(result["odometry"]["rmse_m"]),
        number(result["corrected"]["rmse_m"]), number(result["ratio"]), *map(number, shape), number(result["shape_ratio"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def parse_settings(words: list[str]) -> tuple[str, MatcherSettings, SessionSettings]:
    """Label and settings of "name=value" words; names of the matcher's and the session's settings.

    Raises:
        SettingsError: an unknown name or a wrong value.
    """
    pairs = dict(word.split("=", 1) for word in words)
    session = {name: value for name, value in pairs.items() if name in SessionSettings.model_fields}
    matcher = {name: value for name, value in pairs.items() if name not in session}
    return " ".join(words) or "default", make_settings(MatcherSettings, **matcher), make_settings(SessionSettings, **session)


def main() -> int:
    """Measure, print a table, and write JSON where asked: 0, or 1 with one line for what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where artefacts are kept and taken from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of town, odometry and training (default 1 2 3)")
    parser.add_argument("--matcher", nargs="*", action="append", metavar="NAME=VALUE", help="settings of a row; default: the node's")
    parser.add_argument("--town", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the towns; they belong to the folder")
    parser.add_argument(
        "--drift-seeds", type=int, nargs="+", help="drive each lap with these noises of odometry instead of the recorded one"
    )
    parser.add_argument("--epochs", type=int, help="epochs of the training; 0: aligned only (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of gallery and training (default 2)")
    parser.add_argument("--out", type=Path, help="JSON file of everything measured")
    options = parser.parse_args()
    try:
        settings = [parse_settings(words) for words in options.matcher or [[]]]
        graph = GraphSettings()
        results = []
        print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
        for seed in options.seeds:
            town = Artefacts(options.folder, seed, options.epochs, options.threads, dict(word.split("=", 1) for word in options.town))
            for drift in options.drift_seeds or [None]:
                if drift is not None:
                    town.drive_with(drift)
                for label, matcher, session in settings:
                    results.append({"seed": seed, "drift_seed": drift} | measure(town, label, matcher, session, graph))
                    print(table_row(str(seed) if drift is None else f"{seed}, drift {drift}", results[-1]), flush=True)
        for label, _, _ in settings:
            rows = [result for result in results if result["settings"] == label]
            false, ratios = sum(row["n_false"] for row in rows), [row["ratio"] for row in rows if row["ratio"] is not None]
            worst = f"{max(ratios):.2f}" if ratios else "–"
            print(f"{label}: {false or 'no'} false closures in {len(rows)} drives; trajectory error at most {worst} of odometry's")
    except AsymvprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        record = describe("numpy", "gtsam", "evo", "onnxruntime", "torch") | {"graph": graph.model_dump(mode="json"), "results": results}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
