"""The live table of a grid in a terminal: how many cells are done, what the running ones do, which failed."""

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from normzoo.compare.grid import Grid
from normzoo.compare.settings import shown
from normzoo.page.event_log import EventLog
from normzoo.page.settings import short_names
from normzoo.runs.state import ENDED, State, failure, state_of

COLOURS = {State.FAILED: "red", State.DIVERGED: "yellow", State.FINISHED: "green"}


class GridTable:
    """Shows a grid while it trains; in a file, prints a line for each cell that ends.

    Args:
        grid: the grid.
        names: the cells that were asked for.
        console: where to print; None for the standard output.
    """

    def __init__(self, grid: Grid, names: Sequence[str], console: Console | None = None) -> None:
        self.grid = grid
        self.console = console or Console()
        self.states = grid.states(names)
        self.stopped: dict[str, str] = {}
        self.logs: dict[str, EventLog] = {}
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.progress = Progress(TextColumn("{task.description}"), *columns, console=self.console)
        self.bar = self.progress.add_task("", total=len(names))
        self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "GridTable":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.live.stop()

    def end(self, name: str, problem: str = "") -> None:
        """Shows that a cell has ended, or that its process has, and why."""
        state = self.states[name] = state_of(self.grid.folder / name)
        if state not in ENDED:
            self.stopped[name] = problem
        self.logs.pop(name, None)
        if not self.console.is_terminal or state != State.FINISHED:
            self.print(name, problem)

    def print(self, name: str, problem: str = "") -> None:
        """Prints what became of a cell."""
        self.console.print(self.line(name, self.states[name], problem), highlight=False, soft_wrap=True)

    def line(self, name: str, state: State, problem: str) -> str:
        """What became of a cell, with its message."""
        message = failure(self.grid.folder / name).partition("\n")[0] or problem
        colour = COLOURS.get(state, "yellow")
        log = self.grid.folder / name / "log.txt"
        where = f" ({log})" if log.exists() else ""  # a cell that was refused has none
        why = f": {escape(message)}{where}" if message else ""
        return f"{name}  [{colour}]{state}[/]{why}"

    def render(self) -> Group:
        """All that is shown: counts, bar, the running cells."""
        waiting = [name for name, state in self.states.items() if state not in ENDED and name not in self.stopped]
        self.states |= self.grid.states(waiting)
        counts = Counter(self.states.values())
        words = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
        self.progress.update(self.bar, description=words, completed=sum(counts[state] for state in ENDED))
        running = [name for name in waiting if self.states[name] == State.RUNNING]
        room = max(self.console.height - 5, 3)
        return Group(self.progress, *([self.rows(running[:room])] if running else []))

    def rows(self, names: Sequence[str]) -> Table:
        """The running cells, each with its settings, its step and its newest values."""
        several = [key for key, given in self.grid.settings.items() if len(given) > 1 and key not in ("norm", "seed")]
        short = short_names(several)
        first, last = Column("cell", min_width=max(map(len, names))), Column("validation", no_wrap=True)
        table = Table(first, *(short[key] for key in several), "step", "loss", last, box=None, pad_edge=False)
        for name in names:
            cell = self.grid.cells[name]
            table.add_row(name, *(escape(shown(cell[key])) for key in several), *self.progress_of(name))
        return table

    def progress_of(self, name: str) -> tuple[str, str, str]:
        """Step, loss and validation metric of a running cell."""
        log = self.logs.setdefault(name, EventLog(self.grid.folder / name))
        log.update()
        steps = log.about.get("steps")
        step = f"{log.last_step}{f' of {steps}' if steps else ''}" if log.last_step >= 0 else "starting"
        loss = newest(log, "train/loss")
        metric = next((tag for tag in log.scalars if tag.startswith("val/") and tag != "val/loss"), "val/loss")
        value = newest(log, metric)
        return step, loss, f"{metric.removeprefix('val/')} {value}" if value else ""


def newest(log: EventLog, tag: str) -> str:
    """The last value of a scalar; empty if there is none."""
    points = log.scalars.get(tag)
    return f"{points[max(points)]:.4g}" if points else ""
