"""What the commands on a network share: LightningCLI with this project's parser, defaults, checks and messages."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.utilities.exceptions import SIGTERMException

import normzoo.data
import normzoo.models
import normzoo.tasks  # noqa: F401 - classes that are imported go by their short names
from normzoo.callbacks import ProgressBar
from normzoo.cli.arguments import (
    add_options,
    loads_own_data,
    names_data,
    require_arguments,
    require_settings,
    spelled_out,
)
from normzoo.cli.messages import cause, find_input_error
from normzoo.cli.parser import Instantiator, Parser
from normzoo.cli.runtime import keep_pages
from normzoo.distributed.processes import RankProcesses, disconnect, require_commands
from normzoo.distributed.sync import SyncNorms
from normzoo.errors import InputError
from normzoo.runs import config_files, contradictions
from normzoo.runs.allowed import again, check_callables, resolve, take_flags
from normzoo.runs.checkpoint_io import write_safely
from normzoo.runs.config import RunConfig
from normzoo.runs.folders import is_first
from normzoo.runs.storage import describe_write_error, quiet_writers

NOISE = (
    "The number of training batches",  # TrainingCurve sets a shorter one
    ".*does not have many workers",  # images are in memory: workers would only copy them
    ".*LeafSpec",  # Lightning's own use of torch
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`",  # scoring needs none of the callbacks of training
    "The dirpath has changed from",  # a resumed run has a folder of its own
    "Total length of `list` across ranks is zero",  # val_size=0
)


class Command(LightningCLI):
    """A command on a network; builds the parser of this command only.

    Args:
        arguments: the command and its options.
        run: the folder of the run to resume, None otherwise.
    """

    lock: int | None = None  # an open file of the run's folder

    def __init__(self, arguments: Sequence[str], run: Path | None = None) -> None:
        self.command = arguments[0]
        self.run = run
        self.files: list[Path] = []  # outputs outside of the run
        self.differences: contradictions.Differences = {}
        connected = dist.is_initialized()
        try:
            with quiet_writers():
                super().__init__(
                    LightningModule,  # and any data module, or none
                    subclass_mode_model=True,
                    args=list(arguments),
                    auto_configure_optimizers=False,
                    seed_everything_default=0,
                    save_config_callback=RunConfig if self.command == "fit" else None,
                    parser_class=Parser,
                    parser_kwargs={"prog": "normzoo", "allow_abbrev": False, "description": None},
                )
            if not connected:
                disconnect()
        except BaseException as error:
            self.clean_up()
            if (number := stopped_by(error)) is not None:
                self.report_signal(number)
                raise SystemExit(128 + number) from error
            if message := describe_write_error(error, self.run, self.files):
                raise message from error
            is_early_stopping = isinstance(error, RuntimeError) and "Early stopping conditioned on" in str(error)
            if isinstance(error, MisconfigurationException) or is_early_stopping:  # Lightning's errors for wrong input
                raise InputError(f"the run cannot be made: {error}\nNORMZOO_TRACEBACK=1 shows where.") from error
            raise
        finally:
            if self.lock is not None:
                os.close(self.lock)

    def clean_up(self) -> None:
        """Removes what a command that failed leaves behind."""

    def report_signal(self, number: signal.Signals) -> None:
        """Says that a signal ended the command, and how to resume."""
        if is_first():
            resume = f"; to resume, run: normzoo resume {self.run}{again()}" if self.run and self.run.is_dir() else ""
            print(f"normzoo: ended by {number.name}{resume}", file=sys.stderr)

    # The parser.

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # not static: one command has one parser
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_options(parser, self.command)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        arguments = take_flags(args)
        config_files.guard()
        require_arguments(arguments)
        arguments = self.complete(arguments)
        try:
            self.config = parser.parse_args(spelled_out(arguments))
        except RecursionError as error:
            raise InputError("the settings are nested too deeply to be read; check the file after -c.") from error
        check_callables(self.config, config_files.read)
        self.settings = self.config[self.command]
        if not names_data(arguments):
            self.choose_data()
        require_settings(self.settings)
        self.compare(arguments)

    def choose_data(self) -> None:
        """Leaves a task that loads its own data without a data module, and says what other tasks get."""
        task = str(getattr(self.settings.model, "class_path", ""))
        if loads_own_data(resolve(task)):
            self.settings.data = None
        elif not task.startswith("normzoo.") and is_first():
            print("normzoo: note: no --data is given: it is normzoo.data.Digits", file=sys.stderr)

    def complete(self, arguments: list[str]) -> list[str]:
        """The arguments to parse, with those that a checkpoint adds."""
        return arguments

    def compare(self, arguments: Sequence[str]) -> None:
        """Compares the settings with those of the checkpoint."""

    def plain_config(self) -> dict[str, Any]:
        """The configuration as plain data, all defaults included."""
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        return yaml.safe_load(text)[self.command]

    # Lightning's hooks, which have private names only.

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters win over the user's flags."""

    def _add_instantiators(self) -> None:
        self.parser.add_instantiator(Instantiator(cli=self, key="model"), LightningModule, subclasses=True)
        self.parser.add_instantiator(Instantiator(cli=self, key="data"), LightningDataModule, subclasses=True)

    # The run.

    def before_instantiate_classes(self) -> None:
        if self.settings.keep_pages:
            keep_pages()
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_no_advert)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, OverflowError, TypeError, MisconfigurationException) as error:
            if isinstance(error, TypeError) and "`devices`" not in str(error):
                raise  # a bug in the user's class
            raise find_input_error(error) or InputError(
                f"the run cannot be built: {cause(error)}\nNORMZOO_TRACEBACK=1 shows where."
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.command].trainer
        callbacks, plugins = as_list(config.callbacks), as_list(config.plugins)
        if config.sync_batchnorm and not has(plugins, LayerSync):  # Lightning's own supports torch's BatchNorm only
            config.sync_batchnorm, config.plugins = False, [*plugins, SyncNorms()]
        callbacks += self.own_callbacks(config, callbacks)
        if config.logger is None:
            config.logger = False
        if config.enable_progress_bar is not False and not has(callbacks, AnyProgressBar):
            callbacks.append(ProgressBar())
        config.callbacks = [*callbacks, RankProcesses()]
        trainer = super().instantiate_trainer(**kwargs)
        write_safely(trainer)
        require_commands(trainer)
        return trainer

    def own_callbacks(self, config: Any, callbacks: Sequence[Callback]) -> list[Callback]:
        """The callbacks that the command adds to the user's; may change the Trainer's other arguments.

        Args:
            config: arguments of the Trainer.
            callbacks: the user's.
        """
        return []


def is_no_advert(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning's is about the run, and not about another product."""
    return "💡 Tip" not in record.getMessage()


def as_list(given: Any) -> list[Any]:
    """The values of an option that takes none, one or several."""
    return list(given) if isinstance(given, list) else [] if given is None else [given]


def has(parts: Sequence[Any], kind: type) -> bool:
    """Whether one of the callbacks or plugins is of a class."""
    return any(isinstance(part, kind) for part in parts)


def report_file(path: str, file: Path) -> None:
    """Prints which checkpoint is used, if the user gave a folder or a word."""
    if Path(path) != file and is_first():
        print(f"checkpoint   {file}")


def stopped_by(error: BaseException) -> signal.Signals | None:
    """The signal that ended a Trainer, which turns it into an exit with status 0 or 1."""
    if isinstance(error, SIGTERMException):
        return signal.SIGTERM
    interrupted = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    return signal.SIGINT if interrupted else None
