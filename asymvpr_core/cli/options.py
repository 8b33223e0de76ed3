"""How a settings field becomes a flag: its help, its default and its choices come from the field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic_core import PydanticUndefined

from asymvpr_core.config import SECTIONS, IndexKind, Settings, SourceSettings


def setting(kind: type[Settings], name: str, flag: str | None = None, *, none_is: str = "not given", **options: Any) -> Any:
    """A typer option for field `name` of `kind`; None where it is not given, so that file and default apply.

    Args:
        flag: its name where it is not the field's own.
        none_is: what the help writes where the field's description says None.
        options: further arguments of typer.Option.
    """
    field = kind.model_fields[name]
    text = (field.description or "").replace("None:", f"{none_is}:")
    if field.default is not PydanticUndefined and field.default is not None:
        default = field.default
        text += f" (default: {','.join(str(v) for v in default) if isinstance(default, tuple) else default})"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    options.setdefault("metavar", "|".join(choices) or None)
    return typer.Option(flag or "--" + name.replace("_", "-"), help=text, show_default=False, **options)


def out_option(what: str) -> Any:
    """The option --out: the folder that becomes `what`."""
    return typer.Option("--out", help=f"folder that becomes {what}; must not exist yet", metavar="DIR", show_default=False)


KINDS = "|".join(["auto", *get_args(IndexKind)])  # of index

GalleryFolder = Annotated[Path, typer.Argument(help="folder of a gallery", metavar="DIR", show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help=f"YAML file of settings with sections {', '.join(SECTIONS)}; flags override it",
        metavar="FILE",
        show_default=False,
    ),
]
ImageTopic = Annotated[str | None, setting(SourceSettings, "image_topic")]
PoseTopic = Annotated[str | None, setting(SourceSettings, "pose_topic")]
Trajectory = Annotated[Path | None, setting(SourceSettings, "trajectory_file", "--trajectory")]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="weights file of the network; not given: the installed package's or the fetched one",
        metavar="FILE",
        show_default=False,
    ),
]
