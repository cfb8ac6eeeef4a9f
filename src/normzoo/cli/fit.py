"""The command `normzoo fit`: trains a network in a new run, or resumes one, and tests the best checkpoint."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from normzoo.callbacks import (
    MONITORS,
    Change,
    ExactResume,
    FiniteLoss,
    HParams,
    Record,
    SharedRun,
    TrainingCurve,
    Verdicts,
)
from normzoo.cli.command import Command, has, report_file
from normzoo.errors import InputError
from normzoo.monitoring.event_files import event_loggers
from normzoo.monitoring.layers import norm_name
from normzoo.monitoring.lean import reduce_overhead
from normzoo.monitoring.overview import time_series_url
from normzoo.runs import checkpoints, contradictions
from normzoo.runs.folders import CHECKPOINTS, CONFIG, FINISHED, hold, is_first, shared_run
from normzoo.runs.loggers import continue_curves

FLUSH_SECONDS = 5  # TensorBoard's default, 120, shows nothing of a short run while it trains

# The settings of its run that a checkpoint records.
RECORDED = ("seed_everything", "model", "data", "trainer")


class CLI(Command):
    """`normzoo fit`.

    Args:
        arguments: the command and its options.
        run: the folder of the run to resume, None for a new one.
    """

    def __init__(self, arguments: Sequence[str], run: Path | None = None) -> None:
        self.is_new = run is None
        self.batches_before = 0
        self.has_new_limits = False
        super().__init__(arguments, run)

    def compare(self, arguments: Sequence[str]) -> None:
        """Compares the settings with those of the checkpoint to resume, and refuses changes nobody announced."""
        settings = self.settings
        changes = [change for change in settings.change.split(",") if change]
        if not settings.ckpt_path:
            if changes:
                raise InputError(f"change={changes[-1]}: there is no checkpoint to differ from; leave it out.")
            return
        file = checkpoints.find_checkpoint(settings.ckpt_path, Path(settings.runs), settings.experiment)
        report_file(settings.ckpt_path, file)
        checkpoint = checkpoints.load_checkpoint(file, mmap=True)
        checkpoints.require_resumable(checkpoint, file)
        self.batches_before = checkpoints.batches_before(checkpoint)
        saved = checkpoints.saved_config(checkpoint, file)
        if model := checkpoints.saved_model(checkpoint, file):
            saved["model"] = model
        asked = self.plain_config()
        parts = ("seed_everything", "model", "data")
        known = [key for part in parts for key, _ in contradictions.flatten(asked[part], part)]
        found = contradictions.differences(saved, asked, parts)
        within_epoch = checkpoints.is_within_epoch(checkpoint)
        contradictions.require_announced(found, changes, known, str(file), within_epoch)
        self.differences = found
        if self.run is not None and (self.run / FINISHED).is_file():
            limits = settings.trainer.max_epochs, settings.trainer.max_steps
            checkpoints.require_batches_left(checkpoint, *limits, self.run)
        self.has_new_limits = bool(contradictions.differences(saved, asked, ["trainer"]))
        settings.ckpt_path = str(file)

    def own_callbacks(self, config: Any, callbacks: Sequence[Callback]) -> list[Callback]:
        curve: list[Callback] = [] if has(callbacks, TrainingCurve) else [TrainingCurve()]
        if config.fast_dev_run:
            if self.run is not None:
                raise InputError(
                    f"fast_dev_run={config.fast_dev_run}: a trial writes no files, and a run resumes in its folder; "
                    f"run 'normzoo fit -c {self.run / CONFIG} --trainer.fast_dev_run=true'."
                )
            return curve
        run = self.run = self.run or self.new_run()
        self.save_config_kwargs = {"folder": run}
        if config.default_root_dir is None:
            config.default_root_dir = str(run)
        if config.logger is None or config.logger is True:
            config.logger = TensorBoardLogger(
                run.parent, "", run.name, default_hp_metric=False, flush_secs=FLUSH_SECONDS
            )
        added: list[Callback] = [*curve]
        if config.enable_checkpointing is not False:
            if not has(callbacks, Checkpoint):
                added.append(best(self.model, run / CHECKPOINTS))
            added.append(self.last())
        added.append(HParams(flat(self.settings)))
        if self.settings.monitors:
            added += [*usual_monitors(callbacks), *([] if has(callbacks, Verdicts) else [Verdicts(run, summary=False)])]
        if self.settings.on_bad_loss != "ignore" and not has(callbacks, FiniteLoss):
            added.append(FiniteLoss(self.settings.on_bad_loss, folder=run / FiniteLoss.FOLDER))
        added.append(Record({key: self.config_dump.get(key) for key in RECORDED}))
        if self.differences:
            added.append(Change(self.differences))
        return [*added, SharedRun(run, lambda shared: setattr(self, "run", shared))]

    def new_run(self) -> Path:
        """The folder of a new run, which this process holds."""
        seed = self.settings.seed_everything
        name = f"{norm_name(self.model)}-{'unseeded' if isinstance(seed, bool) else seed}"
        run = shared_run(Path(self.settings.runs), self.settings.experiment, name)
        if is_first():
            self.lock = hold(run)
        return run

    def last(self) -> ExactResume:
        """Keeps the checkpoint from which the run resumes."""
        steps, minutes = self.settings.checkpoint_steps, self.settings.checkpoint_minutes
        assert self.run is not None
        return ExactResume(self.run / CHECKPOINTS, steps, minutes, keep_stop=not self.has_new_limits)

    def fit(self, **kwargs: Any) -> None:
        reduce_overhead(self.trainer, self.model)
        if self.run is not None and not self.is_new:
            continue_curves(self.trainer, self.run)
        # Ranks draw the same noise as one process only if they start from the seed again once they are connected.
        if self.settings.seed_everything is not False:
            reset_seed()
        with checkpoints.explain_mismatch(kwargs.get("ckpt_path"), self.differences):
            self.trainer.fit(**kwargs)

    def clean_up(self) -> None:
        """Removes the folder of a new run that ended before its first step."""
        trainer = getattr(self, "trainer", None)
        begun = trainer is not None and trainer.fit_loop.epoch_loop.batch_progress.total.completed > self.batches_before
        if begun and self.run is not None and is_first():  # it ended early: the more there is to see
            print(f"\n{self.closing_lines()}\n")
        if self.run is None or not self.is_new or begun or not is_first():
            return
        if not (self.run / FiniteLoss.FOLDER).exists():  # of a bad first step
            shutil.rmtree(self.run, ignore_errors=True)

    def after_fit(self) -> None:
        if self.settings.test_after_fit and self.trainer.state.finished and can_test(self.model, self.datamodule):
            file = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            if not file and self.trainer.is_global_zero:
                sys.stderr.write(
                    "normzoo: note: the last weights are tested, as no best checkpoint was kept: name a metric in the "
                    "task's class attribute `monitor`, or log `val/loss`.\n"
                )
            self.trainer.test(self.model, self.datamodule, ckpt_path=file or None)
        if self.run is not None and self.trainer.is_global_zero:
            if self.trainer.state.finished:
                (self.run / FINISHED).write_text(f"{self.trainer.global_step} steps\n")
            print(f"\n{self.closing_lines()}")

    def closing_lines(self) -> str:
        """What the monitors found, and what to look at after training."""
        runs, experiment = self.settings.runs, self.settings.experiment
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        verdicts = [one for one in callbacks if isinstance(one, Verdicts)]
        lines = [f"{one.summary()}\n" for one in verdicts if not one.prints_summary]
        lines.append(f"run          {self.run}")
        if event_loggers(self.trainer):
            page = [f"page         {program('normzoo')} report {shlex.quote(str(Path(runs) / experiment))} --open"]
            pinned = [f"             {time_series_url(f'^{re.escape(experiment)}/')}"]
            tensorboard = f"tensorboard  {program('tensorboard')} --logdir={shlex.quote(runs)}"
            lines += [*page, tensorboard, *pinned] if verdicts else [tensorboard]
        net = getattr(getattr(self.settings.model, "init_args", None), "net", None)
        if "norm" in (getattr(net, "init_args", None) or {}) and norm_name(self.model) != "NoNorm":
            lines.append("compare      the same command with --model.net.norm=NoNorm trains the network without a norm")
        return "\n".join(lines)


def usual_monitors(callbacks: Sequence[Callback]) -> list[Callback]:
    """The monitors that a user did not name; none of them is an error where it cannot read the network."""
    found: list[Callback] = []
    for kind in MONITORS:
        if not has(callbacks, kind):
            monitor = kind()
            monitor.required = False
            found.append(monitor)
    return found


def program(name: str) -> str:
    """How to call a program of this environment."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))


