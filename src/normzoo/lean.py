"""Takes from Lightning's training step what does nothing in it: empty hooks are a tenth of a small network's step."""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.utilities.model_helpers import is_overridden

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


def drop_empty(owner: Callback | LightningModule, base: type) -> None:
    """Sets the owner's hooks that are still those of its base class to None."""
    for hook in HOOKS:
        if not is_overridden(hook, owner, base):
            setattr(owner, hook, None)
