"""The command line: `asymvpr`, also `python -m asymvpr_core`.

Only typer, rich and the settings are imported here and beside here; a command imports its stage
when it runs, so that --help answers at once and a usage error costs no torch import.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from asymvpr_core import __version__
from asymvpr_core.cli import bank, bench, calibrate, dataset, demo, evaluate, evaluate_bag, export, gallery, index, model, networks, train
from asymvpr_core.cli.failures import one_line_errors

HELP = """\
Visual place recognition in two halves: a heavy network describes the map's images offline, a light
one that was trained against them runs on the robot.

\b
See the whole story on a rendered town (minutes, no data needed):
  asymvpr demo --out demo_out

\b
From your mapping bag to a model for the robot:
  asymvpr gallery build mapping_bag --pose-topic /odom --out map
  asymvpr train map --recipe small_site --out run
  asymvpr export run --out model

\b
Does the robot find places of the map in another recording?
  asymvpr evaluate bag live_bag --gallery map --model model \\
      --ground-truth /ground_truth/pose --out report

\b
What does a benchmark hold, and is it whole?
  asymvpr dataset info pitts30k

\b
The same with folders of @utm_east@utm_north@…@.jpg images:
  asymvpr gallery build images/database --out map
  asymvpr evaluate recall --gallery map --queries images/queries \\
      --model model --radius-m 25 --out report

\b
Exit codes: 0 success; 1 known error, with one line that says what to do;
2 wrong usage; 130 interrupted.
"""


class Commands(TyperGroup):
    """The commands in the order of the work, with known errors as one line whichever of them raises."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [
            "demo", "networks", "dataset", "gallery", "index", "bank", "align", "train", "export", "model", "calibrate",
            "evaluate", "bench",
        ]  # fmt: skip

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="asymvpr",
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich reads the [m] and [deg] of the settings' descriptions as markup and drops them
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(networks.app, name="networks")
app.add_typer(dataset.app, name="dataset")
app.add_typer(gallery.app, name="gallery")
app.add_typer(index.app, name="index")
app.add_typer(bank.app, name="bank")
app.command("align")(train.align)
app.command("train")(train.train)
app.command("export")(export.export)
app.add_typer(model.app, name="model")
app.command("calibrate")(calibrate.calibrate)
evaluate.app.command("bag")(evaluate_bag.bag)
app.add_typer(evaluate.app, name="evaluate")
app.command("bench")(bench.bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asymvpr {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line on sys.argv; leaves with SystemExit."""
    app(prog_name="asymvpr")
