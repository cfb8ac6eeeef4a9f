"""The command `normzoo compare`: trains a grid of settings and seeds, each cell an ordinary run."""

import argparse
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, as_completed, wait
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from normzoo.cli.commands import ArgumentParser
from normzoo.compare.grid import FILE, Grid, other_settings
from normzoo.compare.local import Local, preload
from normzoo.compare.settings import EXAMPLE, Cell, Settings, cells, parse, values
from normzoo.compare.table import GridTable
from normzoo.errors import InputError
from normzoo.runs import config_files
from normzoo.runs.allowed import VARIABLE
from normzoo.runs.allowed import again as allowed_again
from normzoo.runs.folders import LOCK, hold
from normzoo.runs.state import ENDED, FAILED, State
from normzoo.runs.storage import WriteError

ROOT = Path("lightning_logs/compare")
CELL, FIT = "normzoo.cli.cell", "normzoo.cli.fit"  # the second is what the first runs


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
    add("--retry", action="store_true", help="train failed cells again")
    return parser


def positive(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{text!r} is no number of processes, which is 1 or more.")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Runs `normzoo compare`."""
    given, rest = options().parse_known_args(arguments)
    words, command = separate(rest)
    settings = {**from_file(given.grid), **parse(words)}
    folder = Path(given.out) if given.out else ROOT / name_of(command)
    preload([CELL, FIT])
    lock = held(folder)
    try:
        grid = opened(folder, command, settings)
        return compare(grid, cells(settings) if settings else [*grid.cells.values()], given)
    finally:
        os.close(lock)
        if not (folder / FILE).exists():  # wrong input: nothing was planned
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


def separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings, and the options of `normzoo fit`: a word after an option without `=` is its value."""
    words: list[str] = []
    command: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("-") and "=" not in before
        (command if argument.startswith("-") or is_value else words).append(argument)
    return words, command


def from_file(path: str | None) -> Settings:
    """The settings in a YAML file."""
    found = config_files.read_settings(Path(path)) if path else {}
    return {key: values(key, value) for key, value in found.items()}


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
    return replace(grid, command=command or grid.command, settings=settings or grid.settings)


def compare(grid: Grid, wanted: Sequence[Cell], given: argparse.Namespace) -> int:
    """Trains the cells of a grid that have not ended; returns the exit status.

    Args:
        grid: the grid.
        wanted: the cells.
        given: the options.
    """
    import torch

    from normzoo.cli.cell import run_cell  # and with it torch, after the processes have begun to import it
    from normzoo.cli.plan import plan

    devices = range(torch.cuda.device_count())
    jobs = given.jobs or len(devices) or min(os.cpu_count() or 1, 8)
    grid.threads = grid.threads or max(1, (os.cpu_count() or 1) // jobs)
    names = plan(grid, wanted)
    for name in names if given.retry else ():
        (grid.folder / name / FAILED).unlink(missing_ok=True)
    table = GridTable(grid, names)
    todo = [name for name in names if table.states[name] not in ENDED]
    print(f"grid         {grid.folder}: {len(names)} cells, {len(names) - len(todo)} have ended")
    for name in names:
        if table.states[name] == State.FAILED:
            table.print(name)
    try:
        with Local(jobs, grid.threads, devices) as executor, table:
            run_all(
                {
                    executor.submit(run_cell, str(grid.folder / name), os.environ.get(VARIABLE, "")): name
                    for name in todo
                },
                executor,
                table,
            )
    except KeyboardInterrupt:
        print(f"normzoo: interrupted; to continue: {again(grid)}", file=sys.stderr)
        return 130
    return conclude(grid, names, table)


def run_all(futures: dict[Future[None], str], executor: Local, table: GridTable) -> None:
    """Waits for all cells, and shows each that ends.

    Raises:
        WriteError: the disk is full.
        KeyboardInterrupt: Ctrl-C, after the cells have written a checkpoint; a second one kills them.
    """
    try:
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, WriteError):
                raise error
            table.end(futures[future], str(error or ""))
    except BaseException:
        executor.stop()
        try:
            wait(futures)
        except KeyboardInterrupt:
            executor.stop(signal.SIGKILL)
        raise


def conclude(grid: Grid, names: Sequence[str], table: GridTable) -> int:
    """Prints what came of a grid, and what to do next; returns the exit status."""
    counts = Counter(grid.states(names).values())
    print(f"grid         {', '.join(f'{counts[state]} {state}' for state in State if counts[state])}")
    if counts[State.FAILED]:
        print(f"retry        {again(grid)} --retry")
    if table.stopped:
        print(f"continue     {again(grid)}")
    print(f"report       normzoo report {shlex.quote(str(grid.folder))} --open")
    return int(bool(counts[State.FAILED] or table.stopped))


def again(grid: Grid) -> str:
    """The command that continues a grid."""
    return f"normzoo compare --out={shlex.quote(str(grid.folder))}{allowed_again()}"
