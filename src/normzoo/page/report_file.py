"""Runs as one file: a page for people, or JSON for programs."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normzoo.errors import InputError
from normzoo.page.bundle import html_page
from normzoo.page.event_log import EventLog
from normzoo.page.find import find_runs, walk
from normzoo.page.json_text import json_text
from normzoo.page.many_runs import MANY, without_details
from normzoo.page.packing import packed
from normzoo.page.run_data import run_data
from normzoo.runs.atomic import written_whole
from normzoo.runs.folders import existing

ROOT = Path("lightning_logs")
VERSION = 1
MOST_STEPS_OF_CHANNELS = 20  # in a page: its slider shows one step at a time
MOST_LOOKED_INTO = 2000  # folders, in search of runs that a message proposes

AnyPath = str | os.PathLike[str]


def report(runs: AnyPath | Sequence[AnyPath], output: AnyPath = "report.html") -> Path:
    """Writes a page that shows what the monitors measured in one run or several, or its data as JSON.

    The page is one file without any request to a server. It is written completely or not at all. A file that cannot
    be read to its end causes a warning.

        normzoo.page.report("lightning_logs/digits_mlp", "digits.html")

    Args:
        runs: the folder of a run, an experiment or any folder above, or several; of a run also by its number alone,
            as `lightning_logs/digits_mlp/7`.
        output: the file, with the suffix .html or .json; one that exists is replaced.

    Returns:
        The file.

    Raises:
        InputError: there are no runs, or none with monitors; a path is empty; the file has another suffix, or cannot
            be written.
    """
    given = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    written = write_report(given, Path(output))
    for note in written.notes:
        warnings.warn(note, stacklevel=2)
    return written.path


@dataclass
class Written:
    """A report that was written.

    Args:
        path: the file.
        runs: names of the runs in it.
        notes: what was left out, and why.
    """

    path: Path
    runs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_report(paths: Sequence[AnyPath], output: Path) -> Written:
    """Writes the report of all runs at and below paths.

    Raises:
        InputError: as `report` does.
    """
    if output.suffix not in (".html", ".json"):
        raise InputError(f"output={str(output)!r}: a report is a .html or a .json file; try report.html.")
    folders = [given_folder(path) for path in paths]
    found = require_runs(folders)
    written = Written(output)
    title = f"normzoo: {', '.join(map(str, folders))}"
    try:
        with written_whole(output) as file:
            parts = html_file if output.suffix == ".html" else json_file
            for part in parts(logs(found, written), title, len(found)):
                file.write(part.encode())
            if not written.runs:
                raise no_tables(found)
    except OSError as error:
        raise InputError(
            f"{output}: the report could not be written ({error.strerror or error}); choose another place with -o FILE."
        ) from error
    return written


def logs(found: Mapping[str, Path], written: Written) -> Iterator[tuple[str, EventLog]]:
    """Name and content of each run that has tables; adds to the runs and notes of a report."""
    for name, folder in found.items():
        log = EventLog(folder)
        try:
            log.update()
        except OSError as error:
            log.note(f"{folder}: it cannot be read ({error.strerror})")
        if log.series:
            written.runs.append(name)
            yield name, log
        else:
            log.note(f"skipped {name}: it has no tables of monitors")
        written.notes += log.notes


def html_file(runs: Iterable[tuple[str, EventLog]], title: str, count: int) -> Iterator[str]:
    """The parts of a page of so many runs."""
    data = ((name, run_data(name, log, MOST_STEPS_OF_CHANNELS)) for name, log in runs)
    return html_page(title, ((name, packed(without_details(run) if count > MANY else run)) for name, run in data))


def json_file(runs: Iterable[tuple[str, EventLog]], title: str, count: int) -> Iterator[str]:
    """The parts of a JSON file, which has no title, and all of any number of runs."""
    yield f'{{"version":{VERSION},"runs":['
    for i, (name, log) in enumerate(runs):
        yield f"{',' if i else ''}\n{json_text(run_data(name, log))}"
    yield "\n]}\n"


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
