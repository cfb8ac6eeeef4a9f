"""The training curve: loss and accuracy of the training steps, and the learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

KEY = "training_curve"


class TrainingCurve(Callback):
    """Logs `train/loss`, `train/accuracy` and `lr` of any LightningModule, at least 50 times per run.

    A point is the mean over all steps since the last point and over all ranks. Its values are those that
    `training_step` returns: a loss, or a dictionary with "loss" and other tensors, each of one value for the batch or
    one per sample (N,). A metric that the module logs itself is not logged again.

    It is cheaper than `self.log` in every step, since it reads the values from the device once per point. It sets
    `trainer.log_every_n_steps` lower in runs too short for 50 points, and resumes amid two points exactly.

    >>> trainer = Trainer(callbacks=[TrainingCurve()], logger=False)

    Args:
        names: the values to log, of those that `training_step` returns.
        points: the least number of points in a run of as many steps.

    Attributes:
        newest: the newest point, for a progress bar to show.
    """

    def __init__(self, names: Sequence[str] = ("loss", "accuracy"), points: int = 50) -> None:
        self.names = tuple(names)
        self.points = points
        self.newest: dict[str, float] = {}
        self.saved: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Starts a new point."""
        self.batches = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # set by Lightning, undeclared
        accumulated = trainer.accumulate_grad_batches
        steps = trainer.estimated_stepping_batches
        self.every = int(max(1, min(interval, steps * accumulated / self.points)))
        if interval:  # 0 means that nothing is logged
            trainer.log_every_n_steps = int(max(1, min(interval, steps / self.points)))  # type: ignore[attr-defined]
        self.reset()
        saved, self.saved = self.saved, None
        if saved is not None and len(saved) == trainer.world_size:
            self.load(saved[trainer.global_rank].to(pl_module.device))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        # Lightning has divided the loss by the number of batches whose gradients it adds up.
        scale = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        returned = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        for name in self.names:
            if isinstance(values := returned.get(name), Tensor):
                total = values.detach().sum(dtype=torch.float32)
                total = total * scale if name == "loss" and scale > 1 else total
                self.sums[name] = self.sums[name] + total if name in self.sums else total
                self.counts[name] = self.counts.get(name, 0) + values.numel()
        if self.batches >= self.every:
            self.flush(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batches:
            self.flush(trainer)

    def flush(self, trainer: Trainer) -> None:
        """Logs a point."""
        totals = trainer.strategy.reduce(self.state(trainer), reduce_op="sum")
        assert isinstance(totals, Tensor)
        self.reset()
        logged = trainer.callback_metrics
        named = zip(self.names, totals[:, 1:].tolist(), strict=True)
        point = {f"train/{name}": total / count for name, (total, count) in named if count}
        point = {name: value for name, value in point.items() if name not in logged}
        if trainer.optimizers:
            point["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.newest = point
        if trainer.log_every_n_steps:  # type: ignore[attr-defined] # set by Lightning, undeclared
            for logger in trainer.loggers:
                logger.log_metrics(point, step=trainer.global_step)

    def state(self, trainer: Trainer) -> Tensor:
        """The unfinished point as a tensor (names, 3): the number of batches, the sum and the number of values."""
        device = trainer.strategy.root_device
        counts = torch.tensor([[self.batches, 0, self.counts.get(name, 0)] for name in self.names], dtype=torch.float32)
        sums = [self.sums.get(name, torch.zeros((), device=device)) for name in self.names]
        state = counts.to(device)
        state[:, 1] = torch.stack(sums)
        return state

    def load(self, state: Tensor) -> None:
        """Continues a point from its `state`."""
        for name, (batches, total, count) in zip(self.names, state.unbind(), strict=True):
            self.batches = int(batches)
            if count:
                self.sums[name], self.counts[name] = total, int(count)

    def state_dict(self) -> dict[str, Any]:
        return {"newest": self.newest}  # what reads it finds the same after a resume, such as HParams

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.newest = state_dict["newest"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the state of all ranks, (ranks, names, 3)."""
        if self.batches:
            gathered = trainer.strategy.all_gather(self.state(trainer))
            checkpoint[KEY] = gathered.reshape(trainer.world_size, len(self.names), 3).cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint.get(KEY)
