"""What the demo runs on: the rendered town, or the user's own two recordings, in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from asymvpr_core.config import EvaluationSettings, MatcherSettings, SourceSettings
from asymvpr_core.datasets.bag_dataset import BagDataset
from asymvpr_core.datasets.bag_writer import BagWriter
from asymvpr_core.datasets.bags import is_bag
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.datasets.source import open_source
from asymvpr_core.demo.record import GROUND_TRUTH_TOPIC, IMAGE_TOPIC, SETTINGS_FILE, render_demo_bags
from asymvpr_core.demo.town import build_town
from asymvpr_core.demo.town_settings import TownSettings
from asymvpr_core.errors import DatasetError
from asymvpr_core.image_decoding import decode_image
from asymvpr_core.progress import Progress, silent

_MAPPING_NAMES = ("mapping", "database", "gallery", "reference")
_LIVE_NAMES = ("live", "queries", "query")


@dataclass(frozen=True)
class Recordings:
    """A mapping source for the gallery and a live bag for the robot.

    `outline` are polygons (V, 2) [m] of buildings, drawn beneath the maps; empty where unknown.
    `matcher` and `evaluation` are the settings that fit the recordings: frames that are no sequence
    get no agreement over time, and the town's rule for a correct match is stricter than 25 m.
    """

    mapping: Path
    live_bag: Path
    mapping_source: SourceSettings
    live_source: SourceSettings
    outline: Sequence[np.ndarray]
    matcher: MatcherSettings
    evaluation: EvaluationSettings
    description: str

    def with_settings(self, matcher: MatcherSettings | None, evaluation: EvaluationSettings | None) -> Recordings:
        """The same recordings with the given settings where they are not None."""
        return replace(self, matcher=matcher or self.matcher, evaluation=evaluation or self.evaluation)

    def open_live(self) -> BagDataset:
        """The live lap, every frame with its true pose."""
        return BagDataset(self.live_bag, self.live_source.model_copy(update={"keyframes": None}))


def rendered_recordings(out: Path, settings: TownSettings, progress: Progress = silent) -> Recordings:
    """Render the town's two laps into `out`, or take them where an earlier run left them."""
    if not (out / SETTINGS_FILE).exists():
        render_demo_bags(out, settings, progress)
    town = TownSettings.model_validate_json((out / SETTINGS_FILE).read_text(encoding="utf-8"))
    source = SourceSettings(image_topic=IMAGE_TOPIC, pose_topic=GROUND_TRUTH_TOPIC)
    return Recordings(
        mapping=out / "mapping",
        live_bag=out / "live",
        mapping_source=source,
        live_source=source,
        outline=build_town(town).outline(),
        matcher=MatcherSettings(),
        # At 25 m a frame at a junction would count as a revisit of the street that it does not look into.
        evaluation=EvaluationSettings(radius_m=10.0, max_yaw_deg=45.0),
        description=f"rendered town, seed {town.seed}: mapping by {town.mapping_weather}, live lap in {', '.join(town.live_weather)}",
    )


def find_own(source: Path) -> tuple[Path, Path]:
    """Paths of the mapping and of the live recording below `source`; see `own_recordings`.

    Raises:
        DatasetError: there are not exactly these two, or one is a bag and one a folder.
    """
    mapping, live = _part(source, _MAPPING_NAMES), _part(source, _LIVE_NAMES)
    if is_bag(mapping) != is_bag(live):
        raise DatasetError(f"of {mapping} and {live} one is a bag and one a folder", expected="two bags or two folders of named images")
    return mapping, live


def own_recordings(source: Path, work: Path, settings: SourceSettings | None = None, progress: Progress = silent) -> Recordings:
    """Two bags, or two folders of named images, below `source`.

    The mapping part is called mapping, database, gallery or reference, the live part live, queries
    or query. Pictures of a live folder are written into a bag in `work`, at 2 Hz in order of their names.

    Args:
        settings: topics of both bags, where they have several of a kind.

    Raises:
        DatasetError: there are not exactly these two, or one is a bag and one a folder.
    """
    mapping, live = find_own(source)
    settings = settings or SourceSettings()
    if is_bag(mapping):
        description = f"own bags {mapping.name} and {live.name}"
        return Recordings(mapping, live, settings, settings, (), MatcherSettings(), EvaluationSettings(), description)
    queries = FolderDataset(live)
    bag = work / "live"
    if not bag.exists():
        write_folder_as_bag(bag, queries, progress=progress)
    live_source = SourceSettings(image_topic=IMAGE_TOPIC, pose_topic=GROUND_TRUTH_TOPIC)
    # Named pictures carry no order that a vote over frames could rely on.
    matcher = MatcherSettings(sequence="off")
    description = f"own folders {mapping.name} and {live.name}; pictures replayed at 2 Hz, no vote over frames"
    return Recordings(mapping, bag, SourceSettings(), live_source, (), matcher, EvaluationSettings(), description)


def mapping_dataset(recordings: Recordings, progress: Progress = silent) -> Dataset:
    """The images that the gallery is built from: keyframes of a bag, all images of a folder."""
    return open_source(recordings.mapping, recordings.mapping_source, progress)


def _part(source: Path, names: Sequence[str]) -> Path:
    if not source.is_dir():
        raise DatasetError(f"there is no folder {source}", remedy="give a folder that holds two bags or two folders of images")
    found = [source / name for name in names if (source / name).exists()]
    if len(found) != 1:
        held = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
        raise DatasetError(f"{source} holds {held}", expected=f"one of {', '.join(names)}", remedy="rename or link your recordings")
    return found[0]


def write_folder_as_bag(
    bag: Path, images: FolderDataset, *, rate_hz: float = 2.0, start_s: float = 1000.0, progress: Progress = silent
) -> None:
    """Write the pictures of a folder, in order of their names, as CompressedImage messages with their poses.

    Raises:
        ImageError: a file that cannot be read or decoded.
        BagError: the bag exists or cannot be written.
    """
    period_ns, start_ns = round(1e9 / rate_hz), round(start_s * 1e9)
    encoded = progress(images.read_encoded(list(range(len(images.records)))), f"write {bag.name} as a bag", len(images.records))
    bag.parent.mkdir(parents=True, exist_ok=True)
    with BagWriter(bag) as writer:
        for index, data in encoded:
            record, stamp_ns = images.records[index], start_ns + index * period_ns
            decode_image(data, str(images.root / record.name))  # refuses a damaged picture now, not after the training
            if record.pose is not None:
                writer.write_pose(GROUND_TRUTH_TOPIC, stamp_ns, record.pose, frame_id=images.map_frame)
            kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
            writer.write_compressed_image(IMAGE_TOPIC, stamp_ns, "camera", data, format=kind)
