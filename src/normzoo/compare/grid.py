"""A grid: a folder with `grid.yaml`, what was asked, and one run folder per cell. The folder is the state."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from normzoo.compare.settings import Cell, Settings
from normzoo.errors import InputError
from normzoo.runs.atomic import written_whole
from normzoo.runs.folders import CONFIG, number_of
from normzoo.runs.state import State, state_of

FILE = "grid.yaml"
VERSION = 1


@dataclass
class Grid:
    """A grid as `grid.yaml` describes it.

    Args:
        folder: of the grid.
        command: the arguments that are the same for all cells.
        settings: name -> values.
        threads: of each cell on a CPU: sums are rounded as their number says.
        cells: name of the run folder -> its settings.
    """

    folder: Path
    command: list[str]
    settings: Settings
    threads: int
    cells: dict[str, Cell] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Grid":
        """Reads a grid.

        Raises:
            InputError: there is none, or its file is damaged.
        """
        file = folder / FILE
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
            return cls(folder, found["command"], found["settings"], found["threads"], found["cells"])
        except FileNotFoundError as error:
            raise InputError(f"{folder} is no grid: it has no {FILE}, which 'normzoo compare' writes.") from error
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}); start the grid in another folder.") from error

    def save(self) -> None:
        """Writes `grid.yaml`."""
        content = {
            "version": VERSION,
            "command": self.command,
            "settings": self.settings,
            "threads": self.threads,
            "cells": self.cells,
        }
        with written_whole(self.folder / FILE) as file:
            file.write(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120).encode())

    def name_of(self, cell: Cell) -> str | None:
        """The folder of a cell, None if it has none."""
        return next((name for name, known in self.cells.items() if known == cell), None)

    def add(self, cell: Cell, name: str, config: dict[str, Any]) -> str:
        """Makes the run folder of a cell, and returns its name.

        Args:
            cell: its settings.
            name: of the norm and the seed, which follow the number.
            config: the run's complete configuration.
        """
        number = 1 + max(map(number_of, map(Path, self.cells)), default=-1)
        folder = f"{number:03d}-{name}"
        place = {"runs": str(self.folder.parent), "experiment": self.folder.name}
        with written_whole(self.folder / folder / CONFIG) as file:
            file.write(yaml.safe_dump({**config, **place}, sort_keys=False).encode())
        self.cells[folder] = cell
        return folder

    def states(self, names: Iterable[str] | None = None) -> dict[str, State]:
        """The state of each cell, or of some."""
        return {name: state_of(self.folder / name) for name in (self.cells if names is None else names)}


def other_settings(folder: Path, differences: Iterable[str]) -> InputError:
    """The error for a folder with another grid."""
    return InputError(
        f"{folder} is a grid made with other settings: {'; '.join(differences)}. Choose another --out, or remove the "
        f"folder."
    )
