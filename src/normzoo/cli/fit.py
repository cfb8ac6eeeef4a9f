"""The command line of training: LightningCLI with this project's defaults, run folders and messages."""

import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

import normzoo.data
import normzoo.models
import normzoo.tasks  # noqa: F401 - classes that are imported go by their short names
from normzoo.callbacks import (
    Change,
    ExactResume,
    FiniteLoss,
    HParams,
    LiveWriters,
    PredictionsCSV,
    ProgressBar,
    Record,
    SharedRun,
    TrainingCurve,
)
from normzoo.cli.arguments import (
    LINKS,
    Instantiator,
    Parser,
    add_options,
    given,
    setting,
    spelled_out,
    without_links,
)
from normzoo.cli.messages import cause, find_input_error
from normzoo.cli.runtime import keep_pages
from normzoo.distributed.leave import leave
from normzoo.distributed.sync import SyncNorms
from normzoo.distributed.watch import Watch, watched
from normzoo.errors import InputError, printable
from normzoo.monitoring.lean import make_lean
from normzoo.runs import checkpoints, contradictions
from normzoo.runs import config_files as configs
from normzoo.runs.allowed import check_callables, check_class_paths, take_flags
from normzoo.runs.checkpoint_io import write_safely
from normzoo.runs.config import RunConfig
from normzoo.runs.folders import CHECKPOINTS, CONFIG, FINISHED, hold, is_first, newest_checkpoint, shared_run, unused
from normzoo.runs.storage import quiet_writers, unwritten

# What a checkpoint says of the settings of its run.
RECORDED = ("seed_everything", "model", "data", "trainer")

