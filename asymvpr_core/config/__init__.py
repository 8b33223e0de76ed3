"""Typed settings: the only home of defaults.

YAML files, command-line flags and ROS parameters are all made from these models. Unknown keys
are refused at every depth; precedence is flag > file > default; each stage saves the settings
as resolved beside its result.

One module for each part of the work; everything is imported from here.
"""

from __future__ import annotations

from asymvpr_core.config.base import Settings, is_yaml_off
from asymvpr_core.config.evaluation import BenchmarkSettings, CalibrationSettings, EvaluationSettings
from asymvpr_core.config.gallery import (
    THUMBNAIL_SIDE_PX,
    EngineSettings,
    GallerySettings,
    IndexKind,
    IndexSettings,
    KeyframeSettings,
    ProjectionSettings,
    SourceSettings,
)
from asymvpr_core.config.robot import ExportSettings, MatcherSettings, NodeSettings, OutputName, RuntimeSettings, SessionSettings
from asymvpr_core.config.training import (
    AugmentationSettings,
    BankSettings,
    BaselineSettings,
    CellSettings,
    ComparisonSettings,
    LossName,
    NeighbourSettings,
    TrainSettings,
)

__all__ = [
    "AugmentationSettings",
    "BankSettings",
    "BaselineSettings",
    "BenchmarkSettings",
    "CalibrationSettings",
    "CellSettings",
    "ComparisonSettings",
    "EngineSettings",
    "EvaluationSettings",
    "ExportSettings",
    "GallerySettings",
    "IndexKind",
    "IndexSettings",
    "KeyframeSettings",
    "LossName",
    "MatcherSettings",
    "NeighbourSettings",
    "NodeSettings",
    "OutputName",
    "ProjectionSettings",
    "RuntimeSettings",
    "SECTIONS",
    "SessionSettings",
    "Settings",
    "SourceSettings",
    "THUMBNAIL_SIDE_PX",
    "TrainSettings",
    "is_yaml_off",
]

# The sections of a settings file: one file holds the settings of all stages.
SECTIONS: dict[str, type[Settings]] = {
    "source": SourceSettings,
    "benchmark": BenchmarkSettings,
    "gallery": GallerySettings,
    "index": IndexSettings,
    "engine": EngineSettings,
    "bank": BankSettings,
    "neighbours": NeighbourSettings,
    "train": TrainSettings,
    "comparison": ComparisonSettings,
    "export": ExportSettings,
    "runtime": RuntimeSettings,
    "matcher": MatcherSettings,
    "session": SessionSettings,
    "calibration": CalibrationSettings,
    "evaluation": EvaluationSettings,
}
