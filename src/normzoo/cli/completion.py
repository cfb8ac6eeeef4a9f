"""The command `normzoo completion`: prints a script with which a shell completes commands, options and layers."""

import argparse
from collections.abc import Iterable, Sequence
from inspect import signature

from normzoo import data, models, norms, tasks
from normzoo.cli.command import Command
from normzoo.cli.commands import COMMANDS, EVALUATE, ArgumentParser
from normzoo.cli.messages import CHOICES
from normzoo.cli.parser import options
from normzoo.compare.claims import CLAIMS
from normzoo.errors import InputError


class Found(Exception):
    """Ends a command before it parses its arguments."""


class Options(Command):
    """Finds the options of a command on a network.

    Args:
        command: its name.
    """

    def __init__(self, command: str) -> None:
        try:
            super().__init__([command])
        except Found:
            self.names = {f"--{name}" for name in options(self.parser)}

    def parse_arguments(self, parser: object, args: object) -> None:
        raise Found


def of_classes() -> set[str]:
    """The options of the task, of all networks and of all data sets."""
    kinds = {
        "model": [tasks.Classifier],
        "model.net": [getattr(models, name) for name in CHOICES["net"]()],
        "data": [getattr(data, name) for name in CHOICES["data"]()],
    }
    return {
        f"--{key}.{name}" for key, several in kinds.items() for one in several for name in signature(one).parameters
    }


def completed(shell: str) -> str:
    """The script for a shell."""
    try:
        import shtab
    except ImportError as error:
        raise InputError("completion: it needs the package shtab; run pip install shtab.") from error

    def add(parser: argparse.ArgumentParser, name: str, values: Iterable[str] | None) -> None:
        argument = parser.add_argument(name, choices=None if values is None else sorted(values))
        if values is None:
            argument.complete = shtab.FILE  # type: ignore[attr-defined] # argparse does not declare what shtab reads

    parser = argparse.ArgumentParser(prog="normzoo")
    commands = parser.add_subparsers()
    names: dict[str, Iterable[str]] = {"norms": norms.layers(), "claims": CLAIMS}
    for command, does in COMMANDS.items():
        one = commands.add_parser(command, help=does)
        if command in ("fit", *EVALUATE):
            for name in sorted(Options(command).names | of_classes()):
                if len(name) > 3 and not name.endswith((".help", "+")) and name != "--help":
                    values = CHOICES.get(name.lstrip("-").rpartition(".")[2])
                    add(one, name, values and values())
        else:
            add(one, "argument", names.get(command))
            if command == "report":
                add(one, "--output", None)
    return shtab.complete(parser, shell)


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo completion`."""
    parser = ArgumentParser(
        prog="normzoo completion",
        description="Print a script with which a shell completes commands, options and the names of layers.",
        epilog='In bash: eval "$(normzoo completion bash)", or write it to a file that the shell reads at its start.',
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    print(completed(parser.parse_args(arguments).shell))
