"""Ranks that end in order: together, and with what connects them closed before Python ends."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher


def leave() -> None:
    """Waits for all ranks to be done, and closes what connects them.

    Threads of gloo let go of tensors a moment after a collective has ended, and need Python for it. Where Python ends
    first, which on a busy machine it may, such a thread is ended in the middle of a C++ destructor, and the process
    aborts ("terminate called without an active exception"). Lightning closes nccl's connections only.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


class Spawner(_MultiProcessingLauncher):
    """Lightning's, whose processes end in order."""

    def _wrapping_function(self, *args: Any, **kwargs: Any) -> None:
        super()._wrapping_function(*args, **kwargs)
        leave()


class DDP(DDPStrategy):
    """Lightning's strategy, of which processes that it spawns end in order: `strategy=DDP(start_method="spawn")`."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if type(self.launcher) is _MultiProcessingLauncher:
            self._launcher = Spawner(self, start_method=self.launcher._start_method)
