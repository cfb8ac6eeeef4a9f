"""Where runs live: `ROOT/EXPERIMENT/RUN/`, RUN being the next free number, with config, checkpoints and events."""

import os
from pathlib import Path

from normzoo.errors import InputError

# Set by the first process of a run for the processes of the other ranks on the same machine.
RUN_VARIABLE = "NORMZOO_RUN"
# Every one that is there is 0 in the first process of a run.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


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
    return path if not path.exists() else next(p for p in candidates if not p.exists())
