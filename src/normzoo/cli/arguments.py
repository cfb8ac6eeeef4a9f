"""The options of the command line and their defaults, and what is checked before and after parsing."""

import argparse
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from normzoo.errors import InputError
from normzoo.runs import config_files
from normzoo.runs.allowed import resolve

DEFAULTS = {
    "model": {"class_path": "normzoo.tasks.Classifier", "init_args": {"net": {"class_path": "normzoo.models.MLP"}}},
    "data": {"class_path": "normzoo.data.Digits"},
}
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
MAX_EPOCHS = 10  # Lightning's own default is 1,000

# Attribute of the data module -> arguments of the network and the task that it sets.
LINKS = {
    "data.input_shape": ("net.init_args.input_shape",),
    "data.num_classes": ("net.init_args.num_classes", "num_classes"),
}
TARGETS = [target for targets in LINKS.values() for target in targets]


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
            "--monitors",
            type=bool,
            default=True,
            help="Show what each layer does, in TensorBoard and in words; a small MLP trains 5 % slower.",
        )
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


def names_data(arguments: Sequence[str]) -> bool:
    """Whether flags or config files name the data."""
    files = (config_files.read_settings(Path(path)) for path in config_paths(arguments))
    flags = [argument.partition("=")[0] for argument in arguments]
    return any(flag == "--data" or flag.startswith("--data.") for flag in flags) or any("data" in one for one in files)


def loads_own_data(task: Any) -> bool:
    """Whether a class of tasks has loaders of its own, which those of a data module would replace."""
    return inspect.isclass(task) and any(getattr(task, hook) is not getattr(LightningModule, hook) for hook in LOADERS)


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
                f"{earlier[0]} comes before {flag}, and a class starts from its own defaults: give {flag} first."
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
    for name in ("experiment", "runs", "keep_pages", "test_after_fit", "monitors", "seed_everything"):
        if name in settings and settings[name] is None:
            raise InputError(f"{name} has no value; give one, or leave it out.")
    require_values(Trainer, settings.trainer, "trainer")
    require_values(None, argparse.Namespace(model=settings.get("model"), data=settings.get("data")), "")
    if not 0 <= settings.seed_everything < 2**32:
        raise InputError(f"seed_everything={settings.seed_everything}: a seed lies in [0, 2^32); the default is 0.")
    if (minutes := settings.get("checkpoint_minutes", 0.0)) < 0:
        raise InputError(f"checkpoint_minutes={minutes}: it is 0, for none, or more; the default is 5.")
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
