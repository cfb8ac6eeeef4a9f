"""The commands, which module runs each, and a parser for those without LightningCLI; nothing heavy is imported."""

import argparse
from pathlib import Path
from typing import NoReturn

from normzoo.errors import InputError

COMMANDS = {
    "new": "start a project of your own: data, network, norm and task to edit",
    "fit": "train a network, then test the best checkpoint",
    "resume": "continue a run that was interrupted, to the end it would have had",
    "compare": "train a grid of settings and seeds, and compare its runs",
    "claims": "check what papers say of normalization layers, on small networks",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images",
    "predict": "write a checkpoint's predictions for the test images to a file",
    "report": "write what the monitors of some runs measured as one page",
    "replay": "repeat a step whose loss was NaN or infinite, and show every layer",
    "checkpoint": "show what a checkpoint holds, without running anything in it",
    "convert": "write a checkpoint whose network has another normalization layer",
    "export": "write a checkpoint's network as ONNX or as a program of torch.export",
    "norms": "list the normalization layers, or show one layer's card",
    "completion": "print a script with which bash, zsh or tcsh completes commands and options",
}

EVALUATE = dict.fromkeys(("validate", "test", "predict"), "evaluate")  # the module of a command, where it is another


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a command that reads a checkpoint and writes a file."""
    parser.add_argument("path", metavar="CHECKPOINT", help="a file, a run, an experiment, or the word last or best")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write, which must not exist")
    parser.add_argument("--runs", default="lightning_logs", help="the folder of all experiments")
    parser.add_argument("--experiment", default="default", help="the experiment for the words last and best")
    parser.add_argument("--allow", default="", help="packages that the checkpoint may name, separated by commas")


def require_new(file: str) -> None:
    """Raises `InputError` if a file exists, or its folder does not."""
    path = Path(file)
    if path.exists() or not path.parent.is_dir():
        problem = "it exists" if path.exists() else f"there is no folder {str(path.parent)!r}"
        raise InputError(f"--output={file!r}: {problem}; give the name of a new file.")


class ArgumentParser(argparse.ArgumentParser):
    """Raises an `InputError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        raise InputError(f"{message}. Usage: {usage}")
