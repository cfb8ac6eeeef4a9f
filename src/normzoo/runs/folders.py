"""Where runs live: `ROOT/EXPERIMENT/RUN/`, RUN being the next free number, with config, checkpoints and events."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from normzoo.errors import InputError

# Set by the first process of a run for the processes of the other ranks on the same machine.
RUN_VARIABLE = "NORMZOO_RUN"
# Every one that is there is 0 in the first process of a run.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
FINISHED = "finished"
"""A file that says: nothing is left to do."""


def new_run(root: Path, experiment: str) -> Path:
    """Creates the folder of the next run; two processes at the same time get two folders.

    Args:
        root: the folder of all experiments.
        experiment: one experiment's name, which may hold slashes but not leave the root.
    """
    folder = root / experiment
    if not experiment or ".." in Path(experiment).parts or Path(experiment).is_absolute():
        raise InputError(f"experiment={experiment!r}: an experiment is a folder inside {root}; try 'default'.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=-1)
        while True:
            run = folder / f"{number:03d}"
            try:
                run.mkdir()
            except FileExistsError:
                number += 1
            else:
                return run
    except OSError as error:
        raise InputError(
            f"{folder}: no run can be written there ({error.strerror or error}); choose a folder with --runs=FOLDER."
        ) from error


def is_first() -> bool:
    """Whether this process has global rank 0, as torchrun, SLURM or Lightning's launcher tell by the environment."""
    return not any(int(os.environ.get(name) or 0) for name in RANK_VARIABLES)


def numbered(folder: Path) -> list[Path]:
    """The runs of an experiment, newest first."""
    found = (p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()) if folder.is_dir() else ()
    return sorted(found, key=lambda p: int(p.name), reverse=True)


def find_run(path: str, root: Path) -> Path:
    """The run that is meant by its folder, or by that of an experiment: the newest.

    Args:
        path: the folder.
        root: of all experiments, where others are looked for to be named.

    Raises:
        InputError: there is none.
    """
    given = Path(path)
    for folder in (given, *numbered(given)):
        if path and (folder / CONFIG).is_file():
            return folder
    known = list(newest(given if path and given.is_dir() else root)) or list(newest(root))
    there_are = f"There are {', '.join(map(str, known))}." if known else f"There is none under {root}."
    raise InputError(
        f"{path!r} is no run: a run is a folder with a {CONFIG}, which 'normzoo fit' makes when training begins. "
        f"{there_are}"
    )


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a run goes on from: the last, else the newest that is not the best one, else None."""
    folder = run / CHECKPOINTS
    if (last := folder / "last.ckpt").is_file():
        return last
    others = (file for file in folder.glob("*.ckpt") if file.name != "best.ckpt")
    return max(others, key=lambda file: file.stat().st_mtime, default=None)


def newest(root: Path, most: int = 5) -> Iterator[Path]:
    """Some runs below a folder, the newest first."""
    found = sorted(root.glob(f"**/{CONFIG}"), key=lambda p: p.stat().st_mtime, reverse=True)
    yield from (config.parent for config in found[:most])


def require_within(run: Path) -> None:
    """Raises `InputError` if a link in a run leads out of it: a run of somebody else would have files written there."""
    home = run.resolve()
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise InputError(
                    f"{path} is a link to {os.readlink(path)}, outside of the run, and going on could write there: if "
                    f"the run is your own, put in its place what it leads to."
                )


def hold(run: Path) -> int:
    """Locks a run for this process; the system lets go when the process ends, whatever ends it.

    Returns:
        The open file, which keeps the lock.

    Raises:
        InputError: another process trains there; the folder cannot be written.
    """
    try:
        file = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"{run}: nothing can be written there ({error.strerror}); make it writable.") from error
    try:
        # Not flock, whose locks the workers of a DataLoader inherit: they outlive a killed process by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return file  # a file system without locks
        holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise InputError(f"{run} is still being trained, by {holder}: wait for its end, or end it.") from error
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def shared_run(root: Path, experiment: str) -> Path:
    """The folder of this run: made by the first process, and told to those that it starts for other ranks.

    Ranks that something else has started, such as torchrun or SLURM, get a name that stands for it until the first can
    tell them (`normzoo.callbacks.SharedRun`).
    """
    if is_first():
        os.environ[RUN_VARIABLE] = str(new_run(root, experiment))
    return Path(os.environ.get(RUN_VARIABLE, root / experiment / "run-of-rank-0"))


def unused(path: Path) -> Path:
    """The path itself, or the first of `name-1.ext`, `name-2.ext` ... that does not exist."""
    candidates = (path.with_stem(f"{path.stem}-{number}") for number in range(1, 10_000))
    return next(p for p in chain([path], candidates) if not os.path.lexists(p))  # nor leads elsewhere
