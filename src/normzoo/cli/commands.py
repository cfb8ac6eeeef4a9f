"""The commands, which module runs each, and a parser for those without LightningCLI; nothing heavy is imported."""

import argparse
from typing import NoReturn

from normzoo.errors import InputError

COMMANDS = {
    "new": "start a project of your own: data, network, norm and task to edit",
    "fit": "train a network, then test the best checkpoint",
    "resume": "continue a run that was interrupted, to the end it would have had",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images",
    "predict": "write a checkpoint's predictions for the test images to a file",
    "report": "write what the monitors of some runs measured as one page",
    "replay": "repeat a step whose loss was NaN or infinite, and show every layer",
    "checkpoint": "show what a checkpoint holds, without running anything in it",
    "norms": "list the normalization layers, or show one layer's card",
    "completion": "print a script with which bash, zsh or tcsh completes commands and options",
}

EVALUATE = dict.fromkeys(("validate", "test", "predict"), "evaluate")  # the module of a command, where it is another


class ArgumentParser(argparse.ArgumentParser):
    """Raises an `InputError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        raise InputError(f"{message}. Usage: {usage}")
