"""The command line of training: LightningCLI with this project's defaults, run folders and messages."""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

import normzoo.data
import normzoo.models
import normzoo.schedules
import normzoo.tasks  # noqa: F401 - classes that are imported go by their short names
from normzoo import checkpoints, configs
from normzoo.callbacks import HParams, PredictionsCSV, ProgressBar
from normzoo.errors import InputError
from normzoo.imports import check_callables, check_class_paths, refusal, take_flags
from normzoo.lean import make_lean
from normzoo.messages import cause, explain
from normzoo.runs import shared_run, unused
from normzoo.runtime import keep_pages
from normzoo.sync import SyncNorms

DEFAULTS = {
    "model": {"class_path": "normzoo.tasks.Classifier", "init_args": {"net": {"class_path": "normzoo.models.MLP"}}},
    "data": {"class_path": "normzoo.data.Digits"},
}

# What the data set tells the network and the task, as attributes of the one and arguments of the others.
LINKS = {
    "data.input_shape": ("net.init_args.input_shape",),
    "data.num_classes": ("net.init_args.num_classes", "num_classes"),
}

NOISE = (
    "The number of training batches",  # the task chooses a shorter interval itself
    ".*does not have many workers",  # images are in memory: workers would only copy them
    ".*LeafSpec",  # Lightning's own use of torch
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`",  # scoring needs none of the callbacks of training
    "The dirpath has changed from",  # a resumed run has a folder of its own
    "Total length of `list` across ranks is zero",  # val_size=0 is asked for
)


class Parser(LightningArgumentParser):
    """Raises an `InputError` where the parser would print its usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser within the parser, whose message is a part of the whole one
            super().error(message, ex)
        raise (
            find_input_error(ex)
            or refusal(message, configs.read)
            or InputError(f"{explain(message, list(options(self)))}\nnormzoo COMMAND --help lists all options.")
        ) from ex


class Instantiator(_InstantiatorFn):
    """Lightning's, but for classes that lack what a link would set: a link is an offer."""

    def __call__(self, class_type: type, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:
        self.cli._dump_config()
        own = f"{self.key}."
        links = {
            key: value
            for key, value in applied_instantiation_links.items()
            if key.startswith(own) and accepts(self.cli.config_dump.get(self.key), key.removeprefix(own))
        }
        return super().__call__(class_type, *args, applied_instantiation_links=links, **kwargs)


def accepts(config: Any, target: str) -> bool:
    """Whether the class that a configuration names where a link ends, such as "init_args.net.init_args.input_shape",
    has the argument that the link sets."""
    *parents, _, name = target.split(".")
    for key in parents:
        config = config.get(key) if isinstance(config, dict) else None
    if not isinstance(config, dict) or "class_path" not in config:
        return False
    config.setdefault("init_args", {})  # where Lightning notes the value for the checkpoint
    builder: Any = locate(config["class_path"])
    parser = LightningArgumentParser()
    add = parser.add_class_arguments if isinstance(builder, type) else parser.add_function_arguments
    return name in add(builder, fail_untyped=False)  # also what it passes on by **kwargs


class CLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`; only the parser of the one that is asked for is built.

    Args:
        arguments: the command and its options.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.command = arguments[0]
        self.run: Path | None = None
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=list(arguments),
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={"prog": "normzoo", "allow_abbrev": False, "description": None},
            )
        except BaseException:
            self.discard_run()
            raise

    # The parser.

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str, default="default", help="The experiment, a folder of numbered runs."
        )
        parser.add_argument("--runs", type=str, default="lightning_logs", help="The folder of all experiments.")
        parser.add_argument(
            "--keep_pages",
            type=bool,
            default=True,
            help="Let freed memory stay with the process: faster steps on a CPU under Linux, the same results.",
        )
        if self.command == "fit":
            parser.add_argument(
                "--test_after_fit", type=bool, default=True, help="Test the best checkpoint when training has ended."
            )
        if self.command == "predict":
            parser.add_argument(
                "--output", type=str | None, default=None, help="The CSV file to write. (default: in the run's folder)"
            )
        parser.set_defaults(DEFAULTS)
        for source, targets in LINKS.items():
            for target in targets:
                parser.link_arguments(source, f"model.init_args.{target}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        arguments = take_flags(args)
        configs.guard()
        for path in [*given("-c", arguments), *given("--config", arguments)]:
            configs.read_settings(Path(path))
        for target in (target for targets in LINKS.values() for target in targets):
            for name in (f"--model.{target}", f"--model.{target}".replace("init_args.", "")):
                if values := given(name, arguments):  # the parser would ignore them
                    raise InputError(
                        f"{name}={values[-1]}: the data set tells this; leave it out, or give the LightningDataModule "
                        f"the attribute {target.split('.')[-1]}."
                    )
        if self.command != "fit":
            self.save_config_callback = None
            arguments = self.with_checkpoint(arguments)
        try:
            self.config = parser.parse_args(spelled_out(arguments))
        except RecursionError as error:
            raise InputError("the settings are nested too deeply to be read; check what -c names.") from error
        check_callables(self.config, configs.read)
        settings = self.config[self.command]
        configs.require_plausible(settings, Trainer)
        if not 0 <= settings.seed_everything < 2**32:
            raise InputError(f"seed_everything={settings.seed_everything}: a seed lies in [0, 2^32); the default is 0.")
        if self.command == "fit" and settings.get("ckpt_path"):
            file = checkpoints.find_checkpoint(settings.ckpt_path, Path(settings.runs))
            checkpoints.saved_model(file)  # raises where it cannot be read
            settings.ckpt_path = str(file)

    def with_checkpoint(self, arguments: list[str]) -> list[str]:
        """Puts the network and the data set of the checkpoint before the user's own flags, which therefore win."""
        if {"-h", "--help"} & set(arguments) or any(a.startswith("--print_config") for a in arguments):
            return arguments
        root = Path([*given("--runs", arguments), "lightning_logs"][0])
        paths = given("--ckpt_path", arguments)
        if not paths:
            raise InputError(
                f"{self.command} needs trained weights: --ckpt_path=FILE_OR_RUN. {checkpoints.advice(root)}"
            )
        file = checkpoints.find_checkpoint(paths[-1], root)
        found = {"model": without_links(checkpoints.saved_model(file)), "data": checkpoints.saved_data(file)}
        check_class_paths(found, str(file))
        configs.read[str(file)] = json.dumps(found)
        flags = [f"--{key}={json.dumps(value)}" for key, value in found.items() if value]
        return [self.command, *flags, *arguments[1:], f"--ckpt_path={file}"]

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
        if config.sync_batchnorm and not has(plugins, LayerSync):  # Lightning's own knows torch's BatchNorm only
            config.sync_batchnorm, config.plugins = False, [*plugins, SyncNorms()]
        if self.command == "fit" and not config.fast_dev_run:
            self.run = shared_run(Path(self.settings.runs), self.settings.experiment)
            if config.default_root_dir is None:
                config.default_root_dir = str(self.run)
            if config.logger is None or config.logger is True:
                config.logger = TensorBoardLogger(
                    self.settings.runs, self.settings.experiment, self.run.name, default_hp_metric=False
                )
            if config.enable_checkpointing is not False and not has(callbacks, Checkpoint):
                callbacks += best_and_last(self.model, self.run / checkpoints.FOLDER)
            callbacks.append(HParams(flat(self.settings)))
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
        if config.enable_progress_bar is not False and not has(callbacks, AnyProgressBar):
            callbacks.append(ProgressBar())
        config.callbacks = callbacks
        return super().instantiate_trainer(**kwargs)

    def fit(self, **kwargs: Any) -> None:
        make_lean(self.trainer, self.model)
        with checkpoints.told_of_mismatch(kwargs.get("ckpt_path")):
            self.trainer.fit(**kwargs)

    def discard_run(self) -> None:
        """Removes the folder of a run that ended before its first step, by the process that made it."""
        trainer = getattr(self, "trainer", None)
        begun = trainer is not None and trainer.fit_loop.epoch_loop.batch_progress.total.completed > 0
        if self.run is not None and not begun and os.environ.get("LOCAL_RANK", "0") == "0":
            shutil.rmtree(self.run, ignore_errors=True)

    def after_fit(self) -> None:
        if self.settings.test_after_fit and self.trainer.state.finished and can_test(self.model, self.datamodule):
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(self.model, self.datamodule, ckpt_path=best or None)
        if self.run is not None and self.trainer.is_global_zero:
            print(f"\nrun          {self.run}\ntensorboard  tensorboard --logdir={self.settings.runs}")

    def validate(self, **kwargs: Any) -> None:
        with checkpoints.told_of_mismatch(kwargs["ckpt_path"]):
            self.trainer.validate(**kwargs)

    def test(self, **kwargs: Any) -> None:
        with checkpoints.told_of_mismatch(kwargs["ckpt_path"]):
            self.trainer.test(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        with checkpoints.told_of_mismatch(kwargs["ckpt_path"]):
            self.trainer.predict(**{**kwargs, "return_predictions": False})
        print(f"predictions  {self.predictions}")


def best_and_last(model: LightningModule, folder: Path) -> list[Callback]:
    """Keep the best checkpoint by what the task calls its `monitor`, if anything, and the last."""
    # Not save_last, which writes the last of the best ones.
    last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    monitor, mode = getattr(model, "monitor", None), getattr(model, "monitor_mode", "min")
    if monitor is None:
        return [last]
    best = ModelCheckpoint(folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
    return [best, last]


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
        "lr": float(optimizer.get("init_args.lr") or 0),
        "lr_scheduler": name(model.get("lr_scheduler")),
        "batch_size": int(data.get("init_args.batch_size") or 0),
        "max_epochs": int(settings.trainer.max_epochs or 0),
        "seed": int(settings.seed_everything),
    }


def given(name: str, arguments: Sequence[str]) -> list[str]:
    """The values of a flag, each given as `--name=value` or `--name value`."""
    pairs = zip(arguments, [*arguments[1:], None], strict=True)
    values = (
        following if argument == name else argument.removeprefix(f"{name}=")
        for argument, following in pairs
        if argument == name or argument.startswith(f"{name}=")
    )
    return [value for value in values if value is not None]


def options(parser: Any) -> Iterator[str]:
    """All options of a parser and its subcommands, without their dashes."""
    for action in parser._actions:
        yield from (option.lstrip("-") for option in action.option_strings)
        for child in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from options(child)


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """`--model.net.activation=Sigmoid` with its path: torch has classes of that name in several places."""

    def spell(argument: str) -> str:
        key, _, name = argument.partition("=")
        is_short = key.endswith(".activation") and name.isidentifier() and hasattr(nn, name)
        return f"{key}=torch.nn.{name}" if is_short else argument

    return [spell(argument) for argument in arguments]


def without_links(model: dict[str, Any] | None) -> dict[str, Any] | None:
    """A saved model's configuration without what the data set will tell anew."""
    for target in (target for targets in LINKS.values() for target in targets):
        *parents, last = f"init_args.{target}".split(".")
        place: Any = model
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return model


def as_list(given: Any) -> list[Any]:
    """What an option that takes nothing, one or several holds."""
    return list(given) if isinstance(given, list) else [] if given is None else [given]


def has(parts: Sequence[Any], kind: type) -> bool:
    """Whether one of the callbacks or plugins is of a kind."""
    return any(isinstance(part, kind) for part in parts)


def find_input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that a chain of exceptions began with, if one did."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo fit`, `validate`, `test` or `predict`."""
    try:
        CLI(arguments)
    except MisconfigurationException as error:  # Lightning's own word for wrong input
        raise InputError(f"the run cannot be made: {error}\nNORMZOO_TRACEBACK=1 shows where.") from error