class BestByLoss(ModelCheckpoint):
    """Keeps the checkpoint with the least validation loss, if the task logs one as `val/loss` or `val_loss`."""

    @property
    def state_key(self) -> str:
        return "BestByLoss"  # Lightning's includes the metric, which is known only after the first validation

    def finds_loss(self, trainer: Trainer) -> bool:
        """Sets the metric to the name that the task uses."""
        names = ("val/loss", "val_loss")
        self.monitor = next((name for name in names if name in trainer.callback_metrics), None)
        return self.monitor is not None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.finds_loss(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.finds_loss(trainer):
            super().on_train_epoch_end(trainer, pl_module)


def best(model: LightningModule, folder: Path) -> ModelCheckpoint:
    """Keeps the best checkpoint by the metric that the task names as its `monitor`, else by the validation loss."""
    monitor, mode = getattr(model, "monitor", None), getattr(model, "monitor_mode", "min")
    if monitor is None:
        return BestByLoss(folder, filename="best", enable_version_counter=False)
    return ModelCheckpoint(folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)


def can_test(model: LightningModule, data: LightningDataModule | None) -> bool:
    """Whether there are test data and a test step."""
    loads = is_overridden("test_dataloader", data, LightningDataModule) or is_overridden("test_dataloader", model)
    return loads and is_overridden("test_step", model)


def flat(settings: Any) -> dict[str, bool | int | float | str]:
    """A run's configuration as the columns of a table, the same for every run.

    TensorBoard sorts the columns, capitals before small letters, and shows the first five.
    """

    def of(config: Any, key: str) -> Any:
        """An entry of a configuration; None if it is no configuration, as a task may call anything `net`."""
        return config.get(key) if hasattr(config, "get") else None

    def name(config: Any) -> str:
        return str(of(config, "class_path") or config or "none").rsplit(".", 1)[-1]

    def arguments(config: Any) -> str:
        return ", ".join(f"{key}={value}" for key, value in (of(config, "init_args") or {}).items())

    model = of(settings.model, "init_args") or {}
    net = of(model.get("net"), "init_args") or {}
    optimizer, data = model.get("optimizer"), settings.data
    batch_size = of(of(data, "init_args"), "batch_size")
    return {
        "Data": name(data),
        "Net": name(model.get("net")),
        "Norm": name(net.get("norm")),
        "Norm arguments": arguments(net.get("norm")),
        "Norm position": str(net.get("norm_position", "")),
        "activation": name(net.get("activation")),
        "init": name(net.get("init")),
        "optimizer": name(optimizer),
        "lr_scheduler": name(model.get("lr_scheduler")),
        "batch_size": batch_size if isinstance(batch_size, int) else 0,
        "max_epochs": int(settings.trainer.max_epochs or 0),
        "seed": int(settings.seed_everything),
        **{key: v for key, v in (vars(model) if model else {}).items() if isinstance(v, bool | int | float | str)},
    }


def main(arguments: Sequence[str], run: Path | None = None) -> None:
    """Runs `normzoo fit`; with the folder of a run, resumes it."""
    CLI(arguments, run)
