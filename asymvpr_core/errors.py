"""Errors that the core raises: one base, one class a stage.

Every message says what was found, what was expected and what to do about it. The command
line prints a known error as one line and exits 1; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class AsymvprError(Exception):
    """Base of all errors that asymvpr raises on purpose.

    Args:
        found: what was found, a full clause ("gallery holds 256-D descriptors").
        expected: what would have been right ("a 512-D gallery"), or None where `found` says it.
        remedy: what the user can do about it, an imperative clause.
    """

    def __init__(self, found: str, *, expected: str | None = None, remedy: str | None = None):
        self.found, self.expected, self.remedy = found, expected, remedy
        message = found
        if expected is not None:
            message += f"; expected {expected}"
        if remedy is not None:
            message += f"; {remedy}"
        super().__init__(message)


class SettingsError(AsymvprError):
    """A setting is unknown, of the wrong type or out of range."""


class ArtefactError(AsymvprError):
    """A gallery, model or run folder is missing, incomplete, damaged or does not belong here."""


class DatasetError(AsymvprError):
    """A source of images cannot be read or lacks what the task needs."""


class BagError(DatasetError):
    """A rosbag is missing, unreadable or lacks a topic."""


class ImageError(DatasetError):
    """One image cannot be decoded or has an unknown encoding."""


class NetworkError(AsymvprError):
    """A network is unknown, or its weights do not fit."""


class GalleryError(AsymvprError):
    """A gallery cannot be built or used."""


class MemoryBankError(AsymvprError):
    """Place statistics cannot be computed or do not fit the data."""


class TrainingError(AsymvprError):
    """A training run cannot start or go on."""


class DeployError(AsymvprError):
    """A query model cannot be exported or run."""


class RetrievalError(AsymvprError):
    """An index or a matcher was given what it cannot use."""


class EvaluationError(AsymvprError):
    """An evaluation lacks its data or its ground truth."""
