"""Finds the runs below folders."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from normzoo.runs.folders import CONFIG, is_step

DEPTH = 6
GRID = "grid.yaml"


def find_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """The runs: name -> folder. Names are paths from what was given, or from what all given share.

    Args:
        folders: each a run, an experiment or any other folder; runs lie at most 6 levels below it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        for run in walk(folder):
            found.setdefault(run.resolve(), run.absolute())
    runs = list(found.values())
    base = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders])) if folders else Path()
    if base in runs:
        base = base.parent
    return {os.path.relpath(run, base): run for run in runs}


def walk(top: Path, most: int | None = None) -> Iterator[Path]:
    """The folders with event files, and the cells of grids, at and below a folder, sorted; links are followed.

    Args:
        top: the folder.
        most: folders to look into.
    """
    pending = [(top, 0)]
    seen: set[str] = set()
    while pending and (most is None or len(seen) < most):
        folder, depth = pending.pop()
        if (real := os.path.realpath(folder)) in seen or is_step(folder):
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: natural(entry.name), reverse=True)
        except OSError:
            continue
        if any("tfevents" in entry.name and entry.is_file() for entry in entries) or is_cell(folder):
            yield folder
        if depth < DEPTH:
            below = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
            links_last = sorted(below, key=lambda entry: not entry.is_symlink())
            pending += [(Path(entry.path), depth + 1) for entry in links_last]


def is_cell(folder: Path) -> bool:
    """Whether a folder is that of a cell of a grid, which has a configuration before it has event files."""
    return (folder.parent / GRID).is_file() and (folder / CONFIG).is_file()


def natural(name: str) -> list[str | int]:
    """A key that sorts 9 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
