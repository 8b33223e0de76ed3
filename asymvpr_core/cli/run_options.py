"""Options of the commands that read a run with ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def ground_truth_source(text: str) -> dict[str, Any]:
    """The source setting that a topic or a file means: a file is what exists as one or looks like one."""
    path = Path(text)
    if path.is_file():
        return {"trajectory_file": path}
    if path.suffix in (".txt", ".tum", ".csv") or not text.startswith("/"):
        raise typer.BadParameter(f"there is no file {text}; a topic begins with '/'", param_hint="'--ground-truth'")
    return {"pose_topic": text}


def numbers_of(text: str | None) -> tuple[int, ...] | None:
    """The K of --k: "1,5,10"."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no list of whole numbers such as 1,5,10", param_hint="'--k'") from None
