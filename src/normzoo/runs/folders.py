"""The folders of runs: `ROOT/EXPERIMENT/NUMBER-NORM-SEED/`, with config, checkpoints and events."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from normzoo.errors import InputError

# Set by the first process of a run for the processes of the other ranks on the same machine.
RUN_VARIABLE = "NORMZOO_RUN"
# Every one that is there is 0 in the first process of a run.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
# Of runs below a folder, as patterns: names of experiments may have slashes, and a search of everything takes minutes.
DEPTHS = ("", "*/", "*/*/", "*/*/*/")
FINISHED = "finished"
"""A file that marks a run that has ended as configured."""


def new_run(root: Path, experiment: str, name: str = "") -> Path:
    """Creates the folder of the next run; two processes at the same time get two numbers.

    Args:
        root: the folder of all experiments.
        experiment: one experiment's name, which may hold slashes but not leave the root.
        name: what follows the number.
    """
    folder = root / experiment
    if not experiment or ".." in Path(experiment).parts or Path(experiment).is_absolute():
        raise InputError(f"experiment={experiment!r}: an experiment is a folder inside {root}; try 'default'.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(1 + max(map(number_of, folder.iterdir()), default=-1)):
            with suppress(FileExistsError):
                taken = folder / f"{number:03d}"
                taken.mkdir()
                if any(number_of(one) == number and one != taken for one in folder.iterdir()):
                    taken.rmdir()  # another process has just renamed its own
                    continue
                return taken.rename(folder / f"{number:03d}-{name}") if name else taken
    except OSError as error:
        raise InputError(
            f"{folder}: no run can be written there ({error.strerror or error}); choose a folder with --runs=FOLDER."
        ) from error
    raise AssertionError("numbers have no end")


def number_of(folder: Path) -> int:
    """The number of a run; -1 if a folder is not that of a run."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else -1


def existing(path: str) -> Path:
    """The folder or file at a path; of a run also by its number alone, as `lightning_logs/digits_mlp/7`."""
    given = Path(path)
    if path and not given.exists() and given.name.isdecimal():
        return next((run for run in numbered(given.parent) if number_of(run) == int(given.name)), given)
    return given


def is_first() -> bool:
    """Whether this process has global rank 0, by the environment that torchrun, SLURM or Lightning's launcher sets."""
    return not any(int(os.environ.get(name) or 0) for name in RANK_VARIABLES)


def numbered(folder: Path) -> list[Path]:
    """The runs of an experiment, newest first."""
    found = (p for p in folder.iterdir() if number_of(p) >= 0 and p.is_dir()) if folder.is_dir() else ()
    return sorted(found, key=number_of, reverse=True)


def find_run(path: str, root: Path) -> Path:
    """The run at a folder; at an experiment's folder, the newest.

    Args:
        path: the folder, or the experiment's with the number of the run.
        root: of all experiments, from which the message suggests runs.

    Raises:
        InputError: there is none.
    """
    given = existing(path)
    for folder in (given, *numbered(given)):
        if path and is_run(folder):
            return folder
    if is_step(given):
        raise InputError(f"{path!r} is a step that was saved, and no run: repeat it by 'normzoo replay {path}'.")
    known = (newest(given) if path else []) or newest(root)
    there_are = f"There are {', '.join(map(str, known))}." if known else f"There is none under {root}."
    raise InputError(
        f"{path!r} is no run: a run is a folder with a {CONFIG}, which 'normzoo fit' makes when training begins. "
        f"{there_are}"
    )


def newest(root: Path, most: int = 5) -> list[Path]:
    """Some runs below a folder, the newest first."""
    found = [config for depth in DEPTHS for config in root.glob(f"{depth}{CONFIG}") if is_run(config.parent)]
    return [config.parent for config in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)[:most]]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run; a step that `FiniteLoss` saved has a configuration too."""
    return (folder / CONFIG).is_file() and not is_step(folder)


def is_step(folder: Path) -> bool:
    """Whether a folder is that of a step that `FiniteLoss` saved."""
    return any(folder.glob("rank*.pt"))


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint to resume a run from: the last, else the newest that is not the best one, else None."""
    folder = run / CHECKPOINTS
    if (last := folder / "last.ckpt").is_file():
        return last
    others = (file for file in folder.glob("*.ckpt") if file.name != "best.ckpt")
    return max(others, key=lambda file: file.stat().st_mtime, default=None)


def require_within(run: Path) -> None:
    """Raises `InputError` if a link in a run leads out of it: resuming a stranger's run could write there."""
    home = run.resolve()
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise InputError(
                    f"{path} is a link to {os.readlink(path)}, outside of the run, and resuming could write there: if "
                    f"the run is your own, replace the link by what it leads to."
                )


class Held(InputError):
    """Another process trains a run."""


def hold(run: Path) -> int:
    """Locks a run for this process; the system unlocks it when the process ends, whatever ends it.

    Returns:
        The open file, which keeps the lock.

    Raises:
        Held: another process trains there.
        InputError: the folder cannot be written.
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
        raise Held(f"{run} is still being trained, by {holder}: wait for it to end, or stop it.") from error
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def shared_run(root: Path, experiment: str, name: str = "") -> Path:
    """The folder of this run: made by the first process, which passes it on to the ranks that it starts.

    Ranks that something else has started, such as torchrun or SLURM, get a placeholder until `SharedRun` replaces it.
    """
    if is_first():
        os.environ[RUN_VARIABLE] = str(new_run(root, experiment, name))
    return Path(os.environ.get(RUN_VARIABLE, root / experiment / "run-of-rank-0"))


def unused(path: Path) -> Path:
    """The path itself, or the first of `name-1.ext`, `name-2.ext` ... that does not exist."""
    candidates = (path.with_stem(f"{path.stem}-{number}") for number in range(1, 10_000))
    return next(p for p in chain([path], candidates) if not os.path.lexists(p))  # nor leads elsewhere
