"""The command `normzoo replay`: a training step that was not finite, once more, layer by layer."""

import argparse
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from normzoo.callbacks._bad_step import BadStep
from normzoo.callbacks._layer_table import Findings, look
from normzoo.cli.fit import CLI
from normzoo.errors import InputError, printable
from normzoo.monitoring.lean import make_lean
from normzoo.monitoring.random_state import set_random_state
from normzoo.monitoring.replica import Replica, same_random_numbers

# A step on another machine, or one that ran compiled, rounds otherwise.
TOLERANCE = 1e-4


class Replayed(Exception):
    """The step has been run: no error, but what ends the training that was begun for it."""


class Replay(Callback):
    """Runs a saved step in the place of the first that a resumed training would make, and ends the training.

    Args:
        step: what was saved.
    """

    def __init__(self, step: BadStep) -> None:
        self.step = step
        self.findings: Findings | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = self.step
        if trainer.fit_loop.restarted_mid_epoch:  # of which Lightning does not tell the module that it begins
            pl_module.on_train_epoch_start()
        places = dict(pl_module.named_modules())
        for name, value in step.buffers.items():
            prefix, _, last = name.rpartition(".")
            owner = places.get(prefix)
            if owner is not None and last in owner._buffers:
                owner._buffers[last] = None if value is None else value.to(pl_module.device)
        for name in step.evaluating:
            if name in places:
                places[name].training = False
        saved = trainer.strategy.batch_to_device(step.batch, pl_module.device, dataloader_idx=0)
        with same_random_numbers(pl_module.device):
            set_random_state(step.random, pl_module.device)
            self.findings = look(Replica(trainer, pl_module), saved, step.batch_idx, step.factor)
        raise Replayed


class ReplayCLI(CLI):
    """The training that a step is of, up to the step: on one process, and without a trace.

    Args:
        folder: of the step.
        step: what was saved of it.
        arguments: options of `normzoo fit` that differ, such as where the data lies.
    """

    def __init__(self, folder: Path, step: BadStep, arguments: Sequence[str] = ()) -> None:
        self.replay = Replay(step)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        super().__init__(["fit", "-c", str(folder / "config.yaml"), *arguments, f"--ckpt_path={checkpoint}"])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        self.save_config_callback = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        config.callbacks, config.plugins = [self.replay], None
        config.logger = config.enable_checkpointing = config.sync_batchnorm = False
        config.enable_progress_bar = config.enable_model_summary = config.fast_dev_run = False
        config.devices, config.num_nodes, config.strategy, config.num_sanity_val_steps = 1, 1, "auto", 0
        config.max_time = config.profiler = None
        if not torch.cuda.is_available():
            config.accelerator = "cpu"
        return LightningCLI.instantiate_trainer(self, **kwargs)

    def fit(self, **kwargs: Any) -> None:
        make_lean(self.trainer, self.model)
        with contextlib.suppress(Replayed):
            self.trainer.fit(**{**kwargs, "weights_only": True})  # the folder may be a stranger's

    def after_fit(self) -> None:
        """Nothing was trained."""


def reproduced(step: BadStep, seen: Findings) -> bool:
    """Whether a step that ran again has the loss, and the first layer that is not finite, of the one that was saved."""
    then, now = step.findings["loss"], seen.loss
    if then is None or now is None:
        same = then is now
    elif math.isfinite(then) and math.isfinite(now):
        same = math.isclose(then, now, rel_tol=TOLERANCE)
    else:
        same = then == now or (math.isnan(then) and math.isnan(now))
    return same and seen.offender == step.findings["offender"] and bool(seen.offender)


def main(arguments: Sequence[str]) -> int:
    """Runs `normzoo replay` and returns the exit status: 0 where the step was reproduced."""
    parser = argparse.ArgumentParser(
        prog="normzoo replay",
        description="Run a training step again whose loss or gradients were not finite, from the weights, the batch "
        "and the random numbers that were saved of it, and show what every layer made of them.",
        epilog="Exit status: 0 if loss and first layer are those of the training, else 1. Other options are those of "
        "normzoo fit, as --data.root=FOLDER.",
    )
    parser.add_argument("folder", type=Path, help="the folder of the step: RUN/bad/STEP")
    parser.add_argument("--rank", type=int, default=None, help="whose batch (default: the first that was not finite)")
    given, others = parser.parse_known_args(arguments)
    folder: Path = given.folder
    files = sorted(folder.glob("rank*.pt"), key=lambda file: (len(file.name), file.name))
    wanted = [file for file in files if given.rank is None or file.stem == f"rank{given.rank}"]
    if not wanted:
        have = f"there are {', '.join(file.stem for file in files)}" if files else "it holds no rank0.pt"
        raise InputError(
            f"{folder}: no step of {'a training' if given.rank is None else f'rank {given.rank}'} is saved there "
            f"({have}); give the folder that the message named, RUN/bad/STEP."
        )
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder} has no config.yaml, which tells the network: the training was not started by 'normzoo fit'. "
            f"In Python: normzoo.callbacks._bad_step.BadStep.load({str(wanted[0])!r}) has the batch."
        )
    steps = [(file, BadStep.load(file)) for file in wanted]
    offenders = [step.findings["offender"] for _, step in steps]
    first = min(range(len(steps)), key=lambda i: (offenders[i] != "batch", not offenders[i]))
    file, step = steps[first]
    cli = ReplayCLI(folder, step, others)
    seen = cli.replay.findings
    if seen is None:
        raise InputError(f"{folder}: the training ended before the step; does its config.yaml fit its checkpoint?")
    same = reproduced(step, seen)
    of_rank = f", {file.stem}" if step.ranks > 1 else ""
    precision = printable(step.precision)
    print(f"step {step.step}, epoch {step.epoch}, batch {step.batch_idx}, precision {precision}{of_rank}\n")
    print(seen.table())
    print(f"\nloss in the training  {step.loss}\nloss now              {seen.loss}\n{seen.says}")
    if not same:
        print(f"Not reproduced. In the training: {printable(str(step.findings['says']))}")
        if step.ranks > 1:
            print(f"It ran on {step.ranks} ranks: layers that synchronize saw the samples of all, here those of one.")
    return 0 if same else 1
