"""Every file in configs/ runs as its first lines say."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import BRIEF, normzoo
from datasets import FILE_DATA_SETS, accept_stand_ins, write_stand_in

from normzoo.tasks.classifier import Classifier

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def header(config: Path) -> list[str]:
    """The comment a file opens with, without the marks."""
    lines = config.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


@every_config
def test_a_config_opens_with_what_why_and_how_long(config: Path) -> None:
    title, *rest = header(config)
    commands = [line for line in rest if line.startswith("normzoo ")]
    assert title.endswith(".")
    assert commands
    assert commands[0] == f"normzoo fit -c configs/{config.name}"
    assert all(f"configs/{config.name}" in command for command in commands)
    for word in ("time", "result"):
        [line] = [line for line in rest if line.startswith(f"{word}:")]
        assert re.search(r"\w", line.removeprefix(f"{word}:"))


@every_config
def test_a_config_is_named_as_its_experiment(config: Path) -> None:
    """One without data of its own is to be put behind another, whose experiment it leaves as it is."""
    settings = yaml.safe_load(config.read_text())
    assert settings.get("experiment") == (config.stem if "data" in settings else None)


def commands_of(config: Path) -> list[Any]:
    """The commands in a config's header, as arguments."""
    lines = [line.split("  #")[0] for line in header(config) if line.startswith("normzoo ")]
    slow = pytest.mark.slow
    return [pytest.param(config, line.split()[1:], id=line, marks=slow if i else ()) for i, line in enumerate(lines)]


@pytest.mark.parametrize("config,arguments", [case for config in CONFIGS for case in commands_of(config)])
def test_every_command_of_a_header_runs(
    config: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of training, validation and test on small files in the format of the real ones."""
    monkeypatch.chdir(ROOT)
    given = [value for flag, value in pairwise(arguments) if flag == "-c"]
    for settings in (yaml.safe_load(Path(one).read_text()) for one in given):
        if "data" in settings:
            write_stand_in(settings["data"]["class_path"].rsplit(".", 1)[-1], tmp_path)
    accept_stand_ins(monkeypatch)
    for one in FILE_DATA_SETS:
        monkeypatch.setattr(one, "elsewhere", ())  # not the real files, where a machine has them
        monkeypatch.setattr(one, "train_size", 200)
        monkeypatch.setattr(one, "default_val_size", 40)
    tested: list[Classifier] = []
    monkeypatch.setattr(Classifier, "on_test_end", lambda self: tested.append(self))
    result = normzoo(*arguments, *BRIEF, f"--data.root={tmp_path}", "--data.download=false")
    assert result.status == 0, result.err
    assert len(tested) == 1
    assert set(tmp_path.iterdir()) <= {tmp_path / one.folder.split("/")[0] for one in FILE_DATA_SETS}
