"""How far a run is, by the files in its folder."""

import errno
import fcntl
import os
import re
from enum import StrEnum
from pathlib import Path

from normzoo.runs.folders import FINISHED, LOCK, newest_checkpoint

FAILED, DIVERGED = "failed", "diverged"
"""Files with the message of a cell of a grid that failed, or whose loss or gradient was not finite."""


class State(StrEnum):
    """How far a run is."""

    NEW = "new"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIVERGED = "diverged"
    FINISHED = "finished"


ENDED = (State.FINISHED, State.DIVERGED, State.FAILED)


def state_of(run: Path) -> State:
    """How far a run is, by the files in its folder."""
    for name in (FINISHED, DIVERGED, FAILED):
        if (run / name).is_file():
            return State(name)
    if is_held(run):
        return State.RUNNING
    return State.NEW if newest_checkpoint(run) is None else State.INTERRUPTED


def failure(run: Path) -> str:
    """The message with which a cell failed or diverged; empty if it did not."""
    for name in (DIVERGED, FAILED):
        if (run / name).is_file():
            return (run / name).read_text(encoding="utf-8", errors="replace").strip()
    return ""


def diverged_at(run: Path) -> int | None:
    """The step at which a cell diverged; None if it did not."""
    step = re.search(r"step (\d+)", failure(run)) if (run / DIVERGED).is_file() else None
    return int(step[1]) if step else None


def is_held(run: Path) -> bool:
    """Whether another process trains a run."""
    try:
        file = os.open(run / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(file)
    return False
