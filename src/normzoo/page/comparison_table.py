"""A comparison in the terminal: a table and sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normzoo.errors import printable
from normzoo.page.settings import NORM, short_names, shown
from normzoo.page.source import AnyPath, Source
from normzoo.page.words import numbers, quantity

Data = Mapping[str, Any]

MOST_ROWS = 24
WIDTH = 120  # where there is no terminal


def print_comparison(folders: Sequence[AnyPath], baseline: str | None = None, target: float | None = None) -> None:
    """Prints how the runs below folders compare; nothing if there is only one.

    Args:
        folders: as for `normzoo.page.report`.
        baseline: as for `normzoo.page.report`.
        target: as for `normzoo.page.report`.

    Raises:
        InputError: as `normzoo.page.report` does.
    """
    if data := Source.of(folders, baseline, target).comparison:
        show_comparison(data)


def show_comparison(data: Data, console: Console | None = None) -> None:
    """Prints a comparison.

    Args:
        data: as `comparison` makes it.
        console: where to; None for the standard output.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    if data["metric"] or any(arm["failures"] for arm in data["arms"]):
        console.print(table(data))
    for sentence in data["words"]:
        console.print(Text(printable(sentence)), soft_wrap=True)
    if (target := sensible_target(data)) is not None:
        text = f"--target={target:g} adds the steps to {data['target_metric']} {target:g}, about 95 % of the best."
        console.print(Text(text, style="dim"), soft_wrap=True)


def table(data: Data) -> Table:
    """A row for each arm; of many arms, for the best of each norm, if there are best ones."""
    every = data["arms"]
    best = [arm for arm in every if arm["best"]] if len(every) > MOST_ROWS else []
    arms = best or every[:MOST_ROWS]
    columns = dict(columns_of(data, "best_difference" if best else "difference"))
    which = f", the best of each norm against that of {data['baseline']}" if best else ""
    caption = None if len(arms) == len(every) else f"{len(arms)} of {len(every)} settings{which}; the report has all"
    found = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    for name in columns:
        found.add_column(Text(printable(name)), overflow="fold")
    for arm in arms:
        texts = [Text(printable(of(arm))) for of in columns.values()]
        found.add_row(*texts, style="bold" if arm["best"] and len(arms) > 1 else None)
    return found


def columns_of(data: Data, compared: str) -> Iterator[tuple[str, Any]]:
    """The columns: head, and the text of an arm. `compared` is the key of its difference to the baseline."""
    yield NORM, lambda arm: arm["norm"]
    for key, short in short_names([NORM, *data["axes"]]).items():
        if key != NORM:
            yield short, lambda arm, key=key: shown(arm["settings"][key])
    yield data["metric"] or "result", lambda arm: "-" if arm["mean"] is None else quantity(data, arm["mean"])
    yield "95 % interval", lambda arm: interval(data, arm)
    yield "seeds", lambda arm: f"{sum(value is not None for value in arm['values'])} of {arm['planned']}"
    yield f"against {data['baseline']}", lambda arm: against(data, arm[compared])
    if data["target"] is not None:
        yield f"steps to {data['target']:g}", steps
    if any(arm["failures"] for arm in data["arms"]):
        yield "failures", failures


def interval(data: Data, arm: Data) -> str:
    """The interval of a mean."""
    return "" if arm["low"] is None else " to ".join(numbers(data, arm["low"], arm["high"]))


def against(data: Data, found: Data | None) -> str:
    """A difference to the baseline."""
    if found is None:
        return ""
    mean, *ends = numbers(data, *(found[key] for key in ("mean", "low", "high") if found[key] is not None))
    return f"{'+' * (found['mean'] > 0)}{mean}" + (f" ({' to '.join(ends)})" if ends else "")


def steps(arm: Data) -> str:
    """The steps to the target."""
    found = arm["steps_to_target"]
    if not found or not found["of"]:
        return ""
    return "not reached" if found["median"] is None else f"{found['median']:g}"


def failures(arm: Data) -> str:
    """What failed and diverged."""
    found: Sequence[Data] = arm["failures"]
    count = {kind: sum(one["kind"] == kind for one in found) for kind in ("diverged", "failed")}
    steps = [one["step"] for one in found if one["kind"] == "diverged" and one["step"] is not None]
    at = f" from step {min(steps)}" if steps else ""
    return ", ".join(f"{number} {kind}{at * (kind == 'diverged')}" for kind, number in count.items() if number)


def sensible_target(data: Data) -> float | None:
    """A target to propose: 95 % of the best value, in two digits; None if there is one, or less is better."""
    best = [value for arm in data["arms"] if arm["best"] for value in arm["chosen_values"] if value is not None]
    if data["target"] is not None or data["mode"] != "max" or not best or max(best) <= 0:
        return None
    return float(f"{0.95 * max(best):.2g}")
