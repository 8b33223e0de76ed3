"""`asymvpr demo`: every stage once, on a rendered town or on the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymvpr_core.cli.options import Config
from asymvpr_core.cli.progress import terminal_progress


def demo(
    out: Annotated[Path, typer.Option(help="folder for the artefacts and the report", metavar="DIR")] = Path("demo_out"),
    source: Annotated[
        Path | None,
        typer.Option(help="folder of your own data instead of the town: two bags, or two folders of named images", metavar="DIR"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the town and of the training")] = 0,
    config: Config = None,
) -> None:
    """Run the whole story: gallery, training, export, the live node on a bag, report.

    \b
    Examples
      asymvpr demo --out demo_out
      asymvpr demo --source my_bags --out my_demo
      asymvpr demo --source my_bags --config settings.yaml --out my_demo
    """
    from rich.console import Console
    from rich.table import Table

    from asymvpr_core.demo.report import COMPARISON_COLUMNS
    from asymvpr_core.demo.story import DemoSettings, run_demo

    result = run_demo(out, source, seed, terminal_progress(), DemoSettings.resolve(seed, config))
    console = Console()
    live = Table("live node", "value", "unit", title=result.description)
    for row in result.live_rows():
        live.add_row(*row)
    networks = Table(*(f"{c.name} [{c.unit}]" if c.unit else c.name for c in COMPARISON_COLUMNS), title="the same frames, offline")
    for cells in result.comparison_rows():
        networks.add_row(*cells)
    console.print(live, networks)
    console.print(f"report: {result.report}", soft_wrap=True)
