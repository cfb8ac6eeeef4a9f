"""Notices that TensorBoard's curves are not written any more."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class LiveWriters(Callback):
    """Ends a training whose TensorBoard writer has failed, before the next checkpoint or at the end of the epoch.

    TensorBoard writes from a thread of its own. When that ends, by a full disk or otherwise, what is logged is lost,
    and the training would go on without a word. Stopping costs the steps since the last checkpoint, which a resumed run
    makes again with their curves; going on would lose these for good.

    Raises:
        OSError: while training, what the writer could not do.
    """

    def __init__(self) -> None:
        self.sizes: dict[Path, int] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sizes = {}
        for writer in writers(trainer):
            stop_at_once(writer._async_writer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check(trainer)  # what a checkpoint is past, a resumed run does not write again

    def check(self, trainer: Trainer) -> None:
        """Raises an `OSError` where curves are lost."""
        for writer in writers(trainer):
            writer.flush()  # raises what the thread has met
            file = Path(writer._file_name)
            size = file.stat().st_size  # raises where it has been deleted
            if size < self.sizes.get(file, 0):
                raise FileNotFoundError(errno.ENOENT, "it was deleted while it was written", str(file))
            self.sizes[file] = size


def writers(trainer: Trainer) -> Iterator[Any]:
    """The writers of event files that this process has open."""
    for logger in trainer.loggers:
        experiment = logger._experiment if isinstance(logger, TensorBoardLogger) else None
        file_writer = getattr(experiment, "file_writer", None)
        if file_writer is not None:
            yield file_writer.event_writer


def stop_at_once(queue: Any) -> None:
    """Has a writer whose thread has ended without an error raise one, where it would wait for the thread for ever."""
    check, thread = queue._check_worker_status, queue._worker

    def check_all() -> None:
        check()
        if not thread.is_alive() and not queue._closed:
            name = getattr(getattr(queue._writer, "_writer", None), "filename", b"")
            raise OSError(errno.EIO, "the thread that writes the curves has ended", name)

    queue._check_worker_status = check_all
