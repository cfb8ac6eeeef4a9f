"""The commands `normzoo validate`, `test` and `predict`: a checkpoint on the data of its run, or other data."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from normzoo.callbacks import PredictionsCSV
from normzoo.cli.arguments import config_paths, given, setting, without_links
from normzoo.cli.command import Command, report_file
from normzoo.errors import InputError, printable
from normzoo.runs import checkpoints, config_files, contradictions
from normzoo.runs.folders import unused


class EvaluateCLI(Command):
    """`normzoo validate`, `test` and `predict`."""

    saved: dict[str, Any] | None = None  # the task in the checkpoint

    def complete(self, arguments: list[str]) -> list[str]:
        """Puts the task and the data of the checkpoint before the user's own flags, which therefore win."""
        if {"-h", "--help"} & set(arguments) or any(a.startswith("--print_config") for a in arguments):
            return arguments
        root = setting("runs", arguments, "lightning_logs")
        paths = given("--ckpt_path", arguments)
        if not paths:
            raise InputError(
                f"{self.command} needs trained weights: --ckpt_path=FILE_OR_RUN. {checkpoints.advice(root)}"
            )
        file = checkpoints.find_checkpoint(paths[-1], root, str(setting("experiment", arguments, "default")))
        report_file(paths[-1], file)
        checkpoint = checkpoints.load_checkpoint(file, mmap=True)
        self.saved = without_links(checkpoints.saved_model(checkpoint, file))
        self.saved_data = checkpoints.saved_data(checkpoint, file)
        found = {"model": self.saved, "data": self.saved_data}
        config_files.require_settings(found, str(file))
        config_files.read[str(file)] = json.dumps(found)
        flags = [f"--{key}={json.dumps(value)}" for key, value in found.items() if value]
        if self.saved is None and not given("--model", arguments) and not config_paths(arguments):
            raise InputError(
                f"ckpt_path={str(file)!r} does not say which task it is of, since it was trained in Python: give the "
                f"class by --model=my_package.MyTask, and the data by --data."
            )
        return [self.command, *flags, *arguments[1:], f"--ckpt_path={file}"]

    def compare(self, arguments: Sequence[str]) -> None:
        if self.saved:
            saved = {"model": self.saved, "data": self.saved_data}
            found = contradictions.differences(saved, self.plain_config(), ["model", "data"])
            self.differences = {key: pair for key, pair in found.items() if not key.startswith("data.")}

    def own_callbacks(self, config: Any, callbacks: Sequence[Callback]) -> list[Callback]:
        if self.command != "predict":
            return []
        folder = Path(self.settings.ckpt_path).resolve().parent
        beside = (folder.parent if folder.name == "checkpoints" else folder) / "predictions.csv"
        self.predictions = Path(self.settings.output) if self.settings.output else unused(beside)
        if self.predictions.is_dir() or not self.predictions.parent.is_dir():
            raise InputError(
                f"output={str(self.predictions)!r}: it is a file in a folder that exists; make the folder."
            )
        self.files.append(self.predictions)
        return [PredictionsCSV(self.predictions)]

    def before_validate(self) -> None:
        self.require_step("validation_step")

    def before_test(self) -> None:
        self.require_step("test_step")

    def before_predict(self) -> None:
        if not is_overridden("forward", self.model):
            self.require_step("predict_step")

    def require_step(self, name: str) -> None:
        """Raises `InputError` if the task does not define what the command runs."""
        if not is_overridden(name, self.model):
            raise InputError(
                f"{type(self.model).__name__} has no {name}, which normzoo {self.command} runs for each batch: define "
                f"it."
            )

    def validate(self, **kwargs: Any) -> None:
        with self.reported_differences(kwargs["ckpt_path"]):
            self.trainer.validate(**kwargs)

    def test(self, **kwargs: Any) -> None:
        with self.reported_differences(kwargs["ckpt_path"]):
            self.trainer.test(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        with self.reported_differences(kwargs["ckpt_path"]):
            try:
                self.trainer.predict(**{**kwargs, "return_predictions": False})
            except (AttributeError, TypeError) as error:
                if is_overridden("predict_step", self.model):
                    raise
                raise InputError(
                    f"{type(self.model).__name__} has no predict_step, and its forward does not take a batch of "
                    f"{type(self.datamodule).__name__} ({error}): define predict_step."
                ) from error
        if self.trainer.is_global_zero and self.predictions.is_file():
            print(f"predictions  {self.predictions}")

    @contextmanager
    def reported_differences(self, file: str) -> Iterator[None]:
        """Prints, after a checkpoint was scored, which settings of its task differ from its own."""
        lines = contradictions.describe(self.differences)
        with checkpoints.explain_mismatch(file, self.differences):
            yield
        if lines and self.trainer.is_global_zero:
            print(f"normzoo: note: settings that differ from the checkpoint's:\n{printable(lines)}", file=sys.stderr)


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo validate`, `test` or `predict`."""
    EvaluateCLI(arguments)
