"""The runs of a report: which there are, and what they hold."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from normzoo.errors import InputError
from normzoo.page.comparison import comparison
from normzoo.page.event_log import EventLog
from normzoo.page.find import find_runs, walk
from normzoo.page.outcome import Outcome, outcome
from normzoo.runs.folders import existing

ROOT = Path("lightning_logs")
MOST_LOOKED_INTO = 2000  # folders, in search of runs that a message proposes

AnyPath = str | os.PathLike[str]


class Source:
    """The runs of a report, read one after the other: all at once may not fit into memory.

    Args:
        found: name -> folder.
        baseline: as for `report`.
        target: as for `report`.

    Attributes:
        names: of the runs that have something to show.
        has_tables: whether one of them has tables of monitors.
        outcomes: name -> what the run came to, of all runs.
        notes: what was left out, and why.
    """

    def __init__(self, found: Mapping[str, Path], baseline: str | None = None, target: float | None = None) -> None:
        self.found = found
        self.baseline, self.target = baseline, target
        self.names: list[str] = []
        self.has_tables = False
        self.outcomes: dict[str, Outcome] = {}
        self.notes: dict[str, None] = {}

    @classmethod
    def of(cls, paths: Sequence[AnyPath], baseline: str | None = None, target: float | None = None) -> "Source":
        """The runs at and below paths.

        Raises:
            InputError: there are none; a path is empty.
        """
        return cls(require_runs([given_folder(path) for path in paths]), baseline, target)

    def logs(self) -> Iterator[tuple[str, EventLog]]:
        """Name and content of each run that has something to show: of several, their scalars are enough."""
        self.names = []
        for name, folder in self.found.items():
            log = EventLog(folder)
            try:
                log.update()
            except OSError as error:
                log.note(f"{folder}: it cannot be read ({error.strerror})")
            self.outcomes[name] = outcome(name, log)
            self.has_tables |= bool(log.series)
            if log.series or (log.scalars and len(self.found) > 1):
                self.names.append(name)
                yield name, log
            elif len(self.found) == 1:
                log.note(f"skipped {name}: it has no tables of monitors")
            self.notes.update(dict.fromkeys(log.notes))

    def shows_something(self) -> bool:
        """Whether there are tables, a metric to compare by, or runs that may still have one."""
        compared = self.comparison
        return self.has_tables or bool(compared and (compared["metric"] or compared["cells"]["waiting"]))

    def all_outcomes(self) -> list[Outcome]:
        """What each run came to, after all have been read."""
        if len(self.outcomes) < len(self.found):
            for _ in self.logs():
                pass
        return list(self.outcomes.values())

    @cached_property
    def comparison(self) -> dict[str, Any] | None:
        """The comparison of all runs; None if there is only one."""
        return comparison(self.all_outcomes(), self.baseline, self.target)


def given_folder(path: AnyPath) -> Path:
    """The folder at a path; of a run also by its number alone.

    Raises:
        InputError: the path is empty.
    """
    if path == "":
        raise InputError(f"report '': the path is empty; give the folder of a run or an experiment.{nearby(ROOT)}")
    return existing(os.fspath(path))


def require_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """The runs below folders.

    Raises:
        InputError: a folder does not exist; there are none.
    """
    if not folders:
        raise InputError(f"report: give the folder of a run or an experiment, such as {ROOT}.{nearby(ROOT)}")
    for folder in folders:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {what}; give the folder of a run or an experiment.{nearby(folder)}")
    found = find_runs(folders)
    if not found:
        raise InputError(
            f"{', '.join(map(str, folders))}: no run: neither here nor in the folders below is an event file, "
            f"events.out.tfevents.*, which a TensorBoardLogger writes.{nearby(folders[0])}"
        )
    return found


def nearby(folder: Path) -> str:
    """A sentence with the runs nearest to a folder, or in the usual place."""
    above = next((one for one in folder.parents if one.is_dir()), Path())
    for place in (above, ROOT):
        runs = sorted(walk(place, MOST_LOOKED_INTO), key=lambda run: run.stat().st_mtime, reverse=True)
        if runs:
            return f" There are {', '.join(map(str, runs[:5]))}."
    return ""


def no_tables(found: Mapping[str, Path]) -> InputError:
    """The error for runs without monitors."""
    which = f"{next(iter(found.values()))} has no" if len(found) == 1 else f"none of the {len(found)} runs has"
    return InputError(
        f"{which} tables of monitors. 'normzoo fit' writes them unless --monitors=false; a Trainer of your own does "
        f"with a callback such as normzoo.callbacks.GradientFlow()."
    )
