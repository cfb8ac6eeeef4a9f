"""Trains the cells of a grid, shows them meanwhile, and compares them at the end."""

import argparse
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, as_completed, wait
from pathlib import Path
from typing import Any

import torch

from normzoo import page
from normzoo.cli.cell import run_cell
from normzoo.cli.plan import plan, require_same
from normzoo.compare import on_slurm
from normzoo.compare.grid import Grid
from normzoo.compare.local import Local
from normzoo.compare.on_ray import Ray
from normzoo.compare.settings import Cell
from normzoo.compare.table import GridTable
from normzoo.page.comparison_table import show_comparison
from normzoo.runs import allowed
from normzoo.runs.state import ENDED, FAILED, State
from normzoo.runs.storage import WriteError


def run(grid: Grid, wanted: Sequence[Cell], given: argparse.Namespace, *, is_new: bool) -> int:
    """Trains the cells of a grid that have not ended; returns the exit status.

    Args:
        grid: the grid.
        wanted: the cells.
        given: the options.
        is_new: whether settings or options of the runs were given, which must be those of the grid.
    """
    devices = gpus()
    jobs = given.jobs or len(devices) or min(os.cpu_count() or 1, 8)
    grid.threads = grid.threads or (max(1, (os.cpu_count() or 1) // jobs) if given.on == "local" else given.cpus)
    if is_new:
        require_same(grid, wanted)
    names = plan(grid, wanted)
    for name in names if given.retry else ():
        (grid.folder / name / FAILED).unlink(missing_ok=True)
    if given.on == "slurm":
        return submit(grid, names, given)
    try:
        with (
            Ray(given.cpus, given.gpus, grid.threads, given.address)
            if given.on == "ray"
            else Local(jobs, grid.threads, devices)
        ) as executor:
            stopped = train(grid, names, executor)
            if given.best_seeds and not stopped:
                names += [name for name in plan(grid, best_cells(grid, given.best_seeds)) if name not in names]
                stopped = train(grid, names, executor)
    except KeyboardInterrupt:
        print(f"normzoo: interrupted; to continue: {again(grid)}", file=sys.stderr)
        return 130
    return conclude(grid, names, stopped)


def gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def submit(grid: Grid, names: Sequence[str], given: argparse.Namespace) -> int:
    """Submits the cells that have not ended to Slurm."""
    todo = [name for name, state in grid.states(names).items() if state not in ENDED]
    more = {key: value if equals else True for key, equals, value in (one.partition("=") for one in given.slurm)}
    resources = {"jobs": given.jobs, "cpus": given.cpus, "gpus": given.gpus, "threads": grid.threads}
    place = {"minutes": given.minutes, "partition": given.partition, "more": more}
    jobs = on_slurm.submit(grid.folder, run_cell, calls(grid, todo), **resources, **place) if todo else []
    print(f"grid         {grid.folder}: {len(names)} cells, {len(names) - len(todo)} have ended, {len(jobs)} submitted")
    if jobs:
        print(f"jobs         {jobs[0].job_id} to {jobs[-1].job_id}")
    print(f"report       normzoo report {shlex.quote(str(grid.folder))} --open")
    return 0


def calls(grid: Grid, names: Sequence[str]) -> list[tuple[str, str]]:
    """The arguments of `run_cell` for some cells."""
    return [(os.path.abspath(grid.folder / name), os.environ.get(allowed.VARIABLE, "")) for name in names]


def best_cells(grid: Grid, seeds: Sequence[Any]) -> list[Cell]:
    """The best setting of each norm, with other seeds."""
    best = [arm["runs"][0] for arm in page.compare(grid.folder)["arms"] if arm["best"]]
    return [{**grid.cells[Path(run).name], "seed": seed} for seed in seeds for run in best]


def train(grid: Grid, names: Sequence[str], executor: Local | Ray) -> bool:
    """Trains the cells that have not ended, and shows them; returns whether a process ended before its cell.

    Raises:
        WriteError: the disk is full.
        KeyboardInterrupt: Ctrl-C, after the cells have written a checkpoint; a second one kills them.
    """
    table = GridTable(grid, names)
    todo = [name for name in names if table.states[name] not in ENDED]
    print(f"grid         {grid.folder}: {len(names)} cells, {len(names) - len(todo)} have ended")
    for name in names:
        if table.states[name] == State.FAILED:
            table.print(name)
    futures: dict[Future[None], str] = {}
    with table:
        try:
            for name, call in zip(todo, calls(grid, todo), strict=True):
                futures[executor.submit(run_cell, *call)] = name
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, WriteError):
                    raise error
                table.end(futures[future], str(error or ""))
        except BaseException:
            stop(executor, futures)
            raise
    return bool(table.stopped)


def stop(executor: Local | Ray, futures: Iterable[Future[None]]) -> None:
    """Ends all cells, which write a checkpoint; Ctrl-C kills them."""
    executor.stop()
    print("normzoo: the cells write a checkpoint and end; Ctrl-C kills them", file=sys.stderr)
    try:
        wait(futures)
    except KeyboardInterrupt:
        executor.stop(signal.SIGKILL)


def conclude(grid: Grid, names: Sequence[str], stopped: bool) -> int:
    """Prints what came of a grid, and what to do next; returns the exit status."""
    counts = Counter(grid.states(names).values())
    if len(names) > 1:
        print()
        show_comparison(page.compare(grid.folder))
        print()
    print(f"grid         {', '.join(f'{counts[state]} {state}' for state in State if counts[state])}")
    if counts[State.FAILED]:
        print(f"retry        {again(grid)} --retry")
    if stopped:
        print(f"continue     {again(grid)}")
    print(f"report       normzoo report {shlex.quote(str(grid.folder))} --open")
    return int(bool(counts[State.FAILED] or stopped))


def again(grid: Grid) -> str:
    """The command that continues a grid."""
    return f"normzoo compare --out={shlex.quote(str(grid.folder))}{allowed.again()}"
