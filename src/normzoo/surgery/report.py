"""What an operation did to a network, as a table, and how to undo it."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from normzoo.errors import InputError
from normzoo.surgery._placed import Placed


@dataclass(kw_only=True)
class Report:
    """What an operation did to a network: one row per layer, and lines about the whole network.

    `print(report)` shows the table.

    Args:
        title: what was done, in one line.
        rows: one mapping from column to value per layer; all with the same columns.
        notes: lines about the whole network, below the table.
        steps: what undoes the operation, each a function without arguments; `undo` calls the last first.

    >>> print(Report(title="froze 1 layer", rows=[{"layer": "net.1", "kind": "BatchNorm", "change": 1e-7}]))
    froze 1 layer
      layer  kind       change
      net.1  BatchNorm  1e-07
    """

    title: str
    rows: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()
    steps: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        cells = [[shown(value) for value in row.values()] for row in self.rows]
        table = [[*self.rows[0]], *cells] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in lines), *self.notes])


def shown(value: object) -> str:
    """A cell of the table: numbers with two digits, nothing for None."""
    if isinstance(value, float):
        return f"{value:.2g}"
    return "" if value is None else str(value)


def counted(what: int | Sized, noun: str) -> str:
    """A number of things, or the things themselves, in words: "1 layer", "2 batches"."""
    number = what if isinstance(what, int) else len(what)
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("ch") else "s")


def undo(report: Report) -> None:
    """Makes a network what it was before an operation; a second call changes nothing.

    Of several operations on the same layers, undo the last one first.

    Args:
        report: what the operation returned.

    Raises:
        InputError: a later operation has changed a layer that this one put into the network, which stays as it is.
    """
    changed = [step.path for step in report.steps if isinstance(step, Placed) and not step.is_there()]
    if changed:
        raise InputError(
            f"undo: {changed[0]} is no longer the layer that this operation has put there: undo the later operations "
            f"first, from the last one back."
        )
    while report.steps:
        report.steps.pop()()
