"""The parser of the command line: jsonargparse's, with this project's rules for defaults, messages and help."""

from collections.abc import Iterator
from pydoc import locate
from typing import Any, NoReturn

import jsonargparse
import torch
import yaml
from lightning.pytorch import LightningModule

# Private, but the only way to choose which links reach a class that a flag names.
from lightning.pytorch.cli import LightningArgumentParser, _InstantiatorFn

from normzoo.cli.help import compact, without_long_lists
from normzoo.cli.messages import explain, find_input_error
from normzoo.errors import InputError
from normzoo.runs import config_files
from normzoo.runs.allowed import refusal

UNSERIALIZABLE = "Unable to serialize instance"  # jsonargparse's text in the place of such a value
serialize_object: Any = jsonargparse._typehints.serialize_as_import_path


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
    return str(value) if isinstance(value, torch.device) else serialize_object(value)


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

    def format_help(self, *args: Any) -> str:
        text = without_long_lists(super().format_help(*args))
        return compact(text, self.prog.split()[-1]) if "\n  --trainer " in text else text

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
        self.cli._dump_config()  # no public way to the resolved configuration
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


def options(parser: Any) -> Iterator[str]:
    """All options of a parser and its subcommands, without their dashes."""
    for action in parser._actions:  # argparse has no public list
        yield from (option.lstrip("-") for option in action.option_strings)
        for child in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from options(child)
