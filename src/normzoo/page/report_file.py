"""Runs as one file: a page for people, JSON or CSV for programs."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normzoo.errors import InputError
from normzoo.page.bundle import DIGITS, html_page
from normzoo.page.comparison import comparison
from normzoo.page.csv_text import csv_text
from normzoo.page.event_log import EventLog
from normzoo.page.find import find_runs, walk
from normzoo.page.json_text import json_text
from normzoo.page.many_runs import MANY, without_details
from normzoo.page.outcome import Outcome, outcome
from normzoo.page.packing import packed
from normzoo.page.run_data import run_data
from normzoo.runs.atomic import written_whole
from normzoo.runs.folders import existing

ROOT = Path("lightning_logs")
VERSION = 1
MOST_STEPS_OF_CHANNELS = 20  # in a page: its slider shows one step at a time
MOST_LOOKED_INTO = 2000  # folders, in search of runs that a message proposes

AnyPath = str | os.PathLike[str]


def report(
    runs: AnyPath | Sequence[AnyPath],
    output: AnyPath = "report.html",
    *,
    baseline: str | None = None,
    target: float | None = None,
) -> Path:
    """Writes a page that shows what the monitors measured in one run or several, and compares several; or its data.

    The page is one file without any request to a server. It is written completely or not at all. A file that cannot
    be read to its end causes a warning.

        normzoo.page.report("lightning_logs/digits_mlp", "digits.html")

    Args:
        runs: the folder of a run, an experiment, a grid or any folder above, or several; of a run also by its number
            alone, as `lightning_logs/digits_mlp/7`.
        output: the file, with the suffix .html; .json for all data; .csv for a table with a row for each run. One that
            exists is replaced.
        baseline: the norm that the others are compared with; None for BatchNorm, else NoNorm, else the first.
        target: a value of the metric by which settings are chosen, to which the steps are counted.

    Returns:
        The file.

    Raises:
        InputError: there are no runs, or a single one without monitors; a path is empty; the baseline is no norm of
            the runs; the file has another suffix, or cannot be written.
    """
    written = write_report(folders_in(runs), Path(output), baseline=baseline, target=target)
    for note in written.notes:
        warnings.warn(note, stacklevel=2)
    return written.paths[0]


def compare(
    runs: AnyPath | Sequence[AnyPath], *, baseline: str | None = None, target: float | None = None
) -> dict[str, Any]:
    """Compares runs: the part `comparison` of the data of `report`, which docs/data.md describes.

        normzoo.page.compare("lightning_logs/compare/first")["words"]

    Args:
        runs: as for `report`.
        baseline: as for `report`.
        target: as for `report`.

    Raises:
        InputError: as for `report`; there are less than two runs.
    """
    found = require_runs([given_folder(path) for path in folders_in(runs)])
    source = Source(found, baseline, target)
    if (compared := source.comparison()) is None:
        raise InputError(f"{next(iter(found.values()))}: one run cannot be compared; give two or more.")
    return compared


@dataclass
class Written:
    """A report that was written.

    Args:
        paths: the files.
        runs: names of the runs in it.
        notes: what was left out, and why.
        comparison: of the runs; None for one.
    """

    paths: list[Path]
    runs: list[str]
    notes: list[str]
    comparison: dict[str, Any] | None


def write_report(
    paths: Sequence[AnyPath],
    output: Path,
    *,
    beside: Sequence[str] = (),
    baseline: str | None = None,
    target: float | None = None,
) -> Written:
    """Writes the report of all runs at and below paths.

    Args:
        paths: as for `report`.
        output: as for `report`.
        beside: suffixes of further files to write beside it.
        baseline: as for `report`.
        target: as for `report`.

    Raises:
        InputError: as `report` does.
    """
    if output.suffix not in FORMATS:
        raise InputError(f"output={str(output)!r}: a report is a .html, .json or .csv file; try report.html.")
    folders = [given_folder(path) for path in paths]
    source = Source(require_runs(folders), baseline, target)
    title = f"normzoo: {', '.join(map(str, folders))}"
    files = list(dict.fromkeys((output, *map(output.with_suffix, beside))))
    for file in files:
        write(file, FORMATS[file.suffix](source, title), source)
    return Written(files, source.names, list(source.notes), source.comparison())


def write(path: Path, parts: Iterable[str], source: "Source") -> None:
    """Writes one file.

    Raises:
        InputError: there is nothing to show; it cannot be written.
    """
    try:
        with written_whole(path) as file:
            for part in parts:
                file.write(part.encode())
            if path.suffix != ".csv" and not source.shows_something():
                raise no_tables(source.found)
    except OSError as error:
        raise InputError(
            f"{path}: the report could not be written ({error.strerror or error}); choose another place with -o FILE."
        ) from error


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
        compared = self.comparison()
        return self.has_tables or bool(compared and (compared["metric"] or compared["cells"]["waiting"]))

    def all_outcomes(self) -> list[Outcome]:
        """What each run came to, after all have been read."""
        if len(self.outcomes) < len(self.found):
            for _ in self.logs():
                pass
        return list(self.outcomes.values())

    def comparison(self) -> dict[str, Any] | None:
        """The comparison of all runs; None if there is only one."""
        return comparison(self.all_outcomes(), self.baseline, self.target)


def html_file(source: Source, title: str) -> Iterator[str]:
    """The parts of a page."""
    data = ((name, run_data(name, log, MOST_STEPS_OF_CHANNELS)) for name, log in source.logs())
    many = len(source.found) > MANY
    runs = ((name, packed(without_details(run) if many else run)) for name, run in data)
    return html_page(title, runs, comparison=source.comparison)


def json_file(source: Source, title: str) -> Iterator[str]:
    """The parts of a JSON file, which has no title."""
    yield f'{{"version":{VERSION},"runs":['
    for i, (name, log) in enumerate(source.logs()):
        yield f"{',' if i else ''}\n{json_text(run_data(name, log))}"
    yield f'\n],"comparison":{json_text(source.comparison(), DIGITS)}}}\n'


def csv_file(source: Source, title: str) -> Iterator[str]:
    """The parts of a CSV file, which has no title."""
    yield csv_text(source.all_outcomes())


FORMATS = {".html": html_file, ".json": json_file, ".csv": csv_file}


def folders_in(runs: AnyPath | Sequence[AnyPath]) -> list[AnyPath]:
    """One path or several as a list."""
    return [runs] if isinstance(runs, str | os.PathLike) else list(runs)


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
