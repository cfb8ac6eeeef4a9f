"""How the processes of a run with several ranks start and end."""

import atexit
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

# Lightning's launchers, which alone know how ranks start, have no public names.
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from normzoo.errors import InputError

# Seconds that the process that started the other ranks waits for them when it exits.
GRACE = 5.0


class RankProcesses(Callback):
    """Ends the processes of several ranks together: SIGTERM at once, and ranks that hang with the command.

    Lightning's handler of SIGTERM broadcasts the signal in the middle of whatever the ranks compute, so that they may
    wait for each other until the strategy's timeout; here each rank raises `SIGTERMException`. Under SLURM with
    automatic requeueing Lightning's handler stays.

    Lightning leaves a rank that hangs running when the rank that started it exits with an error; here it is killed.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            atexit.register(end_processes, launcher.procs)

    def take_sigterm(self, trainer: Trainer, pl_module: LightningModule) -> None:
        environment = getattr(trainer.strategy, "cluster_environment", None)
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows it there only
        if trainer.world_size > 1 and in_main_thread and not requeues:
            signal.signal(signal.SIGTERM, partial(end_by_signal, trainer))

    # The first hooks after Lightning has set its own handler.
    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = take_sigterm


def end_by_signal(trainer: Trainer, number: int, frame: Any) -> NoReturn:
    """Passes a signal on to the ranks that this process started, and ends this one."""
    signal.signal(number, signal.SIG_IGN)
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(number)
    raise SIGTERMException


def end_processes(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Waits a few seconds for processes to exit, and kills those that do not."""
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def require_commands(trainer: Trainer) -> None:
    """Refuses strategies that start ranks as copies of one process.

    Raises:
        InputError: the strategy is ddp_spawn, ddp_fork or ddp_notebook.
    """
    launcher = trainer.strategy.launcher
    if type(launcher) is _MultiProcessingLauncher:  # TPUs use a subclass
        raise InputError(
            "strategy: ddp_spawn, ddp_fork and ddp_notebook copy the process of the command line, and each rank has to "
            "be a command of its own; use --trainer.strategy=ddp."
        )


def disconnect() -> None:
    """Waits for all ranks and closes their connections, as Lightning does for nccl.

    Threads of gloo release tensors a moment after a collective has ended. If Python exits first, the process aborts
    ("terminate called without an active exception").
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
