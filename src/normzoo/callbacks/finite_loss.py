"""Stops a training whose numbers are not finite any more, before they reach the weights."""

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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

from normzoo.callbacks._bad_step import BadStep, Buffers, RandomNumbers
from normzoo.callbacks._layer_table import Findings, Numbers, look
from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.monitoring.probe import is_compiled
from normzoo.monitoring.random_state import set_random_state
from normzoo.monitoring.replica import Replica, same_random_numbers
from normzoo.runs.allowed import again
from normzoo.runs.exact_resume import ExactResume

OnBad = Literal["stop", "skip"]
Groups = list[tuple[torch.device, list[Tensor]]]
"""Parameters by device and type."""
KEPT = 3
"""Steps that are left out and saved: a folder holds the weights, and the first ones tell the most."""


@dataclass
class Suspect:
    """A batch after which something was not finite, with the state from before it."""

    batch: Any
    batch_idx: int
    buffers: Buffers
    random: dict[str, Any]
    loss: float | None
    """What training_step returned, if that is known to be bad; None where it is the gradients."""


class FiniteLoss(Callback):
    """Stops a training, or leaves out the step, when the loss or a gradient turns NaN or infinite.

    The step is not made: weights, optimizer and buffers stay as they were before it. What it takes to run it again is
    saved, with a checkpoint from before it, and the message names the first layer whose numbers were not finite.
    `normzoo replay FOLDER` runs the step again. A training without such a step is the same to the bit as without this
    callback. Several processes decide together.

    Each step costs a look at the loss and at the gradients; on a GPU the process waits for these. In half precision
    with scaled gradients ("16-mixed"), gradients that overflow are the scaler's business until it scales no more.

    Args:
        on_bad: "stop" ends the run with an `InputError`; "skip" goes on with the next batch.
        most_in_a_row: skipped steps on end after which the run is stopped all the same.
        folder: where bad steps are saved, each in a folder of its number; None for `bad` in the run's folder.

    Attributes:
        skipped: the steps that were left out.

    Raises:
        InputError: `on_bad` is something else, or `most_in_a_row` no positive number; while training, as above.
    """

    FOLDER = "bad"

    def __init__(self, on_bad: OnBad = "stop", *, most_in_a_row: int = 10, folder: str | Path | None = None) -> None:
        if on_bad not in ("stop", "skip"):
            raise InputError(f"FiniteLoss(on_bad={on_bad!r}): 'stop' or 'skip'; leave the callback out for neither.")
        if isinstance(most_in_a_row, bool) or not isinstance(most_in_a_row, int) or most_in_a_row < 1:
            raise InputError(f"FiniteLoss(most_in_a_row={most_in_a_row!r}): a number of steps; 10 is common.")
        self.on_bad = on_bad
        self.most_in_a_row = most_in_a_row
        self.folder = folder
        self.reset()

    def reset(self) -> None:
        """Forgets what it has seen: a run begins."""
        self.skipped: list[int] = []
        self.in_a_row = 0
        self.suspect: Suspect | None = None
        self.losses: list[Tensor] = []
        self.poison: list[Any] = []
        self.found: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.groups_of: dict[Optimizer, Groups] = {}
        self.ranks: Ranks | None = None
        self.buffers: Buffers | None = None
        self.saving = False
        self.on_after_backward: Callable[..., None] | None = None  # type: ignore[assignment] # only while accumulating

    # The run.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ranks = Ranks()
        # Where gradients are averaged over ranks, one that is not finite is so on all of them.
        self.alone = self.ranks.many and not isinstance(trainer.strategy, DDPStrategy)
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.random = RandomNumbers(trainer.strategy.root_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_cpu = pl_module.device.type == "cpu"
        self.on_train_epoch_start(trainer, pl_module)  # not told of an epoch that a resumed run is in the middle of

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.buffers = Buffers(pl_module)  # layers may have come and gone, or been unfrozen
        self.groups_of.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.require_finite_weights(trainer, pl_module)
        if self.skipped:
            shown = ", ".join(map(str, self.skipped[:10])) + (" ..." if len(self.skipped) > 10 else "")
            rank_zero_warn(
                f"{len(self.skipped)} of {trainer.global_step} steps were left out, as their loss or gradients were "
                f"not finite: {shown}."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.forget()
        self.buffers = None
        if stage == "fit" and self.ranks is not None:
            self.ranks.close()
            self.groups_of.clear()

    # A step.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self.buffers is not None
        self.batch, self.batch_idx = batch, batch_idx
        self.buffers.keep()
        self.random.keep()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.random.left:
            self.random.after_forward()
        if not self.is_cpu:
            if loss.requires_grad:
                seen = loss.detach()
                loss.register_hook(lambda gradient: gradient + (seen - seen))
                self.losses.append(seen)
        elif not math.isfinite(value := loss.item()) and self.is_bad(value):
            self.suspect = self.suspect or self.now(value)
            # All ranks hear of it, as their gradients are averaged.
            self.poison = [p.register_hook(broken) for p in pl_module.parameters() if p.requires_grad]
        if trainer.accumulate_grad_batches > 1 and self.suspect is None:
            self.on_after_backward = self.after_backward

    def after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of several batches whose gradients accumulate: which one it was."""
        self.on_after_backward = None
        if self.suspect is None and self.is_broken(grouped(pl_module.parameters())):
            self.suspect = self.now(self.bad_loss())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        groups = self.groups_of.get(optimizer)
        if groups is None:
            groups = grouped(p for group in optimizer.param_groups for p in group["params"])
            self.groups_of[optimizer] = groups
        bad = self.is_broken(groups)
        if self.poison:
            self.release()
        bad |= self.suspect is not None
        if self.alone:
            assert self.ranks is not None
            bad = any(self.ranks.gather(bad))
        if bad:
            self.leave_out(trainer, pl_module, optimizer)
        else:
            self.in_a_row = 0
        self.losses.clear()

    def now(self, loss: float | None) -> Suspect:
        """The batch of the present step and the state from before it."""
        assert self.buffers is not None
        return Suspect(self.batch, self.batch_idx, self.buffers.kept(), self.random.plain(), loss)

    def bad_loss(self) -> float | None:
        """The first loss since the last update that is not finite, where losses are read late."""
        values = [loss.item() for loss in self.losses]
        return next((value for value in values if not math.isfinite(value) and self.is_bad(value)), None)

    def is_bad(self, loss: float) -> bool:
        """Whether a loss that is not finite was so before it was scaled; of an infinite one only the scaler finds out,
        when it scales no more."""
        return self.scaler is None or math.isnan(loss) or self.scaler.get_scale() <= 1

    def is_broken(self, groups: Groups) -> bool:
        """Whether the gradient of one of these parameters is not finite."""
        bad = False
        for device, parameters in groups:
            gradients = [gradient for p in parameters if (gradient := p.grad) is not None]
            if not gradients:
                continue
            if device not in self.found:
                self.found[device] = torch.zeros((), device=device), torch.ones((), device=device)
            found, one = self.found[device]
            try:
                # In one pass, without a tensor made; a factor of one leaves every bit as it is.
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, one)
            except (RuntimeError, NotImplementedError):  # sparse, spread over ranks, or on another kind of device
                bad |= not bool(torch.stack([plain(x).isfinite().all() for x in gradients]).all())
            else:
                if found.item() != 0:
                    found.zero_()
                    bad = True
        return bad

    def release(self) -> None:
        """Takes the hooks off the parameters."""
        for handle in self.poison:
            handle.remove()
        self.poison = []

    def forget(self) -> None:
        """The step is over."""
        self.release()
        self.suspect = None
        self.losses.clear()

    # A step that is not finite. All ranks come here together.

    def leave_out(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Saves the step, and stops, or has the optimizer do nothing.

        Raises:
            InputError: the run stops.
        """
        assert self.ranks is not None
        mine = self.suspect or self.now(self.bad_loss())
        losses = self.ranks.gather(mine.loss)
        if self.scaler is not None and not any(loss is not None for loss in losses) and self.scaler.get_scale() > 1:
            self.forget()
            return  # the scaler leaves the step out by itself, and scales less
        number, spoiled = trainer.global_step, spoiled_weights(module)
        self.in_a_row += 1
        stops = self.on_bad == "stop" or bool(spoiled) or self.in_a_row >= self.most_in_a_row
        mine.buffers.restore()
        share_buffers(trainer)
        saved: str | None = None
        with same_random_numbers(module.device):
            set_random_state(mine.random, module.device)
            if stops or len(self.skipped) < KEPT:
                findings = self.find(trainer, module, mine)
                saved = self.save(trainer, module, mine, findings)
        told = "" if saved is None else self.tell(trainer, optimizer, mine, losses, findings, saved, spoiled)
        self.forget()
        if stops:
            raise InputError(told)
        self.skipped.append(number)
        if told:
            rank_zero_warn(told)
        if self.scaler is None:
            # Without gradients an optimizer leaves its parameters and their state alone. A scaler has seen that they
            # are not finite, and leaves the step out itself.
            optimizer.zero_grad(set_to_none=True)

    def find(self, trainer: Trainer, module: LightningModule, mine: Suspect) -> Findings:
        """What every layer did in the step, as far as a copy can tell."""
        try:
            if any(type(p.data).__name__ == "DTensor" for p in module.parameters()) or self.alone:
                raise InputError("the weights are spread over the ranks")
            return look(Replica(trainer, module), mine.batch, mine.batch_idx, self.factor(trainer))
        except Exception as error:  # whatever the user's step raises when it is run once more
            return Findings(says=f"Which layer was the first cannot be told: {str(error) or type(error).__name__}")

    def factor(self, trainer: Trainer) -> float:
        """What the loss is multiplied by before the backward pass."""
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        return float(scale / trainer.accumulate_grad_batches)

    def save(self, trainer: Trainer, module: LightningModule, mine: Suspect, findings: Findings) -> str:
        """Writes the folder of a step, and says where it is, or why there is none."""
        assert self.ranks is not None
        run = Path(trainer.log_dir or trainer.default_root_dir)
        root = Path(self.folder) if self.folder is not None else run / self.FOLDER
        folder = Path(self.ranks.gather(str(root / f"{trainer.global_step:06d}"))[0])
        step = BadStep(
            batch=mine.batch,
            batch_idx=mine.batch_idx,
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            buffers=mine.buffers.named(),
            evaluating=[name for name, one in module.named_modules() if not one.training],
            random=mine.random,
            factor=self.factor(trainer),
            precision=str(trainer.precision),
            loss=findings.loss if mine.loss is None else mine.loss,
            compiled=is_compiled(module),
            ranks=self.ranks.size,
            findings=findings.plain(),
        )
        trouble = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            step.save(folder / f"rank{trainer.global_rank}.pt")
            config = root.parent / "config.yaml"
            if trainer.is_global_zero and config.is_file():
                shutil.copyfile(config, folder / "config.yaml")
            if trainer.is_global_zero:
                (folder / "layers.txt").write_text(f"{findings.says}\n\n{findings.table()}\n")
        except OSError as error:
            trouble = f"{folder} could not be written ({error.strerror or error})"
        troubles = [one for one in self.ranks.gather(trouble) if one]
        if not troubles:
            self.saving = True
            try:
                # As the last one of a run of its own, so that whatever takes a run takes the folder.
                trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=False)
            except (OSError, RuntimeError) as error:
                troubles = [
                    f"{folder / 'checkpoints'} could not be written ({getattr(error, 'strerror', '') or error})"
                ]
            finally:
                self.saving = False
        return f"Nothing was saved of it: {troubles[0]}." if troubles else str(folder)

    def tell(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        mine: Suspect,
        losses: Sequence[float | None],
        findings: Findings,
        saved: str,
        spoiled: str,
    ) -> str:
        """The message."""
        bad = [(rank, loss) for rank, loss in enumerate(losses) if loss is not None]
        of_rank = f" on rank {', '.join(str(rank) for rank, _ in bad)}" if bad and len(losses) > 1 else ""
        what = f"the loss is {bad[0][1]}{of_rank}" if bad else "the loss is finite, and its gradients are not"
        rates = list(dict.fromkeys(f"{group['lr']:.6g}" for group in optimizer.param_groups))
        where = (
            f"step {trainer.global_step}: {what} (epoch {trainer.current_epoch}, batch {mine.batch_idx}, "
            f"learning rate {' and '.join(rates)})"
        )
        assert self.ranks is not None
        seen = self.ranks.gather((findings.offender, findings.says))
        # Layers that synchronize carry one rank's bad batch to all of them.
        rank = min(range(len(seen)), key=lambda r: (seen[r][0] != "batch", not seen[r][0]))
        says = seen[rank][1]
        of_layer = f"On rank {rank}: {says}" if len(seen) > 1 else says
        lines = [where, of_layer]
        if findings.loss is not None and mine.loss is not None and not alike(findings.loss, mine.loss):
            lines.append(
                f"Run once more on a copy, its loss is {findings.loss:.6g}: training_step writes over its batch, or "
                f"goes by something that is neither a weight, a buffer nor a random number of torch, numpy or Python."
            )
        if spoiled:
            kept = kept_checkpoint(trainer)
            lines.append(
                f"The weights were spoiled by the update before ({spoiled}); "
                + (
                    f"the last checkpoint, {kept}, is from before it."
                    if kept
                    else "no checkpoint had been written yet."
                )
            )
        elif self.on_bad == "skip":
            row = f", the {self.in_a_row}th on end" if self.in_a_row >= self.most_in_a_row else ""
            lines.append(f"The step was left out{row}: weights, optimizer and buffers are those from before it.")
        else:
            lines.append("The step was not made.")
        if saved.startswith("Nothing"):
            lines.append(saved)
        else:
            before = "The state it met" if spoiled else "The weights from before it"
            lines.append(f"{before}, the batch and a table of all layers are in {saved}:")
            lines.append(f"  normzoo replay {saved}{again()}")
        if self.on_bad == "stop" and not spoiled:
            lines.append(
                "A smaller learning rate or --trainer.gradient_clip_val=1 may help; --on_bad_loss=skip leaves such "
                "steps out (FiniteLoss('skip') in Python)."
            )
        return "\n".join(lines)

    # Checkpoints.

    def require_finite_weights(self, trainer: Trainer, module: LightningModule) -> None:
        """Raises `InputError` where an update has spoiled the weights, before a checkpoint is written over."""
        spoiled = spoiled_weights(module)
        if spoiled:
            kept = kept_checkpoint(trainer)
            raise InputError(
                f"step {trainer.global_step - 1}: its loss and gradients were finite, and after the update {spoiled} "
                f"is not (epoch {trainer.current_epoch}). Nothing is written over: "
                + (f"the last checkpoint is {kept}." if kept else "there is no checkpoint yet.")
                + " A smaller learning rate, or an eps of the optimizer that does not vanish in the weights' precision."
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.saving:
            self.require_finite_weights(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": list(self.skipped), "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = list(state_dict["skipped"]), state_dict["in_a_row"]


def grouped(parameters: Iterable[Tensor]) -> Groups:
    """Parameters by device and type."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return [(device, group) for (device, _), group in groups.items()]


def broken(gradient: Tensor) -> Tensor:
    """In the place of the gradients of a loss that is not finite: masks in a network may have hidden it."""
    return gradient * torch.nan


def alike(one: float, other: float) -> bool:
    """Whether two losses are the same, but for rounding."""
    return math.isclose(one, other, rel_tol=1e-3) or (math.isnan(one) and math.isnan(other))


def plain(x: Tensor) -> Tensor:
    """The values of a tensor that is sparse or spread over ranks."""
    if hasattr(x, "to_local"):
        x = x.to_local()
    return x._values() if x.is_sparse else x


def spoiled_weights(module: LightningModule) -> str:
    """The first parameter that learns and is not finite, in words; nothing if there is none."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not bool(plain(parameter.detach()).isfinite().all()):
            return f"{name}: {Numbers.of(plain(parameter.detach())).told()}"
    return ""


def kept_checkpoint(trainer: Trainer) -> str:
    """The newest checkpoint that the run has written."""
    folders = {getattr(one, "dirpath", None) for one in trainer.checkpoint_callbacks}
    folders |= {one.file.parent for one in trainer.checkpoint_callbacks if isinstance(one, ExactResume)}
    files = [file for folder in folders if folder for file in Path(folder).glob("*.ckpt")]
    return str(max(files, key=lambda file: file.stat().st_mtime)) if files else ""


def share_buffers(trainer: Trainer) -> None:
    """Has all ranks go on with the buffers of the first, as the next forward pass would, where it does so."""
    wrapper = trainer.strategy.model
    if isinstance(wrapper, DistributedDataParallel) and wrapper.broadcast_buffers and dist.is_initialized():
        for buffer in wrapper.module.buffers():
            dist.broadcast(buffer, 0)
