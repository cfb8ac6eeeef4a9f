"""docs/conformance.md: how far each layer is from its formula and from the implementations of others.

The comparisons are those of the laws, `tests/helpers/subjects.py`; here their differences are written down. Below them
is the table of `authors.py`.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from references import REFERENCES
from rich.progress import track
from subjects import Comparison, Subject, beside_formula, beside_oracle, gradients_beside_formula, oracles_of, subjects
from torch import Tensor

from normzoo.norms import layers
from pages import authors

FORMULA = "our formula"
KINDS = ("output", "gradient", "state")
DTYPES = {"float64": torch.float64, "float32": torch.float32}
LEGEND = """\
# Conformance

Written by `scripts/docs` from the comparisons in `tests/norms`. Each layer is compared with a slow formula in float64,
written from its paper (`tests/helpers/references/`; what papers leave open, such as default groups or the order of
random draws, as the layer documents it), and with the implementations by others that compute the same. Where such an
implementation is the kernel that the layer itself calls, the difference is 0. Compared are outputs, gradients and
running statistics over several steps of training and in evaluation, in the layouts NC, NCL and NCHW; for the formula
with all settings that its row in `tests/helpers/references/` names, gradients of the parameters included.

A number is the largest `|a - b| / (1 + |b|)` found: absolute for small values, relative for large ones. In float64 it
must not be above the tolerance, which is 1e-9 except for implementations that compute in float32 inside. float32 is the
layer in float32 beside the formula in float64, or beside the other implementation in float32, for information. A dash:
there is nothing to compare, or the other implementation takes no such input. The last table is about the
[code of the authors](#beside-the-code-of-the-authors).
"""


@dataclass
class Row:
    """The largest differences between a layer and what it is compared with, by dtype and kind."""

    layer: str
    beside: str
    tolerance: float
    layouts: list[str] = field(default_factory=list)
    largest: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, dtype: str, comparison: Iterable[tuple[str, Tensor, Tensor]]) -> None:
        """Takes the differences of one comparison in."""
        for what, observed, expected in comparison:
            key = dtype, kind_of(what)
            self.largest[key] = max(self.largest.get(key, 0.0), difference(observed, expected))


def kind_of(what: str) -> str:
    """What the words of a comparison speak of."""
    return next((kind for kind in KINDS if what.startswith(kind)), "state")


def difference(a: Tensor, b: Tensor) -> float:
    """The largest `|a - b| / (1 + |b|)`; 0 for tensors without values."""
    assert a.shape == b.shape
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).abs() / (1 + b.abs())).max().item() if a.numel() else 0.0


def write(root: Path) -> list[Path]:
    """Compares, and writes docs/conformance.md below a folder."""
    path = root / "docs" / "conformance.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(the_page(compare(list(layers()))))
    return [path]


def compare(names: list[str]) -> list[Row]:
    """A row for each layer and its formula, and for each implementation by others that is installed."""
    rows: dict[tuple[str, str], Row] = {}
    of_names = [subject for subject in subjects() if subject.name in names]
    for subject in track(of_names, "comparing"):
        for beside, tolerance, comparisons in partners(subject):
            row = rows.setdefault((subject.name, beside), Row(subject.name, beside, tolerance))
            row.layouts.append(subject.layout)
            for dtype_name, dtype in DTYPES.items():
                for comparison in comparisons:
                    try:
                        row.add(dtype_name, comparison(dtype))
                    except Exception:  # of an implementation that computes in one dtype only
                        if beside == FORMULA or dtype is torch.float64:
                            raise
                        row.largest = {key: v for key, v in row.largest.items() if key[0] != dtype_name}
    order = list(layers())
    return sorted(rows.values(), key=lambda row: order.index(row.layer))


def partners(subject: Subject) -> list[tuple[str, float, list[Callable[[Any], Comparison]]]]:
    """What a layer is compared with in one layout: its name, its tolerance, the comparisons by dtype."""
    formula = [lambda dtype: beside_formula(subject, dtype), lambda dtype: gradients_beside_formula(subject, dtype)]
    found = [(FORMULA, 1e-9, formula)] if subject.name in REFERENCES else []
    for name in oracles_of(subject):
        oracle = subject.reference.oracles[name]
        if importlib.util.find_spec(oracle.package):
            found.append((name, oracle.tolerance, [lambda dtype, name=name: beside_oracle(subject, name, dtype)]))
    return found


def the_page(rows: list[Row]) -> str:
    """All of docs/conformance.md."""
    packages = dict.fromkeys(oracle.package for r in REFERENCES.values() for oracle in r.oracles.values())
    installed = [f"{name} {version(name)}" for name in packages if importlib.util.find_spec(name)]
    titles = [f"{kind}, {dtype}" for dtype in DTYPES for kind in KINDS]
    table = [
        f"| layer | beside | layouts | tolerance | {' | '.join(titles)} |",
        f"|---|---|---|---|{'---|' * len(titles)}",
    ]
    for row in rows:
        numbers = [number(row.largest.get((dtype, kind))) for dtype in DTYPES for kind in KINDS]
        cells = (row.layer, row.beside, ", ".join(row.layouts), f"{row.tolerance:.0e}", *numbers)
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([LEGEND, f"Compared with {', '.join(installed)}.", "", *table, "", authors.section()])


def number(value: float | None) -> str:
    """Two digits; a dash for nothing."""
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def read(page: str) -> list[dict[str, str]]:
    """The rows of the first table of a page, each cell by the title of its column."""
    lines = [line for line in page.split(authors.HEADING)[0].splitlines() if line.startswith("| ")]
    titles, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(titles, row, strict=True)) for row in rows]
