"""The parser of the command line: its options and defaults, and what is checked before and after it parses."""

import argparse
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, Literal, NoReturn

import jsonargparse
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

# Private, but the only way to choose which links reach a class that a flag names.
from lightning.pytorch.cli import LightningArgumentParser, _InstantiatorFn
from torch import nn

from normzoo.cli.messages import explain, find_input_error
from normzoo.errors import InputError
from normzoo.runs import config_files
from normzoo.runs.allowed import refusal, resolve

DEFAULTS = {
    "model": {"class_path": "normzoo.tasks.Classifier", "init_args": {"net": {"class_path": "normzoo.models.MLP"}}},
    "data": {"class_path": "normzoo.data.Digits"},
}
MAX_EPOCHS = 10  # Lightning's own default is 1,000

# Attribute of the data module -> arguments of the network and the task that it sets.
LINKS = {
    "data.input_shape": ("net.init_args.input_shape",),
    "data.num_classes": ("net.init_args.num_classes", "num_classes"),
}
TARGETS = [target for targets in LINKS.values() for target in targets]

MOST_NAMES = 60  # of classes in a help text
UNSERIALIZABLE = "Unable to serialize instance"  # jsonargparse's text in the place of such a value
serialize_object = jsonargparse._typehints.serialize_as_import_path


def drop_other_arguments(parser: Any, previous: Any, value: Any) -> None:
    """Drops the arguments given for one class when another class takes its place.

    jsonargparse keeps those that the new class also has, so that SGD would receive the weight decay of AdamW.
    """
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        previous.pop("init_args")


def serialize(value: Any) -> Any:
    """A value for a config file, for which jsonargparse knows no type, such as a `numbers.Number`."""
    if isinstance(value, str | int | float):
        return value
    return str(value) if isinstance(value, torch.device) else serialize_object(value)  # type: ignore[no-untyped-call] # jsonargparse leaves it unannotated


# Private names: every way to name a class, and every value of an unknown type, goes through these functions, and
# jsonargparse has no settings for them.
jsonargparse._typehints.discard_init_args_on_class_path_change = drop_other_arguments
jsonargparse._typehints.serialize_as_import_path = serialize


class Parser(LightningArgumentParser):
    """Raises an `InputError` instead of printing the usage, and writes configs that can be parsed again."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser within the parser, whose message becomes part of the whole one
            super().error(message, ex)
        raise (
            find_input_error(ex)
            or refusal(message, config_files.read)
            or InputError(f"{explain(message, list(options(self)))}\nnormzoo COMMAND --help lists all options.")
        ) from ex

    def format_help(self) -> str:
        """The help, without lists of hundreds of classes: every module of torch is a known activation."""

        def shorten(found: re.Match[str]) -> str:
            names = found[1].split(",")
            return found[0] if len(names) <= MOST_NAMES else f"{len(names)} known subclasses"

        return re.sub(r"known\s+subclasses:\s+([^)]+)", shorten, super().format_help())

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The configuration as text, without defaults that have no text: they need none."""
        text: str = super().dump(*args, **kwargs)
        if UNSERIALIZABLE not in text:
            return text
        return yaml.safe_dump(without_unserializable(yaml.safe_load(text)), sort_keys=False)


def without_unserializable(values: Any) -> Any:
    """Settings without those that jsonargparse could not serialize."""
    if isinstance(values, list):
        return [without_unserializable(value) for value in values]
    if not isinstance(values, dict):
        return values
    kept = {k: v for k, v in values.items() if not (isinstance(v, str) and v.startswith(UNSERIALIZABLE))}
    return {key: without_unserializable(value) for key, value in kept.items()}


