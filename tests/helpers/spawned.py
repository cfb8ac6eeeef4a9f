"""Ranks as copies of the process of a test, by a strategy of Lightning's."""

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

# Lightning has no public name for it.
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from normzoo.distributed.processes import disconnect


class Spawner(_MultiProcessingLauncher):
    """Lightning's, whose processes close their connections before Python ends."""

    def _wrapping_function(self, *args: Any, **kwargs: Any) -> None:
        super()._wrapping_function(*args, **kwargs)
        disconnect()


class DDP(DDPStrategy):
    """Lightning's ddp_spawn, without its rare abort at the end of a rank (see `disconnect`)."""

    def _configure_launcher(self) -> None:
        self._launcher = Spawner(self, start_method="spawn")
