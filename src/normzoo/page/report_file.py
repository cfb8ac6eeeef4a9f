"""Runs as one file: a page for people, JSON or CSV for programs."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normzoo.errors import InputError
from normzoo.page.bundle import DIGITS, html_page
from normzoo.page.csv_text import csv_text
from normzoo.page.json_text import json_text
from normzoo.page.many_runs import MANY, without_details
from normzoo.page.packing import packed
from normzoo.page.run_data import run_data
from normzoo.page.source import AnyPath, Source, given_folder, no_tables
from normzoo.runs.atomic import written_whole

VERSION = 1
MOST_STEPS_OF_CHANNELS = 20  # in a page: its slider shows one step at a time


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
    source = Source.of(folders_in(runs), baseline, target)
    if (compared := source.comparison) is None:
        raise InputError(f"{next(iter(source.found.values()))}: one run cannot be compared; give two or more.")
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
    source = Source.of(paths, baseline, target)
    title = f"normzoo: {', '.join(map(str, map(given_folder, paths)))}"
    files = list(dict.fromkeys((output, *map(output.with_suffix, beside))))
    for file in files:
        write(file, FORMATS[file.suffix](source, title), source)
    return Written(files, source.names, list(source.notes), source.comparison)


def write(path: Path, parts: Iterable[str], source: Source) -> None:
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


def html_file(source: Source, title: str) -> Iterator[str]:
    """The parts of a page."""
    data = ((name, run_data(name, log, MOST_STEPS_OF_CHANNELS)) for name, log in source.logs())
    many = len(source.found) > MANY
    runs = ((name, packed(without_details(run) if many else run)) for name, run in data)
    return html_page(title, runs, comparison=lambda: source.comparison)


def json_file(source: Source, title: str) -> Iterator[str]:
    """The parts of a JSON file, which has no title."""
    yield f'{{"version":{VERSION},"runs":['
    for i, (name, log) in enumerate(source.logs()):
        yield f"{',' if i else ''}\n{json_text(run_data(name, log))}"
    yield f'\n],"comparison":{json_text(source.comparison, DIGITS)}}}\n'


def csv_file(source: Source, title: str) -> Iterator[str]:
    """The parts of a CSV file, which has no title."""
    yield csv_text(source.all_outcomes())


FORMATS = {".html": html_file, ".json": json_file, ".csv": csv_file}


def folders_in(runs: AnyPath | Sequence[AnyPath]) -> list[AnyPath]:
    """One path or several as a list."""
    return [runs] if isinstance(runs, str | os.PathLike) else list(runs)
