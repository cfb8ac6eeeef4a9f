"""Cells as an array of Slurm jobs, submitted by submitit."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from normzoo.errors import InputError

FOLDER = ".submitit"
"""Scripts, output and pickled calls of the jobs, in the grid's folder."""
TIMEOUTS = 20
"""How often a job that exceeds its time is queued again."""


class Job:
    """A function that Slurm calls again, with the same arguments, after a timeout or a preemption.

    Args:
        function: one that resumes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        if "SLURM_JOB_ID" in os.environ:
            os.environ["SLURM_JOB_NAME"] = "bash"  # else Lightning expects a task of Slurm for each GPU
        return self.function(*args)

    def checkpoint(self, *args: Any) -> Any:
        """What submitit submits before the job ends."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


def submit(
    grid: Path,
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    *,
    jobs: int | None = None,
    cpus: int = 1,
    gpus: int = 0,
    threads: int = 1,
    minutes: int = 60,
    partition: str | None = None,
    more: Mapping[str, str | bool] | None = None,
    cluster: str = "slurm",
) -> list[Any]:
    """Submits one call of a function for each tuple of arguments, as one job array.

    Args:
        grid: the folder that gets submitit's files; all machines share it.
        function: a function of a module that the machines can import, and one that resumes.
        arguments: of each call.
        jobs: how many run at a time; None for as many as Slurm grants.
        cpus: of each job.
        gpus: the same.
        threads: of each job, as OMP_NUM_THREADS.
        minutes: after which Slurm ends a job, which then waits in the queue again and resumes.
        partition: of the cluster; None for its default.
        more: further options of `sbatch`, such as `{"account": "vision"}`; True is a flag without a value.
        cluster: a name that submitit knows.

    Returns:
        submitit's jobs, each with its `job_id`.

    Raises:
        InputError: submitit is not installed; this machine cannot submit; `sbatch` refuses an option.
    """
    executor = make_executor(grid / FOLDER, cluster)
    executor.update_parameters(
        name=grid.name,
        timeout_min=minutes,
        cpus_per_task=cpus,
        gpus_per_node=gpus or None,
        slurm_partition=partition,
        slurm_array_parallelism=jobs,
        slurm_additional_parameters=dict(more or {}),
        **{f"{cluster}_setup": [f"export OMP_NUM_THREADS={threads}"]},
    )
    from submitit.core.utils import FailedJobError

    try:
        with redirect_stderr(StringIO()), executor.batch():  # the error has the text too
            return [executor.submit(Job(function), *given) for given in arguments]
    except FailedJobError as error:
        raise InputError(f"sbatch refuses the jobs: {str(error).strip()}") from error


def make_executor(folder: Path, cluster: str) -> Any:
    """submitit's executor.

    Raises:
        InputError: submitit is not installed; this machine cannot submit.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("--on=slurm needs submitit: pip install 'normzoo[slurm]'.") from error
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "--on=slurm needs the programs sbatch and srun, and this machine lacks them: run the command on a login "
            "node of your cluster, or leave --on out to run the cells here."
        )
    return submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_num_timeout": TIMEOUTS})
