"""The configuration of a run, in its folder."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from normzoo.runs.atomic import written_whole
from normzoo.runs.folders import CONFIG, FINISHED, unused
from normzoo.runs.loggers import save_versions


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` when a run begins.

    A run that is resumed keeps its own, unless flags have changed it: then, once they prove to fit its checkpoint,
    the earlier one stands beside it, numbered.

    Args:
        parser: of the command line.
        config: what it parsed.
        folder: of the run.
    """

    def __init__(self, parser: Any, config: Any, *, folder: Path) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.file = folder / CONFIG

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.file.is_file():
            self.save()
            save_versions(trainer, self.file.parent)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.save()
            (self.file.parent / FINISHED).unlink(missing_ok=True)

    def save(self) -> None:
        """Writes the configuration, unless it stands there."""
        config = self.config.clone()
        earlier = self.file.read_text(encoding="utf-8") if self.file.is_file() else None
        if earlier is not None:
            config.ckpt_path = yaml.safe_load(earlier).get("ckpt_path")  # of where the run began
        text = self.parser.dump(config, skip_none=False)
        if earlier is not None:
            if yaml.safe_load(text) == yaml.safe_load(earlier):
                return
            self.write(unused(self.file), earlier)
        self.write(self.file, text)

    def write(self, file: Path, text: str) -> None:
        """Writes a file, all of it or nothing."""
        with written_whole(file) as opened:
            opened.write(text.encode())
