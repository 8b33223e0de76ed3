"""`asymvpr bench`: how fast everything is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="benchmarks to run; none: all", metavar="[NAME]...", show_default=False)] = None,
    out: Annotated[
        Path, typer.Option("--out", help="folder of results, one JSON file a benchmark; those that are there stay", metavar="DIR")
    ] = Path("bench_out"),
    quick: Annotated[bool, typer.Option("--quick", help="small sizes: a first impression in minutes, no figures to publish")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="say which benchmarks there are, and run none")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="make the page of the results that are in --out, and run none")
    ] = False,
    document: Annotated[
        Path | None,
        typer.Option("--document", help="also write the page here, its plots into images/ beside it", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """Measure this machine: networks, search, frames through the live node, memory, training steps.

    \b
    Examples
      asymvpr bench --list
      asymvpr bench --quick --out first_look
      asymvpr bench encode search frame --out bench_out
      asymvpr bench --out bench_out --document docs/performance.md
    """
    from asymvpr_core.bench.report import PAGE, write_page
    from asymvpr_core.bench.results import read_result
    from asymvpr_core.bench.suite import SUITE, choose, run_benchmark
    from asymvpr_core.errors import EvaluationError

    if list_only:
        for benchmark in SUITE:
            typer.echo(f"{benchmark.name:15} {benchmark.what}")
        return
    failures = []
    for benchmark in choose(names or []) if not report_only else []:
        try:
            run_benchmark(benchmark, out, quick=quick, say=typer.echo)
        except EvaluationError as error:  # the others are not to wait for one that needs what this machine has not
            failures.append(error)
            typer.echo(str(error), err=True)
    results = [read_result(out / f"{benchmark.name}.json") for benchmark in SUITE if (out / f"{benchmark.name}.json").is_file()]
    if not results:
        raise failures[0] if failures else EvaluationError(f"{out} holds no results", remedy="run 'asymvpr bench' first")
    remarks = out / "remarks.md"
    text = remarks.read_text(encoding="utf-8") if remarks.is_file() else ""
    typer.echo(f"report: {write_page(results, out / PAGE, out)}")
    if document is not None:
        write_page(results, document, document.parent / "images", remarks=text)
        typer.echo(f"document: {document}")
    if failures:
        raise failures[0]
