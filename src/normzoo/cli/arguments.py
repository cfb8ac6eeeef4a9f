"""What the command line takes: its parser, its own options, and what arguments mean before they are parsed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, Literal, NoReturn

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser, _InstantiatorFn
from torch import nn

from normzoo.cli.messages import explain, find_input_error
from normzoo.errors import InputError
from normzoo.runs import config_files as configs
from normzoo.runs.allowed import refusal

DEFAULTS = {
    "model": {"class_path": "normzoo.tasks.Classifier", "init_args": {"net": {"class_path": "normzoo.models.MLP"}}},
    "data": {"class_path": "normzoo.data.Digits"},
}

# What the data set tells the network and the task, as attributes of the one and arguments of the others.
LINKS = {
    "data.input_shape": ("net.init_args.input_shape",),
    "data.num_classes": ("net.init_args.num_classes", "num_classes"),
}


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

        def build(*args: Any, **kwargs: Any) -> Any:
            module = class_type(*args, **kwargs)
            if isinstance(module, LightningModule) and not module.hparams:
                module.save_hyperparameters(logger=False)  # Lightning provides the configuration: checkpoints hold it
            return module

        # Lightning only calls it.
        return super().__call__(build, *args, applied_instantiation_links=links, **kwargs)  # type: ignore[arg-type]


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


def add_options(parser: LightningArgumentParser, command: str) -> None:
    """Adds what a command takes beside Lightning's own options, and the defaults of all."""
    parser.add_argument("--experiment", type=str, default="default", help="The experiment, a folder of numbered runs.")
    parser.add_argument("--runs", type=str, default="lightning_logs", help="The folder of all experiments.")
    parser.add_argument(
        "--keep_pages",
        type=bool,
        default=True,
        help="Let freed memory stay with the process: faster steps on a CPU under Linux, the same results.",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=40.0,
        help="Of several ranks: seconds that one waits for another before all end.",
    )
    if command == "fit":
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best checkpoint when training has ended."
        )
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=5.0,
            help="Minutes between checkpoints within an epoch, from which a killed run goes on; 0 for none.",
        )
        parser.add_argument(
            "--checkpoint_steps",
            type=int | None,
            default=None,
            help="Optimizer steps between checkpoints within an epoch; null for none by steps.",
        )
        parser.add_argument(
            "--on_bad_loss",
            type=Literal["stop", "skip", "ignore"],
            default="stop",
            help="What happens when the loss or a gradient is NaN or infinite: stop the run before the weights are "
            "spoiled, skip the step, or ignore it.",
        )
        parser.add_argument(
            "--change",
            type=str,
            default="",
            help="With --ckpt_path: the settings that are to be other than the checkpoint's from here on, with "
            "commas between, such as model.optimizer.lr.",
        )
    if command == "predict":
        parser.add_argument(
            "--output", type=str | None, default=None, help="The CSV file to write. (default: in the run's folder)"
        )
    parser.set_defaults(DEFAULTS)
    for source, targets in LINKS.items():
        for target in targets:
            parser.link_arguments(source, f"model.init_args.{target}", apply_on="instantiate")


def given(name: str, arguments: Sequence[str]) -> list[str]:
    """The values of a flag, each given as `--name=value` or `--name value`."""
    pairs = zip(arguments, [*arguments[1:], None], strict=True)
    values = (
        following if argument == name else argument.removeprefix(f"{name}=")
        for argument, following in pairs
        if argument == name or argument.startswith(f"{name}=")
    )
    return [value for value in values if value is not None]


def setting(name: str, arguments: Sequence[str], default: str) -> str:
    """What flags and config files say of a setting at the top, before they are parsed; the last one counts."""
    for place, argument in enumerate(arguments):
        flag = argument.partition("=")[0]
        if flag in (f"--{name}", "-c", "--config"):
            for value in given(flag, arguments[place : place + 2])[:1]:
                if flag == f"--{name}":
                    default = value
                elif Path(value).is_file():
                    default = configs.read_settings(Path(value)).get(name, default)
    return str(default)


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
