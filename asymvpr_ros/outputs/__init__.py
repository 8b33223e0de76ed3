"""What the node publishes of an answer: one small class for each convention, chosen by the parameter `outputs`.

A further convention is a further class in `OUTPUTS`, and its topic in `OutputName` of the settings.
"""

from __future__ import annotations

from collections.abc import Iterable

from rclpy.lifecycle import LifecycleNode

from asymvpr_core.errors import SettingsError
from asymvpr_ros.outputs.answer import Answer, FrameNames, Localisation
from asymvpr_ros.outputs.localisation import GlobalPoseOutput, InitialPoseOutput
from asymvpr_ros.outputs.loop_closure import LioLoopOutput, LoopClosureOutput
from asymvpr_ros.outputs.markers import MarkersOutput
from asymvpr_ros.outputs.output import Output
from asymvpr_ros.outputs.picture import PictureOutput
from asymvpr_ros.outputs.place_match import CandidatesOutput, PoseOutput
from asymvpr_ros.outputs.transform import TransformOutput
from asymvpr_ros.qos import QosFaults

__all__ = ["OUTPUTS", "Answer", "FrameNames", "Localisation", "Output", "TransformOutput", "destroy_outputs", "make_outputs", "refusal_of"]

OUTPUTS: dict[str, type[Output]] = {
    output.topic: output
    for output in (
        PoseOutput,
        CandidatesOutput,
        PictureOutput,
        MarkersOutput,
        LoopClosureOutput,
        InitialPoseOutput,
        GlobalPoseOutput,
        LioLoopOutput,
    )
}


def refusal_of(kinds: Iterable[type[Output]], *, prior: bool, session: bool) -> str:
    """Why these outputs cannot be had with these galleries; empty where all can."""
    remedy = "or take the output out of 'outputs'"
    for kind in kinds:
        if kind.needs_prior and not prior:
            return f"output {kind.topic} needs a prior gallery, and gallery_path is empty; set it, {remedy}"
        if kind.needs_session and not session:
            return f"output {kind.topic} needs the session gallery, which is off; set 'session_gallery' to true, {remedy}"
    return ""


def make_outputs(node: LifecycleNode, faults: QosFaults, names: Iterable[str], *, transform: bool) -> list[Output]:
    """The named outputs with their publishers made, and TF where it is asked for.

    Raises:
        SettingsError: TF is asked for and its message is not installed; no publisher is left behind.
    """
    made: list[Output] = []
    try:
        if transform:
            made.append(TransformOutput(node, faults))
        made.extend(OUTPUTS[name](node, faults) for name in dict.fromkeys(names))
    except SettingsError:
        destroy_outputs(node, made)
        raise
    return made


def destroy_outputs(node: LifecycleNode, outputs: list[Output]) -> None:
    """Take the publishers of `outputs` off the node, so that it can configure again."""
    for output in outputs:
        output.destroy(node)
