"""Checksums of large files, tested by a thread behind the work: a robot does not wait until gigabytes are read."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

from asymvpr_core.errors import ArtefactError
from asymvpr_core.manifest import Manifest, verify_content, verify_size

_AT_ONCE_BYTES = 256 << 20  # a file up to this size is read in about half a second, and then tested before it is used
_NICENESS = 10  # frames go before checksums


class Verification:
    """The check of some files of an artefact in a thread of its own."""

    def __init__(self, folder: Path, manifest: Manifest, names: list[str]):
        self._folder, self._manifest, self._names = Path(folder), manifest, names
        self._damage: ArtefactError | None = None
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether all files have been read."""
        return not self._thread.is_alive()

    @property
    def damage(self) -> str:
        """What was found, with the remedy; empty while nothing was."""
        return "" if self._damage is None else str(self._damage)

    def raise_if_damaged(self) -> None:
        """Raise ArtefactError, naming the file, once damage has been found."""
        if self._damage is not None:
            raise ArtefactError(self._damage.found, expected=self._damage.expected, remedy=self._damage.remedy)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came within the time. Raises ArtefactError as `raise_if_damaged`."""
        self._thread.join(timeout_s)
        self.raise_if_damaged()
        return self.finished

    def _run(self) -> None:
        if sys.platform == "linux":
            # Of this thread alone, on Linux. A container may forbid it; then the check is only less polite.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        for name in self._names:
            try:
                verify_content(self._folder, self._manifest, name)
            except ArtefactError as error:
                self._damage = error
                return


def verify_behind(folder: Path, manifest: Manifest, names: list[str]) -> Verification | None:
    """Check presence and size of the named files and the content of the small ones now; that of the large ones behind the work.

    Returns what says how that goes, or None where nothing is left to check.

    Raises:
        ArtefactError: as `verify_files`, for what is checked now.
    """
    for name in names:
        verify_size(folder, manifest, name)
    large = [name for name in names if manifest.files[name].bytes > _AT_ONCE_BYTES]
    for name in names:
        if name not in large:
            verify_content(folder, manifest, name)
    return Verification(folder, manifest, large) if large else None
