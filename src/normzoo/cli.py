"""The command line of training: LightningCLI with this project's defaults, run folders and messages."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import normzoo.data
import normzoo.models
import normzoo.norms
import normzoo.schedules
import normzoo.tasks  # noqa: F401  (imported classes go by their short names)


class CLI(LightningCLI):
    def __init__(self, arguments: Sequence[str]) -> None:
        self.command = arguments[0]
        super().__init__(
            LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            args=list(arguments), auto_configure_optimizers=False, seed_everything_default=0,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model": {"class_path": "normzoo.tasks.Classifier", "init_args": {"net": {"class_path": "normzoo.models.MLP"}}}, "data": {"class_path": "normzoo.data.Digits"}})
        parser.link_arguments("data.input_shape", "model.init_args.net.init_args.input_shape", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.init_args.net.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

def main(arguments: Sequence[str]) -> None:
    CLI(arguments)
