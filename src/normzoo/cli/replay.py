"""The command `normzoo replay`: repeats a training step that was not finite, layer by layer."""

import argparse
import contextlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from normzoo.callbacks._bad_step import BadStep, set_buffers
from normzoo.callbacks._layer_table import Findings, inspect_step
from normzoo.cli.fit import CLI
from normzoo.errors import InputError, printable
from normzoo.monitoring.random_state import same_random_numbers, set_random_state
from normzoo.monitoring.replica import Replica

TOLERANCE = 1e-4  # another machine, or a compiled network, rounds differently


class Replayed(Exception):
    """Ends the training after the step."""


class Replay(Callback):
    """Repeats a saved step in place of the first step of a resumed training.

    Args:
        step: what was saved.
    """

    def __init__(self, step: BadStep) -> None:
        self.step = step
        self.findings: Findings | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = self.step
        if trainer.fit_loop.restarted_mid_epoch:  # then Lightning does not call it
            pl_module.on_train_epoch_start()
        set_buffers(pl_module, step.buffers)
        for name, layer in pl_module.named_modules():
            if name in step.evaluating:
                layer.training = False
        saved = trainer.strategy.batch_to_device(step.batch, pl_module.device, dataloader_idx=0)
        with same_random_numbers(pl_module.device):
            set_random_state(step.random, pl_module.device)
            self.findings = inspect_step(Replica(trainer, pl_module), saved, step.batch_idx, step.factor)
        raise Replayed


class ReplayCLI(CLI):
    """Resumes the training of a step on one process, up to the step, and writes nothing.

    Args:
        folder: of the step.
        step: what was saved.
        arguments: options of `normzoo fit`.
    """

    def __init__(self, folder: Path, step: BadStep, arguments: Sequence[str]) -> None:
        self.replay = Replay(step)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        super().__init__(["fit", "-c", str(folder / "config.yaml"), *arguments, f"--ckpt_path={checkpoint}"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.save_config_callback = None
        config = self.config_init.fit.trainer
        config.callbacks = config.plugins = config.profiler = config.max_time = None
        config.logger = config.enable_checkpointing = config.sync_batchnorm = config.fast_dev_run = False
        config.enable_progress_bar = config.enable_model_summary = False
        config.devices, config.num_nodes, config.strategy, config.num_sanity_val_steps = 1, 1, "auto", 0
        if not torch.cuda.is_available():
            config.accelerator = "cpu"
        return super().instantiate_trainer(**kwargs)

    def own_callbacks(self, config: Any, callbacks: Sequence[Callback]) -> list[Callback]:
        return [self.replay]

    def fit(self, **kwargs: Any) -> None:
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        with contextlib.suppress(Replayed):  # the batch is the saved one
            self.trainer.fit(**kwargs)

    def after_fit(self) -> None:
        """Does nothing: there was no training."""


def is_reproduced(step: BadStep, findings: Findings) -> bool:
    """Whether the loss and the first layer are those of the training."""
    before, now = step.loss, findings.loss
    if before is None or now is None:
        same = before is now
    else:
        same = before == now or math.isclose(before, now, rel_tol=TOLERANCE) or (math.isnan(before) and math.isnan(now))
    return same and findings.offender == step.offender != ""


def find_steps(folder: Path, rank: str | None = None) -> dict[str, BadStep]:
    """The saved steps: rank -> step.

    Args:
        folder: of the step.
        rank: the only one to read.

    Raises:
        InputError: there are none.
    """
    files = {file.stem.removeprefix("rank"): file for file in sorted(folder.glob("rank*.pt"))}
    wanted = {one: file for one, file in files.items() if rank in (None, one)}
    if not wanted:
        have = f"it has the ranks {', '.join(files)}" if files else "it has no rank0.pt"
        which = f"step of rank {rank}" if files else "saved step"
        raise InputError(f"{folder}: no {which} ({have}); give the folder from the error message, RUN/bad/STEP.")
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder} has no config.yaml, since the training was not started by 'normzoo fit'. In Python, "
            f"torch.load({str(next(iter(wanted.values())))!r}, weights_only=True)['batch'] is the batch, and "
            f"{folder / 'checkpoints' / 'last.ckpt'} has the weights."
        )
    return {rank: BadStep.load(file) for rank, file in wanted.items()}


def main(arguments: Sequence[str]) -> int:
    """Runs `normzoo replay`, and returns 0 if the step was reproduced, else 1."""
    parser = argparse.ArgumentParser(
        prog="normzoo replay",
        allow_abbrev=False,
        description="Repeat a training step whose loss or gradients were not finite, from the weights, the batch and "
        "the random numbers that were saved, and show the input, output and gradient of every layer.",
        epilog="The exit status is 0 if loss and first layer are those of the training, else 1. Other options are "
        "those of normzoo fit, such as --data.root=FOLDER.",
    )
    parser.add_argument("folder", nargs="?", help="the folder of the step: RUN/bad/STEP")
    parser.add_argument("--rank", help="whose batch (default: the first rank that was not finite)")
    given, others = parser.parse_known_args(arguments)
    if given.folder is None:
        raise InputError("replay: give the folder of the step: normzoo replay RUN/bad/STEP")
    folder = Path(given.folder)
    # The first rank with a bad batch, else the first one with a bad layer.
    steps = find_steps(folder, given.rank).items()
    rank, step = min(steps, key=lambda item: (item[1].offender != "batch", not item[1].offender))
    findings = ReplayCLI(folder, step, others).replay.findings
    if findings is None:
        raise InputError(f"{folder}: the training ended before the step; does its config.yaml fit its checkpoint?")
    report(step, findings, rank)
    return 0 if is_reproduced(step, findings) else 1


def report(step: BadStep, findings: Findings, rank: str) -> None:
    """Prints the table, and what differs from the training."""
    of_rank = f", rank {rank}" if step.ranks > 1 else ""
    precision = printable(step.precision)
    print(f"step {step.step}, epoch {step.epoch}, batch {step.batch_idx}, precision {precision}{of_rank}\n")
    print(findings.table())
    print(f"\nloss in training  {step.loss}\nloss in replay    {findings.loss}\n{findings.summary}")
    if not is_reproduced(step, findings):
        print(f"Not reproduced. In training: {printable(step.summary)}")
        if step.ranks > 1:
            print(f"It ran on {step.ranks} ranks: synchronized layers saw the samples of all, here only those of one.")
