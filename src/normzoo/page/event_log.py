"""What the event files of a run say, brought up to date as often as one asks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.util.tensor_util import make_ndarray

from normzoo.page.event_file import EventFile, event_files
from normzoo.page.tables import Names, Series

PLUGIN = "normalization"
MARK = b"\x0a\x0d" + PLUGIN.encode()
"""The name of the plugin as it lies in a record with a table."""
RUN, VERDICTS = f"{PLUGIN}/run", f"{PLUGIN}/verdicts"


class EventLog:
    """The tables and scalars of a run.

    Args:
        folder: of the run, with one event file or several, if it was resumed.

    Attributes:
        series: tag -> table.
        scalars: tag -> step -> value.
        times: tag of a scalar -> step -> when it was written, in seconds.
        written: when each record was written.
        of_monitors: the tags of scalars that monitors wrote.
        about: the description of the run.
        verdicts: step -> verdicts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reset()

    def reset(self) -> None:
        """Forgets all that was read."""
        self.files: dict[str, EventFile] = {}
        self.series: dict[str, Series] = {}
        self.scalars: dict[str, dict[int, float]] = {}
        self.times: dict[str, dict[int, float]] = {}
        self.written: list[float] = []
        self.of_monitors: set[str] = set()
        self.about: dict[str, Any] = {}
        self.verdicts: dict[int, list[dict[str, Any]]] = {}
        self.names: dict[str, Names] = {}
        self.plugins: dict[str, str] = {}
        self.problems: dict[str, None] = {}

    def update(self) -> None:
        """Reads what was written since the last time; all anew if a file has become shorter or is gone."""
        sizes = {path.name: path.stat().st_size for path in event_files(self.folder)}
        if any(sizes.get(name, -1) < file.offset for name, file in self.files.items()):
            self.reset()
        for name in sizes:
            file = self.files.setdefault(name, EventFile(self.folder / name))
            if sizes[name] > file.offset:
                try:
                    for event in file.events():
                        self.add(event)
                except OSError as error:
                    self.note(f"{file.path}: it cannot be read ({error.strerror})")

    def note(self, problem: str) -> None:
        """Remembers something that cannot be read."""
        self.problems[problem] = None

    @property
    def notes(self) -> list[str]:
        """All that cannot be read, and why."""
        return [*self.problems, *(file.note for file in self.files.values() if file.note)]

    @property
    def last_step(self) -> int:
        """The largest step of all records; -1 if there is none."""
        steps = [max(series.records, default=-1) for series in self.series.values()]
        return max([*steps, *(max(points, default=-1) for points in self.scalars.values())], default=-1)

    def add(self, event: Event) -> None:
        """Adds a record of an event file."""
        if event.session_log.status == SessionLog.START:
            self.drop_from(event.step)
        self.written.append(event.wall_time)
        values = event.summary.value
        for value in values:
            self.plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
        with_table = any(self.plugins[value.tag] == PLUGIN for value in values)
        for value in values:
            if self.plugins[value.tag] == PLUGIN:
                self.add_own(event.step, value)
            elif value.HasField("simple_value") or self.plugins[value.tag] == "scalars":
                self.add_scalar(event.step, value)
                self.times.setdefault(value.tag, {})[event.step] = event.wall_time
                if with_table:  # a monitor writes all of a sample as one record
                    self.of_monitors.add(value.tag)

    def add_scalar(self, step: int, value: Summary.Value) -> None:
        """Adds a number, as this or another writer wrote it."""
        number = value.simple_value if value.HasField("simple_value") else float(make_ndarray(value.tensor).item())
        self.scalars.setdefault(value.tag, {})[step] = number

    def add_own(self, step: int, value: Summary.Value) -> None:
        """Adds a value with the name of this plugin."""
        try:
            content = value.metadata.plugin_data.content
            if value.tag == RUN:
                self.about = {**self.about, **object_of(content)}
            elif value.tag == VERDICTS:
                self.verdicts[step] = verdicts_of(json.loads(value.tensor.string_val[0]))
            else:
                self.add_table(step, value, content)
        except (ValueError, TypeError, IndexError, DecodeError) as error:
            self.note(f"{self.folder}: step {step}: skipped {value.tag}: {error}")

    def add_table(self, step: int, value: Summary.Value, content: bytes) -> None:
        """Adds a table, with the names that it has or that the one before it had.

        Raises:
            ValueError: it has no names, or others than rows and columns.
        """
        if content:
            names = Names.parse(content)
            if names != self.names.get(value.tag):
                self.names[value.tag] = names
        if value.tag not in self.names:
            raise ValueError("the record with the names of its rows and columns is missing")
        names, values = self.names[value.tag], make_ndarray(value.tensor).astype(np.float32, copy=False)
        if values.shape != (len(names.layers), len(names.metrics)):
            raise ValueError(f"{values.shape} values, {len(names.layers)} rows and {len(names.metrics)} columns")
        self.series.setdefault(value.tag, Series()).add(step, names, values)

    def drop_from(self, step: int) -> None:
        """Forgets a step and all after it: a resumed run writes them once more."""
        for series in self.series.values():
            series.drop_from(step)
        for curves in (self.scalars, self.times):
            for tag, points in curves.items():
                curves[tag] = {number: value for number, value in points.items() if number < step}
        self.verdicts = {number: several for number, several in self.verdicts.items() if number < step}


def holds_table(record: bytes) -> bool:
    """Whether a record has a value of this plugin."""
    if MARK not in record:  # almost always, and a hundred times as fast
        return False
    try:
        values = Event.FromString(record).summary.value
    except DecodeError:
        return False
    return any(value.metadata.plugin_data.plugin_name == PLUGIN for value in values)


def object_of(text: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("expected an object")
    return found


def verdicts_of(found: Any) -> list[dict[str, Any]]:
    """A list of verdicts.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(found, list) or not all(isinstance(one, Mapping) and "text" in one for one in found):
        raise ValueError("expected a list of verdicts")
    return found
