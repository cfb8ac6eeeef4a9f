"""Takes from the training step what does nothing in it or is slow for no reason: it is a tenth of a small network's."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import google_crc32c
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.utilities.model_helpers import is_overridden
from tensorboard.summary.writer import record_writer

HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


class NoProfiler(Profiler):
    """Lightning's default profiler, which measures nothing, without a new generator for every hook."""

    _NOTHING = nullcontext(None)

    def __init__(self) -> None:
        super().__init__()

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        return self._NOTHING  # type: ignore[return-value]

    def start(self, action_name: str) -> None:
        """Nothing to start."""

    def stop(self, action_name: str) -> None:
        """Nothing to stop."""

    def summary(self) -> str:
        """Nothing to say."""
        return ""


def make_lean(trainer: Trainer, model: LightningModule) -> None:
    """Marks each hook of the training step that a callback or the module leaves empty as absent.

    Lightning calls what is callable: a hook that is None costs nothing. Hooks with content are untouched.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # set by Lightning, undeclared
        drop_empty(callback, Callback)
    drop_empty(model, LightningModule)
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
        trainer.profiler = NoProfiler()  # type: ignore[attr-defined]
    hasten_checksums()


def hasten_checksums() -> bool:
    """Has TensorBoard's event writer compute its checksums by a C library: the same numbers, a thousand times faster.

    Its own are computed byte by byte in Python, in a thread that keeps the training's waiting meanwhile: 2 ms for a
    record of 17 KB, which is what a sample of all monitors takes.

    Returns:
        Whether it took effect; not where TensorBoard's inside is another, or the library has no compiled part.
    """
    known = b"123456789"  # whose CRC-32C is 0xE3069283
    own = getattr(record_writer, "masked_crc32c", None)
    if own is None or google_crc32c.implementation != "c" or own(known) != masked_crc32c(known):
        return False
    record_writer.masked_crc32c = masked_crc32c
    return True


def masked_crc32c(data: bytes) -> int:
    """The checksum of records in event files: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def drop_empty(owner: Any, base: type) -> None:
    """Sets the owner's hooks that are still those of its base class to None."""
    for hook in HOOKS:
        if not is_overridden(hook, owner, base):
            setattr(owner, hook, None)
