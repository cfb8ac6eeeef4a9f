"""Stops a training before a loss or gradient that is not finite reaches the weights."""

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from normzoo.callbacks._bad_step import BadStep, StateBefore, set_buffers
from normzoo.callbacks._layer_table import Findings, bad_weight, inspect_step, local
from normzoo.distributed.gather import Ranks
from normzoo.errors import Diverged, InputError
from normzoo.monitoring.random_state import same_random_numbers, set_random_state
from normzoo.monitoring.replica import Replica
from normzoo.runs.allowed import again
from normzoo.runs.exact_resume import ExactResume

SAVED = 3
"""The number of skipped steps that are saved: each holds the weights, and the first are the most useful."""
ADVICE = (
    "Try a smaller learning rate or Trainer(gradient_clip_val=1); to skip such steps, FiniteLoss('skip') (normzoo fit: "
    "--trainer.gradient_clip_val=1, --on_bad_loss=skip)."
)


class FiniteLoss(Callback):
    """Stops a training, or skips the step, if the loss or a gradient is NaN or infinite.

    The step is not applied: weights, optimizer and buffers keep the values from before it. The callback saves what it
    takes to repeat the step, with a checkpoint from before it, and names the first layer that is not finite.
    `normzoo replay FOLDER` repeats the step. A training without such a step is the same to the bit as without this
    callback. Several ranks decide together.

    It reads one number per step: on a GPU, it waits for the backward pass. With "16-mixed" precision, the scaler
    handles gradients that overflow, until its scale is 1.

    >>> trainer = Trainer(callbacks=[FiniteLoss("skip", folder="bad")], logger=False)

    Args:
        on_bad: "stop" ends the run with an `InputError`; "skip" continues with the next batch.
        most_in_a_row: the number of skipped steps in a row after which the run stops nevertheless.
        folder: where bad steps are saved, each in a folder of its number; None for `bad` in the run's folder.

    Attributes:
        skipped: the numbers of the skipped steps.
        found: of the newest step that was not finite, its number, the first layer that is not, and a sentence about it.

    Raises:
        InputError: `on_bad` or `most_in_a_row` has another value; while training, as above.
    """

    FOLDER = "bad"

    def __init__(
        self, on_bad: Literal["stop", "skip"] = "stop", *, most_in_a_row: int = 10, folder: str | Path | None = None
    ) -> None:
        if on_bad not in ("stop", "skip"):
            raise InputError(f"FiniteLoss(on_bad={on_bad!r}): give 'stop' or 'skip', or leave the callback out.")
        if isinstance(most_in_a_row, bool) or not isinstance(most_in_a_row, int) or most_in_a_row < 1:
            raise InputError(f"FiniteLoss(most_in_a_row={most_in_a_row!r}): give a number of steps, such as 10.")
        self.on_bad = on_bad
        self.most_in_a_row = most_in_a_row
        self.folder = folder
        self.skipped: list[int] = []
        self.found: tuple[int, str, str] | None = None
        self.in_a_row = 0
        self.saving = False

    # The run.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.skipped, self.found, self.in_a_row = [], None, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ranks = Ranks()
        # DDP averages the gradients: if they are not finite on one rank, they are not on all.
        self.must_ask = self.ranks.many and not isinstance(trainer.strategy, DDPStrategy)
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.before = StateBefore(pl_module, trainer.strategy.root_device)
        self.reset_step()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before.find_buffers(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.require_finite_weights(trainer, pl_module)
        if self.skipped:
            shown = ", ".join(map(str, self.skipped[:10])) + (" ..." if len(self.skipped) > 10 else "")
            rank_zero_warn(
                f"{len(self.skipped)} of {trainer.global_step} steps were skipped, since their loss or gradients were "
                f"not finite: {shown}."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and hasattr(self, "ranks"):
            self.reset_step()
            self.ranks.close()
            del self.before

    # A step.

    def reset_step(self) -> None:
        """Forgets what was seen since the last update."""
        self.suspect: BadStep | None = None
        self.losses: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch, self.batch_idx = batch, batch_idx
        self.finite: list[bool] = []  # of each update: several optimizers may make one
        self.before.take()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        value = loss.detach()
        if value.device.type == "cpu" and math.isfinite(value.item()):
            return  # on a GPU, reading it would wait for the forward pass
        self.losses.append(value)
        if loss.requires_grad:
            # Adds 0 if the loss is finite, else NaN: then all ranks have gradients that are NaN.
            loss.register_hook(lambda gradient: gradient + (value - value))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of several batches whose gradients accumulate, which one is bad.
        accumulates = trainer.accumulate_grad_batches > 1
        if accumulates and self.suspect is None and not is_finite(pl_module.parameters(), self.losses):
            self.suspect = self.current(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        bad = self.suspect is not None or not is_finite(parameters, self.losses)
        if self.must_ask:
            bad = any(self.ranks.gather(bad))
        if bad:
            self.handle(trainer, pl_module, optimizer)
        self.finite.append(not bad)
        self.reset_step()

    def on_train_batch_end(self, *unused: object) -> None:
        if self.finite and all(self.finite):
            self.in_a_row = 0

    def current(self, trainer: Trainer, module: LightningModule) -> BadStep:
        """The present batch, with the state from before it; its loss is None if it is finite."""
        losses = [loss for loss in map(float, self.losses) if not math.isfinite(loss) and not self.is_scaled(loss)]
        buffers, random = self.before.kept()
        scale = 1.0 if self.scaler is None else float(self.scaler.get_scale())
        return BadStep(
            batch=self.batch,
            batch_idx=self.batch_idx,
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            buffers=buffers,
            evaluating=[name for name, layer in module.named_modules() if not layer.training],
            random=random,
            factor=scale / trainer.accumulate_grad_batches,
            precision=str(trainer.precision),
            ranks=self.ranks.size,
            loss=losses[0] if losses else None,
        )

    def is_scaled(self, loss: float) -> bool:
        """Whether an infinite loss may be finite without its scale."""
        return self.scaler is not None and math.isinf(loss) and self.scaler.get_scale() > 1

    # A step that is not finite. All ranks come here together.

    def handle(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Saves the step, and skips it or stops.

        Raises:
            InputError: the run stops.
        """
        step = self.suspect or self.current(trainer, module)
        losses = self.ranks.gather(step.loss)
        if self.scaler is not None and losses == [None] * len(losses) and self.scaler.get_scale() > 1:
            return  # the scaler skips the step, and lowers its scale
        self.in_a_row += 1
        spoiled = bad_weight(module) is not None
        stops = self.on_bad == "stop" or spoiled or self.in_a_row >= self.most_in_a_row
        set_buffers(module, step.buffers)
        broadcast_buffers(trainer)
        if stops or len(self.skipped) < SAVED:
            with same_random_numbers(module.device):
                set_random_state(step.random, module.device)
                findings = self.inspect(trainer, module, step)
                self.found = step.step, findings.offender or "?", findings.summary
                lines = [
                    describe_step(optimizer, step, losses),
                    *self.describe_layer(step, findings),
                    *self.describe_result(trainer, spoiled, stops),
                    *self.save(trainer, step, findings),
                ]
            if self.on_bad == "stop" and not spoiled:
                lines.append(ADVICE)
            if stops:
                raise Diverged("\n".join(lines))
            rank_zero_warn("\n".join(lines))
        self.skipped.append(trainer.global_step)
        if self.scaler is None:  # which skips the step itself
            optimizer.zero_grad(set_to_none=True)  # optimizers leave parameters without a gradient as they are

    def inspect(self, trainer: Trainer, module: LightningModule, step: BadStep) -> Findings:
        """Repeats the step on a copy, layer by layer."""
        try:
            if self.must_ask:
                raise InputError("the weights may be sharded over the ranks")
            return inspect_step(Replica(trainer, module), step.batch, step.batch_idx, step.factor)
        except Exception as error:  # whatever the user's step raises on a copy
            return Findings(summary=f"The first layer is not known: {str(error) or type(error).__name__}")

    def save(self, trainer: Trainer, step: BadStep, findings: Findings) -> list[str]:
        """Writes the step of every rank and a checkpoint, and says where they are."""
        root = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / self.FOLDER)
        folder = Path(self.ranks.gather(str(root / f"{trainer.global_step:06d}"))[0])
        step.loss = findings.loss if step.loss is None else step.loss
        step.offender, step.summary = findings.offender, findings.summary

        def write_step() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            step.save(folder / f"rank{trainer.global_rank}.pt")
            if trainer.is_global_zero:
                (folder / "layers.txt").write_text(f"{findings.summary}\n\n{findings.table()}\n")
                if (config := root.parent / "config.yaml").is_file():
                    shutil.copyfile(config, folder / "config.yaml")

        def write_checkpoint() -> None:
            # Where a run has its own: all commands take the folder for a run.
            trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=False)

        self.saving = True
        troubles = [trouble for trouble in self.ranks.gather(attempt(write_step)) if trouble]
        trouble = troubles[0] if troubles else attempt(write_checkpoint)
        self.saving = False
        return [f"Nothing was saved: {folder} could not be written ({trouble})."] if trouble else describe_files(folder)

    # The message.

    def describe_layer(self, step: BadStep, findings: Findings) -> list[str]:
        """The first layer that is not finite."""
        # Layers that synchronize carry a bad batch from one rank to all: it is named first, then any layer.
        seen = self.ranks.gather((findings.offender, findings.summary))
        rank = min(range(len(seen)), key=lambda r: (seen[r][0] != "batch", not seen[r][0]))
        lines = [f"On rank {rank}: {seen[rank][1]}" if self.ranks.many else seen[rank][1]]
        if step.loss is not None and findings.loss is not None and math.isfinite(findings.loss):
            lines.append(
                f"Repeated on a copy, the loss is {findings.loss:.6g}: training_step changes its batch, or depends on "
                f"more than weights, buffers and the random numbers of torch, NumPy and Python."
            )
        return lines

    def describe_result(self, trainer: Trainer, spoiled: bool, stops: bool) -> list[str]:
        """What happened to the step."""
        if spoiled:
            kept = newest_checkpoint(trainer)
            which = f"The last checkpoint, {kept}, is from before that." if kept else "There is no checkpoint yet."
            return [f"The update before this step made the weights non-finite. {which}"]
        if self.on_bad == "stop":
            return ["The step was not applied."]
        row = f", the last of {self.in_a_row} in a row" if stops else ""
        return [f"The step was skipped{row}: weights, optimizer and buffers keep the values from before it."]

    # Checkpoints.

    def require_finite_weights(self, trainer: Trainer, module: LightningModule) -> None:
        """Raises `InputError` if an update made a weight non-finite, before a checkpoint is replaced."""
        if found := bad_weight(module):
            name, numbers = found
            layer = name.rpartition(".")[0] or name
            self.found = trainer.global_step - 1, layer, f"the update made {name} non-finite."
            kept = newest_checkpoint(trainer)
            which = f"the last checkpoint is {kept}" if kept else "there is no checkpoint yet"
            raise Diverged(
                f"step {trainer.global_step - 1}: loss and gradients were finite, but the update made {name} "
                f"non-finite: {numbers} (epoch {trainer.current_epoch}). No checkpoint is replaced: {which}. Try a "
                f"smaller learning rate, or a larger eps of the optimizer."
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.saving:
            self.require_finite_weights(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": list(self.skipped), "in_a_row": self.in_a_row, "found": self.found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = list(state_dict["skipped"]), state_dict["in_a_row"]
        self.found = state_dict.get("found")


def is_finite(parameters: Iterable[Tensor], losses: Sequence[Tensor]) -> bool:
    """Whether the losses and the gradients of the parameters are finite."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if (gradient := parameter.grad) is not None:
            groups.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    flags = [loss - loss for loss in losses]  # 0, or NaN
    for (device, _), gradients in groups.items():
        found = torch.zeros((), device=device)
        try:
            # One pass, which multiplies by 1. The public get_total_norm takes six times as long, 1 % of a small step.
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, torch.ones((), device=device))
        except RuntimeError:  # sparse, sharded, or a device that lacks it
            found += any(not bool(local(one).isfinite().all()) for one in gradients)
        flags.append(found)
    return all(flag.item() == 0 for flag in flags)


def describe_step(optimizer: Optimizer, step: BadStep, losses: Sequence[float | None]) -> str:
    """Which step it is, and which ranks have a bad loss."""
    bad = {str(rank): loss for rank, loss in enumerate(losses) if loss is not None}
    on_ranks = f" on rank {', '.join(bad)}" if bad and len(losses) > 1 else ""
    what = f"the loss is {next(iter(bad.values()))}{on_ranks}" if bad else "the loss is finite, a gradient is not"
    rates = " and ".join(dict.fromkeys(f"{group['lr']:.6g}" for group in optimizer.param_groups))
    return f"step {step.step}: {what} (epoch {step.epoch}, batch {step.batch_idx}, learning rate {rates})"


def attempt(write: Callable[[], None]) -> str | None:
    """Writes files, and returns why that failed."""
    try:
        write()
    except (OSError, RuntimeError) as error:  # torch raises the latter
        return str(getattr(error, "strerror", None) or error)
    return None


def describe_files(folder: Path) -> list[str]:
    """Where the step is saved, and how to repeat it."""
    lines = [f"The state before it, the batch and a table of all layers are in {folder}:"]
    if (folder / "config.yaml").is_file():
        return [*lines, f"  normzoo replay {folder}{again()}"]
    return [
        *lines,
        f"  torch.load({str(folder / 'rank0.pt')!r}, weights_only=True)['batch']  # for training_step",
        f"  Trainer.fit(..., ckpt_path={str(folder / 'checkpoints' / 'last.ckpt')!r})  # the weights",
    ]


def newest_checkpoint(trainer: Trainer) -> str:
    """The newest checkpoint of the run; empty if there is none."""
    callbacks = trainer.checkpoint_callbacks
    folders = {one.file.parent if isinstance(one, ExactResume) else getattr(one, "dirpath", None) for one in callbacks}
    files = [file for folder in folders if folder for file in Path(folder).glob("*.ckpt")]
    return str(max(files, key=lambda file: file.stat().st_mtime)) if files else ""


def broadcast_buffers(trainer: Trainer) -> None:
    """Gives all ranks the buffers of the first, as the forward pass of DistributedDataParallel does."""
    wrapper = trainer.strategy.model
    if isinstance(wrapper, DistributedDataParallel) and wrapper.broadcast_buffers and dist.is_initialized():
        for buffer in wrapper.module.buffers():
            dist.broadcast(buffer, 0)
