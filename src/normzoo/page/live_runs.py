"""The runs below a folder while they train: which have tables, and what changed."""

import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from normzoo.page.comparison import comparison
from normzoo.page.event_file import EventFile, event_files
from normzoo.page.event_log import EventLog, holds_table
from normzoo.page.find import GRID, find_runs
from normzoo.page.json_text import json_text
from normzoo.page.outcome import Outcome, outcome
from normzoo.page.run_data import VERDICTS_FILE, run_data
from normzoo.runs.folders import FINISHED
from normzoo.runs.state import DIVERGED, FAILED

MOST_LOGS = 16


class LiveRuns:
    """The runs with tables below a folder. Of files that grow, only what was appended is read.

    Args:
        folder: of all runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, Path] = {}
        self.with_tables: set[Path] = set()
        self.searched: dict[Path, EventFile] = {}  # those in which no table was found yet
        self.outcomes: dict[str, tuple[str, Outcome]] = {}  # of the cells of a grid, with their versions
        self.logs: OrderedDict[Path, EventLog] = OrderedDict()  # the tables of a few runs, the newest last
        self.lock = threading.RLock()

    def any(self) -> bool:
        """Whether a run has tables."""
        with self.lock:
            return any(self.has_tables(run) for run in (*self.found.values(), *find_runs([self.folder]).values()))

    def versions(self) -> dict[str, str]:
        """Name -> a text that is another one as soon as there is something new, of all runs with tables."""
        with self.lock:
            found = find_runs([self.folder])
            self.found = {name: run for name, run in found.items() if self.has_tables(run)}
            return {name: version(run) for name, run in self.found.items()}

    def version(self, name: str) -> str | None:
        """The version of a run; None if there is no run of this name."""
        with self.lock:
            if name not in self.found:
                self.versions()
            run = self.found.get(name)
            return version(run) if run else None

    def text(self, name: str) -> str:
        """The JSON of a run of `versions`.

        Raises:
            OSError: it was deleted meanwhile.
        """
        with self.lock:
            return json_text(run_data(name, self.log(self.found[name])))

    def log(self, run: Path) -> EventLog:
        """What the event files of a run say now."""
        log = self.logs.pop(run, None) or EventLog(run)
        log.update()
        self.logs[run] = log
        if len(self.logs) > MOST_LOGS:
            self.logs.popitem(last=False)
        return log

    def comparison(self) -> dict[str, Any] | None:
        """The comparison of the cells of a grid; None for another folder, whose runs may have nothing in common."""
        if not (self.folder / GRID).is_file():
            return None
        with self.lock:
            cells = find_runs([self.folder])
            for name, run in cells.items():
                now = version(run)
                if name not in self.outcomes or self.outcomes[name][0] != now:
                    self.outcomes[name] = now, outcome(name, self.log(run))
            return comparison([self.outcomes[name][1] for name in cells])

    def has_tables(self, run: Path) -> bool:
        """Whether a run has tables, by what its files hold since the last time."""
        if run not in self.with_tables and any(map(self.finds_table, files_of(run))):
            self.with_tables.add(run)
        return run in self.with_tables

    def finds_table(self, path: Path) -> bool:
        """Whether there is a table in what was written to a file since the last time."""
        file = self.searched.setdefault(path, EventFile(path))
        try:
            return path.stat().st_size > file.offset and any(map(holds_table, file.read()))
        except OSError:
            return False


def files_of(run: Path) -> list[Path]:
    """The event files of a run; none if it was deleted meanwhile."""
    try:
        return event_files(run)
    except OSError:
        return []


def version(run: Path) -> str:
    """A checksum of sizes and times of what a run is read from."""
    facts = []
    for path in (*files_of(run), *(run / name for name in (VERDICTS_FILE, FINISHED, FAILED, DIVERGED))):
        try:
            status = path.stat()
        except OSError:
            continue
        facts.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return f"{zlib.crc32(repr(facts).encode()):08x}"
