"""Can a run that was killed continue as if nothing had happened?"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from normzoo.errors import InputError
from normzoo.monitoring.event_files import Sizes, event_loggers, file_sizes, truncate_events
from normzoo.monitoring.random_state import random_state, set_random_state
from normzoo.runs.checkpoint_io import confine_paths
from normzoo.runs.folders import CHECKPOINTS
from normzoo.runs.loggers import csv_loggers, csv_text, restore_csv

KEY = "exact_resume"
"""The key of this callback's part of a checkpoint."""


class ExactResume(Checkpoint):
    """Writes `last.ckpt`, from which a resumed run ends with the very numbers of one that was never interrupted.

    The command line adds it to every run. In Python, with the plugin that makes writing survive a kill:

        from normzoo.runs.checkpoint_io import SafeCheckpointIO

        exact = ExactResume("runs/mine/0")
        logger = TensorBoardLogger("runs", "mine", "0")  # the same folder each time
        trainer = Trainer(callbacks=[exact], plugins=[SafeCheckpointIO()], logger=logger, max_epochs=100)
        seed_everything(0)
        trainer.fit(model, data, ckpt_path=exact.file if exact.file.is_file() else None, weights_only=True)

    If there is no checkpoint yet, first remove the event files of the attempt before: the command line does.

    Beside what Lightning saves, a checkpoint holds the state of the random number generators of every rank, the newest
    metrics, which schedules and early stopping read, the sizes of TensorBoard's files and the rows of a `CSVLogger`.
    On resume the files are cut back to that point, so that no step is in them twice. Checkpoints are written between
    two batches, after the optimizer step, its logging and its validation, and at the end of each epoch after all its
    hooks and schedules; never while gradients accumulate. SIGTERM writes one as well, on a single rank, unless those
    within an epoch are switched off.

    Within an epoch the loader must be able to continue where it was, as those of `normzoo.data` are, and
    `training_step` must log nothing with `on_epoch=True`, whose mean over the epoch Lightning does not keep. Otherwise,
    as with torch's DataLoader with `shuffle=True`, write checkpoints at the end of epochs only: `every_minutes=0`. The
    same holds for callbacks that rely on `on_train_epoch_start`, such as StochasticWeightAveraging: Lightning does not
    call it within an epoch. GradientAccumulationScheduler is called.

    A resumed run is equal to the bit on the same machine, with the same versions and number of threads.

    Args:
        folder: where `last.ckpt` is kept.
        every_steps: optimizer steps between checkpoints within an epoch; None for none by steps.
        every_minutes: minutes between checkpoints within an epoch, by the clock of the first rank; 0 for none by time.
        keep_stop: whether a run that early stopping or a limit of time has ended stays ended when it is resumed; false
            continues it until they end it again.

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
        self.sizes: list[Sizes] = []
        self.saved_step = -1
        self.saved_time = 0.0
        self.next_look = 0
        """The step at which to look at the clock again."""
        self.started = False
        self.others: list[Checkpoint] = []
        self.validated = False
        """Whether validation has begun since the last batch."""
        self.restore_loops: list[Callable[[], None]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if (number := sum(isinstance(one, ExactResume) for one in trainer.checkpoint_callbacks)) > 1:
            raise InputError(
                f"trainer.callbacks has {number} ExactResume: leave yours out, as the command line adds one, which "
                f"--checkpoint_minutes and --checkpoint_steps are for; in Python, keep one."
            )
        self.file = Path(trainer.strategy.broadcast(str(self.file)))  # where the first rank writes
        self.others = [one for one in trainer.checkpoint_callbacks if one is not self]

    @property
    def best_model_path(self) -> str:
        """That of the next checkpoint callback: Lightning asks the first one for `ckpt_path="best"`."""
        return next((one.best_model_path for one in self.others if isinstance(one, ModelCheckpoint)), "")

    # Lightning has no hook between two batches, nor after all that belongs to an epoch: methods of its loops are
    # wrapped while a Trainer fits.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.unwrap()
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # set by Lightning, undeclared
            return
        self.started, self.sizes = False, []
        epochs, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
        self.wrap(trainer, epochs, "run", self.run)
        self.wrap(trainer, epochs, "on_advance_start", self.start_epoch)
        self.wrap(trainer, epochs, "on_advance_end", self.end_epoch)
        self.wrap(trainer, batches, "on_advance_end", self.end_batch)
        self.wrap(trainer, batches.val_loop, "run", self.validate)

    def wrap(
        self, trainer: Trainer, loop: Any, name: str, around: Callable[[Trainer, Callable[[], Any]], None]
    ) -> None:
        """Has a loop call `around(trainer, method)` in the place of a method."""
        method = getattr(loop, name)
        setattr(loop, name, lambda *args: around(trainer, lambda: method(*args)))
        # A function, which a copy of this callback shares: a loop cannot be copied.
        self.restore_loops.append(lambda: delattr(loop, name))

    def unwrap(self) -> None:
        """Restores the methods."""
        while self.restore_loops:
            self.restore_loops.pop()()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.unwrap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.unwrap()

    # When to save.

    def validate(self, trainer: Trainer, run: Callable[[], Any]) -> None:
        """Runs the validation, which SIGTERM may end."""
        self.validated = True
        run()

    def end_batch(self, trainer: Trainer, end: Callable[[], Any]) -> None:
        """Writes a checkpoint if one is due; the last batch of an epoch waits for the end of the epoch."""
        try:
            end()
        except SIGTERMException:
            self.save_if_due(trainer)
            raise
        self.save_if_due(trainer)

    def save_if_due(self, trainer: Trainer) -> None:
        """Writes a checkpoint after a batch where one can be resumed exactly, and is due."""
        loop, step = trainer.fit_loop.epoch_loop, trainer.global_step
        validated, self.validated = self.validated, False
        if validated:
            return  # from here Lightning would resume with the end of this step once more; the next batch will do
        done, count = loop.batch_progress.current.ready, trainer.accumulate_grad_batches
        if loop.batch_progress.is_last_batch or done == trainer.num_training_batches or done % count:
            return
        at_end = 0 <= loop.max_steps <= step  # a run that ends within an epoch may be made longer
        if step != self.saved_step and (at_end or self.is_due(trainer, step)):
            self.save(trainer)

    def is_due(self, trainer: Trainer, step: int) -> bool:
        """Whether it is time, by steps or minutes, or SIGTERM ends a run of one rank; the same answer on all ranks."""
        if trainer.received_sigterm:
            return trainer.world_size == 1 and bool(self.seconds or self.every_steps)
        if self.every_steps is not None and step - self.saved_step >= self.every_steps:
            return True
        if not self.seconds or step < self.next_look:
            return False
        waited = time.monotonic() - self.saved_time
        if trainer.world_size > 1:  # asking costs more than a small step: it is done some twenty times per checkpoint
            waited = trainer.strategy.broadcast(waited)
            pace = (step - self.saved_step) / max(waited, 1e-9)
            self.next_look = step + max(1, int(pace * self.seconds / 20))
        return waited >= self.seconds

    def end_epoch(self, trainer: Trainer, end: Callable[[], Any]) -> None:
        """Writes a checkpoint, unless a run that ends within an epoch has written one at this step."""
        end()
        self.validated = False
        if trainer.global_step != self.saved_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`."""
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.file, weights_only=False)
        self.saved_time, self.next_look = time.monotonic(), trainer.global_step

    # What to save.

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds to any checkpoint what Lightning leaves out; called on all ranks."""
        own = {
            "random": random_state(trainer.strategy.root_device),
            "metrics": moved_to(torch.device("cpu"), trainer.callback_metrics),
        }
        ranks = [own]
        if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            ranks = [own] * trainer.world_size
            dist.all_gather_object(ranks, own)
        checkpoint[KEY] = {"ranks": ranks, "should_stop": trainer.should_stop, "threads": torch.get_num_threads()}
        if trainer.is_global_zero:  # raises where curves are lost: a resumed run would not write them again
            writers = event_loggers(trainer)
            before = self.sizes or [{} for _ in writers]
            self.sizes = [file_sizes(one, sizes) for one, sizes in zip(writers, before, strict=True)]
        checkpoint[KEY]["events"] = self.sizes
        checkpoint[KEY]["csv"] = [csv_text(one) for one in csv_loggers(trainer)] if trainer.is_global_zero else []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        folder = self.file.parent
        confine_paths(trainer, checkpoint, folder.parent if folder.name == CHECKPOINTS else folder)
        self.found = checkpoint.get(KEY)
        self.saved_step = checkpoint["global_step"]
        trainer.num_sanity_val_steps = 0  # it passed before the first epoch
        if self.found is None:
            rank_zero_warn("The checkpoint is of a run without ExactResume: random numbers start anew.")
            return
        trainer.should_stop = self.found["should_stop"] and self.keep_stop
        if trainer.strategy.root_device.type == "cpu":
            warn_of_threads(self.found.get("threads"), torch.get_num_threads())
        if trainer.is_global_zero:
            for logger, sizes in zip(event_loggers(trainer), self.found["events"], strict=False):
                truncate_events(logger, sizes, checkpoint["global_step"])
            if Path(trainer.ckpt_path or "").resolve().parent == self.file.resolve().parent:  # not of another run
                for one, text in zip(csv_loggers(trainer), self.found.get("csv", []), strict=False):
                    restore_csv(one, text)

    # Where to start.

    def start_epoch(self, trainer: Trainer, advance: Callable[[], Any]) -> None:
        """Starts an epoch; the first of a resumed run with what was restored."""
        if self.started:
            advance()
            return
        self.started = True
        self.restore(trainer)
        progress: Any = trainer.fit_loop.epoch_progress.current
        if self.found is not None and progress.ready == progress.completed:  # a new epoch: with a new iterator
            trainer.fit_loop.epoch_loop.restarting = False
            trainer.fit_loop.epoch_loop.reset_restart_stage()
        advance()
        if self.found is not None:
            trainer.fit_loop.on_iteration_done()  # it no longer restarts: else plateau schedules would miss this epoch
        self.found = None

    def run(self, trainer: Trainer, run: Callable[[], Any]) -> None:
        """Runs all epochs. If only what comes after the last batch was cut off, no loop has run: it is done here."""
        run()
        loop = trainer.fit_loop
        if self.started or self.found is None or loop.max_batches == 0:
            return
        self.started = True
        loop.on_run_start()
        self.restore(trainer)
        loop.on_iteration_done()
        progress: Any = loop.epoch_progress.current
        if progress.processed < progress.started:
            loop.on_advance_end()
        loop.on_run_end()

    def restore(self, trainer: Trainer) -> None:
        """Restores metrics and random numbers, after all that a start draws and before the first batch is fetched."""
        self.saved_time, self.next_look = time.monotonic(), trainer.global_step
        self.validated = False
        for callback in trainer.callbacks:  # type: ignore[attr-defined] # set by Lightning, undeclared
            if isinstance(callback, GradientAccumulationScheduler):  # Lightning calls it at the start of an epoch only
                callback.on_train_epoch_start(trainer, trainer.lightning_module)
        if self.found is None:
            self.saved_step = max(self.saved_step, 0)
            return
        if len(self.found["ranks"]) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint is of {len(self.found['ranks'])} processes, and the run continues with "
                f"{trainer.world_size}: random numbers start anew."
            )
            self.found = None
            return
        own = self.found["ranks"][trainer.global_rank]
        device = trainer.strategy.root_device
        trainer.callback_metrics.update(moved_to(device, own["metrics"]))
        set_random_state(own["random"], device)


def moved_to(device: torch.device, metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics on a device, without their gradients."""
    return {name: value.detach().to(device) if isinstance(value, Tensor) else value for name, value in metrics.items()}


def warn_of_threads(saved: int | None, now: int) -> None:
    """Warns if a CPU sums in another order than in the run that wrote the checkpoint."""
    if saved not in (None, now):
        rank_zero_warn(
            f"The checkpoint was written with {saved} threads, and this process uses {now}: sums are rounded "
            f"differently, so the resumed run is not equal to the bit. OMP_NUM_THREADS={saved} makes it so."
        )
