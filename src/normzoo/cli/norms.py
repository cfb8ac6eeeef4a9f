"""`normzoo norms`: the zoo as a table, and each layer as a card."""

import inspect
import json
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from normzoo.cli.commands import ArgumentParser
from normzoo.errors import InputError

if TYPE_CHECKING:
    from normzoo.norms import Norm


def main(argv: Sequence[str]) -> None:
    """Prints the catalogue, or the cards of the layers that are named."""
    parser = ArgumentParser(
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
        print(table(rows))


def unknown_layer(name: str, known: Sequence[str]) -> str:
    """The message for a layer that does not exist."""
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    own = "`normzoo fit --model.net.norm=my_package.MyNorm` trains with one of your own."
    return f"no layer is called {name!r}.{meant} The zoo has {', '.join(known)}; {own}"


# Fact -> what it says of a layer.
WORDS = {
    "centres": "ignores a constant added to the input",
    "scales": "ignores a factor of the input",
    "zero_mean": "output has mean 0 at the start",
    "unit_square": "starts at mean square 1 (weight: length)",
    "cancels_bias": "cancels a bias just before it",
    "stateful": "keeps running statistics",
    "train_differs": "training and evaluation differ",
    "takes_reference": "keeps its first batch as reference",
    "random": "draws random numbers in training",
    "dense": "works in an MLP, on (N, C)",
    "syncs": "can synchronize over ranks",
    "folds": "folds into the layer before it",
    "reads_input": "normalizes that layer's input too",
    "wants_partner": "needs another norm after it",
    "brings_activation": "brings its own activation",
}

AXES = {
    "N": "samples",
    "C": "channels",
    "C/G": "the channels of a group",
    "C/w": "a window of channels",
    "s": "positions",
    "s/w": "a window of positions",
}

FAMILIES = {
    "batch": "statistics over the batch",
    "sample": "statistics within one sample",
    "mixed": "statistics of several kinds, mixed",
    "whitening": "channels, decorrelated",
    "weight": "acts on the weight of the layer before it",
    "pointwise": "no statistics",
}

LEGEND = (
    "The statistics run over: N samples, C channels, C/G the channels of a group,",
    "C/w those of a window, s positions, s/w those of a window.",
    "normzoo norms NAME shows a layer's equation, arguments and facts;",
    "normzoo fit --model.net.norm=NAME trains with it.",
)

# A size that follows from the number of channels differs between layers of two widths.
WIDTHS = (64, 192)


def describe(layer: "type[Norm]") -> dict[str, Any]:
    """A layer's facts, arguments and tensors, as plain data."""
    from normzoo.norms._arguments import keyword_defaults

    facts = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(layer.facts).items()}
    facts |= {
        "exceptions": dict(layer.facts.exceptions),
        "paper": str(layer.facts.paper) if layer.facts.paper else None,
    }
    return {
        "name": layer.__name__,
        "summary": summary(layer),
        "over": over(layer),
        "arguments": {name: repr(default) for name, default in keyword_defaults(layer).items()},
        **tensors(layer),
        **facts,
    }


def summary(layer: "type[Norm]") -> str:
    """The first sentence of a layer's documentation."""
    return " ".join((inspect.getdoc(layer) or "").split("\n\n")[0].split())


def over(layer: "type[Norm]") -> str:
    """What a layer's statistics run over, in words."""
    axes = layer.facts.axes
    if not axes:
        return "nothing"
    if layer.facts.acts_on == "weight":
        return "the whole weight" if "N" in axes else "the weight of each output channel"
    *others, last = (AXES[axis] for axis in axes)
    words = f"{', '.join(others)} and {last}" if others else last
    return words if {"s", "s/w"} & set(axes) else f"{words}, at each position"


def tensors(layer: "type[Norm]") -> dict[str, dict[str, str]]:
    """The parameters and the buffers of a layer, each with its shape in letters: "(C,)" for one value per channel."""
    examples = [layer(width) for width in WIDTHS]
    groups = tuple(getattr(example, "num_groups", None) for example in examples)

    def shapes(kind: str) -> dict[str, str]:
        first, second = (dict(getattr(example, kind)()) for example in examples)
        return {name: shape(tensor.shape, second[name].shape, groups) for name, tensor in first.items()}

    return {"parameters": shapes("named_parameters"), "state": shapes("named_buffers")}


def shape(first: Sequence[int], second: Sequence[int], groups: tuple[Any, ...]) -> str:
    """The shape of a tensor in letters (C channels, G groups of them), from its shapes at the two `WIDTHS`."""
    sizes = [letters(pair, groups) for pair in zip(first, second, strict=True)]
    return "(" + ", ".join(sizes) + ("," if len(sizes) == 1 else "") + ")"


def letters(sizes: tuple[int, int], groups: tuple[Any, ...]) -> str:
    """A size in letters, such as 3, C, 2C, C/2, C^2, G or C/G; else its value at one width."""
    small, large = WIDTHS
    if sizes[0] == sizes[1]:
        return str(sizes[0])
    if sizes[0] * large == sizes[1] * small:
        times = Fraction(sizes[0], small)
        above = "C" if times.numerator == 1 else f"{times.numerator}C"
        return above if times.denominator == 1 else f"{above}/{times.denominator}"
    if sizes == (small**2, large**2):
        return "C^2"
    if None not in groups:
        if sizes == groups:
            return "G"
        if sizes == (small // groups[0], large // groups[1]):
            return "C/G"
    return f"{sizes[0]} at C={small}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per layer, below its family."""
    lines = []
    family = None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            lines += ["", f"{family}: {FAMILIES[family]}"]
        source = re.search(r"\((\d+)(?:, (arXiv \S+))?\)$", row["paper"] or "")
        year, arxiv = source.groups("") if source else ("", "")
        running = "running statistics" if row["stateful"] else ""
        lines.append(f"  {row['name']:28}{' '.join(row['axes']):9}{running:19}{year:6}{arxiv}".rstrip())
    return "\n".join([*lines[1:], "", *LEGEND])


def card(layer: "type[Norm]") -> str:
    """One layer's equation, facts and documentation."""
    row = describe(layer)
    arguments = ", ".join(f"{name}={default}" for name, default in row["arguments"].items())
    multiple = row["batch_multiple"]
    lines = [
        f"{row['name']}(num_features{', ' if arguments else ''}{arguments})",
        "",
        f"  {row['formula']}",
        "",
        f"  family       {row['family']}",
        f"  acts on      the {row['acts_on']}",
        f"  axes         {' '.join(row['axes']) or 'none'}: statistics over {row['over']}",
        f"  parameters   {', '.join(map(' '.join, marked(row, 'parameters').items())) or 'none'}",
        f"  state        {', '.join(map(' '.join, marked(row, 'state').items())) or 'none'}",
        *([f"  batches      of a multiple of {multiple} samples in training"] if multiple > 1 else []),
        *(f"  {words:40} {'yes' if row[fact] else 'no'}" for fact, words in WORDS.items()),
        *(f"  exception to the law {law}: {reason}" for law, reason in row["exceptions"].items()),
    ]
    return "\n".join([*lines, "", *(f"  {line}".rstrip() for line in (inspect.getdoc(layer) or "").splitlines())])


def marked(row: dict[str, Any], kind: str) -> dict[str, str]:
    """The shapes of the "parameters" or "state" of a described layer, each with what the facts say of the tensor."""
    marks = {"constants": "constant", "gates": "clipped to [0, 1]"}
    says = {name: mark for fact, mark in marks.items() for name in row.get(fact, ())}
    return {name: f"{sizes} {says[name]}" if name in says else sizes for name, sizes in row[kind].items()}
