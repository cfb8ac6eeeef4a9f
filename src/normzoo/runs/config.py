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

    A resumed run keeps its own. If flags have changed it and they fit the checkpoint, the earlier one is kept beside
    the new one, with a number.

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
        """Writes the configuration, unless it is there."""
        config = self.config.clone()
        earlier = self.file.read_text(encoding="utf-8") if self.file.is_file() else None
        if earlier is not None:
            config.ckpt_path = yaml.safe_load(earlier).get("ckpt_path")  # from which the run began
        text = self.parser.dump(config, skip_none=False)
        if earlier is not None and yaml.safe_load(text) == yaml.safe_load(earlier):
            return
        for file, content in ((unused(self.file), earlier), (self.file, text)):
            if content is not None:
                with written_whole(file) as opened:
                    opened.write(content.encode())
