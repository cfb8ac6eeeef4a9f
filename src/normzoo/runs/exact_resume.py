"""Can a run that was killed go on as if nothing had happened?"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from normzoo.errors import InputError
from normzoo.monitoring.event_files import event_loggers, take_back, written
from normzoo.monitoring.random_state import random_state, set_random_state
from normzoo.runs.checkpoint_io import confine_paths
from normzoo.runs.folders import CHECKPOINTS

KEY = "exact_resume"
"""Of a checkpoint: where this callback's part stands."""


class ExactResume(Checkpoint):
    """Writes `last.ckpt` from which training goes on to the very numbers of a run that was never interrupted.

    The command line adds it to every run. In Python, with the plugin that makes writing survive a kill:

        from normzoo.runs.checkpoint_io import SafeCheckpointIO

        exact = ExactResume("runs/mine/0")
        logger = TensorBoardLogger("runs", "mine", "0")  # the same folder each time
        trainer = Trainer(callbacks=[exact], plugins=[SafeCheckpointIO()], logger=logger, max_epochs=100)
        seed_everything(0)
        trainer.fit(model, data, ckpt_path=exact.file if exact.file.is_file() else None, weights_only=True)

    If there is no checkpoint yet, remove first what the attempt before has logged: the command line does.

    Beside what Lightning saves, a checkpoint holds the state of the random number generators of every rank, the newest
    metrics, which schedules and early stopping look at, and how far TensorBoard's files went. When the run goes on, the
    files are taken back to that point, so that no step stands in them twice. Checkpoints are written between two
    batches: after an optimizer step, its records and its validation, and at the end of each epoch after all that is
    done there, plateau schedules included; never amid batches whose gradients accumulate.

    Within an epoch the loader must be able to go on where it was, as those of `normzoo.data` are, and `training_step`
    log nothing with `on_epoch=True`, whose mean over the epoch Lightning does not keep. For others, such as torch's
    DataLoader with `shuffle=True`, write checkpoints at the end of epochs only: `every_minutes=0`. So do where
    callbacks rely on `on_train_epoch_start`, as StochasticWeightAveraging: Lightning does not call it amid an epoch.

    Args:
        folder: where `last.ckpt` is kept.
        every_steps: optimizer steps between checkpoints within an epoch; None for none by steps.
        every_minutes: minutes between checkpoints within an epoch, by the clock of the first rank; 0 for none by time.
        keep_stop: whether a run that early stopping or a limit of time has ended stays ended when it is resumed; false
            has it go on until they end it again.

    Raises:
        InputError: a number out of range; in `setup`, a second one in the same Trainer.
    """

    def __init__(
        self,
        folder: str | Path,
        every_steps: int | None = None,
        every_minutes: float = 5.0,
        *,
        keep_stop: bool = True,
    ) -> None:
        if every_steps is not None and every_steps < 1:
            raise InputError(
                f"ExactResume(every_steps={every_steps}): steps between checkpoints are 1 or more; None is for none."
            )
        if not every_minutes >= 0:
            raise InputError(
                f"ExactResume(every_minutes={every_minutes}): minutes between checkpoints are 0, for none, or more."
            )
        self.file = Path(folder) / "last.ckpt"
        self.every_steps = every_steps
        self.seconds = 60 * every_minutes
        self.keep_stop = keep_stop
        self.found: dict[str, Any] | None = None
        self.saved_step = -1
        self.saved_time = 0.0
        self.look_at = 0
        """The step at which to look at the clock again."""
        self.began = False
        self.unhook: list[Callable[[], None]] = []

    # Lightning has no hook between two batches, nor after all that belongs to an epoch: its loops are listened to.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if (number := sum(isinstance(one, ExactResume) for one in trainer.checkpoint_callbacks)) > 1:
            raise InputError(
                f"trainer.callbacks has {number} ExactResume: leave yours out, as the command line adds one, which "
                f"--checkpoint_minutes and --checkpoint_steps are for; in Python, keep one."
            )
        self.file = Path(trainer.strategy.broadcast(str(self.file)))  # where the first rank writes

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.release()
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # set by Lightning, undeclared
            return
        self.began = False
        epochs, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop

        def begin() -> None:
            if not self.began:
                self.began = True
                self.restore(trainer)

        def listen(loop: Any, name: str, before: Callable[[], None] | None, after: Callable[[], None] | None) -> None:
            method = getattr(loop, name)

            def heard(*args: Any) -> None:
                if before:
                    before()
                method(*args)
                if after:
                    after()

            setattr(loop, name, heard)
            self.unhook.append(lambda: delattr(loop, name))

        listen(epochs, "on_advance_start", begin, None)
        listen(batches, "on_advance_end", None, lambda: self.batch_is_done(trainer))
        listen(epochs, "on_advance_end", None, lambda: self.epoch_is_done(trainer))
        listen(epochs, "run", None, lambda: self.run_is_done(trainer))

    def release(self) -> None:
        """Leaves the loops as they were."""
        while self.unhook:
            self.unhook.pop()()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.release()

    # When.

    def batch_is_done(self, trainer: Trainer) -> None:
        """Writes a checkpoint if one is due; the last batch of an epoch waits for the end of the epoch."""
        loop, step = trainer.fit_loop.epoch_loop, trainer.global_step
        at_end = 0 <= loop.max_steps <= step  # a run that ends within an epoch may be made longer
        if step == self.saved_step or not (at_end or self.is_due(trainer, step)):
            return
        if loop._num_ready_batches_reached() or loop._should_accumulate():
            return
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop._should_check_val_fx(fetcher):
            return  # Lightning would begin with the end of this step once more; the next one will do
        self.save(trainer)

    def is_due(self, trainer: Trainer, step: int) -> bool:
        """Whether steps or minutes have passed since the last checkpoint; the same answer on all ranks."""
        if self.every_steps is not None and step - self.saved_step >= self.every_steps:
            return True
        if not self.seconds or step < self.look_at:
            return False
        waited = time.monotonic() - self.saved_time
        if trainer.world_size > 1:  # asking costs more than a small step: it is done some twenty times per checkpoint
            waited = trainer.strategy.broadcast(waited)
            pace = (step - self.saved_step) / max(waited, 1e-9)
            self.look_at = step + max(1, int(pace * self.seconds / 20))
        return waited >= self.seconds

    def epoch_is_done(self, trainer: Trainer) -> None:
        """Writes a checkpoint, unless a run that ends within an epoch has left one at this step."""
        if trainer.global_step != self.saved_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`."""
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.file, weights_only=False)
        self.saved_time, self.look_at = time.monotonic(), trainer.global_step

    def run_is_done(self, trainer: Trainer) -> None:
        """Does what comes after the last batch, where just that was cut off: then no loop has run."""
        loop = trainer.fit_loop
        if self.began or self.found is None or loop.max_batches == 0:
            return
        self.began = True
        loop.on_run_start()
        self.restore(trainer)
        progress: Any = loop.epoch_progress.current
        if progress.processed < progress.started:
            loop.on_advance_end()
        loop.on_run_end()

    # What.

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds to any checkpoint what Lightning leaves out. All ranks are here."""
        own = {
            "random": random_state(trainer.strategy.root_device),
            "metrics": {
                name: value.detach().cpu() if isinstance(value, Tensor) else value
                for name, value in trainer.callback_metrics.items()
            },
        }
        ranks = [own]
        if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            ranks = [own] * trainer.world_size
            dist.all_gather_object(ranks, own)
        writers = event_loggers(trainer) if trainer.is_global_zero else []
        checkpoint[KEY] = {
            "ranks": ranks,
            "should_stop": trainer.should_stop,
            "events": [written(logger) for logger in writers],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        folder = self.file.parent
        confine_paths(trainer, checkpoint, folder.parent if folder.name == CHECKPOINTS else folder)
        self.found = checkpoint.get(KEY)
        self.saved_step = checkpoint["global_step"]
        trainer.num_sanity_val_steps = 0  # it passed before the first epoch
        if self.found is None:
            rank_zero_warn("The checkpoint is of a run without ExactResume: random numbers begin anew.")
            return
        trainer.should_stop = self.found["should_stop"] and self.keep_stop
        if trainer.is_global_zero:
            for logger, sizes in zip(event_loggers(trainer), self.found["events"], strict=False):
                take_back(logger, sizes, checkpoint["global_step"])

    def restore(self, trainer: Trainer) -> None:
        """Takes up random numbers and metrics, after all that a start draws and before the first batch is fetched."""
        self.saved_time, self.look_at = time.monotonic(), trainer.global_step
        found, self.found = self.found, None
        if found is None:
            self.saved_step = max(self.saved_step, 0)
            return
        if len(found["ranks"]) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint is of {len(found['ranks'])} processes, and {trainer.world_size} go on: random numbers "
                f"begin anew."
            )
            return
        own = found["ranks"][trainer.global_rank]
        device = trainer.strategy.root_device
        trainer.callback_metrics.update(
            {name: value.to(device) if isinstance(value, Tensor) else value for name, value in own["metrics"].items()}
        )
        trainer.fit_loop._restarting = False  # else plateau schedules would miss the end of this epoch
        progress = trainer.fit_loop.epoch_progress.current
        if progress.ready == progress.completed:  # a new epoch begins: like any other, with a new iterator
            trainer.fit_loop._resuming_from_checkpoint = False
            trainer.fit_loop.epoch_loop.restarting = False
            trainer.fit_loop.epoch_loop.reset_restart_stage()
        set_random_state(own["random"], device)