class Instantiator(_InstantiatorFn):
    """Lightning's, except that a link sets only arguments that the class has."""

    def __call__(self, class_type: type, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:
        self.cli._dump_config()
        prefix = f"{self.key}."
        links = {
            key: value
            for key, value in applied_instantiation_links.items()
            if key.startswith(prefix) and accepts(self.cli.config_dump.get(self.key), key.removeprefix(prefix))
        }

        def build(*args: Any, **kwargs: Any) -> Any:
            module = class_type(*args, **kwargs)
            if isinstance(module, LightningModule) and not module.hparams:
                module.save_hyperparameters(logger=False)  # Lightning provides the configuration: checkpoints hold it
            return module

        # Lightning only calls it.
        return super().__call__(build, *args, applied_instantiation_links=links, **kwargs)  # type: ignore[arg-type]


def accepts(config: Any, target: str) -> bool:
    """Whether the class of a configuration has an argument, such as "init_args.net.init_args.input_shape"."""
    *parents, _, name = target.split(".")
    for key in parents:
        config = config.get(key) if isinstance(config, dict) else None
    if not isinstance(config, dict) or "class_path" not in config:
        return False
    config.setdefault("init_args", {})  # where Lightning writes the value for the checkpoint
    builder: Any = locate(config["class_path"])
    parser = LightningArgumentParser()
    add = parser.add_class_arguments if isinstance(builder, type) else parser.add_function_arguments
    return name in add(builder, fail_untyped=False)  # includes what it passes on by **kwargs


def add_options(parser: LightningArgumentParser, command: str) -> None:
    """Adds a command's own options, and the defaults of all."""
    add = parser.add_argument
    add("--experiment", type=str, default="default", help="The experiment, a folder of numbered runs.")
    add("--runs", type=str, default="lightning_logs", help="The folder of all experiments.")
    add(
        "--keep_pages",
        type=bool,
        default=True,
        help="Keep freed memory in the process: faster steps on a CPU under Linux, the same results.",
    )
    if command == "fit":
        add("--test_after_fit", type=bool, default=True, help="Test the best checkpoint after training.")
        add(
            "--checkpoint_minutes",
            type=float,
            default=5.0,
            help="Minutes between the checkpoints within an epoch, from which a killed run resumes; 0 for none.",
        )
        add(
            "--checkpoint_steps",
            type=int | None,
            default=None,
            help="Optimizer steps between the checkpoints within an epoch; null for none by steps.",
        )
        add(
            "--on_bad_loss",
            type=Literal["stop", "skip", "ignore"],
            default="stop",
            help="What to do if the loss or a gradient is NaN or infinite: stop before the weights change, skip the "
            "step, or ignore it.",
        )
        add(
            "--change",
            type=str,
            default="",
            help="With --ckpt_path: settings that differ from the checkpoint's on purpose, separated by commas, such "
            "as model.optimizer.lr.",
        )
    if command == "predict":
        add("--output", type=str | None, default=None, help="The CSV file to write. (default: in the run's folder)")
    parser.set_defaults({**DEFAULTS, "trainer.max_epochs": MAX_EPOCHS})
    for source, targets in LINKS.items():
        for target in targets:
            parser.link_arguments(source, f"model.init_args.{target}", apply_on="instantiate")


def options(parser: Any) -> Iterator[str]:
    """All options of a parser and its subcommands, without their dashes."""
    for action in parser._actions:  # argparse has no public list
        yield from (option.lstrip("-") for option in action.option_strings)
        for child in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from options(child)


# Before parsing.


def given(name: str, arguments: Sequence[str]) -> list[str]:
    """The values of a flag, each given as `--name=value` or `--name value`."""
    pairs = zip(arguments, [*arguments[1:], None], strict=True)
    values = (
        following if argument == name else argument.removeprefix(f"{name}=")
        for argument, following in pairs
        if argument == name or argument.startswith(f"{name}=")
    )
    return [value for value in values if value is not None]


def config_paths(arguments: Sequence[str]) -> list[str]:
    """The config files that the arguments name."""
    return [*given("-c", arguments), *given("--config", arguments)]


def setting(name: str, arguments: Sequence[str], default: str) -> Path:
    """The path that a top-level setting gives, before parsing: a flag counts before config files."""
    files = [config_files.read_settings(Path(path)).get(name, default) for path in config_paths(arguments)]
    return Path([default, *files, *given(f"--{name}", arguments)][-1])


def require_arguments(arguments: Sequence[str]) -> None:
    """Raises `InputError` for config files and flags that the parser would misread or ignore."""
    for path in config_paths(arguments):
        if not path:
            raise InputError("-c='': expected a config file, such as configs/digits_mlp.yaml.")
        config_files.read_settings(Path(path))
    for target in TARGETS:
        for name in (f"--model.{target}", f"--model.{target}".replace("init_args.", "")):
            if values := given(name, arguments):
                raise InputError(
                    f"{name}={values[-1]}: the data set sets this; leave it out, or give the LightningDataModule the "
                    f"attribute {target.split('.')[-1]}."
                )
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for place, flag in enumerate(flags):
        earlier = [one for one in flags[:place] if one.startswith(f"{flag}.") and not one.endswith(".help")]
        if earlier and flag not in flags[:place]:
            raise InputError(
                f"{earlier[0]} stands before {flag}, and a class starts from its own defaults: give {flag} first."
            )


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """`--model.net.activation=Sigmoid` with its path: torch has classes of that name in several modules."""

    def spell(argument: str) -> str:
        key, _, name = argument.partition("=")
        is_short = key.endswith(".activation") and name.isidentifier() and hasattr(nn, name)
        return f"{key}=torch.nn.{name}" if is_short else argument

    return [spell(argument) for argument in arguments]


def without_links(model: dict[str, Any] | None) -> dict[str, Any] | None:
    """A saved model's configuration without the arguments that the data module sets."""
    for target in TARGETS:
        *parents, last = f"init_args.{target}".split(".")
        place: Any = model
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return model


# After parsing.


def require_settings(settings: Any) -> None:
    """Raises `InputError` for values that the parser accepts and no run can have."""
    if not isinstance(settings.trainer, argparse.Namespace):
        raise InputError(f"trainer={settings.trainer!r}: expected options of the Trainer, such as max_epochs: 10.")
    for name in ("experiment", "runs", "keep_pages", "test_after_fit", "seed_everything"):
        if name in settings and settings[name] is None:
            raise InputError(f"{name} has no value; give one, or leave it out.")
    require_values(Trainer, settings.trainer, "trainer")
    require_values(None, argparse.Namespace(model=settings.get("model"), data=settings.get("data")), "")
    if not 0 <= settings.seed_everything < 2**32:
        raise InputError(f"seed_everything={settings.seed_everything}: a seed lies in [0, 2^32); the default is 0.")
    if not settings.experiment.isprintable():
        raise InputError(f"experiment={settings.experiment!r}: it is the name of a folder; use printable characters.")
    accumulate = settings.trainer.accumulate_grad_batches
    if accumulate < 1:
        raise InputError(f"trainer.accumulate_grad_batches={accumulate}: it is 1 or more; the default is 1.")
    if settings.weights_only is False:
        raise InputError("weights_only=False: reading objects could run code; leave it out.")
    settings.weights_only = True


def require_values(builder: Any, arguments: Any, key: str) -> None:
    """Raises `InputError` for an argument that has no value and does not accept None, which the parser lets pass.

    Args:
        builder: the class or function that takes the arguments, None for none.
        arguments: a namespace from their names to values, in which classes have arguments of their own.
        key: the key of the arguments.
    """
    try:
        parameters = dict(inspect.signature(builder).parameters)
    except (TypeError, ValueError):
        parameters = {}
    for name, value in vars(arguments).items():
        where = f"{key}.{name}".lstrip(".")
        parameter = parameters.get(name)
        if value is None and parameter is not None and parameter.default not in (None, parameter.empty):
            hint = str(parameter.annotation)
            if parameter.annotation is not parameter.empty and not re.search("None|Optional|Any", hint):
                raise InputError(f"{where} has no value; the default is {parameter.default!r}, or leave it out.")
        for index, part in enumerate(value if isinstance(value, list) else [value]):
            path, inner = getattr(part, "class_path", None), getattr(part, "init_args", None)
            if isinstance(path, str) and inner is not None:
                require_values(resolve(path), inner, where if part is value else f"{where}[{index}]")
