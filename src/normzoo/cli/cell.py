"""A cell of a grid: a run in a process of its own, on any machine that sees its folder."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from normzoo.cli.resume import resume
from normzoo.errors import Diverged, InputError
from normzoo.runs.allowed import VARIABLE
from normzoo.runs.atomic import written_whole
from normzoo.runs.folders import Held
from normzoo.runs.state import DIVERGED, ENDED, FAILED, state_of
from normzoo.runs.storage import WriteError, describe_write_error

LOG = "log.txt"
PATIENCE = 60.0
"""Seconds to wait for the process of an earlier attempt, which may be about to end."""


def run_cell(folder: str, allow: str = "") -> None:
    """Trains a cell to its end, as `normzoo resume` does; its files say how it ended, and `log.txt` what it printed.

    A cell that has ended, or that another process trains, is left alone. A signal that ends the run ends the process.

    Args:
        folder: of the run.
        allow: the packages that its configuration may name, separated by commas.

    Raises:
        WriteError: a file could not be written, as where the disk is full.
    """
    run = Path(folder)
    if state_of(run) in ENDED:
        return
    os.environ[VARIABLE] = allow
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    # Lightning starts the processes of further ranks by the command line of the first.
    command = find_spec("normzoo.__main__")
    assert command is not None
    sys.argv = [str(command.origin), "resume", folder]
    try:
        with output_to(run / LOG):
            attempt(run)
    except OSError as error:
        raise describe_write_error(error, run) or error from error


def attempt(run: Path) -> None:
    """Trains a cell; if that fails, writes why."""
    try:
        train(run)
    except Diverged as error:
        report(run, DIVERGED, str(error))
    except Exception as error:
        if isinstance(error, WriteError) or describe_write_error(error, run):
            raise
        if isinstance(error, InputError):
            report(run, FAILED, str(error))
        else:
            traceback.print_exc()
            report(run, FAILED, f"{type(error).__name__}: {error}")


def report(run: Path, state: str, message: str) -> None:
    """Writes how a cell ended."""
    print(f"normzoo: error: {message}", file=sys.stderr)
    with written_whole(run / state) as file:
        file.write(f"{message}\n".encode())


def train(run: Path) -> None:
    """Resumes a run that has not ended, once no other process trains it; if one still does after a minute, nothing."""
    end = time.monotonic() + PATIENCE
    while state_of(run) not in ENDED and time.monotonic() < end:
        try:
            resume(run, [])
            return
        except Held:
            time.sleep(0.2)


@contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Appends what this process and those that it starts print to a file."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(number) for number in (1, 2)]
    for stream in streams:
        stream.flush()
    with file.open("ab") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        for stream in streams:
            with suppress(OSError):  # as where the disk is full: what has raised it says so
                stream.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
