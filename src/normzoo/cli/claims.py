"""The command `normzoo claims`: checks what papers say of normalization layers, on small networks."""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normzoo.cli.commands import ArgumentParser
from normzoo.errors import InputError, printable

if TYPE_CHECKING:
    from normzoo.compare.claims import Claim, Measured

COLOURS = {"shows": "green", "does not show": "red", "not decided": "yellow"}
INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Runs `normzoo claims`: 0 if every claim shows, 1 if not."""
    given = options().parse_args(arguments)
    if given.json and not Path(given.json).parent.is_dir():
        raise InputError(f"--json={given.json!r}: there is no folder {str(Path(given.json).parent)!r}; make it first.")

    from normzoo.compare.claims import CLAIMS  # and with it torch

    claims = [CLAIMS[known(name, CLAIMS)] for name in given.names or CLAIMS]
    console = Console()
    if given.list:
        for claim in claims:
            describe(claim, console)
        return 0
    results: dict[str, Measured] = {}
    for claim in claims:
        describe(claim, console)
        try:
            if train(claim, given) == INTERRUPTED:
                return INTERRUPTED
            results[claim.name] = claim.measured(Path(given.out))
        except InputError as error:  # such as data that are missing: the other claims may do without
            print(f"normzoo: error: {claim.name}: {printable(str(error))}", file=sys.stderr)
            results[claim.name] = {}
        console.print(figures(claim, results[claim.name]))
    console.print(summary(claims, results))
    if given.json:
        write(Path(given.json), results)
    return int(any(claim.judge(results[claim.name]) != "shows" for claim in claims))


def options() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        prog="normzoo claims",
        description="Check what papers say of normalization layers, on small networks: each claim has a recipe, which "
        "is a grid of normzoo compare, and rules, which must hold on every seed. All take five minutes on two cores. "
        "The same command again skips what is trained.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a claim, such as bn-sigmoid (default: all)")
    add("--list", action="store_true", help="show the statements, rules and commands, and train nothing")
    add("--jobs", type=int, help="runs at a time (default: that of normzoo compare)")
    add("--out", default="lightning_logs/claims", metavar="FOLDER", help="of the grids (default: %(default)s)")
    add("--json", metavar="FILE", help="a file to write the results to; other claims in it stay")
    return parser


def known(name: str, claims: Mapping[str, "Claim"]) -> str:
    """The name of a claim.

    Raises:
        InputError: there is none of that name.
    """
    if name not in claims:
        close = get_close_matches(name, claims, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"no claim is called {name!r}: {meant}The claims are {', '.join(claims)}.")
    return name


def train(claim: "Claim", given: argparse.Namespace) -> int:
    """Trains the grids of a claim; returns the exit status of the last."""
    from normzoo.cli import compare  # not for --help

    jobs = [f"--jobs={given.jobs}"] if given.jobs else []
    status = 0
    for folder, arguments in claim.grids.items():
        status = compare.main([*arguments, f"--out={Path(given.out, folder)}", *jobs])
        if status == INTERRUPTED:
            break
    return status


def describe(claim: "Claim", console: Console) -> None:
    """Prints what is claimed, where, and how it is tried."""
    lines = [
        (claim.name, claim.statement),
        ("paper", f"{claim.paper}, {claim.place}"),
        ("its figure", claim.figure),
        ("here", claim.setting),
        *(("rule", f"{rule.value}: {rule}") for rule in claim.rules),
        *(("note", remark) for remark in claim.remarks),
    ]
    table = Table.grid(padding=(0, 2))
    for name, text in lines:
        table.add_row(name, Text(text), style="bold" if name == claim.name else "")
    console.print("", table)
    for command in claim.commands(Path.cwd()):
        console.print(command, highlight=False, markup=False, soft_wrap=True)


def figures(claim: "Claim", measured: "Measured") -> Table:
    """The values of each seed, beside the rules."""
    from normzoo.compare.claims import shown

    table = Table("measured", *(f"seed {seed}" for seed in claim.seeds), "rule", "", box=None)
    for row in claim.rows(measured):
        table.add_row(row.value, *map(shown, row.found), str(row.rule or ""), coloured(row.verdict or ""))
    return table


def summary(claims: Sequence["Claim"], results: Mapping[str, "Measured"]) -> Table:
    """A row per claim: the verdict, the paper's figure, and the range of ours over seeds."""
    table = Table("claim", "verdict", "the paper", "here, over seeds", title="", show_lines=True)
    for claim in claims:
        measured = results[claim.name]
        ours = "\n".join(str(row) for row in claim.rows(measured) if row.rule)
        table.add_row(claim.name, coloured(claim.judge(measured)), claim.figure, ours)
    return table


def coloured(verdict: str) -> str:
    """A verdict in its colour."""
    return f"[{COLOURS[verdict]}]{verdict}[/]" if verdict else ""


def write(file: Path, results: Mapping[str, "Measured"]) -> None:
    """Adds results to a file, from which scripts/docs makes docs/claims.md."""
    before = json.loads(file.read_text())["claims"] if file.exists() else {}
    plain = {name: without_nan(measured) for name, measured in results.items()}
    file.write_text(f"{json.dumps({'machine': machine(), 'claims': before | plain}, indent=1)}\n")


def without_nan(measured: "Measured") -> dict[int, dict[str, float | None]]:
    """Measured values for JSON, which has no NaN."""
    return {
        seed: {name: None if math.isnan(one) else one for name, one in values.items()}
        for seed, values in measured.items()
    }


def machine() -> str:
    """The machine and the versions with which the results were measured."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "normzoo"))
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {packages}"
