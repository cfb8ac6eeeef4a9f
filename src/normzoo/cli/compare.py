"""The command `normzoo compare`: trains a grid of settings and seeds, each cell an ordinary run."""

import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from normzoo.cli.commands import ArgumentParser
from normzoo.compare.grid import FILE, Grid, other_settings
from normzoo.compare.local import preload
from normzoo.compare.settings import EXAMPLE, Settings, cells, flags, parse, short, values
from normzoo.errors import InputError
from normzoo.runs import allowed, config_files
from normzoo.runs.folders import LOCK, hold
from normzoo.runs.storage import WriteError, describe_write_error

ROOT = Path("lightning_logs/compare")
IMPORTED = ("normzoo.cli.cell", "normzoo.cli.fit")
"""What each cell needs; the second is what the first runs."""


def options() -> ArgumentParser:
    """The options of this command; all others are those of `normzoo fit`."""
    parser = ArgumentParser(
        prog="normzoo compare",
        usage=f"normzoo compare [-c CONFIG] SETTING=VALUES ... [options] [options of normzoo fit]\n\n"
        f"  normzoo compare -c configs/digits_mlp.yaml {EXAMPLE}",
        description="Train a grid: every combination of the settings, each as an ordinary run in a process of its own. "
        "A setting is a flag of normzoo fit without its dashes; norm is short for model.net.norm, seed for "
        "seed_everything. Values are separated by commas; 0..4 is a range; GroupNorm(num_groups=4) is a layer with "
        "arguments. The folder is the state: the same command again skips the cells that have finished, resumes those "
        "that were interrupted, and trains those that are new.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", metavar="FOLDER", help=f"the folder of the grid (default: {ROOT}/NAME_OF_CONFIG)")
    add("--grid", metavar="FILE", help="a YAML file of settings: name: [values]")
    add("--jobs", type=positive, help="cells at a time (default: one per GPU; without, one per core, at most 8)")
    add(
        "--best_seeds",
        metavar="SEEDS",
        type=seeds,
        help="then train the best setting of each norm with these seeds too, as 1..4",
    )
    add("--retry", action="store_true", help="train failed cells again")
    add("--on", choices=("local", "ray", "slurm"), default="local", help="this machine, a cluster of Ray, or Slurm")
    add("--cpus", type=positive, default=1, metavar="N", help="of each cell, on a cluster (default: 1)")
    add("--gpus", type=int, default=0, metavar="N", help="of each cell, on a cluster (default: 0)")
    add("--address", help="of the Ray cluster: HOST:PORT or ray://HOST:10001 (default: RAY_ADDRESS, else this machine)")
    add("--minutes", type=positive, default=60, help="of a Slurm job, which then waits and resumes (default: 60)")
    add("--partition", metavar="NAME", help="of the Slurm cluster")
    add(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="a further option of sbatch; several are fine"
    )
    return parser


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number from 1 on, not {text!r}")
    return int(text)


def seeds(text: str) -> list[Any]:
    """Values of the setting `seed`."""
    try:
        return values("seed", text)
    except InputError as error:
        raise ArgumentTypeError(str(error).rstrip(".")) from error


def main(arguments: Sequence[str]) -> int:
    """Runs `normzoo compare`."""
    given, rest = options().parse_known_args(arguments)
    words, command = separate(allowed.take_flags(rest))
    typed = parse(words)
    allowed.allow(
        allowed.typed([flag for key, several in typed.items() for one in several for flag in flags({key: one})])
    )
    settings = {**from_file(given.grid), **typed}
    folder = Path(given.out) if given.out else ROOT / name_of(command)
    if given.on == "local":
        preload(IMPORTED)
    try:
        return compare(folder, command, settings, given)
    except (OSError, WriteError) as error:
        unwritten = error if isinstance(error, WriteError) else describe_write_error(error, None, [folder])
        if unwritten is None:
            raise
        what = str(unwritten).partition("\n")[0]
        raise WriteError(f"{what}\nFix the cause, then run the same command again: it continues the grid.") from error


def compare(folder: Path, command: list[str], settings: Settings, given: Namespace) -> int:
    """Makes or continues the grid in a folder, which this process locks meanwhile; returns the exit status."""
    lock = held(folder)
    try:
        grid = opened(folder, command, settings)
        wanted = cells(grid.settings)
        wanted += [] if settings else [cell for cell in grid.cells.values() if cell not in wanted]  # of --best_seeds
        require_allowed(
            given.grid or folder / FILE, [*grid.command, *(flag for cell in wanted for flag in flags(cell))]
        )
        from normzoo.cli.coordinator import run  # and with it torch, after the processes have begun to import it

        return run(grid, wanted, given, is_new=bool(settings or command))
    finally:
        if not (folder / FILE).exists():  # wrong input: nothing was planned
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        os.close(lock)


def separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings, and the options of `normzoo fit`: a word after an option without `=` is its value."""
    words: list[str] = []
    command: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("-") and "=" not in before
        (command if argument.startswith("-") or is_value else words).append(argument)
    return words, command


def require_allowed(file: str | Path, arguments: Sequence[str]) -> None:
    """Raises `InputError` if a file names packages of the user's that no flag of this command allows or names.

    Args:
        file: that has the settings.
        arguments: of `normzoo fit`, from the file.
    """
    for package in allowed.typed(arguments):
        if package not in allowed.allowed():
            raise InputError(
                f"{file} names classes of {package}, and importing them runs its code. If you trust it, allow it: "
                f"{allowed.FLAG}={package}."
            )


def from_file(path: str | None) -> Settings:
    """The settings in a YAML file."""
    found = config_files.read_settings(Path(path)) if path else {}
    return {short(key): values(short(key), value) for key, value in found.items()}


def name_of(command: Sequence[str]) -> str:
    """The name of a grid: that of its config file."""
    words = [word for one in command for word in one.split("=", 1)]
    paths = [path for flag, path in pairwise(words) if flag in ("-c", "--config")]
    return Path(paths[-1]).stem if paths else "default"


def held(folder: Path) -> int:
    """Makes the folder of a grid, and locks it for this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={folder}: no grid can be written there ({error.strerror}).") from error
    return hold(folder)


def opened(folder: Path, command: list[str], settings: Settings) -> Grid:
    """The grid in a folder, with new settings where they are given; a new one where there is none.

    Raises:
        InputError: there is nothing to train; the folder has something else, or a grid with other settings.
    """
    if not (folder / FILE).is_file():
        if not settings:
            raise InputError(f"compare: give at least one setting and its values, such as {EXAMPLE}.")
        if others := [one.name for one in folder.iterdir() if one.name != LOCK]:
            raise InputError(
                f"--out={folder} is no grid, and has other files ({others[0]}, ...); choose another folder."
            )
        return Grid(folder, command, settings, threads=0)
    grid = Grid.load(folder)
    if settings and set(settings) != set(grid.settings):
        raise other_settings(folder, [f"it varies {', '.join(grid.settings)}, and this command {', '.join(settings)}"])
    saved = [one for one in grid.command if not one.startswith(allowed.FLAG)]  # a file cannot allow what it names
    return replace(grid, command=command or saved, settings=settings or grid.settings)
