"""`normzoo norms`: the zoo as a table, and each layer as a card."""

import argparse
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from normzoo.errors import InputError

if TYPE_CHECKING:
    from normzoo.norms import Norm


class Parser(argparse.ArgumentParser):
    """Raises an `InputError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; it takes names of layers and --json.")


def main(argv: Sequence[str]) -> None:
    """Prints the catalogue, or the cards of the layers that are named."""
    parser = Parser(
        prog="normzoo norms",
        description="List the normalization layers, or show the card of each that is named.",
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a layer, such as GroupNorm")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)

    from normzoo.norms import layers  # torch is imported here and not for --help

    zoo = layers()
    for name in arguments.names:
        if name not in zoo:
            raise InputError(unknown_layer(name, list(zoo)))
    rows = [describe(zoo[name]) for name in arguments.names or zoo]
    if arguments.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
    elif arguments.names:
        print("\n\n".join(card(zoo[name]) for name in arguments.names))
    else:
        print_table(rows)


def unknown_layer(name: str, known: Sequence[str]) -> str:
    """What to say of a layer that does not exist."""
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"no layer is called {name!r}.{meant} The zoo has {', '.join(known)}; a layer of your own goes by its path."


def describe(layer: "type[Norm]") -> dict[str, Any]:
    """A layer's facts, arguments and tensors, as plain data."""
    from normzoo.norms._base import keyword_defaults

    facts, example = layer.facts, layer(4)
    return {
        "name": layer.__name__,
        "family": facts.family,
        "formula": facts.formula,
        "axes": list(facts.axes),
        "arguments": {name: repr(default) for name, default in keyword_defaults(layer).items()},
        "parameters": {name: shape(tensor.shape) for name, tensor in example.named_parameters()},
        "state": {name: shape(tensor.shape) for name, tensor in example.named_buffers()},
        "acts_on": facts.acts_on,
        "train_differs": facts.train_differs,
        "dense": facts.dense,
        "syncs": facts.syncs,
        "folds": facts.folds,
        "brings_activation": facts.brings_activation,
        "paper": str(facts.paper) if facts.paper else None,
    }


def shape(sizes: Sequence[int]) -> str:
    """The shape of a tensor of a layer with 4 features, in letters: (C,) for one value per channel."""
    return "(" + ", ".join("C" if size == 4 else str(size) for size in sizes) + ("," if len(sizes) == 1 else "") + ")"


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints a row per layer."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "family", "axes", "parameters", "state", "paper"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            row["family"],
            " ".join(row["axes"]) or "-",
            ", ".join(row["parameters"]) or "-",
            ", ".join(row["state"]) or "-",
            row["paper"] or "-",
        )
    console = Console()
    # Into a file or a pipe, a row is a line, so that grep finds whole rows.
    Console(width=console.width if console.is_terminal else 250).print(table)
    print(
        "\naxes: what the statistics run over: N samples, C channels, C/G those of a group, s positions"
        "\nnormzoo norms NAME shows a layer's equation, arguments and facts; --model.net.norm=NAME trains with it"
    )


def card(layer: "type[Norm]") -> str:
    """One layer's equation, facts and documentation."""
    import inspect

    row = describe(layer)
    arguments = ", ".join(f"{name}={default}" for name, default in row["arguments"].items())
    yes = {True: "yes", False: "no"}
    lines = [
        f"{row['name']}(num_features{', ' if arguments else ''}{arguments})",
        "",
        f"  {row['formula']}",
        "",
        f"  family       {row['family']}",
        f"  acts on      the {row['acts_on']}",
        f"  axes         {' '.join(row['axes']) or 'none: no statistics'}",
        f"  parameters   {', '.join(f'{name} {sizes}' for name, sizes in row['parameters'].items()) or 'none'}",
        f"  state        {', '.join(f'{name} {sizes}' for name, sizes in row['state'].items()) or 'none'}",
        f"  training and evaluation differ   {yes[row['train_differs']]}",
        f"  works in an MLP, on (N, C)       {yes[row['dense']]}",
        f"  can synchronize over ranks       {yes[row['syncs']]}",
        f"  folds into the layer before it   {yes[row['folds']]}",
        f"  brings its own activation        {yes[row['brings_activation']]}",
    ]
    return "\n".join([*lines, "", *(f"  {line}".rstrip() for line in (inspect.getdoc(layer) or "").splitlines())])
