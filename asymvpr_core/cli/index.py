"""`asymvpr index`: choose and build the search index of a gallery, look at it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymvpr_core.cli.options import KINDS, Config, setting
from asymvpr_core.cli.progress import terminal_progress
from asymvpr_core.config import IndexSettings
from asymvpr_core.settings_files import make_settings

if TYPE_CHECKING:
    from asymvpr_core.retrieval.gallery_index import IndexManifest

app = typer.Typer(help="The search index of a gallery: choose and build one, look at it.", no_args_is_help=True, rich_markup_mode=None)

GalleryFolder = Annotated[Path, typer.Argument(help="folder of a gallery", metavar="GALLERY", show_default=False)]


@app.command()
def build(
    gallery: GalleryFolder,
    kind: Annotated[str | None, setting(IndexSettings, "kind", metavar=KINDS)] = None,
    memory_mb: Annotated[float | None, setting(IndexSettings, "memory_mb")] = None,
    recall: Annotated[float | None, setting(IndexSettings, "recall")] = None,
    k: Annotated[int | None, setting(IndexSettings, "k")] = None,
    refine: Annotated[str | None, setting(IndexSettings, "refine")] = None,
    queries: Annotated[int | None, setting(IndexSettings, "queries")] = None,
    threads: Annotated[int | None, setting(IndexSettings, "threads")] = None,
    seed: Annotated[int | None, setting(IndexSettings, "seed")] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="new folder for the trade-off as a table and a plot", metavar="DIR", show_default=False),
    ] = None,
    config: Config = None,
) -> None:
    """Measure the kinds of index that fit the memory on GALLERY's own descriptors and keep the quickest that reaches the recall.

    Queries are made up from the descriptors, and exact search says what the right answers are. The index that
    the gallery has stays valid until the new one is complete.

    \b
    Examples
      asymvpr index build map
      asymvpr index build map --memory-mb 200 --recall 0.99 --report map_index
      asymvpr index build map --kind rabitq --refine sq8
    """
    settings = make_settings(
        IndexSettings,
        config,
        kind=kind,
        memory_mb=memory_mb,
        recall=recall,
        k=k,
        refine=refine,
        queries=queries,
        threads=threads,
        seed=seed,
    )
    if report is not None:
        from asymvpr_core.work_folder import refuse_existing

        refuse_existing(report)

    from asymvpr_core.retrieval.building import index_gallery

    manifest = index_gallery(gallery, settings, every_kind=True, verify=True, progress=terminal_progress())
    if report is not None:
        from asymvpr_core.evaluation.index_report import write_index_report

        write_index_report(gallery, manifest, report)
    _print(gallery, manifest)
    if report is not None:
        typer.echo(f"{'report':12} {report / 'index.md'}, {report / 'index.svg'}")


@app.command()
def info(gallery: GalleryFolder) -> None:
    """Print which index a gallery has and what was measured when it was chosen."""
    from asymvpr_core.gallery.store import Gallery
    from asymvpr_core.retrieval.gallery_index import read_index_manifest

    opened = Gallery.open(gallery, verify=False)
    manifest = read_index_manifest(opened)
    if manifest is None:
        typer.echo(f"{gallery} was written by an earlier version; it is searched exactly. 'asymvpr index build {gallery}' chooses an index")
        return
    _print(gallery, manifest)


def _print(gallery: Path, manifest: IndexManifest) -> None:
    from asymvpr_core.retrieval.trials import trial_table

    size = "none beside the descriptors" if manifest.file is None else f"{manifest.file.bytes / 1e6:.1f} MB in {manifest.file_name}"
    parameters = ", ".join(f"{name} {value}" for name, value in manifest.parameters.items()) or "none"
    rows = {
        "gallery": gallery,
        "index": manifest.kind,
        "chosen": manifest.note,
        "parameters": parameters,
        "ranked again": "no" if manifest.kind in ("exact", "float16") else f"with {manifest.refine}",
        "of": f"{manifest.keyframes} keyframes, {manifest.dimension}-D, pair {manifest.pair_id}",
        "file": size,
        "created": f"{manifest.created} by asymvpr {manifest.asymvpr_version}, FAISS {manifest.faiss_version}",
    }
    for name, value in rows.items():
        typer.echo(f"{name:12} {value}")
    if manifest.trials:
        typer.echo("")
        typer.echo(trial_table(manifest))
