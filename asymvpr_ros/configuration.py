"""What the node is configured with: whether the parameters can work together, the recogniser, and what it is made of."""

from __future__ import annotations

from pathlib import Path

from asymvpr_core.errors import SettingsError
from asymvpr_core.retrieval.joint import galleries_in
from asymvpr_core.retrieval.recogniser import PlaceRecogniser
from asymvpr_ros.conversions import cv_bridge_works
from asymvpr_ros.outputs import OUTPUTS, TransformOutput, refusal_of
from asymvpr_ros.parameters import ResolvedSettings


def refusal(settings: ResolvedSettings) -> str:
    """Why these settings cannot work together; empty where they can."""
    node, session = settings.node, settings.session.session_gallery
    if not node.model_path:  # an empty path would mean the working directory
        return "parameter 'model_path' is not set; give the folder with '-p model_path:=DIR' or in the parameter file"
    if not node.prior_paths and not session:
        return (
            "parameter 'gallery_path' is not set and the session gallery is off: there is nothing to match with; "
            "give the folder with '-p gallery_path:=DIR', or set session_gallery to true"
        )
    if "global_pose" in node.outputs and not node.base_frame:
        return "output global_pose carries the name of the robot's frame, and parameter 'base_frame' is not set; set it"
    kinds = [OUTPUTS[name] for name in node.outputs] + ([TransformOutput] if node.publish_tf else [])
    return refusal_of(kinds, prior=bool(node.prior_paths), session=session)


def open_recogniser(settings: ResolvedSettings) -> PlaceRecogniser:
    """The recogniser that the parameters ask for.

    Raises:
        SettingsError: the gallery's map frame is the robot's base frame.
        AsymvprError, OSError: what `PlaceRecogniser.open` raises.
    """
    node = settings.node
    recogniser = PlaceRecogniser.open(
        node.prior_paths or None, Path(node.model_path), settings.matcher, settings.runtime, session=settings.session
    )
    gallery = recogniser.gallery
    if gallery is not None and not node.map_frame and gallery.map_frame == node.base_frame:
        raise SettingsError(
            f"the poses of gallery {gallery.path} are in frame '{gallery.map_frame}', which base_frame names as the one that moves",
            remedy="correct base_frame, or give the map's name as map_frame",
        )
    return recogniser


def identity(recogniser: PlaceRecogniser, map_frame: str) -> dict[str, str]:
    """Which gallery, or which several, and which model, in words for diagnostics."""
    gallery, model = recogniser.gallery, recogniser.model
    manifests = [one.manifest for one in galleries_in(gallery)]
    network = model.manifest.gallery_network
    return {
        "pair_id": network.pair_id,
        "gallery": "" if gallery is None else str(gallery.path),
        "gallery_created": " + ".join(manifest.created for manifest in manifests),
        "gallery_sha256": " + ".join((manifest.manifest_sha256 or "")[:12] for manifest in manifests),
        "gallery_network": network.name,
        "gallery_keyframes": "0" if gallery is None else str(len(gallery)),
        "model": str(model.path),
        "model_created": model.manifest.created,
        "model_sha256": (model.manifest.manifest_sha256 or "")[:12],
        "map_frame": map_frame,
        "image_conversion": "cv_bridge" if cv_bridge_works() else "asymvpr_core",
        **model.report.as_diagnostics(),
    }