NOISE = (
    "The number of training batches",  # TrainingCurve sets a shorter interval
    ".*does not have many workers",  # images are in memory: workers would only copy them
    ".*LeafSpec",  # Lightning's own use of torch
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`",  # scoring needs none of the callbacks of training
    "The dirpath has changed from",  # a resumed run has a folder of its own
    "Total length of `list` across ranks is zero",  # val_size=0 is asked for
)


class CLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`; only the parser of the one that is asked for is built.

    Args:
        arguments: the command and its options.
        run: the folder of the run that goes on, None for a new one.
    """

    lock: int | None = None
    watch: Watch | None = None

    def __init__(self, arguments: Sequence[str], run: Path | None = None) -> None:
        self.command = arguments[0]
        self.run = run
        self.is_new = run is None
        connected = dist.is_initialized()
        self.files: list[Path] = []
        self.differences: contradictions.Differences = {}
        self.batches_before = 0
        self.has_new_limits = False
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=list(arguments),
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=RunConfig,
                parser_class=Parser,
                parser_kwargs={"prog": "normzoo", "allow_abbrev": False, "description": None},
            )
            if self.watch is not None:
                self.watch.leave()
            elif not connected:
                leave()
        except BaseException as error:
            self.discard_run()
            ended: BaseException | None = unwritten(error, self.run, self.files)
            if (number := stopped_by(error)) is not None:
                if is_first():
                    goes_on = f"; normzoo resume {self.run} goes on" if self.run and self.run.is_dir() else ""
                    print(f"normzoo: ended by {number.name}{goes_on}", file=sys.stderr)
                ended = SystemExit(128 + number)
            if self.watch is not None:
                self.watch.fail(ended or find_input_error(error) or error)
            if ended is not None:
                raise ended from error
            raise
        finally:
            if self.lock is not None:
                os.close(self.lock)

    # The parser.

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_options(parser, self.command)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        arguments = take_flags(args)
        configs.guard()
        for path in [*given("-c", arguments), *given("--config", arguments)]:
            if not path:
                raise InputError("-c='': it names a config file, such as configs/digits_mlp.yaml, or is left out.")
            configs.read_settings(Path(path))
        for target in (target for targets in LINKS.values() for target in targets):
            for name in (f"--model.{target}", f"--model.{target}".replace("init_args.", "")):
                if values := given(name, arguments):  # the parser would ignore them
                    raise InputError(
                        f"{name}={values[-1]}: the data set tells this; leave it out, or give the LightningDataModule "
                        f"the attribute {target.split('.')[-1]}."
                    )
        model = None
        if self.command != "fit":
            self.save_config_callback = None
            arguments, model = self.with_checkpoint(arguments)
        try:
            self.config = parser.parse_args(spelled_out(arguments))
        except RecursionError as error:
            raise InputError("the settings are nested too deeply to be read; check what -c names.") from error
        check_callables(self.config, configs.read)
        settings = self.config[self.command]
        configs.require_plausible(settings, Trainer)
        if not 0 <= settings.seed_everything < 2**32:
            raise InputError(f"seed_everything={settings.seed_everything}: a seed lies in [0, 2^32); the default is 0.")
        if not settings.patience > 0:
            raise InputError(f"patience={settings.patience}: it is a number of seconds above 0; the default is 40.")
        if settings.weights_only is False:
            raise InputError("weights_only=False: reading objects could run code; a checkpoint is read without them.")
        settings.weights_only = True
        if self.command == "fit" and settings.get("ckpt_path"):
            self.go_on(settings)
        elif changes := [change for change in given("--change", arguments) if change]:
            raise InputError(f"change={changes[-1]}: there is no checkpoint whose settings could change; leave it out.")
        elif model:
            self.differences = contradictions.differences({"model": model}, self.plain_config(), ["model"])

    def go_on(self, settings: Any) -> None:
        """Holds what is asked for against the checkpoint that a run goes on from."""
        file = checkpoints.find_checkpoint(settings.ckpt_path, Path(settings.runs), settings.experiment)
        tell_which(settings.ckpt_path, file)
        checkpoint = checkpoints.load_checkpoint(file, mmap=True)
        checkpoints.require_resumable(checkpoint, file)
        self.batches_before = checkpoints.batches_before(checkpoint)
        saved = checkpoints.saved_config(checkpoint, file)
        if model := checkpoints.saved_model(checkpoint, file):
            saved["model"] = model
        asked = self.plain_config()
        parts = ("seed_everything", "model", "data")
        known = [key for part in parts for key, _ in contradictions.leaves(asked[part], part)]
        changes = [change for change in settings.change.split(",") if change]
        found = contradictions.differences(saved, asked, parts)
        self.differences = contradictions.granted(
            found, changes, known, str(file), checkpoints.is_within_epoch(checkpoint)
        )
        self.has_new_limits = bool(contradictions.differences(saved, asked, ["trainer"]))
        settings.ckpt_path = str(file)

    def plain_config(self) -> dict[str, Any]:
        """The configuration as plain data, all defaults included."""
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        return yaml.safe_load(text)[self.command]

    def with_checkpoint(self, arguments: list[str]) -> tuple[list[str], dict[str, Any] | None]:
        """Puts the network and the data set of the checkpoint before the user's own flags, which therefore win."""
        if {"-h", "--help"} & set(arguments) or any(a.startswith("--print_config") for a in arguments):
            return arguments, None
        root, experiment = (
            Path(setting("runs", arguments, "lightning_logs")),
            setting("experiment", arguments, "default"),
        )
        paths = given("--ckpt_path", arguments)
        if not paths:
            raise InputError(
                f"{self.command} needs trained weights: --ckpt_path=FILE_OR_RUN. {checkpoints.advice(root)}"
            )
        file = checkpoints.find_checkpoint(paths[-1], root, experiment)
        tell_which(paths[-1], file)
        checkpoint = checkpoints.load_checkpoint(file, mmap=True)
        model = without_links(checkpoints.saved_model(checkpoint, file))
        found = {"model": model, "data": checkpoints.saved_data(checkpoint, file)}
        check_class_paths(found, str(file))
        configs.read[str(file)] = json.dumps(found)
        flags = [f"--{key}={json.dumps(value)}" for key, value in found.items() if value]
        return [self.command, *flags, *arguments[1:], f"--ckpt_path={file}"], model

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters win over the user's flags, without a word."""

    # The run.

    def before_instantiate_classes(self) -> None:
        self.settings = self.config[self.command]
        if self.settings.keep_pages:
            keep_pages()
        for message in NOISE:
            warnings.filterwarnings("ignore", message)

    def _add_instantiators(self) -> None:
        self.parser.add_instantiator(Instantiator(cli=self, key="model"), LightningModule, subclasses=True)
        self.parser.add_instantiator(Instantiator(cli=self, key="data"), LightningDataModule, subclasses=True)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, OverflowError, TypeError, MisconfigurationException) as error:
            if isinstance(error, TypeError) and "`devices`" not in str(error):
                raise  # a bug in somebody's class
            raise find_input_error(error) or InputError(
                f"the run cannot be built: {cause(error)}\nNORMZOO_TRACEBACK=1 shows where."
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        callbacks, plugins = as_list(config.callbacks), as_list(config.plugins)
        if self.run is not None and config.fast_dev_run:
            raise InputError(
                f"fast_dev_run={config.fast_dev_run}: a trial leaves no trace, and a run goes on in its folder; try "
                f"its settings by 'normzoo fit -c {self.run / CONFIG} --trainer.fast_dev_run=true'."
            )
        if config.sync_batchnorm and not has(plugins, LayerSync):  # Lightning's own knows torch's BatchNorm only
            config.sync_batchnorm, config.plugins = False, [*plugins, SyncNorms()]
        if self.command == "fit" and not has(callbacks, TrainingCurve):
            callbacks.append(TrainingCurve())
        if self.command == "fit" and not config.fast_dev_run:
            if self.run is None:
                self.run = shared_run(Path(self.settings.runs), self.settings.experiment)
                if is_first():
                    self.lock = hold(self.run)
            self.save_config_kwargs = {"folder": self.run}
            if config.default_root_dir is None:
                config.default_root_dir = str(self.run)
            if config.logger is None or config.logger is True:
                config.logger = TensorBoardLogger(self.run.parent, "", self.run.name, default_hp_metric=False)
            if config.enable_checkpointing is not False:
                if not has(callbacks, Checkpoint):
                    callbacks += best(self.model, self.run / CHECKPOINTS)
                callbacks.append(self.last())
            callbacks += [HParams(flat(self.settings)), LiveWriters()]
            if self.settings.on_bad_loss != "ignore" and not has(callbacks, FiniteLoss):
                callbacks.append(FiniteLoss(self.settings.on_bad_loss, folder=self.run / FiniteLoss.FOLDER))
            callbacks.append(Record({key: self.config_dump.get(key) for key in RECORDED}))
            if self.differences:
                callbacks.append(Change(self.differences))
            callbacks.append(SharedRun(self.run, lambda run: setattr(self, "run", run)))
        elif config.logger is None:
            config.logger = False
        if self.command == "predict":
            beside = Path(self.settings.ckpt_path).resolve().parent.parent / "predictions.csv"
            self.predictions = Path(self.settings.output) if self.settings.output else unused(beside)
            if self.predictions.is_dir() or not self.predictions.parent.is_dir():
                raise InputError(
                    f"output={str(self.predictions)!r}: it is a file in a folder that exists; make the folder."
                )
            callbacks.append(PredictionsCSV(self.predictions))
            self.files.append(self.predictions)
        if config.enable_progress_bar is not False and not has(callbacks, AnyProgressBar):
            callbacks.append(ProgressBar())
        config.callbacks = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        write_safely(trainer)
        self.watch = watched(trainer, self.settings.patience)
        if self.watch is not None:
            trainer.callbacks.insert(0, self.watch)  # type: ignore[attr-defined]  # set by Lightning, undeclared
        return trainer

    def last(self) -> ExactResume:
        """Keeps the checkpoint that the run goes on from."""
        steps, minutes = self.settings.checkpoint_steps, self.settings.checkpoint_minutes
        assert self.run is not None
        return ExactResume(self.run / CHECKPOINTS, steps, minutes, keep_stop=not self.has_new_limits)

    def fit(self, **kwargs: Any) -> None:
        make_lean(self.trainer, self.model)
        if self.run is not None and not self.is_new and is_first() and newest_checkpoint(self.run) is None:
            for curves in self.run.glob("*tfevents*"):  # the run begins anew
                curves.unlink()
        # Several ranks begin again at the seed, once they know each other: one rank draws the same noise as they do.
        if self.settings.seed_everything is not False:
            reset_seed()
        with checkpoints.told_of_mismatch(kwargs.get("ckpt_path"), contradictions.listed(self.differences)):
            self.trainer.fit(**kwargs)

    def discard_run(self) -> None:
        """Removes the folder of a run that ended before its first step, by the process that made it."""
        trainer = getattr(self, "trainer", None)
        begun = trainer is not None and trainer.fit_loop.epoch_loop.batch_progress.total.completed > self.batches_before
        if self.run is None or not self.is_new or begun or not is_first():
            return
        if not (self.run / FiniteLoss.FOLDER).exists():  # of a bad first step
            shutil.rmtree(self.run, ignore_errors=True)

    def after_fit(self) -> None:
        if self.settings.test_after_fit and self.trainer.state.finished and can_test(self.model, self.datamodule):
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(self.model, self.datamodule, ckpt_path=best or None)
        if self.run is not None and self.trainer.is_global_zero:
            if self.trainer.state.finished:
                (self.run / FINISHED).write_text(f"{self.trainer.global_step} steps\n")
            print(f"\nrun          {self.run}\ntensorboard  tensorboard --logdir={self.settings.runs}")

    def validate(self, **kwargs: Any) -> None:
        with self.told_of_differences(kwargs["ckpt_path"]):
            self.trainer.validate(**kwargs)

    def test(self, **kwargs: Any) -> None:
        with self.told_of_differences(kwargs["ckpt_path"]):
            self.trainer.test(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        with self.told_of_differences(kwargs["ckpt_path"]):
            self.trainer.predict(**{**kwargs, "return_predictions": False})
        if any(callback.rows for callback in self.trainer.callbacks if isinstance(callback, PredictionsCSV)):  # type: ignore[attr-defined]
            print(f"predictions  {self.predictions}")

    @contextmanager
    def told_of_differences(self, file: str) -> Iterator[None]:
        """Says, when a checkpoint has been scored, which of its network's settings were not its own."""
        lines = contradictions.listed(self.differences)
        with checkpoints.told_of_mismatch(file, lines):
            yield
        if lines and self.trainer.is_global_zero:
            print(
                f"normzoo: note: as the flags ask, and not as the checkpoint was trained:\n{printable(lines)}",
                file=sys.stderr,
            )


def best(model: LightningModule, folder: Path) -> list[Callback]:
    """Keeps the best checkpoint by what the task calls its `monitor`, if anything."""
    monitor, mode = getattr(model, "monitor", None), getattr(model, "monitor_mode", "min")
    if monitor is None:
        return []
    return [ModelCheckpoint(folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)]


def can_test(model: LightningModule, data: LightningDataModule | None) -> bool:
    """Whether there is something to test, and somebody to do it."""
    loads = is_overridden("test_dataloader", data, LightningDataModule) or is_overridden("test_dataloader", model)
    return loads and is_overridden("test_step", model)


def flat(settings: Any) -> dict[str, bool | int | float | str]:
    """A run's configuration as the columns of a table, the same for every run.

    TensorBoard sorts the columns and at first shows five; capitals stand before small letters.
    """

    def name(config: Any) -> str:
        return str(config.class_path).rsplit(".", 1)[-1] if config else "none"

    def arguments(config: Any) -> str:
        return ", ".join(f"{key}={value}" for key, value in (config.get("init_args") or {}).items()) if config else ""

    model = settings.model.get("init_args") or {}
    net = (model.get("net") or {}).get("init_args") or {}
    optimizer = model.get("optimizer") or {}
    data = settings.data or {}
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
        "batch_size": int(data.get("init_args.batch_size") or 0),
        "max_epochs": int(settings.trainer.max_epochs or 0),
        "seed": int(settings.seed_everything),
        **{key: v for key, v in (vars(model) if model else {}).items() if isinstance(v, bool | int | float | str)},
    }


def tell_which(path: str, file: Path) -> None:
    """Says which file a run, an experiment or a word stands for."""
    if Path(path) != file and is_first():
        print(f"checkpoint   {file}")


def as_list(given: Any) -> list[Any]:
    """What an option that takes nothing, one or several holds."""
    return list(given) if isinstance(given, list) else [] if given is None else [given]


def has(parts: Sequence[Any], kind: type) -> bool:
    """Whether one of the callbacks or plugins is of a kind."""
    return any(isinstance(part, kind) for part in parts)


def stopped_by(error: BaseException) -> signal.Signals | None:
    """The signal that has ended a Trainer, which makes an ordinary exit of it, with status 0 or 1."""
    if isinstance(error, SIGTERMException):
        return signal.SIGTERM
    interrupted = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    return signal.SIGINT if interrupted else None


def main(arguments: Sequence[str], run: Path | None = None) -> None:
    """Runs `normzoo fit`, `validate`, `test` or `predict`; given its folder, `fit` goes on with a run."""
    try:
        with quiet_writers():
            CLI(arguments, run)
    except MisconfigurationException as error:  # Lightning's own word for wrong input
        raise InputError(f"the run cannot be made: {error}\nNORMZOO_TRACEBACK=1 shows where.") from error
