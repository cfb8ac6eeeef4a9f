"""One folder for all ranks of a run."""

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from normzoo.runs.loggers import set_version


class SharedRun(Callback):
    """Gives all ranks the folder of the run that the first rank has made, once they can communicate.

    Args:
        run: the folder, as this rank knows it.
        update: called with the first rank's.
    """

    def __init__(self, run: Path, update: Callable[[Path], None]) -> None:
        self.run = run
        self.update = update

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = Path(trainer.strategy.broadcast(str(self.run)))
        if run == self.run:
            return
        # Ranks communicate only after a Trainer and its loggers are built, which have no public way to change this.
        if trainer.default_root_dir == str(self.run):
            trainer._default_root_dir = str(run)  # type: ignore[attr-defined]  # set by Lightning, undeclared
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and Path(logger.log_dir) == self.run:
                set_version(logger, run.name)
        self.run = run
        self.update(run)
